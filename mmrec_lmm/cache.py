"""The content-addressed cache: every derived file is named by a hash of all that it depends on.

A stale file is therefore impossible: change the encoder, its weights, the preprocessing or the catalog, and the name
changes. A file appears whole or not at all (it is written beside its place, then renamed), and two processes that want
the same file make it once.
"""

import errno
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import filelock
import platformdirs

from .errors import DataError, RunError
from .typed_json import parse
from .typed_json import plain as plain

AGAIN = "delete it to make it again"  # the cure of a damaged file that is derived from others
LARGEST_JSON = 2**28  # bytes; a leaderboard of a thousand rows has two million


def home() -> Path:
    """The folder of everything that outlives a run: `MMREC_LMM_HOME`, else the platform's cache folder."""
    chosen = os.environ.get("MMREC_LMM_HOME")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("mmrec-lmm"))


def fingerprint(value: Any) -> str:
    """A 32-digit hex hash of plain data: dataclasses, mappings (in any order), sequences, scalars, paths, arrays."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()[:32]


def hash_bytes(data: Any) -> str:
    """SHA-256 of anything with the buffer interface, in hex."""
    return hashlib.sha256(data).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    return hash_files([path])


def hash_files(paths: Sequence[Path]) -> str:
    """One SHA-256 over the contents of files, in order; for a single file, its own."""
    return join_hashes(_remembered_hashes(paths, read_hash))


def hash_readable(paths: Sequence[Path | None]) -> list[str | None]:
    """SHA-256 of each file's content; None without a path, or if it isn't a plain file that this process may read."""
    files = [path for path in paths if path is not None and is_readable(path)]
    hashes = dict(zip(files, _remembered_hashes(files, _try_read_hash), strict=True))
    return [hashes.get(path) if path is not None else None for path in paths]


def join_hashes(hashes: Sequence[str]) -> str:
    """One hash of several, in order; a single one is returned as it is."""
    return hashes[0] if len(hashes) == 1 else hash_bytes("".join(hashes).encode())


_Hash = TypeVar("_Hash", str, str | None)


def _remembered_hashes(paths: Sequence[Path], read: Callable[[Path], _Hash]) -> Sequence[_Hash]:
    """The hash of each file. Hashes are remembered by the paths, sizes and times of change of all files: if these are
    known, no file is opened.

    One change goes unseen: a file replaced by one of equal size within the clock's resolution.
    """
    stats = [(path, path.stat()) for path in paths]
    folders = {folder: str(folder.resolve()) for folder in {path.parent for path in paths}}  # few, and slow to resolve
    key = fingerprint([(folders[path.parent], path.name, now.st_size, now.st_mtime_ns) for path, now in stats])
    memo = home() / "file-hashes" / (key if len(paths) == 1 else f"{key}.each")
    with suppress(DataError):
        known = read_file(memo, largest=LARGEST_JSON).decode("ascii", "replace").split()
        if len(known) == len(paths) and all(len(one) == 64 and one.isalnum() for one in known):
            return known
    hashes = [read(path) for path in paths]
    if all(hashes):
        with suppress(OSError, RunError):  # a read-only or full cache costs time, not correctness
            write_bytes(memo, "\n".join(map(str, hashes)).encode())
    return hashes


def read_hash(path: Path) -> str:
    """SHA-256 of a file's content, in hex; the file is read each time, and nothing is remembered."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _try_read_hash(path: Path) -> str | None:
    try:
        return read_hash(path)
    except OSError:  # a disk error, or a permission that `access` doesn't see
        return None


def is_readable(path: Path) -> bool:
    """True if a path is a plain file that this process may read. It isn't opened."""
    try:
        return path.is_file() and os.access(path, os.R_OK)
    except OSError:  # a name that is too long
        return False


def write_atomic(path: Path, write: Callable[[Path], None]) -> Path:
    """Call `write` with a temporary path beside `path`, then rename: readers see the old file or the new one whole.

    Raises RunError where the disk is full; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if is_disk_full(error):
            raise RunError(f"{path}: no space left on the disk; nothing was lost: free some and start again") from None
        raise
    return path


def is_disk_full(error: BaseException) -> bool:
    """True if an error means a full disk. safetensors wraps the system's error in its own, so the text counts too."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return (isinstance(error, OSError) and error.errno in full) or "No space left on device" in str(error)


