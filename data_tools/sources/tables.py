"""Anyone's own tables: interactions with or without a header, and items.

Columns are taken by name, or by position where there is no header. A column without a name (the row numbers that
pandas' `to_csv` writes) is never taken for an id. `Format` holds what a user says of the files; what is left open is
found from the first lines, refused where it is ambiguous, and reported as it was read.
"""

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mmrec_lmm.api import first_few
from mmrec_lmm.data.tables import Quotes, Table, find_separator, first_cells, read_table
from mmrec_lmm.errors import ConfigError, DataError, did_you_mean
from mmrec_lmm.types import SPLITS

from ..writing import TEXT_COLUMNS

# Header names that are recognized, in lower case, without RecBole's types (`user_id:token`).
KNOWN: Mapping[str, tuple[str, ...]] = {
    "user": ("user", "userid", "user_id", "reviewerid", "customer", "customer_id"),
    "item": ("item", "itemid", "item_id", "asin", "parent_asin", "movieid", "product_id", "article_id", "sku"),
    "rating": ("rating", "overall", "stars"),
    "timestamp": ("timestamp", "time", "unixreviewtime"),
}
BY_POSITION = tuple(KNOWN)  # the columns of a table without a header
IMAGE_URLS = ("image_url", "imurl", "imageurl", "img_url", "image_link")
SPLIT = "x_label"
LABELS: Mapping[str, int] = {
    **{str(label): label for label in range(len(SPLITS))},
    **{split: label for label, split in enumerate(SPLITS)},
    **dict.fromkeys(("val", "validation", "dev"), SPLITS.index("valid")),
}
_DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}(?!\d)")
_COMMA = re.compile(r"[+-]?\d*,\d+")
_TYPES = re.compile(r":(token|float)(_seq)?$")
# Names of columns that likely hold times; they aren't taken unless --time-column says so.
TIME_LIKE = re.compile(
    r"(?:.*[_ -])?(?:ts|t|dat|date|datetime|when|at|timestamp|time|unixtime)"
    r"|(?:date|time|timestamp)[_ -](?:added|created|stamp|s|ms|sec|seconds|utc|unix)"
)
_SAMPLE = 1000  # rows in which numbers below a word make it a header
_LEAST_TIME = 1e8  # seconds; 1973
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff]|^[\u200c\u200d]|[\u200c\u200d]$")


@dataclass(frozen=True)
class Format:
    """How tables are written, as far as the user says; None: found from the file."""

    separator: str | None = None
    header: bool | None = None  # of the interactions; items always have one
    columns: Sequence[str] | None = None  # names for interactions without a header
    quotes: Quotes = "line"
    encoding: str = "utf-8"
    decimal: str = "."


@dataclass(frozen=True)
class Columns:
    """The names of the columns to take, where they aren't usual ones."""

    user: str | None = None
    item: str | None = None
    split: str | None = None
    items_id: str | None = None
    time: str | None = None
    rating: str | None = None


