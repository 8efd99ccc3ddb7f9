"""Features made by an encoder from a catalog, and kept in the cache.

Rows never shift: every table has one row per item, and an item whose image or text is missing or unreadable has a zero
row that `present` masks. Each modality is encoded by itself, with an encoder built for that modality alone. So a table
depends only on the encoder, its configuration, its precision and the items' content in that modality; its file is named
by a hash of these. Weights and images are compared with these hashes when they are loaded.

Work is saved shard by shard: after a kill, at most one shard is computed again, and the items that loader processes had
prepared ahead. Of the processes that torchrun starts, each claims the next free shard, so the shards' files are all
that they share: none waits for a dead one.

Shapes: I items, S items of a shard, D feature width.
"""

import dataclasses
import functools
import json
import logging
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from ..cache import fingerprint, home
from ..data.images import decoders
from ..data.items import (
    Prepared,
    Source,
    is_invisible,
    is_placeholder,
    loader,
    nothing_readable,
    reason_of,
    source_of,
)
from ..disk.hashing import hashed_anew
from ..disk.locks import Claims, locked
from ..disk.reading import check_readable, read_file
from ..disk.sealed import DamagedFile, load_tensors
from ..disk.temporaries import remove
from ..disk.writing import write_memo
from ..distributed import broadcast, is_first_process, join, processes
from ..errors import ConfigError, DataError, MMRecError, NoAccess, PluginError, RunError
from ..logs import progress_bar
from ..plugin.contracts import ItemEncoder
from ..plugin.registry import Registry
from ..plugin.specs import EncoderSpec, resolve
from ..typed_json import check_finite, decode, parse, plain
from ..types import FeatureTable, ItemCatalog, RunSpec, Tuned
from ..weights.formats import load_state
from .files import TableHeader, coverage, load_with_header, save_table
from .inference import Inference

logger = logging.getLogger(__name__)

FORMAT = 3  # raise it when the same encoder and items would give another table: it is part of every table's name
SHARD = 256  # items between two saves: what a kill can cost
REPORTED = 20  # unreadable items that the log names one by one

_T = TypeVar("_T")


@dataclass(frozen=True)
class EncodeOptions:
    """How an encoder is run. `dtype` changes features by more than rounding, the others don't."""

    device: torch.device | str = "cpu"
    batch_size: int = 64  # items computed at once, SHARD of them at most
    workers: int = 0  # processes that read and prepare items; 0: the one that computes does that too
    dtype: str = "float32"  # or bfloat16, float16: of the arithmetic; features are float32 always
    compile: bool = False  # torch.compile: a minute at first, then faster steps
    progress: bool = False  # a bar, where there is a terminal
    force: bool = False  # make tables again that are in the cache


def encoder_spec(spec: RunSpec, registry: Registry) -> EncoderSpec:
    """The spec of the run's encoder with class and function imported; PluginError names the plugin if that fails."""
    assert spec.encoder is not None
    load = registry.encoders.load
    return dataclasses.replace(
        registry.encoders.get(spec.encoder), cls=load(spec.encoder, "cls"), weights_id=load(spec.encoder, "weights_id")
    )


