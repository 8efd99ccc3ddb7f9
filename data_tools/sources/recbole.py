"""RecBole's atomic files: X.inter and X.item, tab-separated, with types in the header (`user_id:token`).

A sequence (`token_seq`) has its parts between blanks; it is kept as text. X.train.inter, X.valid.inter and
X.test.inter are a split, which is kept; one X.inter beside them goes first.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmrec_lmm.disk.hashing import hash_file
from mmrec_lmm.errors import DataError

from ..raw import RawData, Tallies
from .files import Files, each_split, only, split_of
from .lines import Cells, Interactions, first_lines, read_items

#: The data sets' names for text columns, by ours.
TEXTS: Mapping[str, tuple[str, ...]] = {
    "title": ("title", "movie_title", "item_name", "name"),
    "brand": ("brand", "store", "artist"),
    "categories": ("categories", "category", "genre", "genres", "class"),
    "description": ("description",),
    "image_url": ("image_url", "imurl", "image"),
}
USER, ITEM, RATING, TIME = "user_id", "item_id", "rating", "timestamp"


def find(paths: Sequence[Path]) -> Files | None:
    """The files of atomic files; None where no .inter has a typed header."""
    parts: dict[str, list[Path]] = {}
    for path in paths:
        if path.suffix == ".item":
            if any(":" in cell for cell in _header(path)):
                parts.setdefault("items", []).append(path)
        elif path.suffix == ".inter" and any(cell.endswith((":token", ":float")) for cell in _header(path)):
            kind = "splits" if split_of(path) is not None else "interactions"
            parts.setdefault(kind, []).append(path)
    return Files(parts) if {"interactions", "splits"} & set(parts) else None


def read(files: Files, *, strict: bool = False) -> RawData:
    """Interactions and items; counts what it skips by reason. A rating or time that the header lacks is absent."""
    tallies = Tallies(strict=strict)
    interactions, said, used = Interactions(tallies), [], []
    columns: set[str] = set()
    labeled: list[tuple[Path, int | None]] = (
        [(path, label) for label, path in enumerate(each_split(files))]
        if ("splits" in files.parts and "interactions" not in files.parts)
        else [(only(files, "interactions"), None)]
    )
    for path, label in labeled:
        names = [cell.split(":")[0] for cell in _header(path)]
        known = [names.index(name) if name in names else None for name in (RATING, TIME)]
        columns = set(names)
        take = Cells("\t", len(names), (_place(path, names, USER), _place(path, names, ITEM), *known))
        count = interactions.read(path, take, None, header=True, label=label)
        said.append(f"{path.name}: atomic file of RecBole, {count:,} of {', '.join(names)}")
        used.append(path)
    table = interactions.table()
    table = table.drop(
        columns=[ours for name, ours in ((RATING, "rating"), (TIME, "timestamp")) if name not in columns]
    )
    items = None
    if "items" in files.parts:
        path = only(files, "items")
        names = [cell.split(":")[0] for cell in _header(path)]
        chosen = {
            ours: next(name for name in names if name.lower() in theirs)
            for ours, theirs in TEXTS.items()
            if any(name.lower() in theirs for name in names)
        }
        places = [_place(path, names, ITEM), *map(names.index, chosen.values())]
        items = read_items(
            path, Cells("\t", len(names), tuple(places)), list(chosen), interactions.items, tallies, header=True
        )
        taken = ", ".join(f"{ours} {name}" for ours, name in chosen.items())
        said.append(f"{path.name}: {len(items):,} items; columns: {taken or 'none known'}")
        used.append(path)
    return RawData(
        origin=used[0],
        interactions=table,
        items=items,
        skipped=tallies.counts(),
        inputs={path.name: hash_file(path) for path in used},
        read=tuple(said),
        repaired=tallies.repaired.counts,
    )


def _header(path: Path) -> list[str]:
    return next(iter(first_lines(path, 1)), b"").decode("latin-1").split("\t")


def _place(path: Path, names: Sequence[str], name: str) -> int:
    if name not in names:
        raise DataError(f"{path}, line 1: expected the column {name}:token, got {', '.join(names)}")
    return names.index(name)
