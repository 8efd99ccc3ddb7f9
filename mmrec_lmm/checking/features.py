"""What is to be said of ready feature files, as a run would read them.

Shapes: I items, P items that have the modality, D feature width.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..features.files import MISSED_IMAGES, scale_note
from ..types import FeatureTable
from .findings import NAMED, Finding, Place, of_placeholder

HALF = 0.5  # of all columns, or items
BLOCK = 4096  # rows that are in memory at once


def findings(table: FeatureTable, path: Path, raw_ids: Sequence[str] | None) -> Iterator[Finding]:
    """What is to be said of a table; `raw_ids` (I,) name items as the catalog does."""
    present = np.flatnonzero(table.present)
    absent = np.flatnonzero(~table.present)
    if len(absent):
        most = len(absent) > HALF * len(table.present)
        yield Finding(
            "absent-features",
            "warning" if most else "note",
            f"items have no {table.modality} features: their rows are zero, or {MISSED_IMAGES} names them"
            if table.modality == "image"
            else f"items have no {table.modality} features: their rows are zero",
            len(absent),
            len(table.present),
            _place(path, absent, raw_ids),
            "runs mask these items",
        )
    if not len(present):
        return
    if len(present) > 1:
        yield from _constant_columns(table, path, present)
        yield from _repeated_rows(table, path, present, raw_ids)
    note = scale_note(table)
    if note is not None:
        what, _, cure = note.partition("; ")
        yield Finding("scale", "warning", what, len(present), len(table.present), Place(path.name), cure)


def _constant_columns(table: FeatureTable, path: Path, present: np.ndarray) -> Iterator[Finding]:
    first = table.values[present[0]]
    differs = np.zeros(table.dim, dtype=bool)
    for start in range(0, len(present), BLOCK):
        differs |= (table.values[present[start : start + BLOCK]] != first).any(axis=0)
    constant = np.flatnonzero(~differs)
    if len(constant):
        yield Finding(
            "constant-columns",
            "warning" if len(constant) > HALF * table.dim else "note",
            f"columns have one value for all items (first {constant[0]}): they tell no item from another",
            len(constant),
            table.dim,
            Place(path.name),
            "make the features again; it may be the wrong layer",
        )


def _repeated_rows(
    table: FeatureTable, path: Path, present: np.ndarray, raw_ids: Sequence[str] | None
) -> Iterator[Finding]:
    """Items whose row is that of another."""
    digests = np.array([hashlib.blake2b(table.values[item].tobytes(), digest_size=16).digest() for item in present])
    _, groups, sizes = np.unique(digests, return_inverse=True, return_counts=True)  # (P,)
    of_item = sizes[groups]
    repeated = present[of_item > 1]
    if len(repeated):
        largest = int(sizes.max())
        suspicious = of_placeholder(largest, len(repeated), len(present))
        cure = "make these items' rows zero: a row that many share is no content of theirs"
        if table.modality == "image":
            cure += f"; or list them in {MISSED_IMAGES}"
        yield Finding(
            "repeated-rows",
            "warning" if suspicious else "note",
            f"items have the row of another; {largest:,} have the same",
            len(repeated),
            len(present),
            _place(path, present[of_item == largest], raw_ids),
            cure if suspicious else "",
        )


def _place(path: Path, items: np.ndarray, raw_ids: Sequence[str] | None) -> Place:
    names = (raw_ids[item] if raw_ids is not None else str(item) for item in items[:NAMED])
    return Place(path.name, items=tuple(names))