def read_interactions(
    path: Path, form: Format, columns: Columns, *, keep_split: bool = True
) -> tuple[pd.DataFrame, str]:
    """The columns user, item and, where there are any, rating, timestamp and, under `keep_split`, x_label (0, 1, 2), in
    file order; all but the label as strings. And one line that says what was taken for what.

    Raises DataError for an empty id, and for a rating or timestamp that is no finite number; ConfigError where a flag
    names a column that has another role.
    """
    separator = _separator(path, form)
    first = _names(first_cells(path, separator=separator, quotes=form.quotes, encoding=form.encoding))
    header = form.header if form.header is not None else None if form.columns is None else False
    if header is None:
        given = {columns.user, columns.item, columns.split, columns.time, columns.rating}
        header = _known_header(first, given)
    # Columns beyond the known positions are named by their numbers, which match no role.
    positions = list(form.columns or [*BY_POSITION, *map(str, range(len(BY_POSITION), len(first)))][: len(first)])
    if not header and len(positions) != len(first):
        raise DataError(
            f"{path}: expected a name for each of {len(first)} columns, got {len(positions)}: {', '.join(positions)}"
        )
    numbered = [f"{place}" for place in range(len(first))]
    raw = read_table(path, separator=separator, names=numbered, quotes=form.quotes, encoding=form.encoding)
    if header is None:
        header = _looks_like_header(path, raw)
    names = first if header else positions if form.columns else _times_in_place(raw, positions)
    _require_distinct(path, [name for name in names if name])
    if header:
        _require_one_header(raw, [str(cells[0]) for cells in raw.columns.values()], begin=1)
    chosen = {
        "user": _column(path, names, "user", columns.user),
        "item": _column(path, names, "item", columns.item),
        "rating": _column(path, names, "rating", columns.rating) if columns.rating else _find(names, "rating"),
        "timestamp": _column(path, names, "time", columns.time) if columns.time else _find(names, "timestamp"),
        SPLIT: _column(path, names, "split", columns.split) if columns.split else SPLIT if SPLIT in names else None,
    }
    _require_one_role_each(chosen, columns)
    if not keep_split:
        del chosen[SPLIT]
    used = {role: name for role, name in chosen.items() if name is not None}
    begin = 1 if header else 0
    table = pd.DataFrame(
        {role: raw.columns[str(names.index(name))][begin:] for role, name in used.items()}, dtype=object
    )
    if table.empty:
        raise DataError(f"{path}: expected interactions, got no rows")
    for role in ("user", "item"):
        table[role] = table[role].str.strip()
        if (empty := (table[role] == "").to_numpy()).any():
            raise DataError(
                f"{raw.at(int(np.argmax(empty)) + begin)}: expected {'an' if role == 'item' else 'a'} {role} id, got "
                f"an empty cell ({int(empty.sum()):,} such rows of {len(table):,}); remove such rows, or try "
                + (f"--{role}-column NAME" if header else "--columns user,item,...")
            )
        _require_visible(raw, table[role], role, begin)
    for role in ("rating", "timestamp"):
        if role in used:
            table[role] = _with_points(raw, table[role], role, used[role], form, begin)
    if SPLIT in used:
        table[SPLIT] = _labels(raw, table[SPLIT], used[SPLIT], begin)
    taken = ", ".join(f"{role} {name}" for role, name in used.items())
    ignored = [
        (name or "one without a name")
        + (_time_hint(name, cells[begin:]) if "timestamp" not in used and TIME_LIKE.fullmatch(_words(name)) else "")
        for name, cells in zip(names, raw.columns.values(), strict=True)
        if name not in used.values()
    ]
    lines = f"{path.name}: separator {separator!r}, {'a header' if header else 'no header'}; columns: {taken}"
    return table, lines + (f"; not used: {', '.join(ignored)}" if ignored else "")


def read_items(path: Path, form: Format, columns: Columns) -> tuple[pd.DataFrame, str]:
    """The items table, indexed by raw id, in file order; text and image columns in lower case, no line breaks. And one
    line that says what was taken for what."""
    separator = _separator(path, form)
    raw = read_table(path, separator=separator, quotes=form.quotes, encoding=form.encoding)
    names = _names(tuple(raw.columns))
    if not len(raw):
        raise DataError(f"{path}: expected items, got no rows below the header ({', '.join(names)})")
    _require_one_header(raw, list(raw.columns), begin=0)
    usual = {name: name.lower() for name in names if name.lower() in (*TEXT_COLUMNS, "image")}
    usual |= dict.fromkeys([name for name in names if name.lower() in IMAGE_URLS][:1], "image_url")
    _require_distinct(path, [usual.get(name, name) for name in names if name])
    column = columns.items_id or _find(names, "item") or names[0]
    if not column:
        raise DataError(
            f"{path}: expected a column of item ids, got a first column without a name, which may hold row numbers, "
            f"then {', '.join(filter(None, names))}; try --items-id-column NAME"
        )
    _column(path, names, "items-id", column)
    cells = {name: cells for name, cells in zip(names, raw.columns.values(), strict=True) if name}
    table = pd.DataFrame(cells, dtype=object).rename(columns=usual)
    table = table.replace(r"[\t\r\n]+", " ", regex=True).apply(lambda cells: cells.str.strip())
    table = _addresses_apart(table.set_index(usual.get(column, column)))
    reserved = [name for name in ("itemID", "raw_id") if name in table]
    if reserved:
        raise DataError(
            f"{path}: column {reserved[0]}: the data set has its own column of that name; rename or remove this one"
        )
    if (empty := np.asarray(table.index == "")).any():
        raise DataError(
            f"{raw.at(int(np.argmax(empty)))}: expected an id in column {column}, got an empty cell "
            f"({int(empty.sum()):,} such rows); remove such rows, or try --items-id-column NAME"
        )
    _require_visible(raw, table.index.to_series(), "item", 0)
    repeated = table.index[table.index.duplicated()].unique()
    if len(repeated):
        raise DataError(
            f"{path}: expected one row per item, got {len(repeated):,} ids more than once in column {column} "
            f"({first_few(repeated)})"
        )
    said = (
        f"{path.name}: separator {separator!r}; item ids: {column}; other columns: {', '.join(table.columns) or 'none'}"
    )
    return table, said


