"""Every table of text that is read: .inter, items.tsv, mappings, and what `data import` is given.

A line is a row: as many rows come out as lines went in, each with as many cells as the header, or a line is named.
Lines end at \\n or \\r\\n; a lone \\r is white space. Blank lines are skipped, and so is one separator too many at the
end of a line. A byte order mark at the start of a line isn't part of it. A first line `sep=;`, as Excel knows it, is
skipped; `find_separator` takes its word.

Engine: whole numbers by pandas' C parser, text by the csv module, both on blocks whose cells are counted first. Other
engines (docs/performance.md) are quicker by seconds on 20 million rows, and none names the line.
"""

import codecs
import contextlib
import csv
import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from ..disk.reading import check_file
from ..errors import ConfigError, DataError, did_you_mean
from ..formatting import foreign

#: How a double quote at the start of a cell is read. line: CSV quoting, which ends on its line, else the line is
#: refused. multiline: a quoted cell may hold line breaks. none: an ordinary character. lenient: as `line`, but
#: a quote that doesn't end on its line is ordinary where the number of cells then fits.
Quotes = Literal["line", "multiline", "none", "lenient"]

BLOCK = 2**24  # bytes read at once
SEPARATORS = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars", " ": "blanks", "::": "double colons"}
_INSTEAD = "\x1f"  # within the reader, for a separator that isn't one ASCII character
_LARGEST = 2**63
_MARKS = re.compile(rb"(^|\n)(?:\xef\xbb\xbf)+")  # byte order marks at the start of lines
_DECLARED = re.compile(rb'\s*"?sep=(\t|[!-/:-@|^~ ])"?[ \t,;]*\r?\n', re.IGNORECASE)

csv.field_size_limit(2**31 - 1)  # the module's own limit of 131,072 is less than some descriptions have


@dataclass(frozen=True)
class Table:
    """The columns of a file, by name, (N,) each: str objects, or int64. `lines[i]` is the file's line of row i."""

    path: Path
    columns: Mapping[str, np.ndarray]
    lines: Sequence[int] | np.ndarray

    def __len__(self) -> int:
        return len(self.lines)

    def at(self, row: int) -> str:
        """The place of a row, as messages begin with it."""
        return f"{self.path}, line {self.lines[row]}"


def read_table(
    path: Path,
    *,
    separator: str = "\t",
    names: Sequence[str] | None = None,
    quotes: Quotes = "lenient",
    encoding: str = "utf-8",
) -> Table:
    """All columns as text. The first line is the header, unless `names` are given: then it is a row.

    A column whose name is empty is kept under "". Raises DataError naming the line of a row with another number of
    cells, of bytes that aren't text, or of a quote that doesn't end; and a file that is no table by what it is.
    """
    reader = _Reader(path, separator, quotes, encoding)
    header = reader.header() if names is None else list(names)
    _require_distinct(path, header)
    pools: list[dict[str, str]] = [{} for _ in header]
    parts, lines = [[np.empty(0, object) for _ in header]], []
    for first, block in reader.blocks(skip_header=names is None):
        columns, numbers = reader.rows(block, first, len(header))
        lines.append(numbers)
        parts.append([_shared(column, pool) for column, pool in zip(columns, pools, strict=True)])
    arrays = map(np.concatenate, zip(*parts, strict=True))
    return Table(path, dict(zip(header, arrays, strict=True)), _joined(lines))


def read_integers(
    path: Path,
    columns: Sequence[str] | None = None,
    *,
    separator: str = "\t",
    not_a_number: str = "",
    times: Collection[str] = (),
) -> Table:
    """The named columns (default: all) as int64; other columns are counted, not read.

    Numbers may be written as 1.0 or 1e3 and have blanks around them. Columns of `times` may have any finite number, and
    are float64 where one isn't whole. Raises DataError as `read_table`, for a missing column, and for a cell that
    isn't a whole number between -2**63 and 2**63: `not_a_number` ends that message.
    """
    reader = _Reader(path, separator, "lenient", "utf-8")
    header = reader.header()
    wanted = list(header if columns is None else columns)
    _require_distinct(path, [name for name in header if name in wanted])
    places = [_place(path, name, header, separator) for name in wanted]
    parts = [[np.empty(0, np.int64) for _ in wanted]]
    lines, faults = [], [_Fault(fractions=name in times) for name in wanted]
    for first, block in reader.blocks(skip_header=True):
        numbers = reader.plain_integers(block, first, len(header), places)
        rows: Sequence[int] | np.ndarray
        if numbers is not None:
            rows = range(first, first + block.count(b"\n"))
        else:
            cells, rows = reader.rows(block, first, len(header))
            numbers = [fault.read(cells[place], rows) for fault, place in zip(faults, places, strict=True)]
        lines.append(rows)
        parts.append(numbers)
    n_rows = sum(map(len, lines))
    for name, fault in zip(wanted, faults, strict=True):
        if fault.count:
            whole = fault.cell.lstrip("+-").isdecimal()
            expected = (
                "a number below 2**63"
                if whole
                else "a number, such as seconds since 1970"
                if name in times
                else "an integer"
            )
            hint = "; is the file truncated?" if fault.cell == "" else ""
            if not hint and not whole and name not in times:
                hint = not_a_number
            raise DataError(
                f"{path}, line {fault.line}: {name}: expected {expected}, got {fault.cell!r} "
                f"({fault.count:,} such rows of {n_rows:,}){hint}"
            )
    arrays = map(np.concatenate, zip(*parts, strict=True))
    return Table(path, dict(zip(wanted, arrays, strict=True)), _joined(lines))


