"""Arrays in .npy files, checked before anything is allocated.

A header says what an array is and how large: a damaged one may name more bytes than any machine has, or Python objects,
whose loading would run code.
"""

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..cache import check_file
from ..errors import DataError
from ..formatting import foreign


def open_npy(path: Path, *, mode: Literal["c", "r"] = "c", cure: str = "copy or download it again") -> np.ndarray:
    """The array in a .npy file, mapped copy-on-write, or for reading alone. Pickles are refused by name.

    DataError names the file if it is missing, truncated, or its header is damaged; the `cure` ends the message.
    """
    check_header(path, cure=cure)
    try:
        return np.asarray(np.load(path, mmap_mode=mode, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path, str(error), cure) from None


def check_header(path: Path, *, cure: str = "copy or download it again") -> tuple[int, ...]:
    """The shape that a .npy file's header gives, once it fits the file's size; errors as of `open_npy`."""
    size = check_file(path, cure)
    try:
        with path.open("rb") as file:
            start = file.read(256)
            if not start.startswith(b"\x93NUMPY"):
                got = foreign(start) or "another format"
                advice = "" if ";" in got else "; save the array with numpy.save"
                raise DataError(f"{path}: expected a .npy file, got {got}{advice}")
            file.seek(0)
            try:
                shape, dtype = _header(file)
            except Exception as error:  # NumPy evaluates the header's text, which may be anything
                raise _damaged(path, f"its header: {error}", cure) from None
            left = size - file.tell()
    except OSError as error:
        raise _damaged(path, error.strerror or str(error), cure) from None
    if dtype.hasobject:
        raise DataError(
            f"{path}: expected an array of numbers, got pickled Python objects, which could run code when read; save a "
            "plain array of numbers"
        )
    if any(length < 0 for length in shape):
        raise _damaged(path, f"its header has the shape {shape}", cure)
    needed = math.prod(shape) * dtype.itemsize
    if needed > left:
        raise _damaged(path, f"its header promises {needed:,} bytes of numbers, it has {left:,}", cure)
    return shape


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:  # 3.0 differs only in the encoding of fields' names
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    return shape, dtype


def _damaged(path: Path, reason: str, cure: str) -> DataError:
    return DataError(f"{path}: expected an array of numbers, got a truncated or damaged file ({reason}); {cure}")
