"""Hashes of files' content: remembered while a file is what it was, and compared with what is loaded."""

import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from ..cache import fingerprint, home
from ..errors import DataError
from .faults import is_machines, machine_failed
from .reading import LARGEST_JSON, check_file, is_readable, read_file
from .writing import write_memo

Stamp = tuple[int, int, int, int]
SETTLED = 2_000_000_000  # ns: the coarsest clock of a file system; a later change then has a later time


def hash_bytes(data: Any) -> str:
    """SHA-256 of anything with the buffer interface, in hex."""
    return hashlib.sha256(data).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content, in hex. It may be remembered, except within `hashed_anew`."""
    anew = _ANEW.get()
    if anew is not None:
        return anew.hash(path)
    digest = hash_files([path])
    _LAST_HASH[path.resolve()] = digest
    return digest


def hash_files(paths: Sequence[Path]) -> str:
    """One SHA-256 over the contents of files, in order; for a single file, its own."""
    return join_hashes(_remembered_hashes(paths, read_hash))


def hash_readable(paths: Sequence[Path | None]) -> list[str | None]:
    """SHA-256 of each file's content; None without a path, or if it isn't a plain file that this process may read.

    Raises RunError where the machine fails to read one.
    """
    files = [path for path in paths if path is not None and is_readable(path)]
    hashes = dict(zip(files, _remembered_hashes(files, _try_read_hash), strict=True))
    return [hashes.get(path) if path is not None else None for path in paths]


def join_hashes(hashes: Sequence[str]) -> str:
    """One hash of several, in order; a single one is returned as it is."""
    return hashes[0] if len(hashes) == 1 else hash_bytes("".join(hashes).encode())


def read_hash(path: Path) -> str:
    """SHA-256 of a file's content, in hex; the file is read each time, and nothing is remembered. DataError for a
    folder or a pipe, to read which could wait for ever; OSError for a missing file."""
    if not stat.S_ISREG(path.stat().st_mode):
        check_file(path, "replace it by a file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Anew:
    """The hashes of files that are hashed anew, each read once."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[str, Stamp]] = {}

    def hash(self, path: Path) -> str:
        place = path.resolve()
        if place not in self._known:
            before = stamp(place.stat())
            self._known[place] = read_hash(place), before
        digest, _ = self._known[place]
        if _LAST_HASH.get(place, digest) != digest:
            raise changed(path, "after it was hashed")
        return digest

    def check(self) -> None:
        for place, (_, before) in self._known.items():
            if not place.is_file() or stamp(place.stat()) != before:
                raise changed(place, "while it was loaded")


_ANEW: ContextVar[_Anew | None] = ContextVar("anew", default=None)
_LAST_HASH: dict[Path, str] = {}  # path -> the hash that `hash_file` returned last, by which things have been named


@contextmanager
def hashed_anew() -> Iterator[None]:
    """A context that loads files whose hashes name what is made of them: `hash_file` reads each of them.

    Raises DataError if one of these files isn't what `hash_file` said of it before, or if it changes until the end of
    the context.
    """
    anew = _Anew()
    token = _ANEW.set(anew)
    try:
        yield
    finally:
        _ANEW.reset(token)
    anew.check()


@contextmanager
def unchanged(path: Path) -> Iterator[None]:
    """A context that reads a file and hashes it: DataError if the file changes meanwhile."""
    before = stamp(path.stat())
    yield
    if not path.is_file() or stamp(path.stat()) != before:
        raise changed(path, "while it was read")


def changed(path: Path, when: str) -> DataError:
    """The error for a file that isn't what it was when it was hashed."""
    return DataError(f"{path}: expected the file as it was hashed, got another: it changed {when}; start again")


def stamp(status: os.stat_result) -> Stamp:
    """The size, inode, and times of change of content and of status of a file: equal only if the file didn't change.

    Copying and unpacking set the time of the content (mtime) as they like; that of the status (ctime) is the kernel's.
    The device isn't among them: its number differs between the machines that share a file system.
    """
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


_Hash = TypeVar("_Hash", str, str | None)


def _remembered_hashes(paths: Sequence[Path], read: Callable[[Path], _Hash]) -> Sequence[_Hash]:
    """The hash of each file. Hashes are remembered by the paths and stamps of all files: if these are known, no file is
    opened. Those of a file that changed a moment ago aren't: a second change could bear the same time."""
    now = time.time_ns()
    stats = [path.stat() for path in paths]
    folders = {folder: str(folder.resolve()) for folder in {path.parent for path in paths}}  # few, and slow to resolve
    named = zip(paths, stats, strict=True)
    key = fingerprint([(folders[path.parent], path.name, stamp(status)) for path, status in named])
    memo = home() / "file-hashes" / (key if len(paths) == 1 else f"{key}.each")
    with suppress(DataError, UnicodeDecodeError):
        known = read_file(memo, largest=LARGEST_JSON).decode().split("\n")
        if len(known) == len(paths) and all(re.fullmatch("[0-9a-f]{64}", each) for each in known):
            return known
    hashes = [read(path) for path in paths]
    if all(hashes) and all(status.st_ctime_ns < now - SETTLED for status in stats):
        write_memo(memo, "\n".join(map(str, hashes)))
    return hashes


def _try_read_hash(path: Path) -> str | None:
    try:
        return read_hash(path)
    except OSError as error:  # a permission that `access` doesn't see, or a file that was removed
        if is_machines(error):
            raise machine_failed(path, error) from None
        return None
