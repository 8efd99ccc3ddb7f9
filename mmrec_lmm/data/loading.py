"""MMRec's data set folder, read unedited and checked.

A folder `<name>/` holds `<name>.inter` (a table of userID, itemID, x_label; 0 train, 1 valid, 2 test), optionally
`items.tsv` (itemID, text columns, `image`: a path under `images/`) and ready feature files per modality. With a
catalog, the number of items is its number of rows and items without interactions are legal; without one it is the
largest id + 1, and a gap is an error, since row i of every feature file must be item i.
"""

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..cache import fingerprint
from ..config.choices import SPLIT_RULES
from ..config.settings import Settings
from ..disk.hashing import hash_file, hash_readable, join_hashes, unchanged
from ..disk.reading import check_readable, is_there
from ..errors import DataError, did_you_mean
from ..plugin.names import PATH_RULE, is_within
from ..types import SPLITS, Dataset, DrawnSplit, Interactions, ItemCatalog
from .ids import MAPPINGS
from .splitting import TIMED, TRAIN, UNITS, Rule, hash_labels, in_seconds, shipped_rule, time_units
from .tables import first_cells, read_integers, read_table

NOT_TEXT = ("itemID", "image", "image_url", "imUrl", "asin", "price", "salesRank", "related", "raw_id")


def load_dataset(
    folder: Path, name: str, settings: Settings, *, rule: Rule | None = None, times_for: str = ""
) -> Dataset:
    """The data set in `folder`, with the times of training rows if `times_for` names who reads them. Raises DataError,
    with counts, for data that can't be ranked correctly.

    `rule` draws the split that `settings` name; None if it is one that ships, or they name none.
    """
    if settings.split and rule is None:
        rule = shipped_rule(settings.split)
    inter = inter_file(folder, name, settings)
    with unchanged(inter):
        users, items, labels, times = read_interactions(inter, settings, times_for=reader_of_times(rule, times_for))
        inter_hash = hash_file(inter)
    catalog = read_catalog(folder) if is_there(folder / "items.tsv") else None

    n_users = _count_ids(users, inter, settings.USER_ID_FIELD, gaps_allowed=False)
    n_items = _count_ids(items, inter, settings.ITEM_ID_FIELD, gaps_allowed=catalog is not None)
    if catalog is not None:
        if n_items > len(catalog):
            raise DataError(
                f"{inter}: itemID: expected at most {len(catalog) - 1}, as the catalog has {len(catalog):,} rows "
                f"({folder / 'items.tsv'}), got {n_items - 1}; add its row or drop its interactions"
            )
        n_items = len(catalog)

    notes = _odd_times(times, inter, settings) if times is not None else []
    notes += _unnamed_images(folder, catalog, name) if catalog is not None else []
    if settings.split is None and settings.split_seed:
        notes.append(f"split_seed: {settings.split_seed} draws nothing: without --split the file's own labels are used")
    if rule is not None:
        labels = rule.labels(users, items, times, settings.split_seed)
    splits = {split: Interactions(users[labels == i], items[labels == i]) for i, split in enumerate(SPLITS)}
    has_history = np.zeros(n_users, dtype=bool)
    has_history[splits["train"].users] = True
    left_out: dict[str, int] = {}
    strangers = False  # are users measured who have no training row
    for split in ("valid", "test"):
        kept = has_history[splits[split].users]
        strangers |= not kept.all()
        if settings.filter_out_cod_start_users:
            if not kept.all():
                left_out |= {"users": int(np.sum(~has_history)), split: int(np.sum(~kept))}
                notes.append(
                    f"{split}: dropped {left_out[split]:,} rows of users without a training row "
                    f"({left_out['users']:,} of {n_users:,} users have none)"
                )
            splits[split] = Interactions(splits[split].users[kept], splits[split].items[kept])
    counts = ", ".join(f"{split} {len(rows):,}" for split, rows in splits.items())
    for split, rows in splits.items():
        if not len(rows):
            raise DataError(
                f"{inter}: expected rows in each split, got none for {split} ({counts}); {_cure_of_none(settings)}"
            )
    notes += _repeated(splits, n_items)

    fingerprinted = [inter_hash, n_users, n_items, *_unusual(inter, settings)]
    if strangers and not settings.filter_out_cod_start_users:
        fingerprinted.append("users without a training row are measured")
    drawn = None
    if rule is not None:
        sizes = {split: len(rows) for split, rows in splits.items()}
        drawn = DrawnSplit(rule.name, settings.split_seed, hash_labels(rule.name, labels), sizes, left_out)
        fingerprinted.append(drawn.hash)
    files = {"image": folder / settings.vision_feature_file, "text": folder / settings.text_feature_file}
    return Dataset(
        name=name,
        n_users=n_users,
        n_items=n_items,
        train=splits["train"],
        valid=splits["valid"],
        test=splits["test"],
        catalog=catalog,
        feature_files={modality: path for modality, path in files.items() if is_there(path)},
        fingerprint=fingerprint(fingerprinted),
        notes=tuple(notes),
        split=drawn,
        timestamps=in_seconds(times)[labels == TRAIN] if times is not None and times_for else None,
        id_files={kind: folder / file for kind, (file, *_) in MAPPINGS.items() if is_there(folder / file)},
    )


