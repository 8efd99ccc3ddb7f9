"""Feature tables: read from MMRec's .npy files, or made by an encoder from a catalogue and kept in the store.

Rows never shift: every table has one row per item, and an item whose image or text is missing or unreadable has a zero
row that `present` masks. Each modality is encoded by itself, with an encoder built for that modality alone, so that a
table depends on nothing but the encoder, its configuration and what the items hold of that modality; this is what its
file is named by. Work is saved shard by shard: after a kill, at most one shard is encoded again.

Shapes: I items, B batch, D feature width.
"""

import json
import logging
import math
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm import tqdm

from . import artifacts
from .contracts import ItemEncoder
from .errors import ConfigError, DataError, PluginError, did_you_mean
from .specs import EncoderSpec, resolve
from .types import FeatureTable, ItemCatalog, RawItem

logger = logging.getLogger(__name__)

FORMAT = 1  # raise it when the same encoder and items would give another table: it is part of every table's name
SHARD = 256  # items between two saves: what a kill can cost
CONTROLS = ("shuffled", "random", "none")
MISSED_IMAGES = "missed_img_itemIDs.csv"  # MMRec's list of items whose image feature is only the mean of the others


def read_feature_file(path: Path, *, modality: str, n_items: int) -> FeatureTable:
    """The table of a .npy file of any float type, as float32; a file of float32 is memory-mapped, not read.

    Absent are the items with an all-zero row, and for images those that MMRec's `missed_img_itemIDs.csv` beside the
    file names (there their row is the mean of the others; here it becomes zero). Raises DataError where the file is
    missing, damaged, pickled, holds NaN or infinity, or hasn't one row per item.
    """
    stored = _open_npy(path)
    if stored.ndim != 2 or stored.dtype.kind not in "fiu":
        raise DataError(f"{path}: shape {stored.shape} of {stored.dtype}; features are (items, width) numbers")
    if len(stored) != n_items:
        raise DataError(f"{path}: {len(stored)} rows, but the data set has {n_items} items; row i must be item i")
    values = stored if stored.dtype == np.float32 else np.empty(stored.shape, np.float32)
    finite, present = np.empty(n_items, bool), np.empty(n_items, bool)
    step = max(1, 2**24 // max(1, stored.shape[1]))  # rows of 64 MB: a mapped file never stands in memory whole
    for start in range(0, n_items, step):
        rows = slice(start, start + step)
        with np.errstate(over="ignore"):  # a float64 beyond float32's range becomes inf, which is reported below
            block = stored[rows].astype(np.float32, copy=False)
        finite[rows], present[rows] = np.isfinite(block).all(axis=1), block.any(axis=1)
        if values is not stored:
            values[rows] = block
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise DataError(f"{path}: NaN or infinity in {len(bad)} of {n_items} rows, first {_first(bad)}")
    missed = path.with_name(MISSED_IMAGES)
    if modality == "image" and missed.is_file():
        ids = _missed_items(missed, n_items)
        present[ids] = False
        values[ids] = 0  # copy on write: the file stays as it is
    return FeatureTable(modality, values, present, artifacts.fingerprint([artifacts.hash_file(path), present]))


def _open_npy(path: Path) -> np.ndarray:
    """The array in a .npy file, mapped copy-on-write; pickles are refused by name."""
    try:
        with path.open("rb") as file:
            start = file.read(6)
        if start[:1] == b"\x80":
            raise DataError(f"{path}: a pickle, which could run code when read; save the plain array with numpy.save")
        if start != b"\x93NUMPY":
            raise DataError(f"{path}: not a .npy file; save the array with numpy.save")
        return np.asarray(np.load(path, mmap_mode="c", allow_pickle=False))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        if "Python objects" in str(error):
            reason = "pickled Python objects, which could run code when read; save a plain array of numbers"
        else:
            reason = f"truncated or damaged ({error}); copy or download it again"
        raise DataError(f"{path}: {reason}") from None


def _missed_items(path: Path, n_items: int) -> np.ndarray:
    words = path.read_text().replace(",", " ").split()
    try:
        ids = np.array([float(word) for word in words if word.lower() != "itemid"])
    except ValueError as error:
        raise DataError(f"{path}: item ids are wanted ({error})") from None
    wrong = ids[(ids != np.floor(ids)) | (ids < 0) | (ids >= n_items)]
    if len(wrong):
        raise DataError(f"{path}: {_first(wrong)} is no item; ids are 0 to {n_items - 1}")
    return ids.astype(np.int64)


def save_table(path: Path, table: FeatureTable, **about: Any) -> Path:
    """Write a table atomically as safetensors; `about` is further plain data for the file's header."""
    header = {"modality": table.modality, "fingerprint": table.fingerprint} | artifacts.plain(about)
    arrays = {"values": np.ascontiguousarray(table.values), "present": np.ascontiguousarray(table.present)}
    metadata = {"about": json.dumps(header)}
    return artifacts.write_atomic(path, lambda temporary: save_file(arrays, temporary, metadata))


def export_table(path: Path, table: FeatureTable) -> Path:
    """Write a table as MMRec's .npy: (I, D) float32, rows of absent items zero, as `read_feature_file` expects."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a name, numpy would append its own suffix
            np.save(file, table.values)

    return artifacts.write_atomic(path, write)


def load_table(path: Path) -> FeatureTable:
    """The table in a file of `save_table`; DataError names a missing or damaged file."""
    return _load(path)[0]


def _load(path: Path) -> tuple[FeatureTable, dict[str, Any]]:
    """A table and the header of its file."""
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads(file.metadata()["about"])
            arrays = file.get_tensor("values"), file.get_tensor("present")
        return FeatureTable(about["modality"], *arrays, about["fingerprint"]), about
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: damaged feature table ({error}); delete it to have it made again") from None


def encode(
    catalog: ItemCatalog,
    spec: EncoderSpec,
    config: Any,
    *,
    modalities: Sequence[str],
    text_fields: Sequence[str] = (),
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = False,
) -> dict[str, FeatureTable]:
    """The catalogue's features by modality: from the store where they are, else encoded and stored.

    An item's text is its `text_fields` joined by a space. Batch size, workers and device don't enter a table's name:
    they change a value by rounding at most. Which items lack an image or a text is logged, as is each image that can't
    be read, with its reason. Raises ConfigError for a modality that the encoder lacks, DataError where no item has
    anything to encode, WeightsMissing, and PluginError where the encoder breaks its contract.
    """
    lacking = [modality for modality in modalities if modality not in spec.modalities]
    if lacking:
        raise ConfigError(
            f"encoder {spec.name} makes no {' or '.join(lacking)} features, only {', '.join(spec.modalities)}: "
            f"choose among these with --modalities, or give a feature file with --features {lacking[0]}=FILE.npy"
        )
    encoder_id = [FORMAT, spec.name, spec.version, resolve(spec.weights_id)(config), config]
    tables = {}
    for modality in modalities:
        source = _source(catalog, modality, text_fields)
        name = artifacts.fingerprint([encoder_id, modality, source.fingerprint])
        path = artifacts.home() / "features" / f"{name}.safetensors"
        with artifacts.locked(path):
            if path.exists():
                logger.info("%s: features of %s found in the store, %s", modality, spec.name, path)
            else:
                encoder = _build(spec, config, modality).to(device)
                shards = _encode_shards(source, encoder, spec.name, path, batch_size, workers, progress)
                _assemble(path, shards, len(catalog), spec.name)
        tables[modality], about = _load(path)
        for item, reason in about["unreadable"].items():
            logger.warning("%s of item %s is masked, unreadable: %s", modality, catalog.raw_ids[int(item)], reason)
        logger.info("%s", coverage(tables[modality], catalog))
    return tables


def coverage(table: FeatureTable, catalog: ItemCatalog) -> str:
    """One line for a log: how many items have the modality, and which are the first that don't."""
    absent = np.flatnonzero(~table.present)
    line = f"{table.modality}: {len(catalog) - len(absent)} of {len(catalog)} items have it"
    if len(absent):
        line += f"; {len(absent)} don't and are masked, first {_first([catalog.raw_ids[item] for item in absent])}"
    return line


def item_texts(catalog: ItemCatalog, fields: Sequence[str]) -> list[str]:
    """I texts: the named columns joined by a space, each run of white space one space; unknown columns are skipped."""
    columns = [catalog.fields[field] for field in fields if field in catalog.fields]
    if not columns:
        return [""] * len(catalog)
    return [" ".join(" ".join(parts).split()) for parts in zip(*columns, strict=True)]


def read_image(path: Path) -> Image.Image:
    """The image in a file, decoded, as RGB. Raises what its decoder raises, and where it is a decompression bomb."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            return image.convert("RGB")


@dataclass(frozen=True)
class _Source:
    """What a catalogue holds of one modality. `items` are the ids that have it, in the order of encoding."""

    modality: str
    items: np.ndarray
    fingerprint: str
    read: Callable[[int], RawItem]


def _source(catalog: ItemCatalog, modality: str, text_fields: Sequence[str]) -> _Source:
    if modality == "text":
        texts = item_texts(catalog, text_fields)
        # Longest first: texts of like length share a batch, so little is padded, and memory runs out early if at all
        order = np.argsort([-len(text) for text in texts], kind="stable")
        items = order[: sum(map(bool, texts))]
        nothing = f"no item has text in the fields {', '.join(text_fields)}; there are {', '.join(catalog.fields)}"
        source = _Source(modality, items, artifacts.fingerprint(texts), partial(_read_text, texts))
    elif modality == "image":
        items = np.flatnonzero([image is not None for image in catalog.images])
        files = [image for image in catalog.images if image is not None and image.is_file()]
        content = [[image is not None and image.is_file() for image in catalog.images], artifacts.hash_files(files)]
        nothing = "no item has an image"
        source = _Source(modality, items, artifacts.fingerprint(content), partial(_read_image, catalog.images))
    else:
        raise ConfigError(f"a catalogue holds images and texts, so no encoder can make {modality} features of it")
    if not len(items):
        others = "choose another modality with --modalities, or give a feature file"
        raise DataError(f"{modality} features can't be encoded, as {nothing}; {others}: --features {modality}=FILE.npy")
    return source


def _read_text(texts: Sequence[str], item: int) -> RawItem:
    return RawItem(item, None, texts[item])


def _read_image(paths: Sequence[Path | None], item: int) -> RawItem:
    path = paths[item]
    assert path is not None  # `_Source.items` holds none of these
    return RawItem(item, read_image(path), "")


class _Prepared(TorchDataset[tuple[int, dict[str, Tensor], str | None]]):
    """Item id -> the id, its tensors as the encoder prepares them, and why it couldn't be read, if so."""

    def __init__(self, source: _Source, prepare: Callable[[RawItem], dict[str, Tensor]]) -> None:
        self.source, self.prepare = source, prepare

    def __getitem__(self, item: int) -> tuple[int, dict[str, Tensor], str | None]:
        try:
            raw, reason = self.source.read(item), None
        except Exception as error:  # decoders raise anything; whatever it is, one bad image must not end the run
            raw, reason = RawItem(item, None, ""), f"{type(error).__name__}: {error}"
        return item, self.prepare(raw), reason


def _build(spec: EncoderSpec, config: Any, modality: str) -> ItemEncoder:
    """The encoder for one modality, ready to encode. Weights that it draws are the same in every process, and the
    caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        encoder: ItemEncoder = resolve(spec.cls)(config, (modality,))
    if modality not in encoder.dims:
        raise PluginError(f"encoder {spec.name}: its dims must name {modality}, for which it was built: {encoder.dims}")
    return encoder.eval()


def _encode_shards(
    source: _Source, encoder: ItemEncoder, name: str, path: Path, batch_size: int, workers: int, progress: bool
) -> list[tuple[np.ndarray, Path]]:
    """The items (S,) and the file of each shard, in the order of encoding; those that a kill spared are kept."""
    folder = path.with_suffix(".parts")
    starts = range(0, len(source.items), SHARD)
    shards = [(source.items[start : start + SHARD], folder / f"{start}-{SHARD}.safetensors") for start in starts]
    pending = [(items, part) for items, part in shards if not part.exists()]
    batches = [items[at : at + batch_size].tolist() for items, _ in pending for at in range(0, len(items), batch_size)]
    loader = iter(
        DataLoader(
            _Prepared(source, encoder.prepare),
            batch_sampler=batches,
            collate_fn=partial(_collate, padding=encoder.padding, name=name),
            num_workers=workers,
            generator=torch.Generator(),  # its own, as the loader would otherwise draw from the caller's random state
        )
    )
    done = len(source.items) - sum(len(items) for items, _ in pending)
    quiet = None if progress else True  # None: quiet when not a terminal
    with tqdm(
        total=len(source.items), initial=done, desc=f"{name} {source.modality}", unit=" items", disable=quiet
    ) as bar:
        for items, part in pending:
            rows, unreadable = [], {}
            for _ in range(math.ceil(len(items) / batch_size)):
                tensors, reasons = next(loader)
                rows.append(_forward(encoder, tensors, source.modality, name))
                unreadable.update(reasons)
                bar.update(len(rows[-1]))
            values, present = np.concatenate(rows), np.array([int(item) not in unreadable for item in items])
            save_table(part, FeatureTable(source.modality, values, present, path.stem), unreadable=unreadable)
    return shards


def _collate(
    samples: Sequence[tuple[int, dict[str, Tensor], str | None]], *, padding: Mapping[str, int], name: str
) -> tuple[dict[str, Tensor], dict[int, str]]:
    """One batch of what `_Prepared` gives: its tensors stacked, 1-D integers padded; and reasons by unreadable item."""
    prepared = [tensors for _, tensors, _ in samples]
    unreadable = {item: reason for item, _, reason in samples if reason is not None}
    return pad_and_stack(prepared, padding=padding, encoder=name), unreadable


def pad_and_stack(
    prepared: Sequence[Mapping[str, Tensor]], *, padding: Mapping[str, int], encoder: str
) -> dict[str, Tensor]:
    """One batch of B items' `prepare`: each key's tensors as (B, ...), 1-D integers padded to the longest.

    Raises PluginError, naming the encoder, where keys or shapes differ otherwise.
    """
    batch = {}
    for key in prepared[0]:
        tensors = [item[key] for item in prepared if key in item]
        shapes = {tuple(tensor.shape) for tensor in tensors}
        ragged = len(shapes) > 1 and (tensors[0].ndim != 1 or tensors[0].is_floating_point())
        if ragged or len(tensors) != len(prepared):
            raise PluginError(
                f"encoder {encoder}: prepare must give {key} for each item, and of one shape unless it is 1-D and "
                f"integer; it came for {len(tensors)} of {len(prepared)} items, with shapes {sorted(shapes)}"
            )
        batch[key] = pad_sequence(tensors, True, padding.get(key, 0)) if len(shapes) > 1 else torch.stack(tensors)
    return batch


@torch.inference_mode()
def _forward(encoder: ItemEncoder, batch: Mapping[str, Tensor], modality: str, name: str) -> np.ndarray:
    """The features (B, D) of one prepared batch, computed where the encoder's weights are."""
    device = next((tensor.device for tensor in encoder.parameters()), torch.device("cpu"))
    rows = encoder({key: tensor.to(device) for key, tensor in batch.items()})[modality].float().cpu().numpy()  # (B, D)
    expected = (len(next(iter(batch.values()))), encoder.dims[modality])
    if rows.shape != expected or not np.isfinite(rows).all():
        what = f"shape {rows.shape}" if rows.shape != expected else "NaN or infinity"
        raise PluginError(f"encoder {name}: {modality} features have {what}; finite rows of shape {expected} are due")
    return rows


def _assemble(path: Path, shards: Sequence[tuple[np.ndarray, Path]], n_items: int, encoder: str) -> None:
    """One table of all shards, at `path`; their files are deleted."""
    parts = [(items, *_load(part)) for items, part in shards]
    first = parts[0][1]
    values, present = np.zeros((n_items, first.dim), np.float32), np.zeros(n_items, bool)
    unreadable: dict[str, str] = {}
    for items, part, about in parts:
        values[items] = part.values * part.present[:, None]
        present[items] = part.present
        unreadable |= about["unreadable"]
    save_table(path, FeatureTable(first.modality, values, present, path.stem), encoder=encoder, unreadable=unreadable)
    shutil.rmtree(path.with_suffix(".parts"))


def mean_filled(table: FeatureTable) -> FeatureTable:
    """The table as MMRec would have it (`missing: mean`): absent items get the mean row of the others."""
    if table.present.all() or not table.present.any():
        return table
    mean = table.values[table.present].mean(axis=0, dtype=np.float64)
    values = np.where(table.present[:, None], table.values, mean.astype(np.float32))
    name = artifacts.fingerprint([table.fingerprint, "mean"])
    return FeatureTable(table.modality, values, np.ones_like(table.present), name)


def control_tables(tables: Mapping[str, FeatureTable], control: str, seed: int) -> dict[str, FeatureTable]:
    """Features that tell nothing of their item, to compare real ones with.

    shuffled: each item gets all rows of another item that has the same modalities, so that modalities still agree
    with each other, and only the link between items and content is cut; who is present stays as it is. random:
    Gaussian rows with each column's mean and deviation. none: zero rows and nothing present, so that any model runs,
    with its ids alone.
    """
    if control not in CONTROLS:
        raise ConfigError(
            f"unknown control {control}; there are {', '.join(CONTROLS)}{did_you_mean(control, CONTROLS)}"
        )
    if not tables:
        return {}
    sources = sorted((name, table.fingerprint) for name, table in tables.items())
    shuffled = _shuffled([tables[name].present for name, _ in sources], seed)
    controls = {}
    for name, table in tables.items():
        present = table.present
        if control == "shuffled":
            values = table.values[shuffled]
        elif control == "random":
            values = _random_like(table, seed)
        else:
            values, present = np.zeros_like(table.values), np.zeros_like(present)
        controls[name] = FeatureTable(name, values, present, artifacts.fingerprint([sources, name, control, seed]))
    return controls


def _shuffled(present: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """A random permutation (I,) of the items within each group that has the same modalities."""
    groups = np.stack(present, axis=1) @ (1 << np.arange(len(present)))  # (I,)
    permutation = np.arange(len(groups))
    rng = np.random.default_rng(seed)
    for group in np.unique(groups):  # at most 2 ** modalities
        members = np.flatnonzero(groups == group)
        permutation[members] = rng.permutation(members)
    return permutation


def _random_like(table: FeatureTable, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, *table.modality.encode()])  # independent of which other modalities there are
    known = table.values[table.present]
    values = np.zeros(table.values.shape, np.float32)
    values[table.present] = rng.standard_normal(known.shape, np.float32) * known.std(axis=0) + known.mean(axis=0)
    return values


def _first(ids: Sequence[Any] | np.ndarray, count: int = 5) -> str:
    """The first few ids, as text for a message."""
    return ", ".join(map(str, ids[:count])) + (", ..." if len(ids) > count else "")
