"""Make a data set from a user's own files: an interactions table and, optionally, an items table and images.

Ids. Item i is row i of the items table (without one: the i-th item to appear in the interactions); users count in
order of first appearance. Items without interactions are legal and keep their row. Only `core` removes items; those
left are numbered in the same order.
Repeated pairs of a user and an item count once, the first. The split is MMRec's rule, drawn from `seed`: the same
inputs and seed give byte-identical files. `import.json` holds the counts and the inputs' hashes; `writing.py` describes
the layout.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from mmrec_lmm.api import first_few
from mmrec_lmm.cache import fingerprint, hash_bytes, hash_file, write_json
from mmrec_lmm.data.splitting import split_labels
from mmrec_lmm.errors import ConfigError, DataError, did_you_mean
from mmrec_lmm.types import SPLITS

from .filtering import k_core
from .writing import TEXT_COLUMNS, new_dataset, write_tables

# Header names that are recognized, in lower case.
KNOWN: Mapping[str, tuple[str, ...]] = {
    "user": ("user", "userid", "user_id", "reviewerid"),
    "item": ("item", "itemid", "item_id", "asin", "parent_asin", "movieid"),
    "rating": ("rating", "overall", "stars"),
    "timestamp": ("timestamp", "time", "unixreviewtime"),
}
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


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
    items_without_interactions: int
    dropped: Mapping[str, int]  # reason -> interactions
    seed: int
    core: int
    inputs: Mapping[str, str]  # hashes of the tables, and one of all images with their names

    def __str__(self) -> str:
        lines = [
            f"{self.name}: {self.users:,} users, {self.items:,} items, {self.interactions:,} interactions "
            f"({_counts(self.splits)})",
            f"{self.images:,} images; texts: {_counts(self.texts) or 'none'}",
        ]
        if self.images_missing:
            lines.append(
                f"{len(self.images_missing):,} images named but not found, of items {first_few(self.images_missing)}"
            )
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
    separator: str | None = None,
    drop_unknown: bool = False,
    force: bool = False,
) -> ImportReport:
    """Make the data set `out`, named by its folder, and return its counts.

    Tables are UTF-8 text with CSV quoting, separated by `separator` or, without it, by the tabs or commas of the first
    line. The interactions table has a header if its first line holds a known name (`KNOWN`) or one of `user_column` and
    `item_column`, or if its third value isn't a number; without a header its columns are user, item, rating,
    timestamp, or `columns`. The items table needs a header; its id is `items_id_column`, else a column of a known name,
    else the first. Its column `image` names files in the folder `images`; without that column the image of item X is
    `X.jpg` or the like. `core` = k > 0 keeps users and items with k interactions or more, as MMRec did with 5; by
    default all stay, since a filter changes what a benchmark measures.

    Raises DataError for an unknown column, an empty table or id, ids that aren't unique, and interactions with items
    that the items table lacks (dropped under `drop_unknown`); ConfigError where `out` is in use, unless `force`
    replaces the data set there.
    """
    out = out.absolute()
    _keep_apart(out, [path for path in (interactions, items, images) if path is not None])
    with new_dataset(out, name=out.name, force=force) as building:
        table = _read_interactions(interactions, user_column, item_column, columns, separator)
        if items is not None:
            catalog = _read_items(items, items_id_column, separator)
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
        if images is not None:
            names = _image_names(catalog, images)
            found, missing, inputs["images"] = _copy_images(names, images, building / "images")
            catalog = catalog.assign(image=found)
        elif "image" in catalog:
            catalog = catalog.assign(image="")  # the names are useless without the folder of images

        user_ids, raw_users = pd.factorize(table["user"])
        item_ids = catalog.index.get_indexer(pd.Index(table["item"]))
        labels = split_labels(user_ids, np.random.default_rng(seed))
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
            items_without_interactions=len(catalog) - len(np.unique(item_ids)),
            dropped=dropped,
            seed=seed,
            core=core,
            inputs=inputs,
        )
        write_json(building / "import.json", report)
    return report


# Reading


def _read_interactions(
    path: Path,
    user_column: str | None,
    item_column: str | None,
    columns: Sequence[str] | None,
    separator: str | None,
) -> pd.DataFrame:
    """The columns user, item and, where there are any, rating and timestamp, as strings, in file order."""
    first = [cell.strip() for cell in _read_table(path, separator, header=None, nrows=1).iloc[0]]
    named = {user_column, item_column} - {None}
    names = {name for known in KNOWN.values() for name in known}
    header = not columns and (
        any(cell.lower() in names or cell in named for cell in first) or (len(first) > 2 and not _is_number(first[2]))
    )
    table = _read_table(path, separator, header=0 if header else None)
    if not header:
        # Columns beyond the known positions are named by their numbers, which match no role.
        given = list(columns or ()) or [*KNOWN, *map(str, range(len(KNOWN), len(first)))][: len(first)]
        if len(given) != len(first):
            raise DataError(
                f"{path}: expected a name for each of {len(first)} columns, got {len(given)}: {', '.join(given)}"
            )
        table.columns = pd.Index(given)
    chosen = {
        "user": _column(path, table, "user", user_column),
        "item": _column(path, table, "item", item_column),
        "rating": _find(table, "rating"),
        "timestamp": _find(table, "timestamp"),
    }
    table = pd.DataFrame({role: table[column] for role, column in chosen.items() if column is not None})
    if table.empty:
        raise DataError(f"{path}: expected interactions, got no rows")
    for role in ("user", "item"):
        table[role] = table[role].str.strip()
        empty = np.flatnonzero(table[role] == "")
        if len(empty):
            raise DataError(
                f"{path}, row {empty[0] + 1}: expected {'an' if role == 'item' else 'a'} {role} id, got an empty cell "
                f"({len(empty):,} such rows of {len(table):,})"
            )
    return table


def _read_items(path: Path, id_column: str | None, separator: str | None) -> pd.DataFrame:
    """The items table, indexed by raw id, in file order; text and image columns in lower case, no line breaks."""
    table = _read_table(path, separator, header=0)
    if table.empty:
        raise DataError(f"{path}: expected items, got no rows below the header ({', '.join(table.columns)})")
    column = _column(path, table, "item", id_column or _find(table, "item") or table.columns[0])
    usual = {name: name.lower() for name in table.columns if name.lower() in (*TEXT_COLUMNS, "image")}
    table = table.rename(columns=usual).replace(r"[\t\r\n]+", " ", regex=True).apply(lambda cells: cells.str.strip())
    table = table.set_index(column)
    reserved = [name for name in ("itemID", "raw_id") if name in table]
    if reserved:
        raise DataError(
            f"{path}: column {reserved[0]}: the data set has its own column of that name; rename or remove this one"
        )
    empty = np.flatnonzero(table.index == "")
    if len(empty):
        raise DataError(
            f"{path}, row {empty[0] + 1}: expected an id in column {column}, got an empty cell "
            f"({len(empty):,} such rows)"
        )
    repeated = table.index[table.index.duplicated()].unique()
    if len(repeated):
        raise DataError(
            f"{path}: expected one row per item, got {len(repeated):,} ids more than once in column {column} "
            f"({first_few(repeated)})"
        )
    return table


def _read_table(path: Path, separator: str | None, *, header: int | None, nrows: int | None = None) -> pd.DataFrame:
    """The table as strings, missing cells empty."""
    try:
        sep = separator or _sniff_separator(path)
        table = pd.read_csv(
            path,
            sep=sep,
            header=header,
            nrows=nrows,
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
            engine="c" if len(sep) == 1 else "python",
        )
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected UTF-8 text, got another encoding ({error.reason} at byte {error.start}); "
            "try to convert it first"
        ) from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"{path}: expected a table separated by {sep!r}, got: {error}") from None
    if not isinstance(table.index, pd.RangeIndex):
        raise DataError(f"{path}: expected as many cells in a row as in the header, got more")
    return table.fillna("")  # rows that end early


def _sniff_separator(path: Path) -> str:
    with path.open(encoding="utf-8-sig") as file:
        first = file.readline()
    found = next((separator for separator in "\t," if separator in first), None)
    if found is None:
        raise DataError(
            f"{path}: expected tabs or commas in the first line, got {first.strip()[:80]!r}; try --separator"
        )
    return found


def _column(path: Path, table: pd.DataFrame, role: str, given: str | None) -> str:
    """The column that holds `role`: the `given` one, or one of a known name."""
    columns = ", ".join(table.columns)
    if given is not None and given not in table:
        raise DataError(f"{path}: expected column {given!r}, got {columns}{did_you_mean(given, table.columns)}")
    found = given or _find(table, role)
    if found is None:
        raise DataError(
            f"{path}: expected a column of {role}s ({', '.join(KNOWN[role])}), got {columns}; "
            f"try --{role}-column NAME, or rename it"
        )
    return found


def _find(table: pd.DataFrame, role: str) -> str | None:
    return next((column for column in table.columns if column.lower() in KNOWN[role]), None)


def _is_number(text: str) -> bool:
    return not np.isnan(pd.to_numeric(text, errors="coerce"))


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


# Images


def _image_names(catalog: pd.DataFrame, folder: Path) -> dict[str, str]:
    """raw id -> file name in `folder`, empty where the item has none."""
    if "image" in catalog:
        return dict(zip(catalog.index, catalog["image"], strict=True))
    by_stem = {path.stem: path.name for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES}
    return {raw_id: by_stem.get(raw_id, "") for raw_id in catalog.index}


def _copy_images(names: Mapping[str, str], source: Path, target: Path) -> tuple[list[str], tuple[str, ...], str]:
    """Copy the images byte for byte. Returns each item's file name, empty where there is no such file; the raw ids
    of items whose file is named but missing; and a hash of all names and contents."""
    found, missing, hashes = [], [], {}
    target.mkdir()
    for raw_id, name in names.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise DataError(f"item {raw_id}: image: expected a file within {source}, got {name!r}")
        if name and not (source / path).is_file():
            missing.append(raw_id)
            name = ""
        found.append(name)
        if name and name not in hashes:
            content = (source / path).read_bytes()
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_bytes(content)
            hashes[name] = hash_bytes(content)
    return found, tuple(missing), fingerprint(hashes)


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