def write_bytes(path: Path, data: bytes) -> Path:
    """Atomically write `data`."""
    return write_atomic(path, lambda temporary: _discard(temporary.write_bytes(data)))


def write_json(path: Path, value: Any) -> Path:
    """Atomically write `value` as indented JSON, with whatever plain form its parts have."""
    return write_bytes(path, (json.dumps(plain(value), indent=2) + "\n").encode())


def check_file(path: Path, cure: str) -> int:
    """The size of a plain file in bytes. DataError for anything else: reading a pipe would wait for ever."""
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise _unreadable(path, error, cure) from None
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, a socket or a device"
        raise DataError(f"{path}: expected a file, got {what}; {cure}")
    return found.st_size


def is_there(path: Path, cure: str = "replace it by a file, or delete it") -> bool:
    """True if there is a plain file, False if there is nothing. DataError for a folder, a pipe or a link to nowhere: it
    isn't what someone meant."""
    return os.path.lexists(path) and check_file(path, cure) >= 0


def read_file(path: Path, *, largest: int, cure: str = AGAIN) -> bytes:
    """The content of a plain file of at most `largest` bytes. DataError names another, a missing or unreadable one."""
    size = check_file(path, cure)
    if size > largest:
        raise DataError(f"{path}: expected at most {largest:,} bytes, got {size:,}; {cure}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error, cure) from None


def read_json(path: Path, *, cure: str = AGAIN) -> Any:
    """A JSON file's content; DataError names the file if it is missing or damaged (see `typed_json.parse`)."""
    return parse(read_file(path, largest=LARGEST_JSON, cure=cure), where=str(path), cure=cure)


def read_tensors(path: Path, *, framework: str = "numpy", cure: str) -> dict[str, Any]:
    """The tensors in a file of safetensors, by name. DataError names a missing or damaged file.

    safetensors checks its header against the file's size: a damaged one allocates nothing.
    """
    with _safetensors(path, framework, cure) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it isn't a mapping


def read_metadata(path: Path, key: str, *, cure: str) -> Any:
    """The JSON under a key of the header of a file of safetensors. DataError names a missing or damaged file."""
    with _safetensors(path, "numpy", cure) as file:
        text = (file.metadata() or {}).get(key)
    if text is None:
        raise DataError(f"{path}: expected {key} in its header, got no such entry; {cure}")
    return parse(text, where=str(path), cure=cure)


@contextmanager
def _safetensors(path: Path, framework: str, cure: str) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    check_file(path, cure)
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (SafetensorError, OSError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: expected a file of safetensors, got a damaged one ({error}); {cure}") from None


def _unreadable(path: Path, error: OSError | ValueError, cure: str) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: no such file")
    if isinstance(error, PermissionError):
        return DataError(f"{path}: permission denied")
    return DataError(f"{path}: can't be read ({getattr(error, 'strerror', None) or error}); {cure}")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock named after `path` (a `.lock` file beside it), waiting for another process if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(str(path.with_name(f"{path.name}.lock"))):
        yield


class Claims:
    """Exclusive claims on the numbered pieces of a file that several processes make together.

    A claim is a lock on one byte of a `.claims.lock` file beside `path`. It ends with its process, however that ends: a
    dead process blocks no other. Loader processes forked meanwhile don't inherit claims.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.with_name(f"{path.name}.claims.lock").open("ab")

    def __enter__(self) -> "Claims":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()  # ends all claims

    def claim(self, piece: int, *, wait: bool = False) -> bool:
        """Claim a piece. False if another process holds it; with `wait`, wait until it doesn't."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, piece)
        except (BlockingIOError, PermissionError):  # POSIX allows either
            return False
        return True

    def give_up(self, piece: int) -> None:
        """End the claim on a piece, if there is one."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, piece)


def _discard(_: object) -> None:
    return None