def encode(
    catalog: ItemCatalog,
    spec: EncoderSpec,
    config: Any,
    *,
    modalities: Sequence[str],
    text_fields: Sequence[str] = (),
    options: EncodeOptions | None = None,
    tuned: Tuned | None = None,
) -> dict[str, FeatureTable]:
    """The catalog's features by modality: from the cache if they are there, else encoded and cached.

    An item's text is its `text_fields` joined by a space; "joint" encodes the items that have image and text. Weights
    are the encoder's own, or those of `tuned`. Of the options only `dtype` enters a table's name: the others change a
    value by rounding at most. Which items lack an image or a text is logged, as is each image that can't be read, with
    its reason; these are tried again with other decoders. A damaged table is made again, with a warning.

    Raises ConfigError for a modality that the encoder lacks, DataError where no item has anything to encode that can be
    read, or where an image or a file of weights changed since it was hashed, WeightsMissing, PluginError where the
    encoder breaks its contract, and RunError where the machine fails: at reading an image, or for lack of memory.
    """
    options = options or EncodeOptions()
    encodes = spec.encodes(config)
    lacking = [modality for modality in modalities if modality not in encodes]
    if lacking:
        raise ConfigError(
            f"encoder {spec.name}: expected modalities among {', '.join(encodes)}, got {', '.join(lacking)}; "
            f"choose with --modalities, or give a feature file with --features {lacking[0]}=FILE.npy"
        )
    tables = {}
    for modality in modalities:
        source = source_of(catalog, modality, text_fields)
        path = table_path(source, spec, config, dtype=options.dtype, tuned=tuned.fingerprint if tuned else None)
        build = functools.partial(_inference, spec, config, modality, options, tuned)
        check_readable(path)
        if options.force:
            join(torch.device(options.device))
            if is_first_process():
                _remove(path)
            broadcast(None)  # no process may find the table before it is gone
        with nullcontext() if path.exists() or processes() > 1 else locked(path):  # to read no lock is needed
            found = _stored(path)
            if found is not None:
                logger.info("%s: features of %s found in the cache, %s", modality, spec.name, path)
                remove(path.with_suffix(".parts"))  # of a process that was killed just before its end
            else:
                _make(path, source, build, len(catalog), options)
                found = _load(path)
            table, header = _tried_again(path, source, *found, build)
        cost = _cost(path)
        tables[modality] = dataclasses.replace(table, seconds=cost.seconds, parameters=cost.parameters)
        _report(tables[modality], header.unreadable, catalog)
    if any(modality != "image" for modality in modalities):
        _report_texts(catalog, text_fields)
    return tables


def _inference(spec: EncoderSpec, config: Any, modality: str, options: EncodeOptions, tuned: Tuned | None) -> Inference:
    """The encoder of a modality, ready to run, with the weights of `tuned` if given."""
    encoder = build_encoder(spec, config, (modality,))
    if tuned:  # of image and text; an encoder of one modality may lack weights of the other
        state, own = load_tensors(tuned.path, sealed=False), encoder.state_dict()
        load_state(encoder, {key: state[key] for key in state if key in own}, source=tuned.path)
    if torch.device(options.device).type == "cuda" and options.dtype == "float32":
        _note_full_precision()
    return Inference(
        encoder, modality, name=spec.name, device=options.device,
        dtype=options.dtype, compile=options.compile, batch_size=options.batch_size,
    )  # fmt: skip


def _stored(path: Path) -> tuple[FeatureTable, TableHeader] | None:
    """The table at `path` and its header, if it is there as it was written; a damaged one is deleted with a warning."""
    if not path.exists():
        return None
    try:
        return _load(path)
    except DamagedFile as error:
        logger.warning("%s; it is made again", str(error).rpartition(";")[0])
    with locked(path) if processes() > 1 else nullcontext():
        with suppress(DamagedFile):  # another process may have made it again meanwhile
            return _load(path)
        path.unlink(missing_ok=True)
    return None


def _load(path: Path) -> tuple[FeatureTable, TableHeader]:
    """The table that `path` names and its header. DamagedFile where another table has been put there."""
    table, header = load_with_header(path)
    if header.fingerprint != _fingerprint(path, header.unreadable):
        raise DamagedFile(f"{path}: expected the table of that name, got {header.fingerprint}; try `encode --force`")
    return table, header


def _tried_again(
    path: Path, source: Source, table: FeatureTable, header: TableHeader, build: Callable[[], Inference]
) -> tuple[FeatureTable, TableHeader]:
    """The table and its header after other decoders than those before have tried the images that these couldn't read.

    Those that can be read are encoded, and the file is replaced.
    """
    if not header.unreadable or decoders() in header.decoders:
        return table, header
    with locked(path) if processes() > 1 else nullcontext():
        if processes() > 1:  # another process may have done it meanwhile
            table, header = _load(path)
            if decoders() in header.decoders:
                return table, header
        unreadable, readable = {}, []
        for item in map(int, header.unreadable):
            try:
                source.read(item)
                readable.append(item)
            except MMRecError:
                raise
            except Exception as error:  # decoders raise anything
                unreadable[str(item)] = reason_of(error, source.images[item])
        if readable:
            logger.info(
                "%s: %d of %d images that couldn't be read can be by %s; they are encoded",
                source.modality, len(readable), len(header.unreadable), decoders(),
            )  # fmt: skip
            model, values, present = build(), table.values.copy(), table.present.copy()
            for batch in sound(loader(source, model.encoder, model.name, _parts(readable), workers=0, pin=False)):
                values[batch.items] = model.fetched(model(batch.tensors))
            present[readable] = True
            table = FeatureTable(table.modality, values, present, _fingerprint(path, unreadable))
        tried = (decoders(),) if readable else (*header.decoders, decoders())
        header = dataclasses.replace(header, fingerprint=table.fingerprint, unreadable=unreadable, decoders=tried)
        with suppress(OSError, RunError, NoAccess):  # a cache that is full, or can't be written to
            save_table(path, table, encoder=header.encoder, unreadable=unreadable, decoders=tried)
    return table, header


