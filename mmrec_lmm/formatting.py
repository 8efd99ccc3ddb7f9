"""Parts of messages and tables: an error's first line, the first few of many names, what a foreign file is, columns,
CSV, renamed names."""

import csv
import io
import sys
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def first_few(names: Collection[Any], most: int = 5) -> str:
    """The first `most` names, separated by commas, and how many more there are."""
    listed = ", ".join(map(str, islice(names, most)))
    return f"{listed} and {len(names) - most} more" if len(names) > most else listed


#: How files of other kinds begin, and what they are called. The formats define these bytes.
_BEGINNINGS: Sequence[tuple[bytes, str]] = (
    (b"version https://git-lfs", "a pointer of Git LFS; run `git lfs pull` where it came from"),
    (b"\x93NUMPY", "an array of NumPy (.npy)"),
    (b"\x80", "a pickle, which can hold code"),
    (b"\x1f\x8b", "a file compressed by gzip; unpack it with gunzip"),
    (b"PK\x03\x04", "a zip archive (.zip, .npz, .xlsx)"),
    (b"PAR1", "a table in Parquet"),
    (b"\x89HDF", "a file of HDF5"),
    (b"BZh", "a file compressed by bzip2; unpack it with bunzip2"),
    (b"\xfd7zXZ", "a file compressed by xz; unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "a file compressed by zstd; unpack it with unzstd"),
    (b"SQLite format 3", "a database of SQLite"),
)
_PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<error")


def foreign(head: bytes) -> str | None:
    """What a file is that begins with `head` (some 100 bytes), if it is none of text in lines: its name, and the next
    step where there is one."""
    if not head:
        return "an empty file; copy or download it again"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_PAGE):
        return "a web page: the server sent an error or a login page; download it again in a browser"
    return next((name for start, name in _BEGINNINGS if head.startswith(start)), None)


def renamed(module: str, name: str, names: Mapping[str, str]) -> Any:
    """The object that a module's old name means, with a DeprecationWarning; for the module's `__getattr__`."""
    new = names[name]
    warnings.warn(f"{module}.{name} is now {new}; the next version drops the old name", DeprecationWarning, 3)
    return getattr(sys.modules[module], new)


def aligned(lines: Iterable[Sequence[str]], *, right: Sequence[bool], at_least: int = 0) -> list[list[str]]:
    """The cells of a table, each as wide as its column's widest; `right` marks the columns to align right."""
    lines = list(lines)
    widths = [max(at_least, *map(len, column)) for column in zip(*lines, strict=True)]
    return [
        [text.rjust(width) if end else text.ljust(width) for text, width, end in zip(line, widths, right, strict=True)]
        for line in lines
    ]


def csv_text(rows: Iterable[Mapping[str, object]]) -> str:
    """Rows as CSV with a header of all columns that any row has."""
    rows, text = list(rows), io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
