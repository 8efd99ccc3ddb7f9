"""`images.tsv`: what became of each item's image, a row per item.

While images come in, rows are appended, each by one write after its image is in place: whenever the process ends, each
whole line is true. The last row of an item counts; closing the manifest keeps only that one.
"""

import csv
import io
import os
import time
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from types import TracebackType

from mmrec_lmm.cache import is_there, write_bytes
from mmrec_lmm.data.tables import read_table
from mmrec_lmm.errors import DataError
from mmrec_lmm.plugin.names import PATH_RULE, is_within

NAME = "images.tsv"
SYNC = 1.0  # seconds between flushes to the disk, for the case of a power cut


@dataclass(frozen=True)
class Row:
    """What became of the image of one item. Without one, `image` is empty and `reason` says why."""

    item: str  # the raw id
    image: str = ""  # the file under images/
    url: str = ""  # the address that was tried last, or the place in a folder or archive
    final_url: str = ""  # where redirects ended
    status: int = 0  # of HTTP; 0 without an answer
    bytes: int = 0  # of the file
    sha256: str = ""  # of the file
    width: int = 0  # pixels
    height: int = 0
    tries: int = 0  # requests, over all addresses
    reason: str = ""
    detail: str = ""


COLUMNS = tuple(field.name for field in fields(Row))
_NUMBERS = tuple(field.name for field in fields(Row) if field.type is int)


def read_manifest(path: Path) -> dict[str, Row]:
    """item -> its last row; empty without the file. A last line that was cut off isn't read."""
    if not is_there(path) or not path.stat().st_size:
        return {}
    table = read_table(path)
    if missing := [name for name in COLUMNS if name not in table.columns]:
        raise DataError(f"{path}: expected the column {missing[0]!r}, got {', '.join(table.columns)}; delete the file")
    rows: dict[str, Row] = {}
    for place, cells in enumerate(zip(*(table.columns[name] for name in COLUMNS), strict=True)):
        values = dict(zip(COLUMNS, cells, strict=True))
        if values["image"] and not is_within(values["image"]):
            raise DataError(f"{table.at(place)}: image: expected {PATH_RULE}, images/, got {values['image']!r}")
        try:
            rows[values["item"]] = Row(**values | {name: int(values[name]) for name in _NUMBERS})
        except ValueError:
            raise DataError(f"{table.at(place)}: expected whole numbers in {', '.join(_NUMBERS)}") from None
    return rows


class Manifest:
    """The rows of `images.tsv`, and the file open for more. As a context: closed at the end, whatever happens."""

    def __init__(self, path: Path) -> None:
        self.path = path
        _cut_torn_line(path)
        self.rows = read_manifest(path)
        self._file = path.open("ab", buffering=0)
        self._synced = time.monotonic()
        if not self.rows:
            self._file.truncate(0)
            self._file.write(_lines([COLUMNS]))

    def __enter__(self) -> "Manifest":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        os.fsync(self._file.fileno())
        self._file.close()
        write_bytes(self.path, _lines([COLUMNS, *map(astuple, self.rows.values())]))

    def add(self, row: Row) -> None:
        self.rows[row.item] = row
        self._file.write(_lines([astuple(row)]))
        if time.monotonic() - self._synced > SYNC:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()


def _lines(rows: Iterable[tuple[object, ...]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerows([" ".join(str(cell).replace("\0", " ").splitlines()) for cell in row] for row in rows)
    return text.getvalue().encode("utf-8", "replace")


def _cut_torn_line(path: Path) -> None:
    """Remove what a process that was killed wrote of its last line."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        end = kept = file.seek(0, os.SEEK_END)
        while kept:
            begin = max(0, kept - 4096)
            file.seek(begin)
            cut = file.read(kept - begin).rfind(b"\n")
            kept = begin + cut + 1
            if cut >= 0:
                break
        if kept < end:
            file.truncate(kept)
