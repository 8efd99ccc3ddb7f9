"""What a source reads from raw files, before filters, ids and splits; and the counts of what it skipped or mended."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from mmrec_lmm.errors import DataError

#: Writes one feature row for each raw item id, in order, to an .npy file; a row is zero where the item has none.
#: Returns how many items have one.
WriteFeatures = Callable[[pd.Index, Path], int]


@dataclass(frozen=True)
class Skipped:
    """How many lines, rows or items share one reason, and where the first lies."""

    count: int
    file: str
    line: int | None = None  # None where the reason has no line of its own

    def __str__(self) -> str:
        return f"{self.count:,} (first: {self.file}{'' if self.line is None else f', line {self.line:,}'})"


@dataclass(frozen=True)
class RawData:
    """Interactions and items with the ids that the files use.

    `interactions`: columns `user` and `item` (str, or a category of str), and where known `rating` (float, or text
    that is kept as it is), `timestamp` (int or text, in the unit of the files) and `label` (int8: a split that the
    files bring, x_label's 0, 1, 2).
    `items`: the index is the raw item id (str, distinct); text columns, and where known `image` (a file's path under
    the folder `images`) and `image_url` (addresses, the best first, separated by spaces). "" is absent.
    With `catalog`, item i is row i of `items`, and items without interactions stay; else items are numbered as they
    first appear in the interactions, and those without a row of `items` have no content.
    """

    interactions: pd.DataFrame
    items: pd.DataFrame | None = None
    skipped: Mapping[str, Skipped] = field(default_factory=dict)  # by reason
    inputs: Mapping[str, str] = field(default_factory=dict)  # file -> sha256
    read: tuple[str, ...] = ()  # a line per file: what was taken as layout, header, separator and columns
    repaired: Mapping[str, Skipped] = field(default_factory=dict)  # by reason: taken, but not as it was written
    features: Mapping[str, WriteFeatures] = field(default_factory=dict)  # by file name
    images: Path | None = None
    origin: Path | None = None  # the file or folder of the interactions, for messages
    catalog: bool = False


class Tally:
    """Counts by reason with the first place of each. Under `strict` the first one stops: DataError with its place."""

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self.counts: dict[str, Skipped] = {}

    def add(self, reason: str, path: Path, line: int | None, count: int = 1) -> None:
        if self.strict:
            where = f"{path}, line {line}" if line is not None else f"{path}"
            raise DataError(f"{where}: {reason}; without --strict, such lines are skipped and counted")
        known = self.counts.get(reason)
        self.counts[reason] = Skipped(count, path.name, line) if known is None else Skipped(
            known.count + count, known.file, known.line
        )  # fmt: skip

    def first(self) -> str:
        """The first reason with its place, for a message; empty where nothing was counted."""
        for reason, skipped in self.counts.items():
            return f"{reason}: {skipped}"
        return ""


class Tallies:
    """What a source counts: lines that it can't use, which `strict` refuses; rows that it leaves out by rule; and what
    it takes, but not as it was written."""

    def __init__(self, *, strict: bool = False) -> None:
        self.skipped, self.left_out, self.repaired = Tally(strict=strict), Tally(), Tally()

    def counts(self) -> dict[str, Skipped]:
        """All that isn't in the data, by reason."""
        return self.skipped.counts | self.left_out.counts
