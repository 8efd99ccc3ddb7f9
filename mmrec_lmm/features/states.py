"""Hidden states of a frozen encoder's layers for all items, encoded once: what a side network is trained on.

They are kept standardized, (state - mean) / deviation with both taken over the present items for each of a layer's
numbers, as towers whose norm comes before each block have states that grow with depth. Of n items no standardized value
exceeds the root of n, so float16 holds it. A number that all items share (an embedding's CLS) is 0.

A folder holds one modality, and is named by a hash of the feature table that the same encoder made of the same items.
So both are of the same items, and where other decoders read more images, both are made again.

Shapes: I items, P present ones, B batch, W width of a layer.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..cache import fingerprint, home
from ..data.arrays import open_npy
from ..data.items import loader, source_of
from ..disk.folders import new_folder
from ..disk.hashing import read_hash
from ..disk.reading import read_json
from ..disk.writing import write_json
from ..errors import ConfigError, DataError, MMRecError, NotApplicable, PluginError
from ..plugin.contracts import ItemEncoder
from ..plugin.specs import EncoderSpec
from ..typed_json import decode
from ..types import FeatureTable, ItemCatalog, RawItem
from .array_folders import ABOUT, ArrayFile, ensure, what_differs
from .encoding import EncodeOptions, build_encoder, sound
from .inference import Inference

logger = logging.getLogger(__name__)

FORMAT = 1  # raise it when the same encoder and items would give other files
AUTO = 7  # layers of a tower, the embeddings' among them, unless they are named
_ROWS_AT_ONCE = 1024  # in memory, of one layer
_SHARED = 1e-5  # of a number's mean: a deviation up to this is rounding

Layers = tuple[int, ...] | Literal["auto"]


@dataclass(frozen=True)
class HiddenStates:
    """The standardized states of chosen `layers` of a modality, (I, W) float16 each, zero for absent items; `depth` is
    the number of the encoder's blocks."""

    layers: tuple[int, ...]
    depth: int
    arrays: tuple[np.ndarray, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(array.shape[1] for array in self.arrays)

    @property
    def nbytes(self) -> int:
        """Bytes on the disk."""
        return sum(array.nbytes for array in self.arrays)


@dataclass(frozen=True)
class _About:
    """The name of a folder, the layers in it, of how many blocks, and the SHA-256 of each file."""

    name: str
    layers: tuple[int, ...]
    depth: int
    sha256: Mapping[str, str]


def hidden_states(
    catalog: ItemCatalog,
    spec: EncoderSpec,
    config: Any,
    table: FeatureTable,
    *,
    layers: Layers,
    text_fields: Sequence[str],
    options: EncodeOptions,
) -> HiddenStates:
    """The states of the items present in `table`, which the encoder made of the catalog: from the cache, or encoded and
    cached. `layers` are numbers of layers, 0 the embeddings; "auto": evenly spaced ones.

    Raises NotApplicable for an encoder without hidden states, ConfigError for a layer that it lacks, DataError for an
    image that can't be read any more, and what encoding features raises.
    """
    folder = states_folder(table, layers)

    def make() -> None:
        encoder = build_encoder(spec, config, (table.modality,))
        _make(folder, catalog, encoder, spec.name, table, layers, text_fields, options)

    ensure(folder, why_again=lambda: _why_again(folder, layers), make=make)
    return _read(folder, len(catalog))


def states_folder(table: FeatureTable, layers: Layers) -> Path:
    """The folder of the states that belong to a feature table, existing or not."""
    return home() / "states" / fingerprint([FORMAT, table.fingerprint, layers])


def evenly_spaced(depth: int) -> tuple[int, ...]:
    """At most AUTO layers of a tower of `depth` blocks, the embeddings (0) and the last block among them."""
    return tuple(sorted({*np.linspace(0, depth, AUTO).round().astype(int).tolist()}))


def _why_again(folder: Path, layers: Layers) -> str:
    """Why a folder must be made again; empty if it needn't."""
    try:
        about = _read_about(folder)
        due = evenly_spaced(about.depth) if layers == "auto" else layers
        if about.layers != due:
            return f"expected layers {_listed(due)}, got {_listed(about.layers)}"
        return what_differs(folder, about.name, about.sha256)
    except (MMRecError, OSError) as error:
        return str(error)


def _read_about(folder: Path) -> _About:
    cure = "delete the folder to make it again"
    return decode(_About, read_json(folder / ABOUT), where=str(folder / ABOUT), cure=cure)


def _read(folder: Path, n_items: int) -> HiddenStates:
    """The states in a folder; DataError names a damaged file."""
    about, cure = _read_about(folder), f"delete {folder} to make it again"
    arrays = []
    for layer in about.layers:
        path = folder / f"{layer}.npy"
        array = open_npy(path, mode="r", cure=cure)
        if array.dtype != np.float16 or array.shape[:1] != (n_items,) or array.ndim != 2:
            raise DataError(
                f"{path}: expected {n_items} rows of float16, got {array.dtype} of shape {array.shape}; {cure}"
            )
        arrays.append(array)
    return HiddenStates(about.layers, about.depth, tuple(arrays))


def _make(
    folder: Path,
    catalog: ItemCatalog,
    encoder: ItemEncoder,
    name: str,
    table: FeatureTable,
    layers: Layers,
    text_fields: Sequence[str],
    options: EncodeOptions,
) -> None:
    """Encode the present items' states, then standardize them; the files appear together or not at all.

    States wait for their mean in float32 files of the present items. One batch, and _ROWS_AT_ONCE rows, are in memory.
    """
    modality = table.modality
    source = source_of(catalog, modality, text_fields)
    items = source.items[table.present[source.items]]  # (P,)
    device = torch.device(options.device)
    widths = _widths(encoder.to(device).eval(), modality, device, name)
    depth = len(widths) - 1
    chosen = _chosen(layers, depth, modality=modality, encoder=name)
    watched = _Layers(encoder, modality, chosen, {modality: sum(widths[layer] for layer in chosen)})
    model = Inference(
        watched, modality, name=name, device=device,
        dtype=options.dtype, compile=False, batch_size=options.batch_size,
    )  # fmt: skip
    logger.info(
        "%s: hidden states of %s of %s items, layers %s of 0 to %d, are encoded once, into %s",
        name, modality, f"{len(items):,}", _listed(chosen), depth, folder,
    )  # fmt: skip
    batches = [items[at : at + options.batch_size].tolist() for at in range(0, len(items), options.batch_size)]
    prepared = loader(source, encoder, name, batches, workers=options.workers, pin=device.type == "cuda")
    with new_folder(folder) as hidden:
        raw = {layer: _raw(hidden, layer, len(items), widths[layer]) for layer in chosen}
        ends = np.cumsum([widths[layer] for layer in chosen])[:-1]
        at = 0
        for batch in sound(prepared):
            for item, reason in batch.unreadable.items():
                raise DataError(
                    f"{source.images[item]}: expected the {modality} of item {catalog.raw_ids[item]}, whose features "
                    f"are in the cache, got one that can't be read any more: {reason}; try `encode --force`"
                )
            rows = model.fetched(model(batch.tensors))  # (B, sum of W)
            for layer, part in zip(chosen, np.split(rows, ends, axis=1), strict=True):
                raw[layer][at : at + len(rows)] = part
            at += len(rows)
        hashes: dict[str, str] = {}
        place = np.full(len(catalog), -1)
        place[items] = np.arange(len(items))
        for layer in chosen:
            hashes |= _standardize(hidden, layer, raw.pop(layer), place)
        write_json(hidden / ABOUT, _About(folder.name, chosen, depth, hashes))


def _raw(folder: Path, layer: int, n_items: int, width: int) -> np.ndarray:
    """A file for a layer's states (P, W) as they are."""
    shape = (n_items, width)
    return np.lib.format.open_memmap(folder / f"raw-{layer}.npy", mode="w+", dtype=np.float32, shape=shape)


def _standardize(folder: Path, layer: int, raw: np.ndarray, place: np.ndarray) -> dict[str, str]:
    """Write a layer's standardized states, and its mean and deviation (2, W); `raw` (P, W) has the states, at the
    `place` (I,) of each item, -1 for absent ones. Its file is removed. Returns the SHA-256 of each file."""
    width = raw.shape[1]
    mean, square = np.zeros(width), np.zeros(width)
    parts = [slice(at, at + _ROWS_AT_ONCE) for at in range(0, len(raw), _ROWS_AT_ONCE)]
    for part in parts:
        mean += raw[part].sum(0, dtype=np.float64) / len(raw)
    for part in parts:
        square += ((raw[part] - mean) ** 2).sum(0) / len(raw)
    deviation = np.sqrt(square)
    deviation[deviation <= _SHARED * np.abs(mean)] = 0
    factor = np.divide(1, deviation, out=np.zeros(width), where=deviation > np.finfo(np.float32).tiny)
    with (folder / f"{layer}.npy").open("wb") as file:
        written = ArrayFile(file, np.zeros(width, np.float16), len(place))
        for at in range(0, len(place), _ROWS_AT_ONCE):
            places = place[at : at + _ROWS_AT_ONCE]
            rows = np.zeros((len(places), width), np.float16)
            rows[places >= 0] = (raw[places[places >= 0]] - mean) * factor
            written.write(rows.data)
    (folder / f"raw-{layer}.npy").unlink()
    constants = folder / f"constants-{layer}.npy"
    np.save(constants, np.stack([mean, deviation]).astype(np.float32))
    return {f"{layer}.npy": written.digest.hexdigest(), constants.name: read_hash(constants)}


class _Layers(ItemEncoder):
    """An encoder whose feature of a modality is the states of the `chosen` layers, side by side."""

    def __init__(self, encoder: ItemEncoder, modality: str, chosen: Sequence[int], dims: Mapping[str, int]) -> None:
        super().__init__()
        self.encoder, self.modality, self.chosen, self.dims = encoder, modality, chosen, dims

    def prepare(self, item: RawItem) -> dict[str, Tensor]:
        return self.encoder.prepare(item)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        layers = self.encoder.hidden_states(batch)[self.modality]
        return {self.modality: torch.cat([layers[layer].float() for layer in self.chosen], dim=1)}


@torch.inference_mode()
def _widths(encoder: ItemEncoder, modality: str, device: torch.device, name: str) -> tuple[int, ...]:
    """The width of each of an encoder's layers. NotApplicable if it has no hidden states."""
    prepared = encoder.prepare(RawItem(0, None, "a"))
    try:
        layers = encoder.hidden_states({key: rows[None].to(device) for key, rows in prepared.items()})[modality]
    except NotApplicable as reason:
        raise no_states(name, str(reason)) from None
    if not layers or any(rows.ndim != 2 or len(rows) != 1 for rows in layers):
        shapes = ", ".join(str(tuple(rows.shape)) for rows in layers) or "none"
        raise PluginError(f"encoder {name}: hidden_states: expected a vector per layer of one item, got {shapes}")
    return tuple(rows.shape[1] for rows in layers)


def _chosen(layers: Layers, depth: int, *, modality: str, encoder: str) -> tuple[int, ...]:
    """The numbers of the layers; ConfigError for one that the tower lacks."""
    if layers == "auto":
        return evenly_spaced(depth)
    if lacking := [layer for layer in layers if layer > depth]:
        raise ConfigError(
            f"ete.side_layers: expected layers of encoder {encoder}, whose tower of {modality} has {depth} blocks "
            f"(layers 0, the embeddings, to {depth}), got {lacking[0]}; try --ete.side_layers=auto"
        )
    return layers


def no_states(encoder: str, reason: str) -> NotApplicable:
    """The error where an encoder has no hidden states."""
    return NotApplicable(
        f"--ete.tune=side: expected an encoder with hidden states, got {encoder}: {reason}; try --ete.tune=full"
    )


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))
