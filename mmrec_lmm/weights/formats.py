"""Read files of pretrained weights, and load them into a module. Nothing in them is executed.

A file may hold weights as any training script saves them: in containers, under the prefixes of wrappers, with averaged
weights (EMA) beside them. What is taken off is logged.

Shapes: P prefix rows, n and m sides of a grid of patches, D width.
"""

import io
import json
import logging
import math
import pickle
import re
import warnings
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

from ..disk.reading import check_readable
from ..errors import DataError
from ..formatting import first_few, foreign
from .archives import content_of, entries
from .pickles import SUBSTITUTES, Array, grows
from .torchscript import is_torchscript, read_torchscript

logger = logging.getLogger(__name__)

#: Keys under which training scripts save weights, in the order in which they are tried.
CONTAINERS = ("state_dict", "module", "model", "model_state_dict")
#: Keys under which they save the exponential moving average of these.
AVERAGES = ("model_ema", "state_dict_ema", "ema_state_dict", "ema_model", "model_ema_state_dict", "ema")
#: What wrappers put before all names.
PREFIXES = ("module.", "model.", "_forward_module.", "net.", "network.")
#: What compiling, sharding and checkpointing put before the names of a part: no network calls a part so.
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_OPTIMIZER = ("optimizer", "optimizer_states", "optimizer_state_dict", "optim", "param_groups")
_PICKLES_OF_OLD = 5  # at the start of a file of torch's old format: its number, version, system, content, keys
_REPEATED = 2**26  # bytes that a tensor's shape may say beyond what its file holds: a number can be repeated
_DEEPEST = 4  # containers in one another
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


def read_checkpoint(path: Path, *, ema: bool = False) -> dict[str, Tensor]:
    """The tensors in a file: safetensors, torch's own formats, or a TorchScript archive.

    Containers (`CONTAINERS`) are opened, and the prefixes of wrappers (`PREFIXES`, `_orig_mod.` and others) cut off.
    `ema` takes the averaged weights (`AVERAGES`) instead of those beside them. Types stay as they are in the file.
    Tensors may be views of the file on the disk, which must then outlive them. Raises DataError for a file that is
    damaged, isn't a checkpoint, or holds more than data.
    """
    check_readable(path)
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from None
    if int.from_bytes(head[:8], "little") < 100_000_000 and head[8:9] == b"{":  # the bound is the format's own
        return _opened(_read_safetensors(path), path, ema=ema)
    if head.startswith(b"PK\x03\x04"):
        if is_torchscript(_entries(path)):
            return _opened(read_torchscript(path), path, ema=ema)
        return _opened(_torch_load(path, mmap=True), path, ema=ema)
    if head.startswith(b"\x80"):  # a pickle: torch's format until 1.5
        return _opened(_torch_load(path, mmap=False), path, ema=ema)
    raise DataError(f"{path}: expected a checkpoint, got {_what_it_is(path, head)}")


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
    wanted = {key: tensor for key, tensor in _under_own_prefix(state, own).items() if not _matches(key, drop)}
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
        if part := re.search(r"-\d{5}-of-(\d{5})\.", str(source)):
            guess = f"; it is one of {int(part[1])} parts: join them to one .safetensors file and name that"
        raise DataError(f"{source}: doesn't fit {type(module).__name__}: {', '.join(problems)}{guess}")
    parameters = {key for key, _ in module.named_parameters()}
    check_numbers({key: wanted[key] for key in used if key in parameters}, source=source)
    module.load_state_dict({key: wanted[key] for key in used}, strict=False)
    dropped = tuple(key for key in _under_own_prefix(state, own) if key not in wanted)
    return LoadReport(used=used, dropped=dropped, missing=absent)


