"""Anyone's tables and images -> a data set: an interactions table, and where there are any, an items table and images.

Ids. Item i is row i of the items table (without one: the i-th item to appear in the interactions); users count in
order of first appearance. Items without interactions are legal and keep their row. Only `core` removes items: what is
left is then numbered anew, in the same order.
Repeated pairs of a user and an item count once, the first. The split is MMRec's (`splitting.py`), drawn from `seed`:
the same inputs and seed give byte-identical files. `import.json` beside them tells what was found; the layout stands
in `writing.py`.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from mmrec_lmm.artifacts import fingerprint, hash_bytes, hash_file
from mmrec_lmm.errors import ConfigError, DataError, did_you_mean

from .splitting import k_core, split_labels
from .writing import TEXT_COLUMNS, new_dataset, write_tables

logger = logging.getLogger(__name__)

# Header names understood without being told, in lower case.
KNOWN: Mapping[str, tuple[str, ...]] = {
    "user": ("user", "userid", "user_id", "reviewerid", "uid"),
    "item": ("item", "itemid", "item_id", "asin", "parent_asin", "movieid", "iid"),
    "rating": ("rating", "overall", "stars"),
    "timestamp": ("timestamp", "time", "unixreviewtime"),
}
POSITIONS = ("user", "item", "rating", "timestamp")  # of a table without a header, as in MovieLens' u.data
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


@dataclass(frozen=True)
class ImportReport:
    """What an import found and did: the content of `import.json`."""

    name: str
    users: int
    items: int
    interactions: int
    splits: Mapping[str, int]  # rows of train, valid, test
    texts: Mapping[str, int]  # items with a value, by text column
    images: int  # items with an image
    images_missing: tuple[str, ...]  # raw ids of items whose image isn't in the folder
    items_without_interactions: int
    repeated: int  # interactions dropped because the pair occurred before
    unknown: int  # interactions dropped because the items table lacks the item
    outside_core: int  # interactions dropped by the k-core filter
    seed: int
    core: int
    inputs: Mapping[str, str]  # SHA-256 by file name; of the images as a whole, by their names and contents

    def __str__(self) -> str:
        splits = ", ".join(f"{split} {rows:,}" for split, rows in self.splits.items())
        lines = [
            f"{self.name}: {self.users:,} users, {self.items:,} items, {self.interactions:,} interactions ({splits})",
            f"texts: {', '.join(f'{column} {count:,}' for column, count in self.texts.items()) or 'none'}",
            f"images: {self.images:,}",
        ]
        if self.images_missing:
            lines.append(f"images named but not found: {len(self.images_missing):,} ({_few(self.images_missing)})")
        if self.items_without_interactions:
            lines.append(f"items without interactions: {self.items_without_interactions:,}, kept")
        lines += [
            f"dropped: {count:,} interactions, {why}"
            for count, why in (
                (self.repeated, "repeating a pair of user and item"),
                (self.unknown, "with items that the items table lacks"),
                (self.outside_core, f"outside the {self.core}-core"),
            )
            if count
        ]
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
    separator: str | None = None,
    drop_unknown: bool = False,
    force: bool = False,
) -> ImportReport:
    """Make the data set `out` (its name is the folder's) and return what was found.

    Tables are UTF-8 text with CSV quoting, separated by tabs or commas, whichever the first line has, or by
    `separator`. An interactions table may lack a header: it is taken to have one if its first line holds a name that
    we know (`KNOWN`) or were told (`user_column`, `item_column`); without one its columns are user, item, rating,
    timestamp, or `columns`. The items table needs a header; the id is `items_id_column`, else a column of a known name,
    else the first. `image` names a file in the folder `images`; without that column, `<raw id>.jpg` and the like do.
    `core` = k > 0 keeps users and items with k interactions or more, as MMRec did with 5; by default everything
    stays, since dropping somebody's data is theirs to decide.

    Raises DataError for an unknown column, an empty table or id, ids that aren't unique, and interactions with items
    that the items table lacks (dropped under `drop_unknown`); ConfigError where `out` is in use, unless `force`
    replaces the data set there.
    """
    _keep_inputs_apart(out, interactions, items, images)
    table = _read_interactions(interactions, user_column, item_column, columns, separator)
    catalogue = None if items is None else _read_items(items, items_id_column)
    with new_dataset(out, name=out.name, force=force) as building:
        raw_items = pd.Index(pd.unique(table["item"])) if catalogue is None else pd.Index(catalogue.index)
        n_rows = len(table)
        table = table.drop_duplicates(["user", "item"])
        repeated = n_rows - len(table)
        unknown = ~table["item"].isin(raw_items)
        if unknown.any() and not drop_unknown:
            lacking = pd.unique(table.loc[unknown, "item"])
            raise DataError(
                f"{interactions}: {int(unknown.sum()):,} interactions name {len(lacking):,} items that {items} lacks "
                f"({_few(lacking)}); add their rows there, or drop the interactions with --drop-unknown"
            )
        table = table[~unknown]
        kept = _core_of(table, core)
        outside = len(table) - int(kept.sum())
        table = table[kept]
        if not len(table):
            raise DataError(f"{interactions}: no interactions are left ({unknown.sum():,} unknown, {outside:,} by core)")
        if core:
            raw_items = raw_items[raw_items.isin(table["item"])]
        if catalogue is None and images is not None:
            catalogue = pd.DataFrame(index=raw_items)
        missing: list[str] = []
        inputs = {path.name: hash_file(path) for path in (interactions, items) if path is not None}
        if catalogue is not None:
            catalogue = catalogue.loc[raw_items]
            found, missing = _copy_images(catalogue, images, building / "images", inputs)
            catalogue = catalogue.drop(columns="image", errors="ignore").assign(image=found).reset_index(drop=True)

        user_ids, raw_users = pd.factorize(table["user"])
        item_ids = raw_items.get_indexer(table["item"])
        labels = split_labels(user_ids, np.random.default_rng(seed))
        write_tables(
            building,
            name=out.name,
            interactions=table.assign(userID=user_ids, itemID=item_ids, x_label=labels),
            raw_users=pd.Series(raw_users),
            raw_items=pd.Series(raw_items),
            items=catalogue,
        )
        report = ImportReport(
            name=out.name,
            users=len(raw_users),
            items=len(raw_items),
            interactions=len(table),
            splits=dict(zip(("train", "valid", "test"), np.bincount(labels, minlength=3).tolist(), strict=True)),
            texts=_filled(catalogue, TEXT_COLUMNS),
            images=_filled(catalogue, ("image",)).get("image", 0),
            images_missing=tuple(missing),
            items_without_interactions=len(raw_items) - len(np.unique(item_ids)),
            repeated=repeated,
            unknown=int(unknown.sum()),
            outside_core=outside,
            seed=seed,
            core=core,
            inputs=inputs,
        )
        (building / "import.json").write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    return report
