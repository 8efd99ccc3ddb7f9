"""All items of a catalog, prepared by an encoder and cached: an encoder in training reads them many times.

Decoding and scaling an image costs many times as much as reading its pixels back. So each tensor of `prepare` is kept
in an array file of all items, memory-mapped: rows come from the disk once, and then from the system's cache as far as
memory allows. The folder of these files is named by a hash of all that they depend on. It is made again where a file
isn't what was written, and where other decoders can read an image that couldn't be read.

Shapes: I items, B batch, L the longest of a key whose length varies.
"""

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..cache import fingerprint, home
from ..data.arrays import open_npy
from ..data.images import decoders
from ..data.items import bounded, item_texts, log_cut_texts, read_hashed, source_of
from ..disk.folders import new_folder
from ..disk.hashing import read_hash
from ..disk.reading import read_json
from ..disk.writing import write_json
from ..errors import DataError, MMRecError, NoAccess, PluginError, RunError
from ..machine import precision, to_device
from ..plugin.contracts import ItemEncoder
from ..plugin.specs import EncoderSpec
from ..typed_json import decode
from ..types import ItemCatalog, RawItem
from .array_folders import ABOUT, ArrayFile, ensure, what_differs
from .encoding import encoder_id

logger = logging.getLogger(__name__)

FORMAT = 2  # raise it when the same encoder and items would give other files
LARGEST_FROZEN = 4 * 2**30  # bytes of a catalog's output of frozen layers that are kept in memory
_READ_AT_ONCE = 32  # items that a loader process hands over together

_T = TypeVar("_T")


@dataclass(frozen=True)
class PreparedItems:
    """The tensors of `prepare` for all items, by key: (I, ...), or (I, L) with the items' own `lengths` (I,) where the
    length varies; and the items whose image can't be read."""

    arrays: Mapping[str, np.ndarray]
    lengths: Mapping[str, np.ndarray]
    unreadable: frozenset[int] = frozenset()

    def batch(self, items: np.ndarray, own: slice = slice(None)) -> dict[str, Tensor]:
        """The items (B,), or `own` rows of them, as a batch for the encoder, as long as the longest of all B."""
        tensors = {}
        for key, array in self.arrays.items():
            rows = array[items[own]]  # (b, ...), a copy in memory
            if key in self.lengths:
                rows = np.ascontiguousarray(rows[:, : self.lengths[key][items].max()])
            tensors[key] = torch.from_numpy(rows)
        return tensors


def prepared_items(
    catalog: ItemCatalog,
    spec: EncoderSpec,
    config: Any,
    encoder: ItemEncoder,
    *,
    text_fields: Sequence[str],
    workers: int = 0,
) -> PreparedItems:
    """All items of the catalog as `encoder` prepares them for its modalities: from the cache, or made and cached.

    An image that can't be read counts as missing: encoding the catalog logs it, and masks its row.
    Raises PluginError where `prepare` gives other tensors for one item than for another, DataError for an image that
    changed since it was hashed, RunError where the machine can't read one, or at a full disk.
    """
    modalities = sorted(encoder.dims)
    made_by = [encoder_id(spec, config, modality) for modality in modalities]  # the vocabulary is among its weights
    sources = [source_of(catalog, modality, text_fields) for modality in modalities]
    name = fingerprint([FORMAT, modalities, made_by, [source.fingerprint for source in sources]])
    folder = home() / "prepared" / name
    hashes = next((source.hashes for source in sources if source.modality != "text"), [None] * len(catalog))
    items = _Items(catalog, text_fields, modalities, bounded(encoder), hashes)

    def make() -> None:
        log_cut_texts(filter(None, items.texts), encoder, spec.name)
        _make(folder, items, workers=workers, padding=encoder.padding, name=spec.name)

    ensure(folder, why_again=lambda: _why_again(folder, items), make=make)
    return _read(folder, len(items))


