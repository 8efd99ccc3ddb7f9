"""A data set's own ids: what the shop calls its users and items, which its table numbers 0, 1, 2, ...

They stand in MMRec's mappings beside the table, `u_id_mapping.csv` and `i_id_mapping.csv` (tab-separated in spite of
the names), those of items also in the catalog. Where there is neither, an id is its number. Runs don't read mappings:
own ids are for people, and part of no fingerprint.

Shapes: N users or items.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from ..errors import DataError, did_you_mean
from ..types import Dataset
from .tables import Table, first_cells, read_table

Kind = Literal["user", "item"]

#: The file of each mapping, the column of its numbers, and the usual name of the other one.
MAPPINGS: dict[Kind, tuple[str, str, str]] = {
    "user": ("u_id_mapping.csv", "userID", "user_id"),
    "item": ("i_id_mapping.csv", "itemID", "asin"),
}
NEAR = 200  # ids on either side in which a typing error is looked for


@dataclass(frozen=True)
class Ids:
    """The own ids of all users or items: `of` (N,) str, at place i that of number i. `source` names the file that has
    them; None: there is none, and an id is the number as text."""

    kind: Kind
    of: np.ndarray
    source: str | None

    def __len__(self) -> int:
        return len(self.of)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return dict(zip(self.of[::-1].tolist(), range(len(self) - 1, -1, -1), strict=True))

    def numbers(self, ids: Sequence[str]) -> np.ndarray:
        """The numbers (M,) int64 of own ids, -1 where there is none; the first where a catalog repeats one."""
        return np.array([self._numbers.get(own, -1) for own in ids], np.int64)

    def expected(self, unknown: str) -> str:
        """The part of a message about an unknown id that says what was expected, what came, and what may be meant."""
        few = ", ".join(self.of[:2])
        if self.source is None:
            last = len(self) - 1
            return f"expected ids from 0 to {last}, as the data set has no {MAPPINGS[self.kind][0]}, got {unknown}"
        number = number_in(unknown)
        if 0 <= number < len(self):
            meant = f"; {self.kind} number {number} is {self.of[number]} (--internal-ids takes numbers)"
        else:
            meant = "" if number >= 0 else did_you_mean(unknown, self._near(unknown))
        return f"expected ids of {self.source} such as {few}, got {unknown}{meant}"

    def _near(self, name: str) -> list[str]:
        """Ids that begin or end much like `name`: of a million, those that may be meant."""
        near: list[str] = []
        for way in (slice(None), slice(None, None, -1)):
            ordered = sorted(text[way].lower() for text in self.of)
            place = bisect_left(ordered, name[way].lower())
            near += [text[way] for text in ordered[max(0, place - NEAR) : place + NEAR]]
        known = {text.lower(): text for text in self.of}
        return [known[text] for text in near]


def number_in(text: str) -> int:
    """The number that a text of digits is; -1 for another text."""
    return int(text) if text.isdecimal() and len(text) < 19 else -1


def read_ids(dataset: Dataset, kind: Kind) -> Ids:
    """The own ids of a data set's users or items: of its mapping, of its catalog, else the numbers.

    Raises DataError for a mapping that lacks a number, has one or an own id twice, or contradicts the catalog.
    """
    n = dataset.n_users if kind == "user" else dataset.n_items
    listed = _listed(dataset) if kind == "item" else None
    path = dataset.id_files.get(kind)
    if path is not None:
        return Ids(kind, _read_mapping(path, kind, n, listed), str(path))
    return Ids(kind, _as_text(n), None) if listed is None else Ids(kind, listed, "items.tsv")


def _listed(dataset: Dataset) -> np.ndarray | None:
    """The own ids (N,) of items in the catalog; None if it has none but their numbers."""
    catalog = dataset.catalog
    if catalog is None or catalog.raw_ids == tuple(_as_text(len(catalog))):
        return None
    return np.array(catalog.raw_ids, dtype=object)


def _as_text(n: int) -> np.ndarray:
    return np.array([str(number) for number in range(n)], dtype=object)


def _read_mapping(path: Path, kind: Kind, n: int, listed: np.ndarray | None) -> np.ndarray:
    """The own ids (N,) in a mapping. It may have more users or items than the data set. `listed` (N,) are the
    catalog's."""
    _, number, own = MAPPINGS[kind]
    by_commas = any(name.lower() == number.lower() for name in first_cells(path, separator=","))
    table = read_table(path, separator="," if by_commas else "\t")
    number = next((name for name in table.columns if name.lower() == number.lower()), number)
    numbers = _numbers(table, number, path)
    names = [name for name in table.columns if name and name != number and not name.startswith("Unnamed: ")]
    chosen = [own] if own in names else names
    if len(chosen) != 1:
        raise DataError(
            f"{path}: expected the columns {own} and {number}, got {', '.join(filter(None, table.columns))}"
        )
    cells = table.columns[chosen[0]]
    for values, what in ((numbers, number), (cells, chosen[0])):
        if (repeated := pd.Series(values).duplicated().to_numpy()).any():
            row = int(np.argmax(repeated))
            first = int(np.argmax(values == values[row]))
            raise DataError(
                f"{table.at(row)}: {what}: expected each once, got {values[row]} again (first in line "
                f"{table.lines[first]}; {int(repeated.sum()):,} such rows)"
            )
    if (empty := cells == "").any():
        raise DataError(f"{table.at(int(np.argmax(empty)))}: {chosen[0]}: expected an id, got an empty cell")
    ids = np.full(n, None, dtype=object)
    inside = numbers < n
    ids[numbers[inside]] = cells[inside]
    if (absent := pd.isna(ids)).any():
        raise DataError(
            f"{path}: expected the {number} 0 to {n - 1}, got none of {int(np.argmax(absent))} "
            f"({int(absent.sum()):,} are missing); is it the mapping of this data set?"
        )
    if listed is not None and (differs := ids != listed).any():
        item = int(np.argmax(differs))
        row = int(np.argmax(numbers == item))
        raise DataError(
            f"{table.at(row)}: item {item}: expected {listed[item]}, as in items.tsv, got {ids[item]} "
            f"({int(differs.sum()):,} items differ); correct one of the two files"
        )
    return ids


def _numbers(table: Table, column: str, path: Path) -> np.ndarray:
    """The column of a mapping's numbers, (rows,) int64."""
    if column not in table.columns:
        raise DataError(
            f"{path}: expected the column {column}, got {', '.join(filter(None, table.columns))}"
            f"{did_you_mean(column, table.columns)}"
        )
    cells = table.columns[column]
    numbers = pd.to_numeric(pd.Series(cells), errors="coerce").to_numpy(np.float64)
    if (wrong := ~((numbers >= 0) & (numbers < 2**53) & (np.trunc(numbers) == numbers))).any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{table.at(row)}: {column}: expected a whole number, 0 or more, got {cells[row]!r} "
            f"({int(wrong.sum()):,} such rows)"
        )
    return numbers.astype(np.int64)