def _parts(items: Sequence[int]) -> Iterator[list[int]]:
    """The items in parts of SHARD."""
    for start in range(0, len(items), SHARD):
        yield [*items[start : start + SHARD]]


def _fingerprint(path: Path, unreadable: Mapping[str, str]) -> str:
    """The fingerprint of the table at `path`: its name, and the items whose image the decoders couldn't read, as others
    may."""
    return path.stem if not unreadable else fingerprint([path.stem, sorted(unreadable, key=int)])


def _remove(path: Path) -> None:
    """Delete a table, and what is there of an unfinished one."""
    path.unlink(missing_ok=True)
    remove(path.with_suffix(".parts"))


@functools.cache
def _note_full_precision() -> None:
    """Log, once per process, what full precision costs on a GPU. It stays the default, since features depend on it."""
    logger.info(
        "encode_dtype: float32 is computed at full precision, without TF32; --encode_dtype=bfloat16 uses the GPU's "
        "fast units, and changes features in the third digit"
    )


def table_path(source: Source, spec: EncoderSpec, config: Any, *, dtype: str, tuned: str | None) -> Path:
    """The path of a modality's cached features, existing or not; `tuned` is a tuned encoder's fingerprint."""
    made_by = [FORMAT, *encoder_id(spec, config, source.modality), dtype, *([tuned] if tuned else [])]
    name = fingerprint([made_by, source.modality, source.fingerprint])
    return home() / "features" / f"{name}.safetensors"


@dataclass(frozen=True)
class TableCost:
    """What a table took: seconds, 0 if unknown, and the sizes of its encoder's parameters by name, None if unknown."""

    seconds: float = 0.0
    parameters: Mapping[str, int] | None = None


def _cost_file(path: Path) -> Path:
    """The file of the cost of the table at `path`. The table's own bytes must depend on its name alone."""
    return home() / "seconds" / path.stem


def _cost(path: Path) -> TableCost:
    """The cost of the table at `path`; earlier files hold the seconds alone."""
    file, cure = _cost_file(path), "the cost counts as unknown"
    if not os.path.lexists(file):
        return TableCost()
    try:
        found = parse(read_file(file, largest=10 << 20), where=str(file), cure=cure)
        found = found if isinstance(found, dict) else {"seconds": found}
        check_finite(found, where=str(file), cure=cure)
        return decode(TableCost, found, where=str(file), cure=cure)
    except DataError as error:
        logger.warning("%s", error)
        return TableCost()


def _report(table: FeatureTable, unreadable: Mapping[str, str], catalog: ItemCatalog) -> None:
    """Log which items are absent, and why those are that couldn't be read; DataError if none could be."""
    n_read = int(table.present.sum())
    if unreadable and not n_read:
        item, reason = next(iter(unreadable.items()))
        raise nothing_readable(catalog, table.modality, int(item), reason, len(unreadable))
    for item, reason in list(unreadable.items())[:REPORTED]:
        raw_id = catalog.raw_ids[int(item)]
        logger.warning(
            "%s of item %s is masked, unreadable: %s: %s", table.modality, raw_id, catalog.images[int(item)], reason
        )
    if len(unreadable) > REPORTED:
        logger.warning("%s of %d more items is masked, unreadable", table.modality, len(unreadable) - REPORTED)
    logger.info("%s", coverage(table, catalog))
    if len(unreadable) > n_read:
        logger.warning(
            "%s: most images can't be read, %d of %d; `data check` names causes",
            table.modality, len(unreadable), len(unreadable) + n_read,
        )  # fmt: skip


def _report_texts(catalog: ItemCatalog, text_fields: Sequence[str]) -> None:
    """Log how many items have a text that is no content: `data check` names them."""
    columns = {field: catalog.fields[field] for field in text_fields if field in catalog.fields}
    for what, is_so in (("say that there is none, such as 'nan'", is_placeholder), ("are invisible", is_invisible)):
        counts = {field: sum(map(is_so, column)) for field, column in columns.items()}
        if any(counts.values()):
            listed = ", ".join(f"{count} in {field}" for field, count in counts.items() if count)
            logger.warning("text: texts that %s, count as text: %s; `data check` names them", what, listed)


