"""Folders and archives as sources of files: what names they have, and the content of some, never more than is allowed.

Nothing is unpacked to the disk. Of an archive only plain files count whose names stay within it.
"""

import bz2
import gzip
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mmrec_lmm.cache import check_file
from mmrec_lmm.errors import DataError
from mmrec_lmm.plugin.names import is_within

#: What an archive may unpack to: images hardly shrink, so more than this is a bomb.
RATIO, FLOOR = 100, 10**9  # times its own bytes, and bytes beside that
_COMPRESSIONS: Mapping[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip")


class Source(ABC):
    """Files by name. `names`: paths within the source, with slashes, in no certain order; `ignored` counts entries that
    aren't plain files or lead out of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: list[str] = []
        self.ignored = 0

    @abstractmethod
    def read(self, names: Collection[str], *, max_bytes: int) -> Iterator[tuple[str, bytes | None]]:
        """The content of each named file, in the source's order; None for one with more than `max_bytes`."""

    def _list(self, name: str, *, plain: bool = True) -> None:
        if plain and is_within(name):
            self.names.append(name)
        else:
            self.ignored += 1


def open_source(path: Path) -> Source:
    """The files of a folder or an archive; of a folder that holds only archives, the files of all these. DataError for
    anything else."""
    if path.is_dir():
        folder = _Folder(path)
        shards = [name for name in folder.names if name.lower().endswith(".tar")]
        return _Shards(path, folder, shards) if shards else folder
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    check_file(path, "try saving its content to a file")
    with _readable(path):
        if zipfile.is_zipfile(path):
            return _Zip(path)
        if tarfile.is_tarfile(path):
            return _Tar(path)
    raise DataError(f"{path}: expected a folder or an archive ({', '.join(_ARCHIVES)}), got another file; is it whole?")


class _Folder(Source):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        for folder, folders, files in os.walk(path):
            folders.sort()
            for file in sorted(files):
                self._list((Path(folder) / file).relative_to(path).as_posix())

    def read(self, names: Collection[str], *, max_bytes: int) -> Iterator[tuple[str, bytes | None]]:
        for name in names:
            path = self.path / name
            if stat.S_ISREG(path.stat().st_mode):  # a pipe would block forever
                with path.open("rb") as file:
                    yield name, _bounded(file, max_bytes)


class _Zip(Source):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        refuse_bomb(path, sum(entry.file_size for entry in entries))
        for entry in entries:
            self._list(entry.filename, plain=not stat.S_ISLNK(entry.external_attr >> 16))

    def read(self, names: Collection[str], *, max_bytes: int) -> Iterator[tuple[str, bytes | None]]:
        with _readable(self.path), zipfile.ZipFile(self.path) as archive:
            for name in names:
                with archive.open(name) as file:
                    yield name, _bounded(file, max_bytes)


class _Tar(Source):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        for member, _ in self._members():
            if not member.isdir():
                self._list(member.name.removeprefix("./"), plain=member.isreg())

    def read(self, names: Collection[str], *, max_bytes: int) -> Iterator[tuple[str, bytes | None]]:
        for member, archive in self._members():
            if member.isreg() and (name := member.name.removeprefix("./")) in names:
                file = archive.extractfile(member)
                assert file is not None  # of a regular file
                yield name, _bounded(file, max_bytes)

    def _members(self) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
        total = 0
        with _readable(self.path), _unpacked(self.path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                total += member.size
                refuse_bomb(self.path, total)  # before its content is unpacked
                yield member, archive
                archive.members = []  # type: ignore[attr-defined]  # else each stays in memory


class _Shards(Source):
    """The files beside and in the archives of a folder, as `shard.tar/name`."""

    def __init__(self, path: Path, folder: _Folder, shards: list[str]) -> None:
        super().__init__(path)
        self._parts: dict[str, Source] = {f"{shard}/": _Tar(path / shard) for shard in sorted(shards)} | {"": folder}
        for prefix, part in self._parts.items():
            self.names += [prefix + name for name in part.names]
            self.ignored += part.ignored

    def read(self, names: Collection[str], *, max_bytes: int) -> Iterator[tuple[str, bytes | None]]:
        left = set(names)
        for prefix, part in self._parts.items():
            mine = {name.removeprefix(prefix) for name in left if name.startswith(prefix)} & set(part.names)
            left -= {prefix + name for name in mine}
            for name, content in part.read(mine, max_bytes=max_bytes):
                yield prefix + name, content


def _unpacked(path: Path) -> IO[bytes]:
    """The bytes of a tar archive, without its compression. What is cut short raises EOFError: tarfile alone would take
    the entries before the cut for all."""
    with path.open("rb") as file:
        head = file.read(6)
        if not head.startswith(tuple(_COMPRESSIONS)):
            file.seek(-min(512, path.stat().st_size), os.SEEK_END)
            if file.read().strip(b"\0"):
                raise EOFError("no end of the archive")
    opened: IO[bytes] = next((way for start, way in _COMPRESSIONS.items() if head.startswith(start)), open)(path, "rb")
    return opened


def _bounded(file: IO[bytes], most: int) -> bytes | None:
    content = file.read(most + 1)
    return content if len(content) <= most else None


def refuse_bomb(path: Path, total: int) -> None:
    """DataError for an archive whose content is of `total` bytes, if that is too much for its own size."""
    if total > FLOOR + RATIO * path.stat().st_size:
        raise DataError(
            f"{path}: expected an archive, got one that unpacks to over {RATIO} times its size; if that is "
            "right, unpack it and name the folder"
        )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what libraries raise for damaged archives into a DataError that names this one."""
    damages = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, NotImplementedError)
    try:
        yield
    except (*damages, RuntimeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        why = str(error) or type(error).__name__
        raise DataError(
            f"{path}: expected a whole archive without a password, got one that can't be read ({why}); copy it again"
        ) from None
