"""Arrays in .npy files, checked before anything is allocated.

A header says what an array is and how large: a damaged one may name more bytes than any machine has, or Python objects,
whose loading would run code.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from ..disk.reading import check_file
from ..errors import DataError, PluginError
from ..formatting import first_line, foreign

CURE = "copy or download it again"


def open_npy(path: Path, *, mode: Literal["c", "r"] = "c", cure: str = CURE) -> np.ndarray:
    """The array in a .npy file, mapped copy-on-write, or for reading alone. Pickles are refused by name.

    DataError names the file if it is missing, truncated, or its header is damaged; the `cure` ends the message.
    """
    check_header(path, cure=cure)
    try:
        return np.asarray(np.load(path, mmap_mode=mode, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise damaged(path, str(error), cure) from None


def check_header(path: Path, *, cure: str = CURE) -> tuple[int, ...]:
    """The shape that a .npy file's header gives, once it fits the file's size; errors as of `open_npy`."""
    size = check_file(path, cure)
    try:
        with path.open("rb") as file:
            return read_header(file, path, size, cure=cure)[0]
    except OSError as error:
        raise damaged(path, error.strerror or str(error), cure) from None


def read_header(
    file: IO[bytes], path: Path, size: int, *, cure: str = CURE
) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns are stored one by one, and type, of the array in an open .npy file of `size` bytes.

    The file is then read up to the numbers. Errors as of `open_npy`.
    """
    start = file.read(256)
    if not start.startswith(np.lib.format.MAGIC_PREFIX):
        got = foreign(start) or "another format"
        advice = "" if ";" in got else "; save the array with numpy.save"
        raise DataError(f"{path}: expected a .npy file, got {got}{advice}")
    file.seek(0)
    try:
        if np.lib.format.read_magic(file) == (1, 0):
            shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
        else:  # 3.0 differs only in the encoding of fields' names
            shape, by_columns, dtype = np.lib.format.read_array_header_2_0(file)
    except Exception as error:  # NumPy evaluates the header's text, which may be anything
        raise damaged(path, f"its header: {first_line(error)}", cure) from None
    if dtype.hasobject:
        raise DataError(
            f"{path}: expected an array of numbers, got pickled Python objects, which could run code when read; save a "
            "plain array of numbers"
        )
    if any(length < 0 for length in shape):
        raise damaged(path, f"its header has the shape {shape}", cure)
    needed, found = math.prod(shape) * dtype.itemsize, size - file.tell()
    if needed > found:
        raise damaged(path, f"its header promises {needed:,} bytes of numbers, it has {found:,}", cure)
    return shape, by_columns, dtype


def read_only(array: np.ndarray) -> np.ndarray:
    """The array as a plugin gets it: a view that refuses changes, as others read the same numbers."""
    view = array.view()
    view.flags.writeable = False
    return view


@contextmanager
def blaming_changes(owner: str) -> Iterator[None]:
    """A context for a plugin's code: a change of an array that is `read_only` is its fault."""
    try:
        yield
    except ValueError as error:
        if "read-only" not in str(error):
            raise
        raise PluginError(
            f"{owner}: expected it to leave its arguments as they are, got a change; try a copy"
        ) from error


def damaged(path: Path, reason: str, cure: str = CURE) -> DataError:
    """The error for a .npy file that isn't whole."""
    return DataError(f"{path}: expected an array of numbers, got a truncated or damaged file ({reason}); {cure}")
