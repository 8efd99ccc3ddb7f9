"""Which file of a folder or an archive is the image of which item.

A file belongs to the item whose id it is named after, in whatever folder it lies. Names are compared as Unicode's NFC
(macOS stores é as two characters), then without regard to case where that leaves no doubt. What comes near and isn't
taken, such as an id that lost its leading zeros, is named in the notes.

img2dataset numbers its files: there the metadata beside them says which address each came from, and an item has the
image of its own addresses.
"""

import hashlib
import json
import re
import unicodedata
import urllib.parse
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mmrec_lmm.api import first_few
from mmrec_lmm.errors import ConfigError, DataError

from .sources import Source, open_source
from .verifying import SUFFIXES

ITEM_COLUMNS = ("item", "raw_id", "asin", "parent_asin", "item_id", "itemid")
_LONGEST_NAME = 100  # characters; file systems take 255 bytes
_METADATA = 2**20  # most bytes of a metadata file


@dataclass(frozen=True)
class Found:
    """`names`: item -> its file within `source`. `notes`: lines on what came near, or was ignored."""

    source: Source
    names: Mapping[str, str]
    notes: Sequence[str]


def collect(path: Path, items: Sequence[str], *, urls: Mapping[str, Collection[str]] | None = None) -> Found:
    """The file of each of `items` (raw ids) that has one, by its name; of img2dataset's output by `urls`, the addresses
    of each item, or by an id in the metadata."""
    source = open_source(path)
    notes = (
        [f"{path}: {source.ignored:,} entries ignored: links, or names that lead out of it"] if source.ignored else []
    )
    origins = _img2dataset(source)
    if origins:
        names = _by_origin(origins, items, urls or {})
        if not names:
            raise DataError(
                f"{path}: img2dataset's output: expected addresses of the data set's items, got {len(origins):,} "
                f"others ({next(iter(origins.values()))['url']}); try --urls FILE, the table that img2dataset had"
            )
        return Found(source, names, notes)
    names, more = by_id(source, items)
    return Found(source, names, [*notes, *more])