def _addresses_apart(table: pd.DataFrame) -> pd.DataFrame:
    """The table with addresses that stand in the column `image` in `image_url`, where `data images` looks for them."""
    if "image" not in table or "image_url" in table:
        return table
    is_address = table["image"].str.match(r"https?://")
    if not is_address.any():
        return table
    return table.assign(image=table["image"].mask(is_address, ""), image_url=table["image"].where(is_address, ""))


def _separator(path: Path, form: Format) -> str:
    """The separator that was given (`\\t` also as typed in a shell), or the file's."""
    if form.separator is None:
        return find_separator(path, encoding=form.encoding)
    return form.separator.replace(r"\t", "\t")


def _names(cells: Sequence[str]) -> list[str]:
    """Column names without RecBole's types and invisible characters; pandas' `Unnamed: 0` is none."""
    cells = [_INVISIBLE.sub("", cell).strip() for cell in cells]
    return ["" if cell.startswith("Unnamed: ") else _TYPES.sub("", cell) for cell in cells]


def _words(name: str) -> str:
    """A column's name in lower case, its words apart: `createdAt` is `created_at`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _known_header(first: Sequence[str], named: set[str | None]) -> bool | None:
    """True if the first line has a name that is known or was given; None if it is ambiguous."""
    known = {name for names in KNOWN.values() for name in names} | {SPLIT}
    return True if any(cell.lower() in known or (cell and cell in named) for cell in first) else None


def _looks_like_header(path: Path, table: Table) -> bool:
    """Whether the first row is a header of unknown names: no cell of it is a number or comes again in its column, and
    one is a word over numbers. DataError where words stand over words."""
    columns = list(table.columns.values())
    others = np.ones(len(table), bool)
    others[_rows_equal(table, [str(cells[0]) for cells in columns])[1:]] = False  # a header that is repeated
    columns = [cells[others] for cells in columns]
    over_numbers = False
    for cells in columns:
        below = cells[1 : _SAMPLE + 1]
        if _is_number(cells[0]) or (cells[0] != "" and (cells[1:] == cells[0]).any()):
            return False
        over_numbers |= len(below) > 0 and all(map(_is_number, below))
    if not over_numbers:
        raise DataError(
            f"{path}: expected a header of known names or a row of ids and numbers, got "
            f"{', '.join(str(cells[0]) for cells in columns)}, which may be either; try --header (with --user-column "
            "and --item-column) or --no-header"
        )
    return True


def _time_hint(name: str, cells: np.ndarray) -> str:
    """How an unused column whose name is that of a time becomes the time."""
    ready = all(map(_is_number, cells[:_SAMPLE]))
    condition = "" if ready else " once its cells are numbers, such as seconds since 1970"
    return f" (--time-column {shlex.quote(name)} takes it as the time{condition})"


def _times_in_place(table: Table, positions: Sequence[str]) -> Sequence[str]:
    """The names by position of a table without a header; its third column is the time if it looks like one."""
    third = "2"
    if third not in table.columns or not all(_is_number(cell, _LEAST_TIME) for cell in table.columns[third][:_SAMPLE]):
        return positions
    if len(positions) > 3:
        raise DataError(
            f"{table.at(0)}: expected the columns user, item, rating, timestamp, got a third column that looks like "
            f"times ({table.columns[third][0]}); try --columns user,item,timestamp,... with a name for each of "
            f"{len(positions)} columns"
        )
    return [*positions[:2], "timestamp"]


def _rows_equal(table: Table, cells: Sequence[str]) -> np.ndarray:
    """The rows (n,) that have exactly these cells."""
    rows = np.arange(len(table))
    for cell, column in zip(cells, table.columns.values(), strict=True):
        rows = rows[column[rows] == cell] if len(rows) < len(table) else np.flatnonzero(column == cell)
    return rows


def _require_one_header(table: Table, header: Sequence[str], begin: int) -> None:
    """Refuse a header line among the rows from `begin` on, as where two exports were concatenated."""
    again = _rows_equal(table, header)
    again = again[again >= begin]
    if len(again):
        raise DataError(
            f"{table.at(int(again[0]))}: expected a row, got one that repeats the header; remove it "
            f"({len(again):,} such rows)"
        )


def _require_visible(table: Table, ids: pd.Series, role: str, begin: int) -> None:
    """Refuse ids with characters that nobody sees: they would be other ids than the same ones without."""
    hidden = [one for one in ids.unique() if not one.isascii() and _INVISIBLE.search(one)]
    if hidden:
        rows = np.flatnonzero(ids.isin(hidden))
        cell = ids.iloc[rows[0]]
        code = ord(_INVISIBLE.search(cell)[0])  # type: ignore[index]
        raise DataError(
            f"{table.at(int(rows[0]) + begin)}: expected {'an' if role == 'item' else 'a'} {role} id of characters "
            f"that can be seen, got {cell!a} with U+{code:04X} ({len(rows):,} such rows); remove that character"
        )


def _require_distinct(path: Path, names: Sequence[str]) -> None:
    repeated = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if repeated is not None:
        raise DataError(f"{path}: expected columns of different names, got {repeated} more than once; rename one")


def _require_one_role_each(chosen: Mapping[str, str | None], columns: Columns) -> None:
    """ConfigError for a flag that names a column which is taken for something else too."""
    for role, flag, given in (
        ("user", "--user-column", columns.user),
        ("item", "--item-column", columns.item),
        ("rating", "--rating-column", columns.rating),
        ("timestamp", "--time-column", columns.time),
        (SPLIT, "--split-column", columns.split),
    ):
        other = next((one for one, name in chosen.items() if one != role and name == chosen[role]), None)
        if given is not None and other is not None:
            named = "time" if other == "timestamp" else other
            cure = "" if other == SPLIT else f"; try --{named}-column NAME too"
            raise ConfigError(f"{flag}: expected another column than that of {other}, got {given!r} for both{cure}")


def _column(path: Path, names: Sequence[str], role: str, given: str | None) -> str:
    """The column that holds `role`: the `given` one, or one of a known name. `--<role>-column` is its flag."""
    columns = ", ".join(name or "one without a name" for name in names)
    given = _TYPES.sub("", given) if given and given not in names else given
    if given is not None and given not in names:
        near = did_you_mean(given, filter(None, names))
        raise DataError(f"{path}: --{role}-column: expected column {given!r}, got {columns}{near}")
    found = given or _find(names, role)
    if found is None:
        raise DataError(
            f"{path}: expected a column of {role}s ({', '.join(KNOWN[role])}), got {columns}; "
            f"try --{role}-column NAME, or rename it"
        )
    return found


def _find(names: Sequence[str], role: str) -> str | None:
    return next((name for name in names if name.lower() in KNOWN[role]), None)


def _with_points(table: Table, cells: pd.Series, role: str, name: str, form: Format, begin: int) -> pd.Series:
    """Finite numbers as they are written, but with a decimal point; DataError for other cells."""
    points = cells
    if form.decimal != ".":  # a point then groups thousands, which no reader of the data set would know
        points = cells.mask(cells.str.contains(".", regex=False), "").str.replace(form.decimal, ".", regex=False)
    faulty = ~np.isfinite(pd.to_numeric(points, errors="coerce").to_numpy(np.float64))
    if faulty.any():
        row = int(np.argmax(faulty))
        expected = "a number, such as seconds since 1970" if role == "timestamp" else "a number"
        raise DataError(
            f"{table.at(row + begin)}: {name}: expected {expected}, got {cells.iloc[row][:80]!r} "
            f"({int(faulty.sum()):,} such rows of {len(cells):,}); {_cure(cells.iloc[row].strip(), form, begin)}"
        )
    return points


def _cure(cell: str, form: Format, begin: int) -> str:
    """What helps against a cell that isn't a number."""
    leave_out = (
        "rename the column, which leaves it out" if begin else "leave the column out by another name in --columns"
    )
    if form.decimal == "." and _COMMA.fullmatch(cell):
        return "try --decimal ','"
    if _DATE.match(cell):
        return f"convert dates to seconds, or {leave_out}"
    if form.decimal != "." and "." in cell:
        return f"with --decimal '{form.decimal}' a number has no point: remove those between thousands, or --decimal"
    if not cell:
        return f"fill such cells or remove their rows, or {leave_out}"
    return f"correct such cells, or {leave_out}"


def _labels(table: Table, cells: pd.Series, name: str, begin: int) -> np.ndarray:
    """The split labels of a given column, (N,) int64."""
    labels = cells.str.strip().str.lower().str.replace(r"^([012])\.0$", r"\1", regex=True).map(LABELS)
    if (strange := labels.isna().to_numpy()).any():
        row = int(np.argmax(strange))
        raise DataError(
            f"{table.at(row + begin)}: {name}: expected 0, 1, 2 or train, valid, test, got {cells.iloc[row]!r} "
            f"({int(strange.sum()):,} such rows); try --split ratio, which draws another split"
        )
    return labels.to_numpy(np.int64)


def _is_number(text: str, least: float = -math.inf) -> bool:
    """Whether the text is a number, and no less than `least`."""
    try:
        return not float(text.replace(",", ".")) < least
    except ValueError:
        return False