def encoder_id(spec: EncoderSpec, config: Any, modality: str) -> list[Any]:
    """All that an encoder's vectors of a modality depend on: its name, version, weights and configuration."""
    keys = {key: value for key, value in plain(config).items() if key != "weights"}  # a path, not content
    return [
        spec.name,
        spec.version,
        resolve(spec.weights_id)(config, modality),
        keys,
        *([spec.code] if spec.code else []),
    ]


def build_encoder(spec: EncoderSpec, config: Any, modalities: Sequence[str]) -> ItemEncoder:
    """The encoder for some modalities. Its random weights are the same in every process, and the caller's random state
    isn't changed. Its files are hashed whenever they are loaded: DataError if one isn't what named things before."""
    with hashed_anew():
        for modality in modalities:
            encoder_id(spec, config, modality)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            encoder: ItemEncoder = resolve(spec.cls)(config, tuple(modalities))
    for modality in modalities:
        if modality not in encoder.dims:
            raise PluginError(
                f"encoder {spec.name}: expected dims of {modality}, for which it was built, got {encoder.dims}"
            )
    return encoder


@dataclass(frozen=True)
class _Shard:
    """Some items (S,) of a table, and the file of their rows."""

    number: int
    items: np.ndarray
    path: Path

    @property
    def fingerprint(self) -> str:
        """Which rows these are, and of which table."""
        return f"{self.path.parent.stem} {self.path.stem}"


def _make(path: Path, source: Source, build: Callable[[], Inference], n_items: int, options: EncodeOptions) -> None:
    """Make the table at `path`, together with all other processes that make it; shards that exist are kept."""
    model = build()
    folder = path.with_suffix(".parts")
    shards = [
        _Shard(number, source.items[start : start + SHARD], folder / f"{start}-{SHARD}.safetensors")
        for number, start in enumerate(range(0, len(source.items), SHARD))
    ]
    with Claims(path) as claims:
        while not path.exists():
            missing = [shard for shard in shards if not shard.path.exists()]
            if missing and not _encode_free(missing, path, source, model, claims, options):
                claims.claim(missing[0].number, wait=True)  # until its holder has made it, or ended without
                claims.give_up(missing[0].number)
            elif not missing and claims.claim(len(shards), wait=True) and not path.exists():
                _assemble(path, source.modality, shards, n_items, model)


def _encode_free(
    shards: Sequence[_Shard],
    table: Path,
    source: Source,
    model: Inference,
    claims: Claims,
    options: EncodeOptions,
) -> bool:
    """Encode and save the missing shards that no other process is making; True if there were any."""
    cuda = model.device.type == "cuda"
    claimed: deque[_Shard] = deque()  # in the order in which the loader prepares them
    n_missing = sum(len(shard.items) for shard in shards)
    progress = _Progress(f"{model.name} {source.modality}", len(source.items), n_missing, options)

    def batches() -> Iterator[list[int]]:
        """The batches of each shard, claimed as late as possible: when the loader reaches it."""
        for shard in shards:
            if not claims.claim(shard.number) or shard.path.exists() or table.exists():
                claims.give_up(shard.number)
                progress.advance(len(shard.items), own=False)
                continue
            claimed.append(shard)
            for at in range(0, len(shard.items), options.batch_size):
                yield shard.items[at : at + options.batch_size].tolist()

    rows: list[np.ndarray] = []
    unreadable: dict[int, str] = {}
    with torch.cuda.device(model.device) if cuda else nullcontext(), progress:
        prepared = loader(source, model.encoder, model.name, batches(), workers=options.workers, pin=cuda)
        began = time.perf_counter()
        computed = ((model(batch.tensors), batch.unreadable) for batch in progress.waiting(sound(prepared)))
        # On a GPU one batch ahead: it computes the next rows while these are fetched and saved
        for features, reasons in _ahead(computed) if cuda else computed:
            rows.append(model.fetched(features))
            unreadable.update(reasons)
            progress.advance(len(rows[-1]))
            shard = claimed[0]
            if sum(map(len, rows)) == len(shard.items):
                _save_shard(claimed.popleft(), source.modality, rows, unreadable, time.perf_counter() - began)
                claims.give_up(shard.number)
                rows, unreadable, began = [], {}, time.perf_counter()
    return progress.done > 0


