"""Read files of pretrained weights, and load them into a module. Nothing in them is executed.

Shapes: P prefix rows, n and m sides of a grid of patches, D width.
"""

import argparse
import logging
import math
import pickle
import re
import zipfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..cache import check_readable
from ..errors import DataError
from ..formatting import first_few, foreign
from .torchscript import is_torchscript, read_torchscript

logger = logging.getLogger(__name__)

#: Keys under which training scripts save weights, in the order in which they are tried.
CONTAINERS = ("state_dict", "module", "model")
_AGAIN = "delete it and download it again"


@dataclass(frozen=True)
class LoadReport:
    """The keys of a checkpoint: loaded, left out, and missing."""

    used: tuple[str, ...]
    dropped: tuple[str, ...]  # in the file and not wanted
    missing: tuple[str, ...]  # optional and not in the file: they keep their initial values

    def summary(self) -> str:
        """One line for the log."""
        line = f"{len(self.used)} tensors loaded"
        if self.dropped:
            line += f", {len(self.dropped)} left out ({first_few(self.dropped)})"
        if self.missing:
            line += f", {len(self.missing)} not in the file, at their initial values ({first_few(self.missing)})"
        return line


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors in a file: safetensors, torch's own formats, or a TorchScript archive.

    Containers (`state_dict`, `module`, `model`) are opened, and a `module.` that all names begin with is cut off.
    Types stay as they are in the file. Tensors may be views of the file on the disk, which must then outlive them.
    Raises DataError for a file that is damaged, isn't a checkpoint, or holds more than data.
    """
    check_readable(path)
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from None
    if int.from_bytes(head[:8], "little") < 100_000_000 and head[8:9] == b"{":  # the bound is the format's own
        return _read_safetensors(path)
    if head.startswith(b"PK\x03\x04"):
        if is_torchscript(_entries(path)):
            return read_torchscript(path)
        return _opened(_torch_load(path, mmap=True), path)
    if head.startswith(b"\x80"):  # a pickle: torch's format until 1.5
        return _opened(_torch_load(path, mmap=False), path)
    raise DataError(f"{path}: expected a checkpoint, got {_what_it_is(head)}")


def load_state(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: Path | str,
    drop: Collection[str] = (),
    optional: Collection[str] = (),
) -> LoadReport:
    """Copy tensors into a module's parameters and buffers, each into the type that it has there.

    `drop` and `optional` are patterns (fnmatch) of keys: of the file's to ignore, of the module's that may be missing.
    Any other difference in keys or shapes raises DataError, which counts and names them, and leaves the module as it
    was.
    """
    own = module.state_dict()
    wanted = {key: tensor for key, tensor in state.items() if not _matches(key, drop)}
    used = tuple(key for key in wanted if key in own)
    absent = tuple(key for key in own if key not in wanted)
    missing = [key for key in absent if not _matches(key, optional)]
    unexpected = [key for key in wanted if key not in own]
    misshapen = [
        f"{key}: expected {tuple(own[key].shape)}, got {tuple(wanted[key].shape)}"
        for key in used
        if wanted[key].shape != own[key].shape
    ]
    problems = [
        f"{kind}: {len(found)} ({first_few(found)})"
        for kind, found in (("wrong shapes", misshapen), ("missing keys", missing), ("unexpected keys", unexpected))
        if found
    ]
    if problems:
        guess = ""
        if 2 * len(unexpected) > len(wanted) or 2 * len(missing) > len(own):
            guess = "; it looks like the checkpoint of another encoder"
        elif 2 * len(misshapen) > len(wanted):
            guess = "; it looks like the checkpoint of another size of this encoder"
        raise DataError(f"{source}: doesn't fit {type(module).__name__}: {', '.join(problems)}{guess}")
    module.load_state_dict({key: wanted[key] for key in used}, strict=False)
    return LoadReport(used=used, dropped=tuple(key for key in state if key not in wanted), missing=absent)


def interpolate_positions(table: Tensor, side: int, *, prefix: int, source: str) -> Tensor:
    """Learned positions (P + n * n, D) of another image size as (P + m * m, D), m being `side`: the prefix (of CLS) is
    kept, the grid interpolated bicubically. The same table if the size is the same. DataError, which begins with
    `source` (file and key), if the positions aren't a square grid."""
    rows, width = table.shape
    n = math.isqrt(max(rows - prefix, 0))
    if n == 0 or prefix + n * n != rows:
        raise DataError(f"{source}: expected a square grid of positions after {prefix} rows, got shape {(rows, width)}")
    if n == side:
        return table
    grid = table[prefix:].float().T.reshape(1, width, n, n)  # (1, D, n, n); bicubic has no half precision on CPUs
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)  # (1, D, m, m)
    return torch.cat([table[:prefix], grid.reshape(width, side * side).T.to(table.dtype)])  # (P + m * m, D)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return _without_module(load_file(path))
    except SafetensorError as error:
        raise DataError(f"{path}: expected safetensors, got a damaged or truncated file ({error}); {_AGAIN}") from None


def _torch_load(path: Path, *, mmap: bool) -> Any:
    """The content of a file of `torch.save`, if it is only data."""
    # Published checkpoints often hold the command line that they were trained with: plain attributes, no code.
    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # what a damaged file raises depends on where the damage is
        if isinstance(error, pickle.UnpicklingError):
            named = re.search(r"GLOBAL `?([\w.]+)", str(error))
            what = f"a pickle that names {named[1]}" if named else "a pickle that torch.save didn't write"
            raise DataError(
                f"{path}: expected tensors alone, got {what}: it may hold code, and nothing was executed. If you trust "
                f"its source, have its tensors alone saved as .safetensors; otherwise delete it"
            ) from None
        reason = str(error).strip().splitlines()
        raise DataError(
            f"{path}: expected a checkpoint of torch, got a damaged or other file ({type(error).__name__}: "
            f"{reason[0] if reason else 'no reason given'}); {_AGAIN}"
        ) from None


def _entries(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        raise DataError(
            f"{path}: expected a torch archive, got a truncated one: after {path.stat().st_size:,} bytes the end with "
            f"its table of contents is missing; {_AGAIN}"
        ) from None
    if not any(name.endswith("data.pkl") for name in names):
        raise DataError(
            f"{path}: expected a torch archive, got a zip of {first_few(names)}; unpack it and give the file inside"
        )
    return names


def _opened(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The tensors that a training script saved. Other content (epoch, arguments) is left out."""
    content = loaded
    for name in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: expected tensors by name, got a {type(content).__name__}")
    tensors = {
        key: value.detach() for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)
    }
    if not tensors:
        raise DataError(
            f"{path}: expected tensors by name, at the top or in {', '.join(CONTAINERS)}, got "
            f"{first_few([str(key) for key in content]) or 'nothing'}"
        )
    others = [str(key) for key in content if key not in tensors]
    if others:
        logger.debug("%s: left out what isn't a tensor: %s", path, first_few(others))
    return _without_module(tensors)


def _without_module(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names as they were before torch's wrappers for several GPUs put `module.` before each."""
    if not all(key.startswith("module.") for key in tensors):
        return tensors
    return {key.removeprefix("module."): tensor for key, tensor in tensors.items()}


def _what_it_is(head: bytes) -> str:
    if not head:
        return f"an empty file; {_AGAIN}"
    if known := foreign(head):
        return known
    return f"neither safetensors nor a file of torch: it begins with {head[:12]!r}"


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)
