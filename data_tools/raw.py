"""What a source reads from raw files, before filters, ids and splits; and the count of what it skipped."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd


@dataclass(frozen=True)
class Skipped:
    """How many lines, rows or items were skipped for one reason, and where the first lies."""

    count: int
    file: str
    line: int | None = None  # None where the reason has no line of its own


@dataclass(frozen=True)
class RawData:
    """Interactions and items with the ids that the files use.

    `interactions`: columns `user` and `item` (str, or a category of str), and where known `rating` (float),
    `timestamp` (int, in the unit of the files) and `label` (int8: a split that the files bring, x_label's 0, 1, 2).
    `items`: the index is the raw item id (str, distinct); text columns, and where known `image` (a file's path under
    the folder of images) and `image_url` (addresses, the best first, separated by spaces). "" is absent.
    """

    interactions: pd.DataFrame
    items: pd.DataFrame | None = None
    skipped: Mapping[str, Skipped] = field(default_factory=dict)  # by reason
    inputs: Mapping[str, str] = field(default_factory=dict)  # file -> sha256
    read: tuple[str, ...] = ()  # a line per file: what was taken as layout, header, separator and columns