def first_cells(path: Path, *, separator: str, quotes: Quotes = "lenient", encoding: str = "utf-8") -> list[str]:
    """The cells of a table's first line."""
    return _Reader(path, separator, quotes, encoding).header()


def find_separator(path: Path, *, encoding: str = "utf-8") -> str:
    """The separator of a table by its first lines: the one of a line `sep=;`, else that which gives them one number of
    cells, a tab before others.

    Raises DataError where none does, or several.
    """
    reader = _Reader(path, "\t", "none", encoding)
    lines = reader.first_lines(20)
    if reader.declared:
        return reader.declared
    counts = {one: {len(_split(line, one)[0]) for line in lines} for one in "\t,;|" if one in lines[0]}
    steady = [one for one, found in counts.items() if len(found) == 1]
    if len(steady) > 1 and steady[0] != "\t":
        got = " and ".join(SEPARATORS[one] for one in steady)
        raise DataError(
            f"{path}: expected one separator, got {got} in each line; try --separator '{steady[-1]}' or --separator "
            f"'{steady[0]}'"
        )
    if not counts:
        raise DataError(
            f"{path}: expected tabs, commas, semicolons or bars in the first line, got {lines[0].strip()[:80]!r}; try "
            "--separator"
        )
    return (steady or list(counts))[0]


def looks_separated_by(header: str, wanted: str) -> str:
    """The end of a message on a line without the column `wanted`: the separator that the line seems to have."""
    for separator, name in SEPARATORS.items():
        if wanted in [cell.strip(' "') for cell in header.split(separator)]:
            shown = r"'\t'" if separator == "\t" else separator if separator == "," else f"'{separator}'"
            if len(separator) > 1:
                return f"; it is separated by {name}, which `data import --separator {shown}` reads"
            return f"; it is separated by {name}: try --field_separator={shown}"
    return ""


