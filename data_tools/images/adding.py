"""Adds images to a finished data set: downloaded, or collected from a folder or archive.

Images come into `images/` one by one, each whole and under a name that no other content has had, and `images.tsv` says
what became of each item. `items.tsv` names them only at the end, in one step: until then, and after an interruption, a
run sees the data set as it was.
"""

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from mmrec_lmm.api import first_few
from mmrec_lmm.data.tables import find_separator, first_cells, read_table
from mmrec_lmm.disk.folders import restore_folder
from mmrec_lmm.disk.hashing import read_hash
from mmrec_lmm.disk.locks import holding
from mmrec_lmm.disk.reading import check_readable
from mmrec_lmm.disk.writing import write_atomic
from mmrec_lmm.errors import DataError, RunBusy, did_you_mean
from mmrec_lmm.logs import progress_bar
from mmrec_lmm.plugin.names import PATH_RULE, is_within

from ..writing import IMAGES_LOCK, write_table
from .addresses import candidates, split_urls
from .collecting import ITEM_COLUMNS, collect, stems
from .fetching import fetch_all
from .manifest import NAME, Manifest, Row
from .requesting import PRIVATE, RETRIED, Limits
from .verifying import Unusable, verify

URL_COLUMNS = ("image_url", "imUrl", "imageURLHighRes", "imageURL", "url")
_PARTS = ".part"  # a folder within images/, so that a rename stays on one disk


@dataclass(frozen=True)
class ImagesReport:
    """What became of the images; `str` makes a summary for people."""

    name: str
    items: int
    new: int  # images that came now
    kept: int  # items that had one before
    missing: Mapping[str, int]  # reason -> items
    manifest: Path
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        have = self.new + self.kept
        lines = [f"{self.name}: {have:,} of {self.items:,} items have an image: {self.new:,} new, {self.kept:,} kept"]
        if self.missing:
            lines.append("missing: " + ", ".join(f"{reason} {count:,}" for reason, count in self.missing.items()))
        again = sum(count for reason, count in self.missing.items() if reason in RETRIED)
        if again:
            lines.append(f"{again:,} of these may come later: the same command tries them again")
        return "\n".join([*lines, *self.notes, f"{self.manifest} has a row per item"])


def download_images(
    folder: Path,
    *,
    urls: Path | None = None,
    separator: str | None = None,
    as_given: bool = False,
    max_side: int | None = None,
    retry_failed: bool = False,
    again: bool = False,
    limits: Limits | None = None,
) -> ImagesReport:
    """Download the images that the items of the data set `folder` lack.

    Addresses are those of items.tsv (`URL_COLUMNS`), or of the table `urls` (item, url; rows of one item in order);
    unless `as_given`, larger versions and Amazon's present host are tried too. What came before isn't fetched again,
    unless `again`; failures that may pass are, others with `retry_failed`. An interruption keeps what came.

    Raises DataError where no item has an address, or no image came and none was there.
    """
    limits = limits or Limits()
    with _open_album(folder) as album:
        listed = _listed_urls(urls, separator) if urls is not None else album.urls()
        unknown = [item for item in listed if item not in album.position]
        rule: Callable[[Sequence[str]], list[str]] = list if as_given else candidates
        addresses = {item: rule(listed[item]) if listed.get(item) else [] for item in album.position}
        if not any(addresses.values()):
            columns = ", ".join(album.table.columns)
            expected, got = "addresses", f"none in {', '.join(URL_COLUMNS)}; the columns are {columns}"
            if urls is not None:
                expected, got = f"the items of {urls}", f"{len(listed):,} others"
            raise DataError(
                f"{album.table.path}: expected {expected}, got {got}; try --urls FILE, a table of item and url, or "
                "--from PATH"
            )
        wanted = {}
        for item, tried in addresses.items():
            if not again and album.has(item):
                continue
            row = album.manifest.rows.get(item)
            settled = row is not None and row.reason and row.reason not in RETRIED and row.url in tried
            if row is not None and row.reason == PRIVATE and limits.allow_private:
                settled = False
            if not tried:
                album.manifest.add(Row(item, reason="no address"))
            elif not settled or retry_failed or again:
                wanted[item] = tried
        with progress_bar(total=len(wanted), desc="images", unit="image") as bar:

            def done(row: Row) -> None:
                album.add(row)
                bar.update()

            fetch_all(
                wanted, lambda item, part: album.place(item, part, max_side), done, parts=album.parts, limits=limits
            )
        notes = [f"{len(unknown):,} items of {urls} aren't in the data set: {first_few(unknown)}"] if unknown else []
        return album.finish(notes)


