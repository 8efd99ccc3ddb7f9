"""One reader per layout in which data sets are published: each turns a folder's files into RawData."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mmrec_lmm.errors import ConfigError, DataError, did_you_mean

from ..raw import RawData
from . import amazon, mmrec_folder, movielens, recbole
from .files import Files

#: Files that may be part of a layout; others, such as a README, are never opened.
SUFFIXES = (".b", ".csv", ".dat", ".data", ".genre", ".gz", ".inter", ".item", ".json", ".jsonl", ".tsv", ".txt")


@dataclass(frozen=True)
class Layout:
    """How a layout is recognized among a folder's files, and read."""

    name: str
    files: str  # what its folder holds, for messages
    find: Callable[[Sequence[Path]], Files | None]
    read: Callable[..., RawData]  # (Files, strict=)


LAYOUTS: Mapping[str, Layout] = {
    layout.name: layout
    for layout in (
        *(
            Layout(f"amazon-{year}", files, partial(amazon.find, year), partial(amazon.read, year))
            for year, files in {
                "2014": "ratings_X.csv or reviews_X.json.gz; meta_X.json.gz; image_features_X.b",
                "2018": "X.csv or X.json.gz; meta_X.json.gz",
                "2023": "X.csv, X.train.csv with valid and test, or X.jsonl.gz; meta_X.jsonl.gz",
            }.items()
        ),
        Layout("movielens", "u.data, ratings.dat or ratings.csv; u.item, movies.dat or movies.csv", movielens.find,
               movielens.read),
        Layout("recbole", "X.inter with typed names (user_id:token); X.item", recbole.find, recbole.read),
        Layout("mmrec", "X.inter with userID, itemID, x_label; mappings, items.tsv, *_feat.npy", mmrec_folder.find,
               mmrec_folder.read),
    )
}  # fmt: skip


def read_folder(
    folder: Path, *, layout: str | None = None, category: str | None = None, strict: bool = False
) -> tuple[str, RawData]:
    """What the files of `folder` hold, and the layout that they have: `layout`, or the one that they are recognized by.

    `category` takes only files whose name has this text, in any case. Raises ConfigError for an unknown layout;
    DataError where no layout fits, several do, or the files can't be used.
    """
    if layout is not None and layout not in LAYOUTS:
        raise ConfigError(
            f"--layout: expected one of {', '.join(LAYOUTS)}, got {layout}{did_you_mean(layout, LAYOUTS)}"
        )
    paths = _candidates(folder, category)
    found = {
        one.name: files
        for one in ([LAYOUTS[layout]] if layout else LAYOUTS.values())
        if (files := one.find(paths)) is not None
    }
    if len(found) != 1:
        raise _unclear(folder, found, layout, paths)
    name, files = next(iter(found.items()))
    raw = LAYOUTS[name].read(files, strict=strict)
    rest = [path.name for path in paths if path.name not in raw.inputs]
    return name, replace(raw, read=(*raw.read, f"not read: {', '.join(rest)}")) if rest else raw


def _candidates(folder: Path, category: str | None) -> list[Path]:
    """The files that may be part of a layout, by name."""
    if not folder.is_dir():
        raise DataError(
            f"--from: expected a folder, got {folder}, which {'is a file' if folder.exists() else 'is none'}"
        )
    paths = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    named = [path for path in paths if category is None or category.lower() in path.name.lower()]
    if paths and not named:
        raise ConfigError(
            f"--category: expected text that a file's name in {folder} has, got {category!r}; there are "
            f"{', '.join(path.name for path in paths[:10])}"
        )
    return named


def _unclear(folder: Path, found: Mapping[str, Files], layout: str | None, paths: Sequence[Path]) -> DataError:
    """The error for a folder in which no layout was recognized, or several."""
    if found:
        return DataError(
            f"{folder}: expected files of one layout, got those of {' and '.join(found)}; try --layout NAME, or "
            "--category TEXT, which takes the files whose name has TEXT"
        )
    there = ", ".join(path.name for path in paths[:10]) or "no such file"
    if layout is not None:
        return DataError(f"{folder}: expected {layout} ({LAYOUTS[layout].files}), got {there}")
    inner = next((path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")), None)
    hint = f"; try --from {inner}, or" if inner is not None and not paths else "; try"
    known = "; ".join(f"{one.name} ({one.files})" for one in LAYOUTS.values())
    return DataError(
        f"{folder}: expected files of a known layout, got {there}{hint} `mmrec-lmm data import` for your own tables. "
        f"Layouts: {known}"
    )