def _unusual(path: Path, settings: Settings) -> list[Any]:
    """The part of a fingerprint for columns other than the usual ones: one file may hold several splits, or several
    numberings of its users. Empty for a file as MMRec has it, whatever its header adds to the names."""
    names = {
        "userID": settings.USER_ID_FIELD, "itemID": settings.ITEM_ID_FIELD,
        **({} if settings.split else {"x_label": settings.inter_splitting_label}),
    }  # fmt: skip
    if names.items() <= {"userID": "userID", "itemID": "itemID", "x_label": "x_label"}.items():
        return []
    header = first_cells(path, separator=settings.field_separator)
    read = {usual: column_name(name, usual, header) for usual, name in names.items()}
    others = {usual: name for usual, name in read.items() if name != usual and (usual in header or usual == "x_label")}
    return [others] if others else []


def inter_file(folder: Path, name: str, settings: Settings) -> Path:
    """The path of a data set's interactions. Raises DataError, with what is there instead."""
    path = folder / (settings.inter_file_name or f"{name}.inter")
    check_readable(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file{_what_is_there(folder)}")
    return path


def reader_of_times(rule: Rule | None, other: str = "") -> str:
    """Who reads times, as messages call them: the rule of a split, if it needs them, or another."""
    return f"--split {rule.name}" if rule is not None and rule.needs_times else other


def read_interactions(
    path: Path, settings: Settings, *, times_for: str = ""
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Users, items and split labels, each (N,) int64, in file order, and times (N,) if `times_for` says who reads them.

    If a split is drawn, no labels are read, and those returned are zero.
    """
    separator = settings.field_separator
    header = first_cells(path, separator=separator)
    columns = [
        column_name(settings.USER_ID_FIELD, "userID", header),
        column_name(settings.ITEM_ID_FIELD, "itemID", header),
    ]
    columns += [] if settings.split else [settings.inter_splitting_label]
    timed = [time_column(path, header, settings, times_for)] if times_for else []
    _require_apart(path, columns)
    table = read_integers(
        path,
        [*columns, *timed],
        separator=separator,
        not_a_number="; `data import` makes a data set from raw ids",
        times=timed,
    )
    users, items, *others = (table.columns[column] for column in [*columns, *timed])
    for column, ids in zip(columns, (users, items), strict=False):
        if (negative := ids < 0).any():
            row = int(np.argmax(negative))
            count = f"{int(negative.sum()):,} such rows"
            raise DataError(f"{table.at(row)}: {column}: expected 0 or more, got {ids[row]} ({count})")
    if settings.split:
        return users, items, np.zeros(len(table), np.int64), others[0] if timed else None
    labels, *times = others
    strange = ~np.isin(labels, range(len(SPLITS)))
    if strange.any():
        raise DataError(
            f"{table.at(int(np.argmax(strange)))}: {columns[2]}: expected 0 (train), 1 (valid) or 2 (test), got "
            f"{labels[strange][0]} ({int(strange.sum()):,} such rows)"
        )
    return users, items, labels, times[0] if timed else None


def _require_apart(path: Path, columns: Sequence[str]) -> None:
    """DataError where two of the columns for users, items and labels are one."""
    for place, column in enumerate(columns):
        if column in columns[:place]:
            raise DataError(
                f"{path}: expected columns of their own for users, items and labels, got {column} for two of them; "
                "try other values of USER_ID_FIELD, ITEM_ID_FIELD or inter_splitting_label"
            )


def time_column(path: Path, header: Sequence[str], settings: Settings, reader: str) -> str:
    """The header's name of the column of times; in either, `timestamp:float` may stand for `timestamp`. `reader` says
    who needs them, for DataError."""
    bare = settings.TIME_FIELD.partition(":")[0]
    for name in (settings.TIME_FIELD, *header):
        if name in header and name.partition(":")[0] == bare:
            return name
    others = ", ".join(f"--split {rule}" for rule in SPLIT_RULES if rule not in TIMED)
    without = f"{others}, which need no times, " if reader.startswith("--split") else ""
    raise DataError(
        f"{path}: {reader}: expected the column {settings.TIME_FIELD!r} with the time of each interaction, got "
        f"{', '.join(header)}{did_you_mean(settings.TIME_FIELD, header)}; try --TIME_FIELD=COLUMN if it has another "
        f"name, {without}or `data import` from a table that has them"
    )


def _odd_times(times: np.ndarray, path: Path, settings: Settings) -> list[str]:
    """A note on times that are all equal, or too small beside the others. DataError for times in several units."""
    if len(times) > 1 and times.min() == times.max():
        return [
            f"{settings.TIME_FIELD}: all times are equal ({times[0]}), so they order nothing, and which rows are a "
            "user's last is drawn at random; is it another column? --TIME_FIELD=COLUMN names one"
        ]
    units = time_units(times)
    found = np.unique(units[units >= 0])
    if len(found) > 1:
        examples = [(UNITS[unit], int(np.sum(units == unit)), int(np.argmax(units == unit))) for unit in found]
        got = " and ".join(f"{rows:,} in {unit} (line {row + 2}: {times[row]})" for unit, rows, row in examples)
        raise DataError(
            f"{path}: {settings.TIME_FIELD}: expected times in one unit, got what looks like {got}; try converting "
            f"them to one, or another column with --TIME_FIELD=COLUMN"
        )
    early = np.flatnonzero(units < 0)
    if not len(found) or not len(early):
        return []
    return [
        f"{settings.TIME_FIELD}: {len(early):,} rows lie before 1973 (line {early[0] + 2}: {times[early[0]]}), while "
        f"the others are {UNITS[found[0]]} since 1970: is 0 a missing time? They count as the earliest"
    ]


def _cure_of_none(settings: Settings) -> str:
    """The end of a message about a split without rows."""
    if settings.split is None:
        return f"column {settings.inter_splitting_label} must mark rows 0 (train), 1 (valid) and 2 (test)"
    why = {
        "global-time": "there are fewer than three times, or its users have no earlier interaction",
        "cold-item": "there are too few items, or its users have no other interaction",
    }.get(settings.split, "no user has three interactions")
    others = " or ".join(f"--split {rule}" for rule in SPLIT_RULES if rule != settings.split)
    return f"--split {settings.split}: {why}; try {others}"


def column_name(name: str, default: str, header: Sequence[str]) -> str:
    """The header's name of a column: RecBole types names (`user_id:token`), in headers and in MMRec's overall.yaml,
    where they hold the place of the names that its data sets have."""
    bare = name.partition(":")[0]
    typed = [known for known in header if known.partition(":")[0] == bare]
    if name in header or ":" not in name:
        return name if name in header or not typed else typed[0]
    return typed[0] if typed else default


def read_catalog(folder: Path) -> ItemCatalog:
    """The catalog `items.tsv`, sorted by itemID, its images resolved under `images/`. DataError for one that would lead
    out of there."""
    path = folder / "items.tsv"
    table = items_table(path)
    if "itemID" not in table:
        raise DataError(f"{path}: expected the column 'itemID', got {', '.join(table.columns)}")
    ids = pd.to_numeric(table["itemID"], errors="coerce")
    order = np.argsort(ids.to_numpy(), kind="stable")
    if not np.array_equal(ids.to_numpy()[order], np.arange(len(table))):
        raise DataError(
            f"{path}: itemID: expected each of 0 ... {len(table) - 1} once, as row i of every feature table is item i, "
            f"got {ids.nunique():,} distinct numbers in {len(table):,} rows"
        )
    table = table.iloc[order]
    raw_column = next((column for column in ("raw_id", "asin") if column in table), "itemID")
    names = table["image"].tolist() if "image" in table else [""] * len(table)
    if (outside := next((item for item, name in enumerate(names) if name and not is_within(name)), None)) is not None:
        raise DataError(
            f"{path}: image: item {outside}: expected {PATH_RULE}, {folder / 'images'}, got {names[outside]!r}; "
            "correct it, or leave it empty"
        )
    images = tuple(_image(folder / "images", name) if name else None for name in names)
    fields = {column: tuple(table[column]) for column in table.columns if column not in NOT_TEXT}
    contents = [one for one in hash_readable(images) if one is not None]
    return ItemCatalog(
        fields=fields,
        images=images,
        raw_ids=tuple(table[raw_column]),
        fingerprint=fingerprint([fields, names, join_hashes(contents)]),
    )


def _image(folder: Path, name: str) -> Path:
    """The path of an image, in the Unicode form that its file has: macOS and some archives have é as two characters."""
    path = folder / name
    if name.isascii() or path.exists():
        return path
    forms = (folder / unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    return next((other for other in forms if other.exists()), path)


def _unnamed_images(folder: Path, catalog: ItemCatalog, name: str) -> list[str]:
    """A note where the catalog names no image, and the folder of images isn't empty."""
    images = folder / "images"
    if catalog.has_images or not images.is_dir() or all(path.name.startswith(".") for path in images.iterdir()):
        return []
    return [
        f"items.tsv names no image, and {images} holds files, which no item gets; `mmrec-lmm data images {name} --from "
        f"{images}` gives items the images that are called by their ids, and names what comes near"
    ]


def items_table(path: Path) -> pd.DataFrame:
    """All named columns of a catalog. Its ids check themselves, so line breaks within quoted cells are tried too."""
    try:
        table = read_table(path)
    except DataError as error:
        try:
            table = read_table(path, quotes="multiline")
        except DataError:
            raise error from None
    return pd.DataFrame({name: cells for name, cells in table.columns.items() if name}, dtype=object)


def _count_ids(ids: np.ndarray, path: Path, column: str, *, gaps_allowed: bool) -> int:
    """The largest id + 1, after refusing, unless allowed, ids that never occur."""
    if not len(ids):
        raise DataError(f"{path}: expected rows, got only a header")
    count = int(ids.max()) + 1
    if gaps_allowed or (count <= len(ids) and np.bincount(ids, minlength=count).all()):
        return count
    distinct = np.unique(ids)
    if len(distinct) < count:
        gap = int(np.argmax(distinct != np.arange(len(distinct))))
        raise DataError(
            f"{path}: {column}: expected 0 to {count - 1} without gaps, got {len(distinct):,} of these {count:,} ids; "
            f"the first missing is {gap}. Renumber the ids"
            + (", or list all items in items.tsv beside it" if column == "itemID" else "")
        )
    return count


def _repeated(splits: dict[str, Interactions], n_items: int) -> list[str]:
    """Notes on pairs that occur twice within a split, or in training and again in a held-out split."""
    keys = {split: rows.users * n_items + rows.items for split, rows in splits.items()}
    again = np.split(occur_again(np.concatenate(list(keys.values()))), np.cumsum([len(one) for one in keys.values()]))
    keys = {split: pairs[chosen] for (split, pairs), chosen in zip(keys.items(), again, strict=False)}  # few
    notes = [
        f"{split}: {len(pairs) - len(np.unique(pairs)):,} rows repeat a pair of the same split"
        for split, pairs in keys.items()
        if len(np.unique(pairs)) < len(pairs)
    ]
    for split in ("valid", "test"):
        seen = int(np.isin(keys[split], keys["train"]).sum())
        if seen:
            notes.append(f"{split}: {seen:,} rows repeat a training pair; those items are masked, so they can't be hit")
    return notes


def occur_again(values: np.ndarray) -> np.ndarray:
    """(N,) bool: does each of the values (N,) occur more than once.

    By a sort, as NumPy's `unique` hashes: it takes minutes for 20 million.
    """
    ordered = np.sort(values)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(twice):
        return np.zeros(len(values), dtype=bool)
    return twice[np.minimum(np.searchsorted(twice, values), len(twice) - 1)] == values


def _what_is_there(folder: Path) -> str:
    """The end of a message about a missing file: the files or folders that are there."""
    if folder.is_dir():
        others = sorted(path.name for path in folder.glob("*.inter"))
        if others:
            return f"; the folder has {', '.join(others)} (inter_file_name chooses one)"
        return "; `data import` makes a data set from tables of interactions and items"
    parent = folder.parent
    if not parent.is_dir():
        return f"; the folder {parent} doesn't exist (--data-path chooses another)"
    names = sorted(path.name for path in parent.glob("[!.]*") if path.is_dir())
    return f"; {parent} holds {', '.join(names) or 'no data set'}{did_you_mean(folder.name, names)}"