class _Reader:
    """One file, its separator and quotes: blocks of whole lines, and the cells of each."""

    def __init__(self, path: Path, separator: str, quotes: Quotes, encoding: str) -> None:
        self.path, self.shown, self.quotes, self.encoding = path, separator, quotes, encoding
        self.separator = separator if len(separator) == 1 and separator.isascii() else _INSTEAD
        self.imports = quotes != "lenient"  # messages name the flags of `data import`
        self.cut_short = False  # the last line has no line end
        self.declared = ""  # the separator that a first line `sep=;` names
        self._within_cells = bytes(set(range(256)) - set(f"{self.separator}\n".encode()))
        self._quoted = _dialect(self.separator)
        if separator in ("", '"', "\n", "\r"):
            raise ConfigError(f"--separator: expected the text between cells, got {separator!r}")
        try:
            codecs.lookup(encoding)
        except LookupError:
            raise ConfigError(
                f"--encoding: expected an encoding such as utf-8, latin-1 or utf-16, got {encoding}"
            ) from None

    def header(self) -> list[str]:
        """The cells of the first line that isn't blank."""
        return [cell.strip() for cell in _split(self.first_lines(1)[0], self.separator, self.quotes)[0]]

    def first_lines(self, most: int) -> list[str]:
        """The first lines that aren't blank, at least one."""
        lines: list[str] = []
        for first, block in self.blocks(skip_header=False):
            found = ((i, line) for i, line in enumerate(block.split(b"\n"), first) if line.strip())
            lines += [self._decode(line, i) for i, line in itertools.islice(found, most - len(lines))]
            if len(lines) == most:
                break
        if not lines:
            raise DataError(f"{self.path}: expected a table, got no line but blank ones")
        return lines

    def blocks(self, *, skip_header: bool) -> Iterator[tuple[int, bytes]]:
        """Whole lines as UTF-8, each ending with \\n, and the number of the first. Raises DataError for what isn't text
        in lines."""
        number, rest, skipped = 1, b"", not skip_header
        for piece in self._pieces():
            cut = piece.rfind(b"\n") + 1
            if not cut:
                rest += piece
                continue
            block, rest = rest + piece[:cut], piece[cut:]
            yield from self._checked(block, number, skip=not skipped)
            skipped = skipped or bool(block.strip())
            number += block.count(b"\n")
        if rest:
            self.cut_short = True
            yield from self._checked(rest + b"\n", number, skip=not skipped)

    def _checked(self, block: bytes, number: int, *, skip: bool) -> Iterator[tuple[int, bytes]]:
        """The block with plain line ends, without its first line that isn't blank if `skip`; `sep=;` is."""
        if codecs.BOM_UTF8 in block:
            block = _MARKS.sub(rb"\1", block)
        if number == 1 and (declared := _DECLARED.match(block)):
            self.declared = declared[1].decode()
            block = b"\n" * declared[0].count(b"\n") + block[declared.end() :]
        if b"\0" in block:
            line = number + block[: block.index(b"\0")].count(b"\n")
            raise DataError(f"{self.path}, line {line}: expected a table of text, got bytes that aren't text (NUL)")
        if number == 1 and block.count(b"\n") == 1 and b"\r" in block.rstrip():
            raise DataError(
                f"{self.path}: expected lines that end in \\n, got a carriage return alone at each; convert it first: "
                r"tr '\r' '\n' < FILE"
            )
        if b"\r" in block:
            block = block.replace(b"\r\n", b"\n").replace(b"\r", b" ")
        if self.separator == _INSTEAD:
            if _INSTEAD.encode() in block:
                raise DataError(f"{self.path}: expected no control characters (\\x1f) in text, got some")
            block = block.replace(self.shown.encode(), _INSTEAD.encode())
        while skip and block:
            head, _, block = block.partition(b"\n")
            number += 1
            skip = not head.strip()
        if block:
            yield number, block

    def _pieces(self) -> Iterator[bytes]:
        """The file's bytes as UTF-8 without a byte order mark, after a look at what it is."""
        check_file(self.path, "try saving its content to a file")
        try:
            with self.path.open("rb") as raw:
                head = raw.read(4096)
                self._recognize(head)
                raw.seek(3 if head.startswith(codecs.BOM_UTF8) else 0)
                plain = codecs.lookup(self.encoding).name == "utf-8"
                file = raw if plain else codecs.EncodedFile(raw, "utf-8", self.encoding)
                size = -1 if self.quotes == "multiline" else BLOCK  # a quoted cell may go on in the next block
                while piece := file.read(size):
                    yield piece if size > 0 or piece.endswith(b"\n") else piece + b"\n"
        except FileNotFoundError:
            raise DataError(f"{self.path}: no such file") from None
        except IsADirectoryError:
            raise DataError(f"{self.path}: expected a file, got a folder") from None
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.path}: expected text in {self.encoding}, got other bytes ({error.reason}); try another "
                "--encoding"
            ) from None

    def _recognize(self, head: bytes) -> None:
        """Raise DataError that calls the file by its name if it is no table of text."""
        got = foreign(head)
        utf16 = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or (
            len(head) > 1 and 0 in (head[0::2].count(0), head[1::2].count(0)) and head.count(0) > len(head) / 4
        )
        if got is None and utf16 and not self.encoding.lower().startswith(("utf-16", "utf16", "u16")):
            flag = "try --encoding utf-16" if self.imports else "convert it: iconv -f UTF-16 -t UTF-8 FILE"
            got = f"UTF-16 text; {flag}"
        elif got is None and re.match(rb'(\xef\xbb\xbf)*\s*[\[{]\s*[{"\]]', head):
            got = "JSON; `data build` reads the layouts that are published as JSON, others must become tables first"
        if got:
            raise DataError(f"{self.path}: expected a table of text, got {got}")

    def _decode(self, block: bytes, first: int) -> str:
        try:
            return block.decode()
        except UnicodeDecodeError as error:
            line = first + block[: error.start].count(b"\n")
            cure = "try --encoding latin-1, or the one that it has" if self.imports else "convert it with iconv"
            raise DataError(
                f"{self.path}, line {line}: expected UTF-8 text, got another encoding ({error.reason}); {cure}"
            ) from None

    def plain_integers(self, block: bytes, first: int, n_cells: int, places: Sequence[int]) -> list[np.ndarray] | None:
        """The cells at `places`, (rows,) int64 each; None unless all are digits and each line has `n_cells`."""
        line_ends = self.separator.encode() * (n_cells - 1) + b"\n"
        n_rows = block.count(b"\n")
        if block.translate(None, self._within_cells) != n_rows * line_ends or self._has_quotes(block):
            return None
        if not block.isascii():
            self._decode(block, first)
        try:
            with np.errstate(invalid="ignore"):  # of an infinite number, which is refused below
                numbers = pd.read_csv(
                    BytesIO(block), sep=self.separator, header=None, usecols=sorted(set(places)), dtype=np.int64,
                    quoting=csv.QUOTE_NONE, lineterminator="\n", na_filter=False, skip_blank_lines=n_cells > 1,
                )  # fmt: skip
        except (ValueError, OverflowError):  # `rows` knows more ways to write a number
            return None
        if len(numbers) < n_rows:
            return None
        return [np.ascontiguousarray(numbers[place]) for place in places]

    def _has_quotes(self, block: bytes) -> bool:
        separator = self.separator.encode()
        if self.quotes == "none" or b'"' not in block:
            return False
        return block.startswith(b'"') or b'\n"' in block or separator + b'"' in block

    def rows(self, block: bytes, first: int, n_cells: int) -> tuple[list[Sequence[str]], Sequence[int] | np.ndarray]:
        """The block's columns, and the line number of each row. The quick way holds where each line gives one row of
        `n_cells`; else line by line, to skip, to mend or to name."""
        lines = self._decode(block, first).split("\n")[:-1]
        rows = [line.split(self.separator) for line in lines]
        quoted = [i for i, line in enumerate(lines) if '"' in line] if self._has_quotes(block) else []
        parsed: list[list[str]] = []
        with contextlib.suppress(csv.Error):
            parsed = list(csv.reader((lines[i] for i in quoted), self._quoted))
        if len(parsed) == len(quoted):  # no quoted cell goes on in the next line
            for i, cells in zip(quoted, parsed, strict=True):
                rows[i] = cells
            if set(map(len, rows)) == {n_cells} and (n_cells > 1 or all(map(str.strip, lines))):
                return list(zip(*rows, strict=True)), range(first, first + len(rows))
        if self.quotes == "multiline":
            rows, numbers = self._records(lines, first, n_cells)
        else:
            kept = [(i, line) for i, line in enumerate(lines, first) if line.strip() or self.separator in line]
            rows, numbers = [self._cells(line, i, n_cells) for i, line in kept], [i for i, _ in kept]
        return list(zip(*rows, strict=True)) or [()] * n_cells, np.array(numbers, np.int64)

    def _records(self, lines: Sequence[str], first: int, n_cells: int) -> tuple[list[list[str]], list[int]]:
        """Rows whose quoted cells may hold line breaks, and the line on which each begins."""
        rows, numbers, begin = [], [], first
        source = csv.reader((f"{line}\n" for line in lines), self._quoted)
        try:
            for cells in source:
                if len(cells) == n_cells + 1 and cells[-1] == "":
                    cells.pop()
                if len(cells) == n_cells:
                    rows.append(cells)
                    numbers.append(begin)
                elif any(cell.strip() for cell in cells):
                    raise self._misfit(begin, n_cells, len(cells))
                begin = first + source.line_num
        except csv.Error as error:
            raise DataError(
                f"{self.path}, line {begin}: expected quoted cells that end, got one that doesn't ({error}); try "
                "--quotes none, where quotes are ordinary characters"
            ) from None
        return rows, numbers

    def _cells(self, line: str, number: int, n_cells: int) -> list[str]:
        """The cells of one line; DataError names it."""
        cells, is_open = _split(line, self.separator, self.quotes)
        refused = is_open and self.quotes == "line"
        ways = [cells, line.split(self.separator)] if self.quotes == "lenient" else [cells]
        for way in ways:
            if len(way) == n_cells + 1 and way[-1] == "":
                way.pop()
            if len(way) == n_cells and not refused:
                return way
        raise self._misfit(number, n_cells, len(cells), is_open=is_open)

    def _misfit(self, number: int, expected: int, got: int, *, is_open: bool = False) -> DataError:
        where = f"{self.path}, line {number}: expected"
        if is_open:
            cure = "double the quotes within a quoted cell, or remove them"
            if self.imports:
                cure = (
                    "try --quotes multiline, where cells may hold line breaks, or --quotes none, where quotes are "
                    "ordinary characters"
                )
            return DataError(
                f"{where} {expected} cells, got a cell that begins with a quote that doesn't end on its line; {cure}"
            )
        if self.cut_short and got < expected:
            why = "is the file truncated?"
        elif got < expected:
            why = "is there a line break within a cell?" + (" Try --quotes multiline" if self.quotes == "line" else "")
        else:
            why = "is a separator within a cell? Put such a cell in quotes"
        return DataError(f"{where} {expected} cells, as many as there are columns, got {got}; {why}")