def sound(prepared: Iterable[Prepared | MMRecError]) -> Iterator[Prepared]:
    """The batches of the loader; raises the error of one of its processes."""
    batches = iter(prepared)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if re.match(r"DataLoader worker \(pid", str(error)):
                raise RunError(
                    f"a process that prepares items has died: {error}; finished shards are kept. Did memory run out, "
                    "or shared memory (/dev/shm)? Try fewer workers or a smaller encode_batch_size"
                ) from None
            raise
        if isinstance(batch, MMRecError):
            raise batch
        yield batch


def _ahead(results: Iterable[_T]) -> Iterator[_T]:
    """The same results, each yielded after the next has been requested."""
    held: list[_T] = []
    for result in results:
        yield from held
        held = [result]
    yield from held


class _Progress:
    """A bar with items, items per second and time left, and a last line in the log: where the time went."""

    def __init__(self, what: str, total: int, missing: int, options: EncodeOptions) -> None:
        self.what, self.workers, self.done = what, options.workers, 0
        shown = options.progress and is_first_process()
        self._bar = progress_bar(shown=shown, total=total, initial=total - missing, desc=what, unit=" items")
        self._started, self._waited = time.perf_counter(), 0.0

    def waiting(self, batches: Iterator[_T]) -> Iterator[_T]:
        """The batches; the time until each arrives is counted."""
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def advance(self, count: int, *, own: bool = True) -> None:
        """More items are encoded, by this process or by another."""
        self.done += count if own else 0
        self._bar.update(count)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._bar.close()
        if kind is None and self.done:
            seconds = time.perf_counter() - self._started
            share = self._waited / seconds
            logger.info(
                "%s: %s items in %.1f s, %.1f items/s; %.0f %% of the time waiting until items were read and prepared "
                "(workers: %d), %.0f %% computing%s",
                self.what, f"{self.done:,}", seconds, self.done / seconds, 100 * share, self.workers,
                100 * (1 - share), "; more workers would help" if share > 0.5 else "",
            )  # fmt: skip


def _save_shard(
    shard: _Shard, modality: str, rows: Sequence[np.ndarray], unreadable: Mapping[int, str], seconds: float
) -> None:
    present = np.array([int(item) not in unreadable for item in shard.items])
    table = FeatureTable(modality, np.concatenate(rows), present, shard.fingerprint)
    reasons = {str(item): reason for item, reason in unreadable.items()}
    save_table(shard.path, table, unreadable=reasons, decoders=[decoders()] if reasons else (), seconds=seconds)


def _assemble(path: Path, modality: str, shards: Sequence[_Shard], n_items: int, model: Inference) -> None:
    """One table of all shards, at `path`; their files are deleted. A damaged shard is deleted alone, with a warning.

    Besides the table, one shard is in memory.
    """
    values = np.empty((0, 0), np.float32)
    present = np.zeros(n_items, bool)  # (I,)
    unreadable: dict[str, str] = {}
    tried: set[str] = set()
    seconds = 0.0
    for shard in shards:
        try:
            part, header = load_with_header(shard.path)
            if header.fingerprint != shard.fingerprint:
                raise DamagedFile(f"{shard.path}: expected {shard.fingerprint}, got {header.fingerprint}; delete it")
        except DamagedFile as error:
            logger.warning("%s; it is made again", str(error).rpartition(";")[0])
            shard.path.unlink()
            return
        if not values.size:
            values = np.zeros((n_items, part.dim), np.float32)  # (I, D)
        values[shard.items[part.present]] = part.values[part.present]
        present[shard.items] = part.present
        if header.unreadable:
            tried = {*header.decoders} & tried if unreadable else {*header.decoders}
            unreadable |= header.unreadable
        seconds += header.seconds or 0.0  # older shards have none
    unreadable = {item: unreadable[item] for item in sorted(unreadable, key=int)}
    parameters = {name: parameter.numel() for name, parameter in model.encoder.named_parameters()}
    write_memo(_cost_file(path), json.dumps(plain(TableCost(round(seconds, 6), parameters))))
    table = FeatureTable(modality, values, present, _fingerprint(path, unreadable))
    save_table(path, table, encoder=model.name, unreadable=unreadable, decoders=sorted(tried))
    remove(path.with_suffix(".parts"))