@torch.no_grad()
def with_frozen_part(
    prepared: PreparedItems,
    encoder: ItemEncoder,
    items: np.ndarray,
    *,
    batch_size: int,
    device: torch.device,
    dtype: str,
) -> PreparedItems:
    """What the encoder's layers that aren't trained make of these items (N,), computed once, in memory; rows of other
    items are zero. `prepared` itself where all layers may be trained, or the result would exceed LARGEST_FROZEN bytes.

    The encoder, on `device`, is left in eval mode; `dtype` is that of its arithmetic.
    """
    encoder.eval()
    if prepared.lengths:  # items of like length together: a batch is as long as its longest
        items = items[np.argsort(sum(lengths[items] for lengths in prepared.lengths.values()), kind="stable")]
    arrays: dict[str, np.ndarray] = {}
    for start in range(0, len(items), batch_size):
        part = items[start : start + batch_size]
        batch = {key: to_device(rows, device) for key, rows in prepared.batch(part).items()}
        with precision(device, dtype):
            made = encoder.frozen_part(batch)
        if made is None:
            return prepared
        rows = {key: tensor.float().cpu().numpy() for key, tensor in made.items()}
        if not arrays:
            n_items = len(next(iter(prepared.arrays.values())))
            if sum(each[0].nbytes for each in rows.values()) * n_items > LARGEST_FROZEN:
                return prepared
            arrays = {key: np.zeros((n_items, *each.shape[1:]), np.float32) for key, each in rows.items()}
        for key, each in rows.items():
            arrays[key][part] = each
    return PreparedItems(arrays, {}, prepared.unreadable)


@dataclass(frozen=True)
class _About:
    """The name of a folder, the SHA-256 of each file in it, the items whose image can't be read, and by which
    decoders."""

    name: str
    sha256: Mapping[str, str]
    unreadable: tuple[int, ...]
    decoders: tuple[str, ...]


def _read_about(folder: Path) -> _About:
    cure = "delete the folder to make it again"
    return decode(_About, read_json(folder / ABOUT), where=str(folder / ABOUT), cure=cure)


def _why_again(folder: Path, items: "_Items") -> str:
    """Why a folder must be made again; empty if it needn't. Its files are read only if they changed since last time."""
    try:
        about = _read_about(folder)
        if differing := what_differs(folder, about.name, about.sha256):
            return differing
    except (MMRecError, OSError) as error:
        return str(error)
    if about.unreadable and decoders() not in about.decoders:
        if not all(items.read(item)[1] for item in about.unreadable):
            return f"{decoders()} can read images that couldn't be read"
        about = dataclasses.replace(about, decoders=(*about.decoders, decoders()))
        with contextlib.suppress(OSError, RunError, NoAccess):  # a cache that is full, or can't be written to
            write_json(folder / ABOUT, about)
    return ""


def _read(folder: Path, n_items: int) -> PreparedItems:
    """The prepared items in a folder; DataError names a damaged file."""
    cure = f"delete {folder} to make it again"
    arrays = {path.stem: open_npy(path, mode="r", cure=cure) for path in sorted(folder.glob("*.npy"))}
    paths = {path.stem: path for path in sorted((folder / "lengths").glob("*.npy"))}
    lengths = {key: np.array(open_npy(path, mode="r", cure=cure)) for key, path in paths.items()}
    for key, array in {**arrays, **{f"lengths/{key}": array for key, array in lengths.items()}}.items():
        if array.shape[:1] != (n_items,):
            raise DataError(f"{folder / key}.npy: expected {n_items} rows, got shape {array.shape}; {cure}")
    for key, array in lengths.items():
        longest = arrays[key].shape[1] if key in arrays and arrays[key].ndim == 2 else -1
        if array.dtype.kind not in "iu" or array.ndim != 1 or ((array < 0) | (array > longest)).any():
            raise DataError(f"{paths[key]}: expected the lengths of rows of {key}.npy, got others; {cure}")
    return PreparedItems(arrays, lengths, frozenset(_read_about(folder).unreadable))


def ahead(results: Iterable[_T]) -> Iterator[_T]:
    """The same results, each computed by a thread while its predecessor is in use."""
    waiting, end = iter(results), object()
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, waiting, end)
        while (result := following.result()) is not end:
            following = thread.submit(next, waiting, end)
            yield cast(_T, result)


_Item = tuple[dict[str, Tensor], bool] | MMRecError


