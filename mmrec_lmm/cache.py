"""The content-addressed cache: every derived file is named by a hash of all that it depends on.

A stale file is therefore impossible: change the encoder, its weights, the preprocessing or the catalog, and the name
changes. A file appears whole or not at all (it is written beside its place, then renamed), and two processes that want
the same file make it once.
"""

import ctypes
import errno
import fcntl
import functools
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import filelock
import platformdirs

from .errors import DataError, RunError
from .typed_json import plain as plain

logger = logging.getLogger(__name__)


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
    key = fingerprint([(folders[path.parent], path.name, stat.st_size, stat.st_mtime_ns) for path, stat in stats])
    memo = home() / "file-hashes" / (key if len(paths) == 1 else f"{key}.each")
    with suppress(OSError):
        known = memo.read_text().split()
        if len(known) == len(paths):
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
    _sweep_once(path.parent)
    temporary = temporary_path(path)
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


#: The hidden names of `temporary_path`: machine, process, and when that process started.
_TEMPORARY = re.compile(r"\..*\.([0-9a-f]{8})-(\d+)-(\d+)\.(tmp|old)", re.DOTALL)
ABANDONED = 86_400.0  # seconds without a change after which a temporary of another machine counts as a dead process's
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux


def temporary_path(path: Path) -> Path:
    """A hidden name beside `path`, for what will be renamed to it. It says whose it is, for `dead_temporaries`."""
    return path.with_name(f"{_hidden(path)}{_machine()}-{os.getpid()}-{_started(os.getpid()) or 0}.tmp")


def dead_temporaries(folder: Path) -> list[Path]:
    """The temporaries in `folder`, files and folders, whose process is dead.

    A process of this machine lives while its id has the same time of start. One of another machine, or of another
    container, can't be seen: its temporaries count as a dead process's when nothing changed in them for ABANDONED.
    """
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name.startswith(".") and entry.name.endswith(".tmp")]
    except OSError:
        return []
    return [folder / name for name in names if _is_dead(folder / name)]


def sweep(folder: Path) -> None:
    """Remove what dead processes left in `folder` itself, as far as this process may."""
    for path in dead_temporaries(folder):
        remove(path)


def remove(path: Path) -> None:
    """Delete a file or a folder as far as this process may; another one may delete it at the same time."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


@contextmanager
def new_folder(folder: Path, *, check: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """A temporary folder beside `folder` to fill. It takes the place of `folder` if the block succeeds, after `check`.

    Raises RunError where the disk is full. Whenever the process is killed, the name has the old folder or the new one;
    on a file system that can't exchange two names the old one may be under a hidden name, until `restore_folder`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep_once(folder.parent)
    building = temporary_path(folder)
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir()
        yield building
        check()
        _put(building, folder)
    except BaseException as error:
        if is_disk_full(error):
            raise RunError(
                f"{folder}: no space left on the disk, nothing was changed; free some and try again"
            ) from None
        raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder among the system's temporary files, removed at the end. Those that dead processes left are removed."""
    temporary = Path(tempfile.gettempdir())
    sweep(temporary)
    folder = temporary_path(temporary / f"mmrec-lmm-{uuid.uuid4().hex}")
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def restore_folder(folder: Path) -> None:
    """Put the folder back that a killed `new_folder` had moved aside; call it before looking for `folder`."""
    if not folder.parent.is_dir():
        return
    found = [path for path in folder.parent.glob(".*.old") if _is_aside(path, folder)]
    if found and not folder.exists():
        time.sleep(1)  # a living process needs microseconds between its two renames
    for path in found:
        if folder.exists():
            if _is_dead(path):
                remove(path)
            continue
        try:
            path.rename(folder)
            logger.warning("%s: a killed command had replaced half of it; the old one is back", folder)
        except OSError as error:
            logger.warning("%s is in %s after a killed command: rename it back (%s)", folder, path, error)


def _put(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; an older folder is deleted after that."""
    if not folder.exists() or not any(folder.iterdir()):
        os.replace(new, folder)
    elif _exchange(new, folder):
        shutil.rmtree(new, ignore_errors=True)
    else:
        old = new.with_suffix(".old")
        os.replace(folder, old)
        try:
            os.replace(new, folder)
        except OSError:
            os.replace(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system can't."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(other))


@functools.cache
def _sweep_once(folder: Path) -> None:
    """Sweep a folder the first time that this process writes there: a folder of memos may have a million files."""
    sweep(folder)


def _is_aside(path: Path, folder: Path) -> bool:
    """True if `path` is where `_put` of some process moves an older `folder`."""
    name = _TEMPORARY.fullmatch(path.name)
    return name is not None and path.name[: name.start(1)] == _hidden(folder)


def _hidden(path: Path) -> str:
    """How the names of temporaries of `path` begin. File systems allow 255 bytes."""
    return f".{path.name.encode(errors='ignore')[:150].decode(errors='ignore')}."


def _is_dead(path: Path) -> bool:
    """True if a path is a temporary, and its process is dead."""
    name = _TEMPORARY.fullmatch(path.name)
    if name is None:
        return False
    machine, pid, began = name[1], int(name[2]), int(name[3])
    if machine == _machine():
        found = _started(pid)
        return found is None or (0 not in (found, began) and found != began)
    try:
        inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else ()
        return time.time() - max(one.lstat().st_mtime for one in (path, *inside)) > ABANDONED
    except OSError:  # it changes now
        return False


def _started(pid: int) -> int | None:
    """When a process started, in the kernel's ticks since boot; 0 if unknown, None if there is no such process."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:  # another user's
        pass
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # not Linux, or hidden
        return 0
    return None if state in "ZX" else int(fields[18])


@functools.cache
def _machine() -> str:
    """8 hex digits that this machine has until it boots, and no other; those of a container are its own."""
    parts = [platform.node()]
    with suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return hash_bytes("\n".join(parts).encode())[:8]


def write_bytes(path: Path, data: bytes) -> Path:
    """Atomically write `data`."""
    return write_atomic(path, lambda temporary: _discard(temporary.write_bytes(data)))


def write_json(path: Path, value: Any) -> Path:
    """Atomically write `value` as indented JSON, with whatever plain form its parts have."""
    return write_bytes(path, (json.dumps(plain(value), indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """A JSON file's content; DataError names the file where it is damaged."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path}: expected JSON, got a damaged file ({error}); delete it to make it again") from None


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
