"""Amazon reviews in the editions of 2014 (He & McAuley), 2018 (Ni et al.) and 2023 (Hou et al.), as published.

    edition  interactions                                  items                            features
    2014     ratings_X.csv: user,item,rating,time          meta_X.json: Python literals     image_features_X.b
             reviews_X.json, reviews_X_5.json
    2018     X.csv: item,user,rating,time                  meta_X.json: JSON lines
             X.json, X_5.json
    2023     X.train.csv, X.valid.csv, X.test.csv; X.csv   meta_X.jsonl: JSON lines
             X.jsonl

Files are recognized by their content, plain or gzip. Where a folder has interactions in several forms, the first of the
table's order is read: all ratings are in the smaller file. Items are joined on asin, in 2023 on parent_asin. Times are
seconds, in 2023 milliseconds.
"""

import ast
import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmrec_lmm.disk.hashing import hash_file
from mmrec_lmm.errors import DataError

from ..raw import RawData, Tallies
from .files import Files, each_split, only, split_of
from .lines import Cells, Fields, Interactions, Take, Unusable, first_lines, read_items

COLUMNS = ("title", "brand", "categories", "description", "features", "image_url")
FEATURES = "image_feat.npy"
RECORD = np.dtype([("asin", "S10"), ("vector", "<f4", (4096,))])  # of an image_features_X.b
DEPTH = 20  # of a Python literal; metadata has 3


@dataclass(frozen=True)
class Edition:
    """Where the fields of an edition are."""

    year: str
    review: Fields
    cells: tuple[int, ...]  # places of user, item, rating, time in a ratings file
    unit: str  # of times


EDITIONS: Mapping[str, Edition] = {
    "2014": Edition("2014", Fields(("reviewerID", "asin", "overall", "unixReviewTime")), (0, 1, 2, 3), "seconds"),
    "2018": Edition("2018", Fields(("reviewerID", "asin", "overall", "unixReviewTime")), (1, 0, 2, 3), "seconds"),
    "2023": Edition("2023", Fields(("user_id", "parent_asin", "rating", "timestamp")), (0, 1, 2, 3), "milliseconds"),
}


# Recognizing


def kind_of(path: Path) -> tuple[str, str] | None:
    """What a file is: (edition, part), a part being ratings, splits, reviews, items or features; None if it is
    something else."""
    if path.suffix == ".b":
        return "2014", "features"
    try:
        lines = first_lines(path, 20)
    except DataError:
        if path.suffix == ".txt":  # some note
            return None
        raise
    for line in lines:
        if line.startswith(b"{'") and b"'asin'" in line:
            return "2014", "items"
        if line.startswith(b"{") and (found := _kind_of_record(line)):
            return found
    return _kind_of_ratings(path, [line.decode("latin-1").split(",") for line in lines])


def _kind_of_record(line: bytes) -> tuple[str, str] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    keys = set(record if isinstance(record, dict) else ())
    if {"user_id", "parent_asin"} <= keys:
        return "2023", "reviews"
    if "parent_asin" in keys:
        return "2023", "items"
    if {"reviewerID", "asin"} <= keys:
        return "2018" if "verified" in keys else "2014", "reviews"
    if "asin" in keys:
        return "2014" if keys & {"imUrl", "salesRank", "related", "categories"} else "2018", "items"
    return None


def _kind_of_ratings(path: Path, rows: Sequence[Sequence[str]]) -> tuple[str, str] | None:
    if rows and list(rows[0][:4]) == ["user_id", "parent_asin", "rating", "timestamp"]:
        return "2023", "splits" if split_of(path) is not None else "ratings"
    rows = [row for row in rows if len(row) == 4]
    if not rows:
        return None
    items = [sum(re.fullmatch(r"[B0-9][0-9A-Z]{9}", row[place]) is not None for row in rows) for place in (0, 1)]
    users = [sum(re.fullmatch(r"A[0-9A-Z]{9,24}", row[place]) is not None for row in rows) for place in (0, 1)]
    if items[1] + users[0] > len(rows) and items[1] + users[0] > items[0] + users[1]:
        return "2014", "ratings"
    if items[0] + users[1] > len(rows):
        return "2018", "ratings"
    return None


def find(year: str, paths: Sequence[Path]) -> Files | None:
    """The files of an edition among `paths`; None where it has no interactions there."""
    parts: dict[str, list[Path]] = {}
    for path in paths:
        if (kind := kind_of(path)) and kind[0] == year:
            parts.setdefault(kind[1], []).append(path)
    return Files(parts) if {"ratings", "splits", "reviews"} & set(parts) else None


# Reading


def read(year: str, files: Files, *, strict: bool = False) -> RawData:
    """The interactions and items of one edition. Counts what it skips by reason; DataError where nothing is usable,
    and under `strict` for the first line that isn't."""
    edition, tallies = EDITIONS[year], Tallies(strict=strict)
    interactions, said = Interactions(tallies), []
    used = _interaction_files(files)
    for path, part, label in used:
        take: Take = edition.review
        header = False
        if part != "reviews":
            first = first_lines(path, 1)[0].decode("latin-1").split(",")
            header = first[0] == "user_id"
            take = Cells(",", len(first) if header else len(edition.cells), edition.cells)
        count = interactions.read(path, take, edition.unit, header=header, label=label)
        said.append(f"{path.name}: {part} of Amazon {year}, {count:,} of user, item, rating, time in {edition.unit}")
    items, features = None, {}
    if "items" in files.parts:
        path = only(files, "items")
        items = read_items(path, ItemLine(year), COLUMNS, interactions.items, tallies)
        said.append(f"{path.name}: items of Amazon {year}, {len(items):,} of {len(interactions.items):,} with a row")
        used.append((path, "items", None))
    if "features" in files.parts:
        path = only(files, "features")
        features[FEATURES] = functools.partial(write_features, path)
        said.append(f"{path.name}: image features, asin and 4,096 numbers each")
        used.append((path, "features", None))
    return RawData(
        interactions=interactions.table(),
        items=items,
        skipped=tallies.counts(),
        inputs={path.name: hash_file(path) for path, *_ in used},
        read=tuple(said),
        repaired=tallies.repaired.counts,
        features=features,
        origin=used[0][0],
    )


