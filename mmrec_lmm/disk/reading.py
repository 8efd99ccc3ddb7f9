"""Reading files: only plain ones of a bounded size, and an error that names the file and a cure."""

import os
import stat
from pathlib import Path
from typing import Any

from ..errors import DataError, is_denied
from ..typed_json import parse
from .faults import is_machines, machine_failed, no_access

AGAIN = "delete it to make it again"  # the cure of a damaged file that is derived from others
LARGEST_JSON = 2**28  # bytes; a leaderboard of a thousand rows has two million


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


def is_there(path: Path, cure: str = "replace it by a file, or delete it") -> bool:
    """True if there is a plain file, False if there is nothing. DataError for a folder, a pipe or a link to nowhere: it
    isn't what someone meant. NoAccess where this user may not look."""
    check_readable(path)
    return os.path.lexists(path) and check_file(path, cure) >= 0


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
