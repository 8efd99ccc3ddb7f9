"""Locks between processes: on a name, and on the numbered pieces of a file. They end with their process."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import is_denied
from .faults import no_access


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
