"""Copies images of a folder or an archive into a data set that is being made, byte for byte."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmrec_lmm.cache import fingerprint, hash_bytes
from mmrec_lmm.errors import DataError
from mmrec_lmm.plugin.names import is_within

from .collecting import by_id, resolve
from .sources import open_source

LARGEST = 10**9  # bytes; a larger file is no image


@dataclass(frozen=True)
class Copied:
    """The images of a new data set."""

    names: Mapping[str, str]  # item -> its file under images/, for items that have one
    missing: tuple[str, ...]  # items whose file is named but isn't there
    notes: tuple[str, ...]  # on files that came near, or were ignored
    hash: str  # of all names and contents


def copy_images(source: Path, target: Path, items: Sequence[str], named: Mapping[str, str] | None = None) -> Copied:
    """Copy the images of `items` (raw ids) to the new folder `target`: the files that `named` (item -> path within
    `source`, "" for none) names, or without it those that are named after ids.

    Raises DataError for a name that leads out of the source, and a source that can't be read.
    """
    for item, name in (named or {}).items():
        if name and not is_within(name):
            raise DataError(f"item {item}: image: expected a file within {source}, got {name!r}")
    files = open_source(source)
    found, notes = by_id(files, items) if named is None else resolve(files, named)
    if files.ignored:
        notes = [f"{source}: {files.ignored:,} entries ignored: links, or names that lead out of it", *notes]
    hashes = {}
    target.mkdir()
    for name, content in files.read(set(found.values()), max_bytes=LARGEST):
        if content is not None:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(content)
            hashes[name] = hash_bytes(content)
    names = {item: name for item, name in found.items() if name in hashes}
    missing = tuple(item for item, name in (named or {}).items() if name and item not in names)
    return Copied(names, missing, tuple(notes), fingerprint(hashes))