def by_id(source: Source, items: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """item -> the file that is named after it, for items that have one; and notes on others that come near."""
    images = _images(source)
    others = [name for name in source.names if not name.lower().endswith((*SUFFIXES, ".json", ".parquet", ".txt"))]
    names, notes = _named_after(images, items)
    notes = [*notes, *_near(images, others, [item for item in items if item not in names])]
    if items and not names and not notes:
        seen = f", such as {first_few(sorted(images))}" if images else ""
        notes = [f"no image is named after an item, such as {items[0]}.jpg; {len(images):,} have other names{seen}"]
    return names, notes


def _images(source: Source) -> list[str]:
    """The files with an image's suffix, but hidden ones, as macOS leaves beside others."""
    return [
        name
        for name in source.names
        if name.lower().endswith(SUFFIXES) and not any(part.startswith(".") for part in name.split("/"))
    ]


def resolve(source: Source, wanted: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """item -> the file that it names (`wanted`: item -> path), for items whose file is there; and notes on others that
    come near. A path that isn't there exactly may differ in Unicode form or case, or in its first folders."""
    there = set(source.names)
    by_base = defaultdict(list)
    for name in source.names:
        by_base[_fold(PurePosixPath(name).name)].append(name)
    found, doubtful = {}, {}
    for item, path in wanted.items():
        if not path:
            continue
        if path in there:
            found[item] = path
            continue
        folded = _fold(PurePosixPath(path).as_posix())
        near = by_base.get(folded.rpartition("/")[2], [])
        same = [
            name
            for name in near
            if f"/{_fold(name)}".endswith(f"/{folded}") or f"/{folded}".endswith(f"/{_fold(name)}")
        ]
        if len(same) == 1:
            found[item] = same[0]
        elif near:
            doubtful[item] = near
    if not doubtful:
        return found, []
    first = next(iter(doubtful))
    return found, [
        f"{len(doubtful):,} images lie in other folders than the table says, or in several: item {first} names "
        f"{wanted[first]}, got {first_few(doubtful[first], 3)}; correct the column image, or remove it to match by ids"
    ]


def stems(items: Sequence[str]) -> dict[str, str]:
    """item -> a file name without suffix: its id, where every file system can have that. Names differ also where
    letters of both cases are one."""
    chosen: dict[str, str] = {}
    seen: set[str] = set()
    for item in items:
        stem = urllib.parse.quote(item, safe=" ,()+@=")
        stem = f"%2E{stem[1:]}" if stem.startswith(".") else stem
        if not stem or stem.casefold() in seen or len(stem) > _LONGEST_NAME or stem != stem.strip():
            stem = f"{stem.strip()[:_LONGEST_NAME]}-{hashlib.sha256(item.encode()).hexdigest()[:8]}"
        seen.add(stem.casefold())
        chosen[item] = stem
    return chosen


# By the ids of items


def _named_after(images: Sequence[str], items: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    files = defaultdict(list)
    for name in sorted(images, key=lambda name: (name.count("/"), name)):
        base = unicodedata.normalize("NFC", PurePosixPath(name).name)
        files[base].append(name)
        files[PurePosixPath(base).stem].append(name)
    folded = defaultdict(list)
    for key in files:
        folded[key.casefold()].append(key)
    alike = Counter(map(_fold, items))
    names, several = {}, []
    for item, written in stems(items).items():
        near = folded.get(_fold(item), [])
        unique = near if len(near) == 1 and alike[_fold(item)] == 1 else []
        keys = (unicodedata.normalize("NFC", item), written, *unique)
        if found := next((files[key] for key in keys if key in files), None):
            names[item] = found[0]
            several += [item] if len(found) > 1 else []
    if not several:
        return names, []
    example = several[0]
    return names, [f"{len(several):,} items have several files; the first is taken (item {example}: {names[example]})"]


def _near(images: Sequence[str], others: Sequence[str], missing: Sequence[str]) -> list[str]:
    """Notes on files that may be those of items without one: an example of each kind, and how many there are."""
    kinds: dict[str, tuple[Sequence[str], Callable[[str], str]]] = {
        "differ in leading zeros alone, which tables lose that are read as numbers": (
            images,
            lambda id: id.lstrip("0"),
        ),
        "have something after the id": (images, _beginning),
        f"have another suffix than {', '.join(SUFFIXES)}; convert or rename them": (others, str),
    }
    notes = []
    for kind, (files, key) in kinds.items():
        by_key = {key(_fold(PurePosixPath(name).stem)): name for name in reversed(files)}
        near = {item: by_key[key(_fold(item))] for item in missing if key(_fold(item)) in by_key}
        if near:
            item, name = next(iter(near.items()))
            notes.append(f"{len(near):,} files come near ids and aren't taken: they {kind} (item {item}: {name})")
    return notes


def _beginning(stem: str) -> str:
    return re.split(r"(?<=.)[-_ .]", stem, maxsplit=1)[0]


def _fold(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


# img2dataset


def _img2dataset(source: Source) -> dict[str, Mapping[str, Any]]:
    """image file -> its metadata, with `url`; empty if the source isn't img2dataset's output."""
    images = _images(source)
    by_key = {name.rpartition(".")[0]: name for name in images}
    sidecars = [name for name in source.names if name.endswith(".json") and name.removesuffix(".json") in by_key]
    tables = [name for name in source.names if name.endswith(".parquet")]
    found: dict[str, Mapping[str, Any]] = {}
    for name, content in source.read(sidecars, max_bytes=_METADATA):
        try:
            metadata = json.loads(content or b"null")
        except (ValueError, RecursionError):
            continue
        if isinstance(metadata, dict) and isinstance(metadata.get("url"), str):
            found[by_key[name.removesuffix(".json")]] = metadata
    if found or not tables or not images:
        return found
    by_number = {PurePosixPath(name).stem: name for name in images}
    for name in tables:
        for metadata in _rows(source.path / name):
            if metadata.get("key") in by_number:
                found[by_number[metadata["key"]]] = metadata
    return found


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    import pandas as pd

    try:
        table = pd.read_parquet(path)
    except ImportError:
        raise ConfigError(
            f"{path}: reading Parquet needs pyarrow; try pip install pyarrow, or keep img2dataset's JSON files"
        ) from None
    except Exception as error:  # pyarrow raises its own
        raise DataError(f"{path}: expected a table in Parquet, got a damaged one ({error}); copy it again") from None
    if {"key", "url"} <= set(table.columns):
        yield from ({str(name): value for name, value in row.items()} for row in table.to_dict("records"))


def _by_origin(
    origins: Mapping[str, Mapping[str, Any]], items: Sequence[str], urls: Mapping[str, Collection[str]]
) -> dict[str, str]:
    by_item: dict[str, str] = {}
    by_url: dict[str, str] = {}
    for name, metadata in origins.items():
        by_url.setdefault(metadata["url"], name)
        for column in ITEM_COLUMNS:
            if column in metadata:
                by_item.setdefault(str(metadata[column]), name)
    names = {}
    for item in items:
        from_url = (by_url[url] for url in urls.get(item, ()) if url in by_url)
        if origin := by_item.get(item) or next(from_url, None):
            names[item] = origin
    return names
