"""What a pickle of weights may name beside tensors, and what each becomes: plain data, whatever it was.

Training scripts save numbers of NumPy, paths and command lines beside their weights. torch's restricted reader takes a
name only with an object to put in its place: here these are inert, so none of NumPy's or pathlib's code runs. Any
other name is refused, and some that torch would take, as a few bytes of them could fill the memory.
"""

import argparse
import pickletools
from collections.abc import Callable
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

#: Names that torch's reader takes, and that make much of little: buffers of any length, copies of repeated numbers.
_GROWING = frozenset(
    f"{module} {name}"
    for module, names in {
        "builtins": ("bytearray",),
        "__builtin__": ("bytearray",),
        "torch._utils": ("_rebuild_device_tensor_from_numpy", "_rebuild_device_tensor_from_cpu_tensor"),
    }.items()
    for name in names
)
#: Encodings of bytes, by which `_codecs.encode` could double its own result again and again.
_DOUBLING = frozenset(
    [
        "hex",
        "hex_codec",
        "base64",
        "base64_codec",
        "base_64",
        "uu",
        "uu_codec",
        "quopri",
        "quopri_codec",
        "quoted_printable",
        "quotedprintable",
    ]
)
_PLAIN = "biufc"  # kinds of NumPy's types that are numbers


class _Type:
    """A type of NumPy, as its pickle describes it: `numpy.dtype` is called with a code, then given a state."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def plain(self) -> np.dtype[Any] | None:
        """The type, where it is one of numbers; None for objects, texts and records."""
        if isinstance(self.code, bytes):
            self.code = self.code.decode("ascii")
        if not isinstance(self.code, str) or self.code[:1] not in _PLAIN:
            return None
        return np.dtype(f"{self.order if self.order in ('<', '>') else '='}{self.code}")


class Array:
    """An array of NumPy, as its pickle describes it."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def tensor(self) -> Tensor | None:
        """The array as a tensor; None where it holds anything but numbers. ValueError where the bytes don't fit."""
        _, shape, kind, fortran, content = self.state
        found = kind.plain() if isinstance(kind, _Type) else None
        if found is None or not isinstance(content, bytes):
            return None
        values = np.frombuffer(content, found).reshape(shape, order="F" if fortran else "C")
        return torch.from_numpy(np.ascontiguousarray(values.astype(found.newbyteorder("="))).reshape(shape))


def _scalar(kind: Any, content: Any = b"") -> Any:
    """The number that `numpy.core.multiarray.scalar` would make; None for another thing."""
    found = kind.plain() if isinstance(kind, _Type) else None
    if found is None or not isinstance(content, bytes) or len(content) != found.itemsize:
        return None
    return np.frombuffer(content, found)[0].item()


def _path(*parts: Any) -> str:
    return "/".join(map(str, parts))


def _array(*_: Any) -> Array:
    return Array()


def _dictionary(*_: Any) -> dict[Any, Any]:
    return {}  # a defaultdict without its factory


def _nothing(*_: Any) -> None:
    """A factory, which is named and never called."""


def grows(file: IO[bytes], pickles: int) -> str | None:
    """What the first `pickles` pickles of a file name that could make much of little; None where they don't, or are
    damaged. Nothing is built."""
    names, encodings = set(), set()
    try:
        for _ in range(pickles):
            for code, argument, _ in pickletools.genops(file):
                if code.name == "GLOBAL":
                    names.add(str(argument))
                elif isinstance(argument, str | bytes) and len(argument) < 20:
                    text = argument if isinstance(argument, str) else argument.decode("latin-1")
                    encodings.add(text.lower().replace("-", "_").replace(" ", "_"))
    except (ValueError, EOFError, KeyError, IndexError):  # the reader says what is wrong
        pass
    growing = names & _GROWING
    if "_codecs encode" in names and encodings & _DOUBLING:
        growing.add("_codecs encode")
    return min(growing).replace(" ", ".") if growing else None


def _substitutes() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    found: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (argparse.Namespace, "argparse.Namespace"),
        (frozenset, "builtins.frozenset"),
        (_dictionary, "collections.defaultdict"),
        (_Type, "numpy.dtype"),
        (Array, "numpy.ndarray"),
    ]
    for package in ("numpy.core.multiarray", "numpy._core.multiarray"):  # before NumPy 2, and since
        found += [(_scalar, f"{package}.scalar"), (_array, f"{package}._reconstruct")]
    for module in ("pathlib", "pathlib._local"):  # since Python 3.13
        kinds = ("Path", "PurePath", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
        found += [(_path, f"{module}.{kind}") for kind in kinds]
    return found + [(_nothing, f"builtins.{kind}") for kind in ("list", "dict", "int", "float", "str", "tuple", "bool")]


#: (what is put there, the name in the pickle), as `torch.serialization.safe_globals` takes them.
SUBSTITUTES = _substitutes()
