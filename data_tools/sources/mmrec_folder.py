"""MMRec's prepared folder: X.inter with numbered ids and labels, id mappings, items, features.

Raw ids come from u_id_mapping.csv and i_id_mapping.csv; without them the numbers are the ids. Items keep their order,
also those without interactions. items.tsv, or MMRec's meta-X.csv, gives their content; rows of features go with them,
and those that missed_img_itemIDs.csv lists are zero, for they are only the mean of the others.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mmrec_lmm.data.tables import Table, first_cells, read_integers, read_table
from mmrec_lmm.disk.hashing import hash_file
from mmrec_lmm.errors import DataError
from mmrec_lmm.features.files import read_feature_file
from mmrec_lmm.types import SPLITS

from ..raw import RawData
from .files import Files, only

USER, ITEM, LABEL = "userID", "itemID", "x_label"
MAPPINGS = {"u_id_mapping.csv": (USER, "user_id"), "i_id_mapping.csv": (ITEM, "asin")}


def find(paths: Sequence[Path]) -> Files | None:
    """The files of MMRec's folder; None where no .inter has its names."""
    inter = [path for path in paths if path.suffix == ".inter" and {USER, ITEM} <= set(_header(path))]
    return Files({"interactions": inter}) if inter else None


def read(files: Files, *, strict: bool = False) -> RawData:
    """All of the folder. It is a finished data set, so a faulty line is an error with or without `strict`."""
    path = only(files, "interactions")
    folder, header = path.parent, _header(path)
    columns = {"rating": "rating", "timestamp": "timestamp", LABEL: "label"}
    known = [name for name in columns if name in header]
    rows = read_integers(path, [USER, ITEM, *known], times=("rating", "timestamp"))
    if LABEL in known:
        _require_labels(rows)
    users = _raw_ids(folder / "u_id_mapping.csv", rows, USER)
    items = _raw_ids(folder / "i_id_mapping.csv", rows, ITEM)
    order = np.argsort(rows.columns[USER], kind="stable")  # users then appear in their order
    table = pd.DataFrame({
        "user": pd.Categorical.from_codes(rows.columns[USER][order], users),
        "item": pd.Categorical.from_codes(rows.columns[ITEM][order], items),
        **{columns[name]: rows.columns[name][order] for name in known},
    })  # fmt: skip
    used = [path, *(folder / name for name in MAPPINGS if (folder / name).is_file())]
    content, said = _items(folder, items)
    used += [said] if said else []
    features = {one.name: functools.partial(_write_rows, one, items) for one in sorted(folder.glob("*_feat.npy"))}
    used += [folder / name for name in features]
    images = folder / "images" if "image" in content and (folder / "images").is_dir() else None
    read = [f"{path.name}: MMRec's folder, {len(rows):,} of {', '.join([USER, ITEM, *known])}"]
    read += [f"{said.name}: {', '.join(content.columns)}"] if said else []
    return RawData(
        interactions=table,
        origin=path,
        items=content,
        inputs={one.name: hash_file(one) for one in used},
        read=tuple(read),
        features=features,
        images=images,
        catalog=True,
    )


def _header(path: Path) -> list[str]:
    try:
        return first_cells(path, separator="\t")
    except DataError:
        return []


def _require_labels(rows: Table) -> None:
    """DataError for a label that names no split."""
    labels = rows.columns[LABEL]
    strange = (labels < 0) | (labels >= len(SPLITS))
    if strange.any():
        row = int(np.argmax(strange))
        raise DataError(
            f"{rows.at(row)}: {LABEL}: expected 0 (train), 1 (valid) or 2 (test), got {labels[row]} "
            f"({int(strange.sum()):,} such rows)"
        )


def _raw_ids(path: Path, rows: Table, column: str) -> pd.Index:
    """The raw id of each number; the numbers themselves where there is no mapping."""
    numbers = rows.columns[column]
    if (numbers < 0).any():
        raise DataError(f"{rows.at(int(np.argmax(numbers < 0)))}: {column}: expected ids from 0, got a negative one")
    count = int(numbers.max(initial=-1)) + 1
    if not path.is_file():
        return pd.Index([str(number) for number in range(count)], dtype=object)
    number_name, raw_name = MAPPINGS[path.name]
    table = read_table(path)
    names = list(table.columns)
    if number_name not in names or len(names) < 2:
        raise DataError(f"{path}: expected the columns {raw_name} and {number_name}, got {', '.join(names)}")
    raw = table.columns[raw_name if raw_name in names else next(name for name in names if name != number_name)]
    places = pd.to_numeric(pd.Series(table.columns[number_name]), errors="coerce").to_numpy(float)
    if not np.array_equal(np.sort(places), np.arange(len(places))) or len(places) < count:
        raise DataError(
            f"{path}: expected each {number_name} from 0 to {max(count, len(places)) - 1} once, got {len(places):,} "
            f"rows; the .inter has ids up to {count - 1}"
        )
    ids = np.empty(len(places), object)
    ids[places.astype(np.int64)] = raw
    return pd.Index(ids)


def _items(folder: Path, ids: pd.Index) -> tuple[pd.DataFrame, Path | None]:
    """The content of items in the order of their numbers, and the file that has it."""
    path = next((one for one in (folder / "items.tsv", *sorted(folder.glob("meta-*.csv"))) if one.is_file()), None)
    if path is None:
        return pd.DataFrame(index=ids), None
    separator, quotes = ("\t", "lenient") if path.suffix == ".tsv" else (",", "multiline")
    table = read_table(path, separator=separator, quotes=quotes)  # type: ignore[arg-type]
    if ITEM not in table.columns:
        raise DataError(f"{path}: expected the column {ITEM}, got {', '.join(table.columns)}")
    numbers = pd.to_numeric(pd.Series(table.columns[ITEM]), errors="coerce").to_numpy(float)
    if not (np.isfinite(numbers) & (numbers >= 0) & (numbers < len(ids))).all() or len(set(numbers)) < len(numbers):
        raise DataError(f"{path}: {ITEM}: expected each number from 0 to {len(ids) - 1} at most once")
    usual = {"imUrl": "image_url"}
    left_out = {ITEM, "raw_id", "asin", ""}
    content = pd.DataFrame("", index=ids, columns=[], dtype=object)
    for name, cells in table.columns.items():
        if name not in left_out:
            column = np.full(len(ids), "", object)
            column[numbers.astype(np.int64)] = cells
            content[usual.get(name, name)] = column
    return content, path


def _write_rows(path: Path, ids: pd.Index, items: pd.Index, out: Path) -> int:
    """Write the rows of a feature file in the order of `items`; how many aren't zero."""
    table = read_feature_file(path, modality=path.name.removesuffix("_feat.npy"), n_items=len(ids))
    places = ids.get_indexer(items)
    present = table.present[places]
    np.save(out, np.where(present[:, None], table.values[places], np.float32(0)))
    return int(present.sum())