def check_numbers(parameters: Mapping[str, Tensor], *, source: Path | str) -> None:
    """Raise DataError for NaN or infinity among a network's weights: all of its vectors would be NaN."""
    bad = [key for key, tensor in parameters.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise DataError(
            f"{source}: expected finite numbers, got NaN or infinity in {len(bad)} tensors ({first_few(bad)}): the "
            "training that saved it diverged, or it is damaged; name another file"
        )


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
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    except SafetensorError as error:
        raise DataError(f"{path}: expected safetensors, got a damaged or truncated file ({error}); {_AGAIN}") from None


def _torch_load(path: Path, *, mmap: bool) -> Any:
    """The content of a file of `torch.save`, if it is only data."""
    if (growing := _growing(path)) is not None:
        raise DataError(
            f"{path}: expected tensors and plain data, got a pickle that names {growing}, by which a few bytes could "
            "fill the memory: nothing was executed; have its tensors alone saved as .safetensors"
        )
    try:
        with torch.serialization.safe_globals(SUBSTITUTES), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of protocols and sparse tensors: what matters is an error
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


def _growing(path: Path) -> str | None:
    """What the pickles of a file of torch name that could make much of little."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            return grows(file, _PICKLES_OF_OLD)
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
        try:
            return next(filter(None, (grows(io.BytesIO(content_of(archive, name)), 1) for name in pickles)), None)
        except (zipfile.BadZipFile, OSError, ValueError):  # torch's reader says what is wrong
            return None


def _entries(path: Path) -> list[str]:
    try:
        names = [entry.filename for entry in entries(path)]
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


# What training scripts put around weights


def _opened(loaded: Any, path: Path, *, ema: bool) -> dict[str, Tensor]:
    """The tensors that a training script saved, under the network's own names. Other content (epoch, arguments) is left
    out."""
    content, averaged = _contained(loaded, path, ema=ema)
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: expected tensors by name, got a {type(content).__name__}")
    tensors = _tensors(content, path)
    if not tensors:
        keys = [str(key) for key in content]
        if any(key in _OPTIMIZER for key in keys):
            raise DataError(
                f"{path}: expected the tensors of a model, got the state of an optimizer ({first_few(keys)}); name the "
                "file of weights that was saved beside it"
            )
        raise DataError(
            f"{path}: expected tensors by name, at the top or in {', '.join(CONTAINERS)}, got "
            f"{first_few(keys) or 'nothing'}"
        )
    others = [str(key) for key in content if key not in tensors]
    if others:
        logger.debug("%s: left out what isn't a tensor: %s", path, first_few(others))
    tensors, within = _of_average(tensors, path, ema=ema and not averaged)
    if ema and not averaged and not within:
        names = [str(key) for key in loaded] if isinstance(loaded, Mapping) else []
        raise DataError(
            f"{path}: weights_ema: expected averaged weights ({', '.join(AVERAGES)}), got {first_few(names)}; leave "
            "the key out, or name another file"
        )
    lightning = isinstance(loaded, Mapping) and "pytorch-lightning_version" in loaded
    return _unwrapped(tensors, path, lightning=lightning)


def _contained(loaded: Any, path: Path, *, ema: bool) -> tuple[Any, bool]:
    """The innermost container, and whether it holds averaged weights."""
    content, averaged = loaded, False
    around: list[Any] = []
    for _ in range(_DEEPEST):
        if any(content is one for one in around):
            raise DataError(
                f"{path}: expected tensors by name, got a checkpoint that contains itself ({first_few(content)}); have "
                "its tensors alone saved as .safetensors"
            )
        around.append(content)
        if not isinstance(content, Mapping):
            break
        known = [name for name in AVERAGES if not averaged and isinstance(content.get(name), Mapping)]
        plain = [name for name in CONTAINERS if isinstance(content.get(name), Mapping)]
        others = plain or any(isinstance(value, Tensor) for value in content.values())
        if known and (ema or not others):
            logger.info("%s: the averaged weights (%s) are taken", path, known[0])
            content, averaged = content[known[0]], True
            continue
        if known:
            _note_average(path, known[0])
        if not plain:
            break
        content = content[plain[0]]
    return content, averaged


def _note_average(path: Path, name: str) -> None:
    logger.info(
        "%s: it also holds averaged weights (%s), which --encoder.weights_ema=true takes; the others are taken",
        path,
        name,
    )


def _tensors(content: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """The tensors and arrays of a container, by name."""
    found = {}
    for key, value in content.items():
        if isinstance(value, Array):
            try:
                value = value.tensor()
            except (ValueError, TypeError) as error:
                raise DataError(f"{path}: {key}: expected an array of numbers, got a damaged one ({error})") from None
        if isinstance(value, Tensor) and value.layout != torch.strided:
            raise DataError(
                f"{path}: {key}: expected a dense tensor, got a sparse one ({value.layout}); save it again with "
                ".to_dense()"
            )
        if isinstance(key, str) and isinstance(value, Tensor) and not value.is_meta:
            if value.nbytes > value.untyped_storage().nbytes() + _REPEATED:
                held = value.untyped_storage().nbytes()
                raise DataError(
                    f"{path}: {key}: expected a tensor of the bytes that the file holds, {held:,}, got one of "
                    f"{value.nbytes:,}; save it again with .contiguous()"
                )
            found[key] = value.detach()
    return found


def _of_average(tensors: dict[str, Tensor], path: Path, *, ema: bool) -> tuple[dict[str, Tensor], bool]:
    """The tensors without those of an average that stand among them as `model_ema.X`, or with `ema` those alone; and
    whether there are such."""
    prefix = next((f"{name}." for name in AVERAGES if any(key.startswith(f"{name}.") for key in tensors)), None)
    if prefix is None or all(key.startswith(prefix) for key in tensors):
        return tensors, False
    if ema:
        logger.info("%s: the averaged weights (%s) are taken", path, prefix.rstrip("."))
        return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}, True
    _note_average(path, prefix.rstrip("."))
    return {key: value for key, value in tensors.items() if not key.startswith(prefix)}, True


def _unwrapped(tensors: dict[str, Tensor], path: Path, *, lightning: bool) -> dict[str, Tensor]:
    """The names as they were before wrappers put their own before them. `lightning`: losses and metrics may stand
    beside the network, which are left out."""
    cut: list[str] = []
    names = {key: _WRAPPERS.sub("", key) for key in tensors}
    cut += sorted({f"{match}." for key in tensors for match in _WRAPPERS.findall(key)})
    while True:
        prefix = next((one for one in PREFIXES if all(name.startswith(one) for name in names.values())), None)
        if prefix is None and lightning:
            prefix = next((one for one in PREFIXES if any(name.startswith(one) for name in names.values())), None)
            if prefix is not None:
                beside = [key for key, name in names.items() if not name.startswith(prefix)]
                logger.info("%s: left out what isn't under %s: %s", path, prefix, first_few(beside))
                names = {key: name for key, name in names.items() if name.startswith(prefix)}
        if prefix is None:
            break
        cut.append(prefix)
        names = {key: name.removeprefix(prefix) for key, name in names.items()}
    if not cut:
        return tensors
    logger.info("%s: the prefix %s of wrappers is cut off its names", path, ", ".join(cut))
    if len(set(names.values())) < len(names):
        raise DataError(f"{path}: expected each name once, got one again without the prefixes {', '.join(cut)}")
    return {name: tensors[key] for key, name in names.items()}


def _under_own_prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The state under the prefix that all of a module's own names have, if only that makes it fit: a module may itself
    be called like a wrapper (`self.model = ...`)."""
    prefix = next(iter(own), "").partition(".")[0] + "."
    if prefix not in PREFIXES or not all(name.startswith(prefix) for name in own) or any(key in own for key in state):
        return state
    renamed = {f"{prefix}{key}": value for key, value in state.items()}
    return renamed if any(key in own for key in renamed) else state


def _what_it_is(path: Path, head: bytes) -> str:
    if not head:
        return f"an empty file; {_AGAIN}"
    if path.name.endswith(".index.json") and head.lstrip().startswith(b"{"):
        return f"the index of {_parts(path)}; join them to one .safetensors file and name that"
    if known := foreign(head):
        return known
    return f"neither safetensors nor a file of torch: it begins with {head[:12]!r}"


def _parts(path: Path) -> str:
    """How many files an index of sharded weights names."""
    try:
        listed = json.loads(path.read_bytes()[: 2**26])["weight_map"].values()
        return f"weights in {len(set(listed))} parts"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "weights in several parts"


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)