def collect_images(
    folder: Path,
    source: Path,
    *,
    urls: Path | None = None,
    separator: str | None = None,
    max_side: int | None = None,
    again: bool = False,
    max_bytes: int = Limits.max_bytes,
) -> ImagesReport:
    """Take the images that the items of the data set `folder` lack from a folder, an archive, or img2dataset's output.

    Raises DataError for a source that can't be read, or has an image of no item.
    """
    with _open_album(folder) as album:
        listed = _listed_urls(urls, separator) if urls is not None else album.urls()
        found = collect(source, list(album.position), urls={item: candidates(listed.get(item, [])) for item in listed})
        wanted = {item: found.names[item] for item in album.position if item in found.names}
        if not again:
            wanted = {item: name for item, name in wanted.items() if not album.has(item)}
        for item in album.position:
            if item not in found.names and not album.has(item):
                album.manifest.add(Row(item, reason="not in the source", detail=str(source)))
        by_name: dict[str, list[str]] = {}
        for item, name in wanted.items():
            by_name.setdefault(name, []).append(item)
        part = album.parts / "one.part"
        with progress_bar(total=len(wanted), desc="images", unit="image") as bar:
            for name, content in found.source.read(by_name, max_bytes=max_bytes):
                for item in by_name[name]:
                    if content is None:
                        row = Row(item, reason="too large", detail=f"more than {max_bytes:,} bytes")
                    else:
                        part.write_bytes(content)
                        try:
                            row = album.place(item, part, max_side)
                        except Unusable as error:
                            row = Row(item, reason=error.reason, detail=error.detail)
                    album.add(replace(row, url=name))
                    bar.update()
        return album.finish(list(found.notes))


@contextmanager
def _open_album(folder: Path) -> Iterator["_Album"]:
    """The images of a data set, for one process at a time."""
    check_readable(folder)
    restore_folder(folder)
    if not folder.is_dir():
        names = sorted(path.name for path in folder.parent.glob("[!.]*") if path.is_dir())
        raise DataError(
            f"{folder}: no such data set{did_you_mean(folder.name, names)}; `data import` makes one, and --data-path "
            "chooses another folder of data sets"
        )
    try:
        with holding(folder / IMAGES_LOCK, wait=False):
            table = _Items(folder)
            images = folder / "images"
            parts = images / _PARTS
            shutil.rmtree(parts, ignore_errors=True)  # of a process that was killed
            parts.mkdir(parents=True)
            try:
                with Manifest(folder / NAME) as manifest:
                    yield _Album(table, images, manifest)
            finally:
                shutil.rmtree(parts, ignore_errors=True)
                with suppress(OSError):
                    images.rmdir()  # if it is empty
    except BlockingIOError:
        raise RunBusy(f"{folder}: another process adds images to this data set; wait for it") from None


