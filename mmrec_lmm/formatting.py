"""Parts of messages and tables: an error's first line, the first few of many names, what a foreign file is, columns,
CSV, what a terminal or a spreadsheet would take for a command, renamed names."""

import csv
import io
import re
import sys
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any


def first_line(error: BaseException) -> str:
    """The first line of an error's message, with the next where it ends with a colon; its type where it has none."""
    lines = [*filter(None, map(str.strip, str(error).splitlines())), ""]
    return (f"{lines[0]} {lines[1]}" if lines[0].endswith(":") else lines[0]).strip() or type(error).__name__


def first_few(names: Collection[Any], most: int = 5) -> str:
    """The first `most` names, separated by commas, and how many more there are."""
    listed = ", ".join(map(str, islice(names, most)))
    return f"{listed} and {len(names) - most} more" if len(names) > most else listed


def counted(number: int, noun: str) -> str:
    """1 row, 2 rows."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


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


def csv_text(
    rows: Iterable[Mapping[str, object]], *, separator: str = ",", columns: Iterable[str] = (), header: bool = True
) -> str:
    """Rows as CSV with a header of `columns` and all others that any row has; texts that a spreadsheet would run are
    defused. Without `header`, the rows continue a text that has it."""
    rows, text = list(rows), io.StringIO()
    names = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    writer = csv.writer(text, delimiter=separator, lineterminator="\n")
    if header:
        writer.writerow(map(defused, names))
    writer.writerows([defused(row.get(name, "")) for name in names] for row in rows)
    return text.getvalue()


_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def defused(cell: object) -> object:
    """A cell of CSV that a spreadsheet shows as it is: a text that it would take for a formula gets an apostrophe in
    front, by which spreadsheets mark text. Numbers stay numbers, also those that are text."""
    if not isinstance(cell, str) or not cell.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        return cell
    return cell if _NUMBER.fullmatch(cell) else f"'{cell}"


#: Control characters, which a terminal obeys, and those that turn the direction of writing around.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(text: str, keep: str = "\n\t") -> str:
    """A text that a terminal shows and doesn't obey: `?` for each control character but those of `keep`."""
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0] in keep else "?", text)
