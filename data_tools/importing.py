"""Make a data set from a user's own files: an interactions table and, optionally, an items table and images.

Ids. Item i is row i of the items table (without one: the i-th item to appear in the interactions); users count in
order of first appearance. Items without interactions are legal and keep their row. Only `core` removes items; those
left are numbered in the same order.
Repeated pairs of a user and an item count once, the first. A split that the table brings is kept; else it is MMRec's,
drawn from `seed`: the same inputs and seed give byte-identical files. `import.json` holds the counts and the inputs'
hashes; `writing.py` describes the layout.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mmrec_lmm.api import first_few
from mmrec_lmm.cache import hash_file, write_json
from mmrec_lmm.data.splitting import split_labels
from mmrec_lmm.data.tables import Quotes
from mmrec_lmm.errors import ConfigError, DataError
from mmrec_lmm.types import SPLITS

from .filtering import k_core
from .images.copying import copy_images
from .sources.tables import SPLIT, Columns, Format, read_interactions, read_items
from .writing import TEXT_COLUMNS, new_dataset, write_tables


@dataclass(frozen=True)
class ImportReport:
    """The counts and inputs of an import, as `import.json` holds them; `str` makes a summary for people."""

    name: str
    users: int
    items: int
    interactions: int
    splits: Mapping[str, int]  # rows of train, valid, test
    texts: Mapping[str, int]  # text column -> items with a value
    images: int  # items with an image
    images_missing: tuple[str, ...]  # raw ids of items whose image is named but not in the folder
    images_notes: tuple[str, ...]  # what came near and wasn't taken, or was ignored
    items_without_interactions: int
    dropped: Mapping[str, int]  # reason -> interactions
    seed: int
    core: int
    inputs: Mapping[str, str]  # hashes of the tables, and one of all images with their names
    read: tuple[str, ...]  # a line per table: which separator, header and columns were taken
    split: str  # where it comes from

    def __str__(self) -> str:
        lines = [
            *self.read,
            f"split: {self.split}",
            f"{self.name}: {self.users:,} users, {self.items:,} items, {self.interactions:,} interactions "
            f"({_counts(self.splits)})",
            f"{self.images:,} images; texts: {_counts(self.texts) or 'none'}",
        ]
        if self.images_missing:
            lines.append(
                f"{len(self.images_missing):,} images named but not found, of items {first_few(self.images_missing)}"
            )
        lines += self.images_notes
        if self.items_without_interactions:
            lines.append(f"{self.items_without_interactions:,} items without interactions, kept")
        if self.dropped:
            lines.append(f"interactions dropped: {_counts(self.dropped)}")
        return "\n".join(lines)


def import_dataset(
    interactions: Path,
    out: Path,
    *,
    items: Path | None = None,
    images: Path | None = None,
    seed: int = 0,
    core: int = 0,
    user_column: str | None = None,
    item_column: str | None = None,
    columns: Sequence[str] | None = None,
    items_id_column: str | None = None,
    split_column: str | None = None,
    separator: str | None = None,
    header: bool | None = None,
    quotes: Quotes = "line",
    encoding: str = "utf-8",
    decimal: str = ".",
    drop_unknown: bool = False,
    force: bool = False,
) -> ImportReport:
    """Make the data set `out`, named by its folder, and return its counts.

    Tables are text in `encoding` with CSV quoting (`quotes`: line, multiline, none), separated by `separator`; without
    it, by what the first lines have: tabs, commas, semicolons or bars. The interactions table has a header under
    `header`, or if its first line holds a known name (`sources/tables.py`) or one of the columns that are given, or a
    word over numbers; words over words are refused. Without a header its columns are user, item, rating, timestamp, or
    `columns`. A column `x_label`, or `split_column`, holds a split to keep: 0, 1, 2 or train, valid, test. The items
    table needs a header; its id is `items_id_column`, else a column of a known name, else the first if it has a name.
    Its column `image` names files in `images`, a folder or an archive; without that column the image of item X is
    `X.jpg` or the like, in whatever folder. `core` = k > 0 keeps users and items with k interactions or more, as MMRec
    did with 5; by default all stay, since a filter changes what a benchmark measures.

    Raises DataError for an unknown column, an empty table or id, ids that aren't unique, and interactions with items
    that the items table lacks (dropped under `drop_unknown`); ConfigError where `out` is in use, unless `force`
    replaces the data set there.
    """
    out = out.absolute()
    _keep_apart(out, [path for path in (interactions, items, images) if path is not None])
    with new_dataset(out, name=out.name, force=force) as building:
        form = Format(separator, header, columns, quotes, encoding, decimal)
        named = Columns(user_column, item_column, split_column, items_id_column)
        table, said = read_interactions(interactions, form, named)
        read = [said]
        if items is not None:
            catalog, said = read_items(items, form, named)
            read.append(said)
            if not drop_unknown:
                _require_known(table["item"], catalog.index, interactions, items)
        else:
            catalog = pd.DataFrame(index=pd.Index(table["item"].unique()))
        table, dropped = _select(table, catalog.index, core)
        if table.empty:
            raise DataError(f"{interactions}: no interaction is left; dropped: {_counts(dropped)}")
        if core:
            catalog = catalog[catalog.index.isin(table["item"])]

        inputs = {"interactions": hash_file(interactions)}
        if items is not None:
            inputs["items"] = hash_file(items)
        missing: tuple[str, ...] = ()
        notes: tuple[str, ...] = ()
        if images is not None:
            paths = dict(zip(catalog.index, catalog["image"], strict=True)) if "image" in catalog else None
            copied = copy_images(images, building / "images", list(catalog.index), paths)
            missing, notes, inputs["images"] = copied.missing, copied.notes, copied.hash
            catalog = catalog.assign(image=[copied.names.get(raw_id, "") for raw_id in catalog.index])
        elif "image" in catalog:
            catalog = catalog.assign(image="")  # the names are useless without the folder of images

        user_ids, raw_users = pd.factorize(table["user"])
        item_ids = catalog.index.get_indexer(pd.Index(table["item"]))
        given = SPLIT in table
        labels = table[SPLIT].to_numpy() if given else split_labels(user_ids, np.random.default_rng(seed))
        write_tables(
            building,
            name=out.name,
            interactions=table.assign(userID=user_ids, itemID=item_ids, x_label=labels),
            raw_users=raw_users,
            raw_items=catalog.index,
            items=None if items is None and images is None else catalog,
        )
        report = ImportReport(
            name=out.name,
            users=len(raw_users),
            items=len(catalog),
            interactions=len(table),
            splits=dict(zip(SPLITS, np.bincount(labels, minlength=len(SPLITS)).tolist(), strict=True)),
            texts={column: int((catalog[column] != "").sum()) for column in TEXT_COLUMNS if column in catalog},
            images=int((catalog["image"] != "").sum()) if "image" in catalog else 0,
            images_missing=missing,
            images_notes=notes,
            items_without_interactions=len(catalog) - len(np.unique(item_ids)),
            dropped=dropped,
            seed=seed,
            core=core,
            inputs=inputs,
            read=tuple(read),
            split=f"as {interactions.name} has it" if given else f"MMRec's rule, drawn from seed {seed}",
        )
        write_json(building / "import.json", report)
    return report


# Selecting


def _require_known(items: pd.Series, catalog: pd.Index, interactions: Path, table: Path) -> None:
    unknown = items[~items.isin(catalog)]
    if len(unknown):
        raise DataError(
            f"{interactions}: expected items of {table}, got {len(unknown):,} interactions with {unknown.nunique():,} "
            f"others ({first_few(unknown.unique())}); try --drop-unknown, or add their rows"
        )


def _select(table: pd.DataFrame, catalog: pd.Index, core: int) -> tuple[pd.DataFrame, dict[str, int]]:
    """The interactions to keep, and how many were dropped for each reason that occurred."""
    dropped: dict[str, int] = {}

    def keep(mask: np.ndarray, reason: str) -> None:
        nonlocal table
        if not mask.all():
            dropped[reason] = int((~mask).sum())
            table = table[mask]

    keep(table["item"].isin(catalog).to_numpy(), "item unknown")
    keep(~table.duplicated(["user", "item"]).to_numpy(), "pair repeated")
    keep(k_core(pd.factorize(table["user"])[0], pd.factorize(table["item"])[0], core), f"outside the {core}-core")
    return table, dropped


# Checks and counts


def _keep_apart(out: Path, inputs: Sequence[Path]) -> None:
    """Refuse to read from the folder that the import replaces."""
    for path in inputs:
        if out.resolve() in (path.resolve(), *path.resolve().parents):
            raise ConfigError(
                f"{path}: expected a file outside {out}, which the import would replace; try another name for the "
                "data set"
            )
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
