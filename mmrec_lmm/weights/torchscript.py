"""TorchScript archives, read as data: the program that such a file holds is never run.

OpenAI publishes CLIP as one. It is a zip: `data.pkl` pickles the tree of modules, `data/N` hold the tensors' bytes, and
the classes in `code/` name the parameters and buffers among a module's attributes. `torch.jit.load` would run that
code. Here the pickle may name modules, tensors, storages and the tags of lists, each of which becomes an inert
placeholder of this file; the tensors are built afterwards, within the bytes that the archive has.
"""

import ast
import io
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import DataError
from .archives import content_of

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LIST_TAGS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")
_MOST_MODULES = 100_000  # a module may occur twice, so a few bytes could otherwise describe 2^n of them


def is_torchscript(names: list[str]) -> bool:
    """True if a zip with these entries is a TorchScript archive; `torch.save` writes no code and no constants."""
    root = _root(names)
    return root is not None and f"{root}/constants.pkl" in names and any(n.startswith(f"{root}/code/") for n in names)


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers in an archive, under the names that `torch.jit.load(path).state_dict()` gives them.

    Tied parameters are one tensor. Raises DataError for a damaged archive and for one whose pickle names anything else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = _root(archive.namelist())
            tree = _Unpickler(io.BytesIO(content_of(archive, f"{root}/data.pkl")), path).load()
            storages = _Storages(archive, f"{root}/data")
            found = _tensors(tree, prefix="", names=_tensor_names(archive, f"{root}/code"), left=[_MOST_MODULES])
            return {name: storages.tensor(record) for name, record in found}
    except DataError:
        raise
    except Exception as error:  # what a damaged archive raises depends on where the damage is
        raise DataError(
            f"{path}: expected a TorchScript archive, got a damaged one ({type(error).__name__}: {error}); delete it "
            "and download it again"
        ) from None


def _root(names: list[str]) -> str | None:
    """The folder that has all of an archive's entries."""
    return next(
        (name.removesuffix("/data.pkl") for name in names if name.count("/") == 1 and name.endswith("/data.pkl")), None
    )


class _Storage(NamedTuple):
    dtype: torch.dtype
    key: str  # its bytes are the entry data/<key>


class _TensorRecord(NamedTuple):
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Module:
    """A module of the archive; each of its classes becomes a subclass."""

    name: ClassVar[str]  # of the class, as code/ has it
    attributes: Mapping[str, Any] = {}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.attributes = state


class _Unpickler(pickle.Unpickler):
    """Reads `data.pkl` into modules and records. Placeholders are new ones, so no pickle alters another's reading."""

    def __init__(self, file: io.BytesIO, path: Path) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> type | Callable[..., Any] | torch.dtype:
        if module.split(".")[0] == "__torch__":
            return type(name, (_Module,), {"name": f"{module}.{name}"})
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: _TensorRecord(storage, offset, size, stride)
        if module == "torch.jit._pickle" and name in _LIST_TAGS:
            return lambda value, *_: value
        if (module, name) == ("collections", "OrderedDict"):
            return lambda: {}
        raise DataError(
            f"{self._path}: expected a data.pkl of tensors and modules, got one that names {module}.{name}; nothing "
            f"was executed; don't use this file, download it again from its authors"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _device, _numel = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise ValueError(f"expected a storage, got {pid!r}")
        return _Storage(dtype, key)


def _tensor_names(archive: zipfile.ZipFile, code: str) -> dict[str, list[str]]:
    """Per class in code/, the names of its parameters and then of its buffers."""
    names: dict[str, list[str]] = {}
    for entry in archive.namelist():
        if not entry.startswith(f"{code}/") or not entry.endswith(".py"):
            continue
        module = ".".join(PurePosixPath(entry).relative_to(code).with_suffix("").parts)
        for statement in ast.parse(content_of(archive, entry)).body:
            if isinstance(statement, ast.ClassDef):
                lists = {
                    line.targets[0].id: ast.literal_eval(line.value)
                    for line in statement.body
                    if isinstance(line, ast.Assign)
                    and isinstance(line.targets[0], ast.Name)
                    and line.targets[0].id in ("__parameters__", "__buffers__")
                }
                names[f"{module}.{statement.name}"] = lists.get("__parameters__", []) + lists.get("__buffers__", [])
    return names


def _tensors(
    module: _Module, *, prefix: str, names: Mapping[str, list[str]], left: list[int]
) -> Iterator[tuple[str, _TensorRecord]]:
    left[0] -= 1
    if left[0] < 0:
        raise ValueError(f"more than {_MOST_MODULES:,} modules")
    for name in names.get(module.name, ()):
        record = module.attributes[name]
        if record is not None:  # an optional parameter that this module hasn't
            yield prefix + name, record
    for name, child in module.attributes.items():
        if isinstance(child, _Module):
            yield from _tensors(child, prefix=f"{prefix}{name}.", names=names, left=left)


class _Storages:
    """The bytes of an archive's tensors, each entry read once."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        self._archive = archive
        self._folder = folder
        self._read: dict[str, Tensor] = {}
        self._built: dict[_TensorRecord, Tensor] = {}

    def tensor(self, record: _TensorRecord) -> Tensor:
        if record not in self._built:
            self._built[record] = self._build(record)
        return self._built[record]

    def _build(self, record: _TensorRecord) -> Tensor:
        storage, offset, size, stride = record
        if len(size) != len(stride) or min((offset, *size, *stride)) < 0:
            raise ValueError(f"data/{storage.key}: no tensor has offset {offset}, size {size}, stride {stride}")
        flat = self._bytes(storage.key).view(storage.dtype)  # (numel,)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if 0 not in size and last >= len(flat):
            raise ValueError(f"data/{storage.key}: a tensor reaches to element {last} of {len(flat)}")
        return flat.as_strided(size, stride, offset)

    def _bytes(self, key: str) -> Tensor:
        if key not in self._read:
            entry = self._archive.getinfo(f"{self._folder}/{key}")
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"data/{key} is compressed, which TorchScript never does")
            content = bytearray(content_of(self._archive, entry))  # raises where the archive's checksum differs
            self._read[key] = (
                torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
            )
        return self._read[key]
