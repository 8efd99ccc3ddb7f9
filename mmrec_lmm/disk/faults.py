"""Errors of the system: whether the file, the machine, the disk or a permission is at fault, and what we say of it."""

import errno
import os
from pathlib import Path

from ..cache import home
from ..errors import MMRecError, NoAccess, RunError, is_denied

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


def is_disk_full(error: BaseException) -> bool:
    """True if an error means a full disk. safetensors wraps the system's error in its own, so the text counts too."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return (isinstance(error, OSError) and error.errno in full) or "No space left on device" in str(error)


def of_path(error: OSError) -> MMRecError:
    """The error that says what the system has against a path, which `error` names: code of ours that met it has no more
    to say."""
    place = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
    if is_denied(error):
        return no_access(Path(place), error, to="use")
    if isinstance(error, FileExistsError | NotADirectoryError):
        return RunError(f"{place}: expected a folder, got a file there; try another name")
    return RunError(f"{place}: {error.strerror or error}")


def no_access(path: Path, error: BaseException | None = None, *, to: str) -> NoAccess:
    """The error that says what to do about a path that this user may not `to`: read, write or use."""
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return NoAccess(f"{path}: expected a place to write to, got a read-only file system; {_elsewhere(path)}")
    return NoAccess(f"{path}: permission denied; ask its owner to let you {to} it, or {_elsewhere(path)}")


def _elsewhere(path: Path) -> str:
    is_ours = home().absolute() in (path.absolute(), *path.absolute().parents)
    return "set MMREC_LMM_HOME to a folder of your own" if is_ours else "try another folder"
