"""The tensor files that we write: safetensors with a checksum in their metadata, verified whenever they are read.

The checksum is the SHA-256 of the whole file with 64 zeros in its own place, so no bit of the file is outside of it.
Files are read into memory, never mapped: another program that overwrites or cuts one changes nothing, and ends nothing.
Nothing here imports torch, unless it is given or asked for tensors of torch.

    file: 8 bytes, the length N of the header; N bytes of JSON; the tensors' bytes
"""

import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from ..errors import DataError
from ..typed_json import parse
from .faults import is_machines, machine_failed
from .reading import check_file

CHECKSUM = "sha256"  # its key in the metadata
_UNKNOWN = 64 * "0"
_TYPES = {  # of safetensors, with those of numpy, or None where numpy has none
    "F64": "<f8", "I64": "<i8", "U64": "<u8", "F32": "<f4", "I32": "<i4", "U32": "<u4", "F16": "<f2", "I16": "<i2",
    "U16": "<u2", "BF16": None, "I8": "|i1", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
_OF_TORCH = {  # names of torch's types
    "float64": "F64", "int64": "I64", "uint64": "U64", "float32": "F32", "int32": "I32", "uint32": "U32",
    "float16": "F16", "int16": "I16", "uint16": "U16", "bfloat16": "BF16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
STORED = frozenset(_OF_TORCH)  # the types that a file holds
_LONGEST_HEADER = 100_000_000  # bytes: the format's own limit
_AT_ONCE = 1 << 24  # bytes


class DamagedFile(DataError):
    """A file of ours whose content isn't what was written."""


def save_file(tensors: Mapping[str, Any], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays of numpy, or tensors of torch on the CPU, with a checksum. No copy of a contiguous one is made."""
    parts = {name: _bytes_of(tensor) for name, tensor in tensors.items()}
    order = sorted(
        parts, key=lambda name: (-_width(parts[name].kind), name)
    )  # so each begins at a multiple of its width
    about: dict[str, Any] = {"__metadata__": {**(metadata or {}), CHECKSUM: _UNKNOWN}}
    end = 0
    for name in order:
        part = parts[name]
        start, end = end, end + part.data.nbytes
        about[name] = {"dtype": part.kind, "shape": part.shape, "data_offsets": [start, end]}
    header = json.dumps(about, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        pieces: list[bytes | memoryview] = [len(header).to_bytes(8, "little"), header]
        for piece in [*pieces, *(parts[name].data for name in order)]:
            digest.update(piece)
            file.write(piece)
        place = _place_of_checksum(header)
        assert place is not None
        file.seek(8 + place)
        file.write(digest.hexdigest().encode())


def load_arrays(path: Path, *, sealed: bool = True) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays in a file, in one piece of memory, and its metadata. Raises DamagedFile, and OSError.

    Without `sealed`, a file may lack a checksum, as those of earlier versions do.
    """
    entries, metadata = _read(path, sealed=sealed)
    arrays = {}
    for name, (kind, shape, data) in entries.items():
        dtype = _TYPES[kind]
        if dtype is None:
            raise DamagedFile(f"{path}: {name}: expected a type of numpy, got {kind}")
        arrays[name] = data.view(dtype).reshape(shape)
    return arrays, metadata


def load_tensors(path: Path, *, sealed: bool = True) -> dict[str, Any]:
    """The tensors of torch in a file, in one piece of memory; the rest is as of `load_arrays`."""
    import torch  # here, as reading a run's numbers shouldn't import it

    entries, _ = _read(path, sealed=sealed)
    names = {kind: name for name, kind in _OF_TORCH.items()}
    tensors = {}
    for name, (kind, shape, data) in entries.items():
        dtype = getattr(torch, names[kind])
        tensors[name] = (torch.from_numpy(data).view(dtype) if data.nbytes else torch.empty(0, dtype=dtype)).reshape(
            shape
        )
    return tensors


def read_tensors(path: Path, *, framework: Literal["numpy", "torch"] = "numpy", cure: str) -> dict[str, Any]:
    """The arrays or tensors in a file of this or an earlier version. DataError, which ends with the `cure`, names a
    missing or damaged file."""
    if framework == "numpy":
        return read_arrays(path, cure=cure)[0]
    with _cured(path, cure):
        return load_tensors(path, sealed=False)


def read_arrays(path: Path, *, cure: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays in a file of this or an earlier version, and its metadata. Raises as `read_tensors`."""
    with _cured(path, cure):
        return load_arrays(path, sealed=False)


def read_metadata(path: Path, key: str, *, cure: str, default: Any = None) -> Any:
    """The JSON under a key of a file's metadata, or the default. DataError names a missing or damaged file, and one
    without the key where there is no default."""
    with _cured(path, cure), path.open("rb") as file:
        metadata = parse(_head(file, path).header, where=str(path), cure=cure).get("__metadata__", {})
        return value_of(metadata, key, path, cure=cure, default=default)


def value_of(metadata: Mapping[str, str], key: str, path: Path, *, cure: str, default: Any = None) -> Any:
    """The JSON under a key of the metadata of the file `path`; the rest is as of `read_metadata`."""
    text = metadata.get(key)
    if text is None and default is None:
        raise DataError(f"{path}: expected {key} in its header, got no such entry; {cure}")
    return default if text is None else parse(text, where=str(path), cure=cure)


@contextmanager
def _cured(path: Path, cure: str) -> Iterator[None]:
    check_file(path, cure)
    try:
        yield
    except (DamagedFile, OSError, AttributeError) as error:
        if isinstance(error, OSError) and is_machines(error):
            raise machine_failed(path, error) from None
        reason = str(error).removeprefix(f"{path}: ")
        raise DataError(f"{path}: expected a file of safetensors, got a damaged one ({reason}); {cure}") from None


def verify(path: Path, *, sealed: bool = True) -> None:
    """Raise what `load_arrays` raises of a file, without keeping more of it in memory than a piece."""
    with path.open("rb") as file:
        head = _head(file, path)
        while block := file.read(_AT_ONCE):
            head.digest.update(block)
    _compare(path, head.checksum, head.digest.hexdigest(), sealed=sealed)


def _read(path: Path, *, sealed: bool) -> tuple[dict[str, tuple[str, tuple[int, ...], np.ndarray]], dict[str, str]]:
    """The type, shape and bytes of each tensor, all in one piece of memory, and the metadata."""
    with path.open("rb") as file:
        head, at = _head(file, path), 0
        content = np.empty(head.size - 8 - len(head.header), np.uint8)
        while at < len(content) and (count := file.readinto(content.data[at : at + _AT_ONCE])):
            head.digest.update(content.data[at : at + count])
            at += count
        if at < len(content) or file.read(1):
            raise DamagedFile(f"{path}: expected {head.size:,} bytes, got another length: it changed while it was read")
    _compare(path, head.checksum, head.digest.hexdigest(), sealed=sealed)
    try:
        about = parse(head.header, where=str(path), cure="")
        metadata = about.pop("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise TypeError("metadata that isn't text")
        return dict(_entries(about, content)), metadata
    except (DataError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedFile(f"{path}: expected tensors, got a damaged header ({type(error).__name__}: {error})") from None


def _entries(
    about: Mapping[str, Any], content: np.ndarray
) -> Iterator[tuple[str, tuple[str, tuple[int, ...], np.ndarray]]]:
    for name, entry in about.items():
        kind, shape, (start, end) = entry["dtype"], tuple(map(int, entry["shape"])), entry["data_offsets"]
        if not 0 <= start <= end <= len(content) or min(shape, default=0) < 0:
            raise ValueError(f"{name} from byte {start} to {end} of {len(content)}")
        if math.prod(shape) * _width(kind) != end - start:
            raise ValueError(f"{name} of shape {shape} in {end - start} bytes")
        yield name, (kind, shape, content[start:end])


@dataclass(frozen=True)
class _Head:
    """What stands before a file's tensors: its header, the checksum there, and the digest so far."""

    size: int  # of the whole file, bytes
    header: bytes
    checksum: str | None
    digest: Any


def _head(file: BinaryIO, path: Path) -> _Head:
    """The head of a file that was just opened, which is then at its tensors. Raises DamagedFile."""
    size, start = os.fstat(file.fileno()).st_size, file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(size - 8, _LONGEST_HEADER):
        raise DamagedFile(
            f"{path}: expected a header and tensors, got {size:,} bytes, where the header alone is longer"
        )
    header, digest = file.read(length), hashlib.sha256(start)
    return _Head(size, header, _digest_header(header, digest), digest)


def _place_of_checksum(header: bytes) -> int | None:
    """Where the 64 digits stand in the header; None if there are none."""
    found = re.search(rb'"%s":"([0-9a-f]{64})"' % CHECKSUM.encode(), header)
    return found.start(1) if found else None


def _digest_header(header: bytes, digest: Any) -> str | None:
    """Add a header to a digest as it was before its checksum was known, and return the checksum."""
    place = _place_of_checksum(header)
    if place is None:
        digest.update(header)
        return None
    digest.update(header[:place] + _UNKNOWN.encode() + header[place + 64 :])
    return header[place : place + 64].decode()


def _compare(path: Path, expected: str | None, found: str, *, sealed: bool) -> None:
    if expected != found and (sealed or expected is not None):
        known = f"{expected[:12]}..." if expected else "in its metadata"
        raise DamagedFile(f"{path}: expected content of checksum {known}, got {found[:12]}...")


def _width(kind: str) -> int:
    """The bytes of a number."""
    dtype = _TYPES[kind]
    return 2 if dtype is None else np.dtype(dtype).itemsize


@dataclass(frozen=True)
class _Part:
    """The bytes of a tensor with its type and shape."""

    kind: str
    shape: list[int]
    data: memoryview


def _bytes_of(tensor: Any) -> _Part:
    if isinstance(tensor, np.ndarray):
        kind = next(name for name, dtype in _TYPES.items() if dtype and np.dtype(dtype) == tensor.dtype)
        return _Part(kind, [*tensor.shape], np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    torch = sys.modules["torch"]
    flat = tensor.detach().contiguous().reshape(-1)
    kind = _OF_TORCH[str(tensor.dtype).removeprefix("torch.")]
    data = flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)
    return _Part(kind, [*tensor.shape], data.data)