class _Items(TorchDataset[_Item]):
    """Item id -> the tensors that `prepare` makes of what the item has of the modalities, and whether its image can't
    be read; or an error that ends the run."""

    def __init__(
        self,
        catalog: ItemCatalog,
        text_fields: Sequence[str],
        modalities: Sequence[str],
        prepare: Callable[[RawItem], dict[str, Tensor]],
        hashes: Sequence[str | None],
    ) -> None:
        nothing = len(catalog) * [None]
        self.texts = nothing if list(modalities) == ["image"] else item_texts(catalog, text_fields)
        self.images = nothing if list(modalities) == ["text"] else catalog.images
        self.background, self.prepare, self.hashes = catalog.background, prepare, hashes

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, item: int) -> _Item:
        try:
            image, unreadable = self.read(item)
        except MMRecError as error:  # returned, as a worker's exception would arrive with a traceback in its message
            return error
        return self.prepare(RawItem(item, image, self.texts[item] or "")), unreadable

    def read(self, item: int) -> tuple[Image.Image | None, bool]:
        """The item's image, and whether it has one that can't be read. DataError where it changed since it was hashed,
        RunError where the machine can't read it."""
        path = self.images[item]
        try:
            return (None if path is None else read_hashed(path, self.hashes[item], self.background)), False
        except MMRecError:
            raise
        except Exception:  # decoders raise anything; encoding the features has logged the reason
            return None, True


def _make(folder: Path, items: _Items, *, workers: int, padding: Mapping[str, int], name: str) -> None:
    """Write the files of all items; they appear together or not at all."""
    logger.info("%s: preparing %s items once for all epochs, in %s", name, f"{len(items):,}", folder)
    with new_folder(folder) as hidden:
        (hidden / "lengths").mkdir()
        hashes, unreadable = _write(hidden, items, workers=workers, padding=padding, name=name)
        write_json(hidden / ABOUT, _About(folder.name, hashes, unreadable, (decoders(),)))


def _write(
    folder: Path, items: _Items, *, workers: int, padding: Mapping[str, int], name: str
) -> tuple[dict[str, str], tuple[int, ...]]:
    """Write rows to their files as they come: a catalog may exceed memory. Only texts are held.

    Returns the SHA-256 of each file, and the items whose image can't be read.
    """
    texts: dict[str, list[np.ndarray]] = {}
    first: dict[str, np.ndarray] = {}
    unreadable: list[bool] = []
    hashes: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        files: dict[str, ArrayFile] = {}
        for prepared in _loader(items, workers):
            for one in prepared:
                if isinstance(one, MMRecError):
                    raise one
                tensors, bad = one
                unreadable.append(bad)
                rows = {key: np.ascontiguousarray(tensor.numpy()) for key, tensor in tensors.items()}
                for key, row in rows.items() if not first else ():
                    if row.ndim == 1 and row.dtype.kind in "iu":
                        texts[key] = []
                    else:
                        file = stack.enter_context((folder / f"{key}.npy").open("wb"))
                        files[key] = ArrayFile(file, row, len(items))
                first = first or rows
                _check_like(rows, first, varying=texts, encoder=name)
                for key, written in files.items():
                    written.write(rows[key].data)
                for key, known in texts.items():
                    known.append(rows[key])
        hashes = {f"{key}.npy": written.digest.hexdigest() for key, written in files.items()}
    for key, known in texts.items():
        lengths = np.array([len(ids) for ids in known])  # (I,)
        table = np.full((len(known), lengths.max()), padding.get(key, 0), dtype=known[0].dtype)  # (I, L)
        for row, ids in zip(table, known, strict=True):
            row[: len(ids)] = ids
        for file_name, array in ((f"{key}.npy", table), (f"lengths/{key}.npy", lengths)):
            np.save(folder / file_name, array)
            hashes[file_name] = read_hash(folder / file_name)
    return hashes, tuple(np.flatnonzero(unreadable).tolist())


def _loader(items: _Items, workers: int) -> DataLoader[_Item]:
    """Lists of some items' tensors, in the items' order."""
    return DataLoader(
        items,
        batch_size=_READ_AT_ONCE,
        collate_fn=list,
        num_workers=workers,
        # Forked workers share the items and the encoder, which would otherwise be copied into each
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        generator=torch.Generator(),  # its own, as the loader would otherwise draw from the caller's random state
    )


def _check_like(
    rows: Mapping[str, np.ndarray], first: Mapping[str, np.ndarray], *, varying: Mapping[str, object], encoder: str
) -> None:
    """PluginError unless an item has the first one's keys, types and shapes, but for lengths that may vary."""
    differs = rows.keys() != first.keys() or any(
        row.dtype != first[key].dtype
        or row.ndim != first[key].ndim
        or (key not in varying and row.shape != first[key].shape)
        for key, row in rows.items()
    )
    if differs:
        found, due = ({key: (str(row.dtype), row.shape) for key, row in each.items()} for each in (rows, first))
        raise PluginError(
            f"encoder {encoder}: prepare: expected {due} for each item, got {found} for one; only the length of 1-D "
            "integer tensors may vary"
        )
