"""The content-addressed cache: every derived file is named by a hash of all that it depends on.

Change the encoder, its weights, the preprocessing or the catalog, and the name changes. A file appears whole or not at
all (it is written beside its place, then renamed), and two processes that want the same file make it once.

Three rules make the names hold. A hash is remembered only together with the file's inode and its time of change, which
no program can set back. What is loaded or encoded is compared with what was hashed. And stored tensors carry a
checksum (weights/sealed.py). One case remains: a file system without a time of change of its own (FAT, squashfs, some
network file systems), where a file is replaced by another of equal size, time and number.
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
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import platformdirs

from .errors import DataError, NoAccess, RunError, is_denied
from .typed_json import parse
from .typed_json import plain as plain

AGAIN = "delete it to make it again"  # the cure of a damaged file that is derived from others
LARGEST_JSON = 2**28  # bytes; a leaderboard of a thousand rows has two million

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
    """SHA-256 of a file's content, in hex; the file is read each time, and nothing is remembered."""
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


Stamp = tuple[int, int, int, int]
SETTLED = 2_000_000_000  # ns: the coarsest clock of a file system; a later change then has a later time


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
        with suppress(OSError, RunError):  # a read-only or full cache costs time, not correctness
            write_bytes(memo, "\n".join(map(str, hashes)).encode())
    return hashes


def _try_read_hash(path: Path) -> str | None:
    try:
        return read_hash(path)
    except OSError as error:  # a permission that `access` doesn't see, or a file that was removed
        if is_machines(error):
            raise machine_failed(path, error) from None
        return None


def is_readable(path: Path) -> bool:
    """True if a path is a plain file that this process may read. It isn't opened. RunError where the machine fails."""
    try:
        return stat.S_ISREG(path.stat().st_mode) and os.access(path, os.R_OK)
    except ValueError:  # a null byte in the name
        return False
    except OSError as error:
        if is_machines(error):
            raise machine_failed(path, error) from None
        return False


#: Errors that say something about one file: missing, forbidden, or not a file. Any other is the machine's and may pass.
_OF_THE_FILE = frozenset(
    {
        errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG,
        errno.EINVAL, errno.ENXIO, errno.EILSEQ,
    }
)  # fmt: skip


def is_machines(error: BaseException) -> bool:
    """True for an error of the machine, not of a file's content: no memory, no free descriptor, a failing disk."""
    if isinstance(error, OSError):
        return error.errno is not None and error.errno not in _OF_THE_FILE
    return isinstance(error, MemoryError)


def machine_failed(path: Path, error: BaseException) -> RunError:
    """The error for a file that the machine fails to read: to mask it would keep a passing failure for good."""
    reason = (error.strerror if isinstance(error, OSError) else None) or "not enough memory"
    return RunError(
        f"{path}: can't be read by this machine: {reason}; finished work is kept: mend it and start again, or remove "
        "the file if it is lost"
    )


def write_atomic(path: Path, write: Callable[[Path], None]) -> Path:
    """Call `write` with a temporary path beside `path`, then rename: readers see the old file or the new one whole.

    The file has the permissions of any new one there (umask), whatever `write` gives it. Raises RunError where the disk
    is full or `path` can't be a file's, and NoAccess; nothing is left behind.
    """
    if not path.name:
        raise RunError(f"{path}: expected the name of a file to write, got a folder")
    _sweep_once(path.parent)
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        permissions = _make_empty(temporary)
        write(temporary)
        if stat.S_IMODE(temporary.stat().st_mode) != permissions:  # safetensors lets only the owner read its files
            temporary.chmod(permissions)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # what refuses the file refuses this, too
            temporary.unlink(missing_ok=True)
        if is_disk_full(error):
            raise RunError(f"{path}: no space left on the disk; nothing was lost: free some and start again") from None
        if is_denied(error):
            raise no_access(path, error, to="write") from None
        raise
    return path


def _make_empty(path: Path) -> int:
    """Make a file empty, and return its permissions: those of any new file there, by the umask and the folder."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


def is_disk_full(error: BaseException) -> bool:
    """True if an error means a full disk. safetensors wraps the system's error in its own, so the text counts too."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return (isinstance(error, OSError) and error.errno in full) or "No space left on device" in str(error)