def _interaction_files(files: Files) -> list[tuple[Path, str, int | None]]:
    """The files to read for interactions, what they are, and the split that each is."""
    if "splits" in files.parts:
        return [(path, "splits", label) for label, path in enumerate(each_split(files))]
    part = "ratings" if "ratings" in files.parts else "reviews"
    return [(only(files, part), part, None)]


# Items


@dataclass(frozen=True)
class ItemLine:
    """Takes the id and COLUMNS of a line of metadata."""

    year: str

    def __call__(self, line: bytes) -> Sequence[str]:
        item = _record(line, literal=self.year == "2014")
        addresses: Sequence[Any]
        if self.year == "2014":
            raw_id, brand, categories, details = item.get("asin"), item.get("brand"), item.get("categories"), None
            addresses = [item.get("imUrl")]
        elif self.year == "2018":
            raw_id, brand, details = item.get("asin"), item.get("brand"), item.get("feature")
            categories = item.get("category") or item.get("main_cat")
            addresses = [*_texts(item.get("imageURLHighRes"))[:1], *_texts(item.get("imageURL"))[:1]]
        else:
            raw_id, brand, details = item.get("parent_asin"), item.get("store"), item.get("features")
            categories = item.get("categories") or item.get("main_category")
            addresses = _addresses_2023(item.get("images"))
        return [
            raw_id.strip() if isinstance(raw_id, str) else "",
            " ".join(_texts(item.get("title"))),
            " ".join(_texts(brand)),
            ", ".join(dict.fromkeys(_texts(categories))),
            " ".join(_texts(item.get("description"))),
            " ".join(_texts(details)),
            " ".join(dict.fromkeys(one.strip().replace(" ", "%20") for one in addresses if one and one.strip())),
        ]


def _record(line: bytes, *, literal: bool) -> Mapping[str, Any]:
    """The fields of a line: JSON, or a Python literal, which is never run."""
    text = line.decode()
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        if not literal:
            raise Unusable("not JSON") from None
        record = _literal(text)
    if not isinstance(record, dict):
        raise Unusable("not a record of fields")
    return record


_STRING = re.compile(r"'(?:[^'\\]|\\.)*+'|\"(?:[^\"\\]|\\.)*+\"")


def _literal(text: str) -> Any:
    """The value of a Python literal, of bounded depth: the parser of a deeper one could exhaust the stack."""
    bare = _STRING.sub("", text)
    depth = np.cumsum([(char in "[{(") - (char in "]})") for char in bare if char in "[](){}"] or [0]).max()
    if depth > DEPTH or re.search(r"[-+~]\s*[-+~]", bare):
        raise Unusable("a Python literal that is nested too deeply")
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise Unusable("not a Python literal") from None


def _texts(value: Any) -> list[str]:
    """The texts of a field: of one, of a list of them, or of a list of lists."""
    if isinstance(value, str):
        return [value] if value.strip() else []
    if isinstance(value, list | tuple):
        return [text for one in value for text in _texts(one)]
    return []


def _addresses_2023(images: Any) -> list[str]:
    """The addresses of an item's main image, the largest first."""
    found = [image for image in images if isinstance(image, dict)] if isinstance(images, list) else []
    if isinstance(images, dict):  # as the data card's loader gives them: a list for each size
        found = [{size: _texts(images.get(size))[0] for size in images if _texts(images.get(size))}]
    main = next((image for image in found if image.get("variant") == "MAIN"), found[0] if found else {})
    return [main[size] for size in ("hi_res", "large", "thumb") if isinstance(main.get(size), str)]


# Features


def write_features(path: Path, items: pd.Index, out: Path) -> int:
    """Write the rows of an image_features_X.b in the order of `items`, zero where it has none; how many it has.

    The file holds 10 bytes of asin and 4,096 little-endian float32 per record, in any order.
    """
    size = path.stat().st_size
    if size % RECORD.itemsize or not size:
        raise DataError(
            f"{path}: expected records of {RECORD.itemsize:,} bytes (asin, 4,096 numbers), got {size:,} bytes, which "
            f"ends within record {size // RECORD.itemsize + 1:,}; download it again"
        )
    records = np.memmap(path, RECORD, mode="r")
    asins = pd.Series(records["asin"].astype("U10"))
    first = asins[~asins.duplicated()]
    places = pd.Index(first.to_numpy(object)).get_indexer(items)  # of each item among `first`
    rows = np.where(places >= 0, first.index.to_numpy()[places], -1)
    vectors = np.lib.format.open_memmap(out, "w+", np.float32, (len(items), 4096))  # zeros
    for begin in range(0, len(items), 4096):
        part = rows[begin : begin + 4096]
        vectors[begin : begin + 4096][part >= 0] = records["vector"][part[part >= 0]]
    vectors.flush()
    return int((rows >= 0).sum())