class _Items:
    """`items.tsv`, to be written again with other images."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "items.tsv"
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such file; images need a catalog: `data import --items FILE` makes one")
        try:
            columns = read_table(self.path).columns
        except DataError:
            columns = read_table(self.path, quotes="multiline").columns
        self.columns = {name: cells for name, cells in columns.items() if name}
        by = next((name for name in ("raw_id", "asin", "itemID") if name in self.columns), None)
        if by is None:
            raise DataError(f"{self.path}: expected the column raw_id, asin or itemID, got {', '.join(self.columns)}")
        self.ids = [str(cell) for cell in self.columns[by]]
        self.images = [str(cell) for cell in self.columns.get("image", [""] * len(self.ids))]
        if outside := next((name for name in self.images if name and not is_within(name)), None):
            raise DataError(f"{self.path}: image: expected {PATH_RULE}, images/, got {outside!r}; correct it")

    def write(self, images: Sequence[str]) -> None:
        if list(images) == self.images and "image" in self.columns:
            return
        table = pd.DataFrame(self.columns | {"image": images}, dtype=object)
        write_atomic(self.path, lambda path: write_table(path, table))


class _Album:
    """A data set's images while more are added. `position`: raw id -> row of items.tsv."""

    def __init__(self, table: _Items, images: Path, manifest: Manifest) -> None:
        self.table, self.images, self.manifest = table, images, manifest
        self.parts = images / _PARTS
        self.position: dict[str, int] = {}
        for place, item in enumerate(table.ids):
            self.position.setdefault(item, place)
        self.stems = stems(list(self.position))
        self.taken = {name for name in table.images if name}  # by a run that reads the data set now
        self.new: set[str] = set()

    def urls(self) -> dict[str, list[str]]:
        """item -> the addresses in items.tsv; empty without a column of these."""
        column = next((name for name in URL_COLUMNS if name in self.table.columns), None)
        if column is None:
            return {}
        cells = self.table.columns[column]
        return {item: split_urls(str(cells[place])) for item, place in self.position.items()}

    def image_of(self, item: str) -> str:
        """The file of an item's image, as images.tsv or else items.tsv has it."""
        row = self.manifest.rows.get(item)
        return (row.image if row is not None else "") or self.table.images[self.position[item]]

    def has(self, item: str) -> bool:
        """Whether an item's image is there, whole."""
        name, row = self.image_of(item), self.manifest.rows.get(item)
        if not name or not (self.images / name).is_file():
            return False
        return row is None or row.image != name or (self.images / name).stat().st_size == row.bytes

    def place(self, item: str, part: Path, max_side: int | None) -> Row:
        """Verify an image and move it to its place. Raises Unusable."""
        picture = verify(part, max_side=max_side)
        size, sha256 = part.stat().st_size, read_hash(part)
        name = self.stems[item] + picture.suffix
        path = self.images / name
        if name in self.taken and not (path.is_file() and read_hash(path) == sha256):
            name = f"{self.stems[item]}-{sha256[:8]}{picture.suffix}"  # never other content under a name in use
        os.replace(part, self.images / name)
        return Row(item, name, bytes=size, sha256=sha256, width=picture.width, height=picture.height)

    def add(self, row: Row) -> None:
        """Record what became of an item, unless it has an image and no other came."""
        if row.image:
            self.new.add(row.item)
        elif self.has(row.item):
            return
        self.manifest.add(row)

    def finish(self, notes: list[str]) -> ImagesReport:
        """Name the images in items.tsv, and count."""
        have = {item for item in self.position if self.has(item)}
        rows = self.manifest.rows
        lacking = [item for item in self.position if item not in have]
        missing = Counter((rows[item].reason if item in rows else "") or "no file" for item in lacking)
        self.manifest.rows = {item: rows[item] for item in [*self.position, *rows] if item in rows}
        report = ImagesReport(
            self.images.parent.name, len(self.position), len(self.new & have), len(have - self.new),
            dict(missing.most_common()), self.manifest.path, [*notes, *self._shared(have)],
        )  # fmt: skip
        if not have:
            offline = set(missing) & {"no connection", "host given up"}
            cure = (
                "is this machine online? A proxy is taken from https_proxy; images that came elsewhere from --from PATH"
                if offline
                else "look at the rows' reasons; --urls FILE has other addresses, --from PATH other images"
            )
            raise DataError(f"{report}\nno item has an image: {cure}")
        self.table.write(
            [
                self.image_of(item) if item in have else old
                for item, old in zip(self.table.ids, self.table.images, strict=True)
            ]
        )
        return report

    def _shared(self, have: set[str]) -> list[str]:
        """A note on a picture that many items have: it may stand for a missing one."""
        hashes = Counter(row.sha256 for item, row in self.manifest.rows.items() if item in have and row.sha256)
        [(sha256, count)] = hashes.most_common(1) or [("", 0)]
        if count < max(10, len(have) // 100):
            return []
        example = next(row.image for row in self.manifest.rows.values() if row.sha256 == sha256)
        return [f"{count:,} items have the same picture ({example}): does it say that there is none?"]


def _listed_urls(path: Path, separator: str | None) -> dict[str, list[str]]:
    """item -> its addresses, in a table of two columns, with or without a header."""
    separator = separator.replace(r"\t", "\t") if separator else find_separator(path)
    first = first_cells(path, separator=separator)
    has_header = not any(re.match(r"https?://", cell) for cell in first)
    table = read_table(path, separator=separator, names=None if has_header else ("item", "url", *first[2:]))
    lower = {name.lower(): name for name in table.columns}
    item = next((lower[name] for name in ITEM_COLUMNS if name in lower), None)
    url = next((lower[name.lower()] for name in URL_COLUMNS if name.lower() in lower), None)
    if item is None or url is None:
        raise DataError(
            f"{path}: expected a column of items ({', '.join(ITEM_COLUMNS)}) and one of addresses "
            f"({', '.join(URL_COLUMNS)}), got {', '.join(table.columns)}; rename them"
        )
    listed: dict[str, list[str]] = {}
    for name, cell in zip(table.columns[item], table.columns[url], strict=True):
        listed.setdefault(str(name).strip(), []).extend(split_urls(str(cell)))
    return listed