def no_access(path: Path, error: BaseException | None = None, *, to: str) -> NoAccess:
    """The error that says what to do about a path that this user may not `to`: read, write or use."""
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return NoAccess(f"{path}: expected a place to write to, got a read-only file system; {_elsewhere(path)}")
    return NoAccess(f"{path}: permission denied; ask its owner to let you {to} it, or {_elsewhere(path)}")


def _elsewhere(path: Path) -> str:
    is_ours = home().absolute() in (path.absolute(), *path.absolute().parents)
    return "set MMREC_LMM_HOME to a folder of your own" if is_ours else "try another folder"


def check_readable(path: Path) -> None:
    """Raise NoAccess if this user may not read a file or folder, or not enter one that leads there.

    Nothing is opened, and what is missing passes. Called before a library that calls such a file missing or damaged.
    """
    try:
        rights = os.R_OK | (os.X_OK if stat.S_ISDIR(path.stat().st_mode) else 0)
    except (OSError, ValueError) as error:  # the latter for a null byte in the name
        if is_denied(error):
            raise no_access(path, error, to="read") from None
        return
    if not os.access(path, rights):
        raise no_access(path, to="read")


def write_memo(path: Path, text: str) -> None:
    """Write a file that saves time and decides nothing: a folder that is full or can't be written to costs no more."""
    with suppress(OSError, RunError, NoAccess):
        write_bytes(path, text.encode())


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


def check_file(path: Path, cure: str) -> int:
    """The size of a plain file in bytes. DataError for anything else: reading a pipe would wait for ever. NoAccess for
    one that this user may not read."""
    check_readable(path)
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
    isn't what someone meant. NoAccess where this user may not look."""
    check_readable(path)
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


def _unreadable(path: Path, error: OSError | ValueError, cure: str) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: no such file")
    if is_denied(error):
        return no_access(path, error, to="read")
    return DataError(f"{path}: can't be read ({getattr(error, 'strerror', None) or error}); {cure}")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock named after `path` (a `.lock` file beside it), waiting for another process if need be.

    To read what exists no lock is needed: files appear whole. Raises NoAccess.
    """
    with holding(path.with_name(f"{path.name}.lock")):
        yield


@contextmanager
def holding(lock: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the exclusive lock that a file stands for. It ends with the process, however that ends.

    The file exists while the lock is held or waited for. Raises NoAccess and, without `wait`, BlockingIOError where
    another process holds it.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquired(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as error:
        if is_denied(error) or error.errno == errno.EBADF:  # network file systems lock only what may be written
            raise no_access(lock, error, to="write") from None
        raise
    try:
        yield
    finally:
        with suppress(OSError):  # in another user's folder it stays
            if os.path.samestat(os.fstat(descriptor), lock.stat()):  # its folder may have been replaced
                lock.unlink()
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # for forked processes, too
        os.close(descriptor)


def _acquired(lock: Path, how: int) -> int:
    """A descriptor that holds the lock of the file of that name."""
    while True:
        descriptor = _open_lock(lock)
        try:
            fcntl.flock(descriptor, how)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), lock.stat()):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder has deleted it meanwhile: another may have made a new one


def _open_lock(lock: Path) -> int:
    """A lock's file, made if need be. One that this user may only read serves as well on most file systems."""
    try:
        return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if not is_denied(error):
            raise
        with suppress(OSError):
            return os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
        raise


class Claims:
    """Exclusive claims on the numbered pieces of a file that several processes make together.

    A claim is a lock on one byte of a `.claims.lock` file beside `path`. It ends with its process, however that ends: a
    dead process blocks no other. Loader processes forked meanwhile don't inherit claims. Raises NoAccess.
    """

    def __init__(self, path: Path) -> None:
        file = path.with_name(f"{path.name}.claims.lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = file.open("ab")
        except OSError as error:
            if is_denied(error):
                raise no_access(file, error, to="write") from None
            raise

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
