"""Make a data set from a user's own files: an interactions table and, optionally, an items table and images.

Item i is row i of the items table (without one: the i-th item to appear in the interactions). Only `core` removes
items; those left are numbered in the same order. `building.py` has the rest, and `writing.py` describes the layout.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mmrec_lmm.api import first_few
from mmrec_lmm.config.choices import SplitRule
from mmrec_lmm.data.splitting import TIMED
from mmrec_lmm.data.tables import Quotes
from mmrec_lmm.disk.hashing import hash_file
from mmrec_lmm.errors import ConfigError, DataError

from .building import Report, build, keep_apart
from .raw import RawData, Skipped
from .sources.tables import SPLIT, Columns, Format, read_interactions, read_items
from .writing import check_free


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
    time_column: str | None = None,
    rating_column: str | None = None,
    separator: str | None = None,
    header: bool | None = None,
    quotes: Quotes = "line",
    encoding: str = "utf-8",
    decimal: str = ".",
    drop_unknown: bool = False,
    min_rating: float | None = None,
    split: SplitRule | None = None,
    raw_text: bool = False,
    force: bool = False,
) -> Report:
    """Make the data set `out`, named by its folder, and return its counts.

    Tables are text in `encoding` with CSV quoting (`quotes`: line, multiline, none), separated by `separator`; without
    it, by what the first lines have: tabs, commas, semicolons or bars. The interactions table has a header under
    `header`, or if its first line holds a known name (`sources/tables.py`) or one of the columns that are given, or a
    word over numbers; words over words are refused. Without a header its columns are user, item, rating, timestamp, or
    `columns`; a third one of three that looks like times is the timestamp. `time_column` and `rating_column` name
    columns of other names. A column `x_label`, or `split_column`, holds a split to keep: 0, 1, 2 or train, valid, test;
    under `split` it isn't read. Ratings and timestamps are finite numbers with a decimal point, or `decimal`'s comma.
    The items table needs a header; its id is `items_id_column`, else a column of a known name, else the first if it has
    a name. Its column `image` names files in `images`, a folder or an archive; without that column the image of item X
    is `X.jpg` or the like, in whatever folder. `core` = k > 0 keeps users and items with k interactions or more, as
    MMRec did with 5; by default all stay, since a filter changes what a benchmark measures.

    Text is cleaned (`texts.py`) unless `raw_text`; `min_rating`, `core`, `split` as in `build`, `seed` is the split's.

    Raises DataError for an unknown column, an empty table or id, a rating or timestamp that isn't a number, ids that
    aren't unique, and interactions with items that the items table lacks (dropped under `drop_unknown`); ConfigError
    for a column of two roles, and where `out` is in use, unless `force` replaces the data set there, and where `split`
    needs times that there aren't.
    """
    out = out.absolute()
    keep_apart(out, [path for path in (interactions, items, images) if path is not None])
    check_free(out, out.name, force)
    form = Format(separator, header, columns, quotes, encoding, decimal)
    named = Columns(user_column, item_column, split_column, items_id_column, time_column, rating_column)
    table, said = read_interactions(interactions, form, named, keep_split=split is None)
    if split in TIMED and "timestamp" not in table:
        raise ConfigError(
            f"--split {split}: expected interactions with times, got none ({said}); try --time-column NAME, or --split "
            "ratio"
        )
    table = table.rename(columns={SPLIT: "label"})
    read, inputs, skipped = [said], {"interactions": hash_file(interactions)}, {}
    if items is not None:
        catalog, said = read_items(items, form, named)
        read.append(said)
        inputs["items"] = hash_file(items)
        known = table["item"].isin(catalog.index)
        if not known.all():
            if (table["item"] == catalog.index.name).any():
                raise DataError(
                    f"{items}: has the items table no header? Its first line, with {catalog.index.name} in place of "
                    f"the ids' column, was taken as one, and {interactions.name} has interactions with "
                    f"{catalog.index.name}; put a line of names first, such as item_id,title"
                )
            if not drop_unknown:
                raise _unknown(table["item"][~known], interactions, items)
            skipped["item unknown"] = Skipped(int((~known).sum()), interactions.name)
            table = table[known]
    else:
        catalog = pd.DataFrame(index=pd.Index(table["item"].unique(), dtype=object))
    raw = RawData(table, catalog, skipped, inputs, tuple(read), images=images, origin=interactions, catalog=True)
    options = {
        "user_column": user_column, "item_column": item_column, "columns": columns, "items_id_column": items_id_column,
        "split_column": split_column, "time_column": time_column, "rating_column": rating_column,
        "separator": separator, "header": header, "quotes": quotes, "encoding": encoding,
        "decimal": decimal, "drop_unknown": drop_unknown,
    }  # fmt: skip
    return build(
        raw, out, source="tables", core=core, min_rating=min_rating, split=split, split_seed=seed, raw_text=raw_text,
        options=options, force=force,
    )  # fmt: skip


def _unknown(unknown: pd.Series, interactions: Path, items: Path) -> DataError:
    return DataError(
        f"{interactions}: expected items of {items}, got {len(unknown):,} interactions with {unknown.nunique():,} "
        f"others ({first_few(unknown.unique())}); try --drop-unknown, or add their rows"
    )