def _dialect(separator: str) -> type[csv.Dialect]:
    rules = {"delimiter": separator, "quotechar": '"', "doublequote": True, "strict": True}
    return type("Dialect", (csv.Dialect,), rules | {"quoting": csv.QUOTE_MINIMAL, "lineterminator": "\n"})


class _Fault:
    """The cells of a column that aren't whole numbers, or finite ones if it may have `fractions`: how many there are,
    the first one and its line."""

    def __init__(self, *, fractions: bool = False) -> None:
        self.count, self.line, self.cell = 0, 0, ""
        self._fractions = fractions

    def read(self, cells: Sequence[str], lines: Sequence[int] | np.ndarray) -> np.ndarray:
        """The cells as int64, or float64 if one has a fraction; a faulty one is counted, and becomes 0."""
        numbers = pd.to_numeric(pd.Series(cells, dtype=object), errors="coerce").to_numpy(np.float64)
        if self._fractions and np.isfinite(numbers).all() and (np.trunc(numbers) != numbers).any():
            return numbers
        exact = (abs(numbers) < 2**53) & (np.trunc(numbers) == numbers)
        values = np.zeros(len(cells), np.int64)
        values[exact] = numbers[exact]
        for row in np.flatnonzero(~exact).tolist():
            cell = cells[row].strip()
            if len(cell) <= 20 and re.fullmatch(r"[+-]?[0-9]+", cell) and -_LARGEST <= int(cell) < _LARGEST:
                values[row] = int(cell)
            else:
                if not self.count:
                    self.line, self.cell = int(lines[row]), cell[:80]
                self.count += 1
        return values


