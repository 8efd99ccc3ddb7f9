"""Parts of messages and tables: an error's first line, the first few of many names, columns, CSV, renamed names."""

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