def _split(line: str, separator: str, quotes: Quotes = "line") -> tuple[list[str], bool]:
    """The cells of a line, and whether one begins with a quote that doesn't end. A cell is quoted if it begins with a
    quote and ends with one; within it, two stand for one."""
    if quotes == "none" or '"' not in line:
        return line.split(separator), False
    other = re.escape(separator)
    cell = re.compile(f'"((?:[^"]|"")*+)"(?={other}|$)|((?:(?!{other}).)*)', re.DOTALL)
    cells, place, is_open = [], 0, False
    while match := cell.match(line, place):
        quoted, plain = match.groups()
        cells.append(plain if quoted is None else quoted.replace('""', '"'))
        is_open |= quoted is None and plain.startswith('"') and plain.count('"') % 2 == 1
        if match.end() == len(line):
            break
        place = match.end() + len(separator)
    return cells, is_open


def _place(path: Path, name: str, header: Sequence[str], separator: str) -> int:
    """The place of a column in the header; DataError if it isn't there."""
    if name in header:
        return header.index(name)
    guess = looks_separated_by(separator.join(header), name) or did_you_mean(name, header)
    raise DataError(f"{path}: expected the column {name!r}, got {', '.join(header)}{guess}")


def _require_distinct(path: Path, names: Sequence[str]) -> None:
    repeated = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if repeated is not None:
        what = f"{repeated!r} more than once" if repeated else "several without a name"
        raise DataError(f"{path}: expected columns of different names, got {what}; rename or remove all but one")


def _shared(column: Sequence[str], pool: dict[str, str]) -> np.ndarray:
    """The cells as an array of objects, equal ones the same object: ids that repeat cost no memory."""
    if len(pool) > 2**21:
        return np.array(column, object)
    return np.array([pool.setdefault(cell, cell) for cell in column], object)


def _joined(lines: Sequence[Sequence[int] | np.ndarray]) -> Sequence[int] | np.ndarray:
    """Line numbers of consecutive blocks; a range if none is left out."""
    if not lines:
        return range(0)
    if all(isinstance(part, range) for part in lines):
        starts, stops = [part[0] for part in lines if len(part)], [part[-1] + 1 for part in lines if len(part)]
        if starts[1:] == stops[:-1]:
            return range(starts[0], stops[-1])
    return np.concatenate([np.asarray(part, np.int64) for part in lines])
