"""Writing files: whole or not at all."""

import json
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import NoAccess, RunError, is_denied
from ..typed_json import plain
from .faults import is_disk_full, no_access
from .temporaries import sweep_once, temporary_path


def write_atomic(path: Path, write: Callable[[Path], None]) -> Path:
    """Call `write` with a temporary path beside `path`, then rename: readers see the old file or the new one whole.

    The file has the permissions of any new one there (umask), whatever `write` gives it. Raises RunError where the disk
    is full, and NoAccess; nothing is left behind.
    """
    sweep_once(path.parent)
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
        if isinstance(error, OSError) and error.filename == str(temporary):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    return path


def write_output(path: Path, content: bytes) -> Path:
    """Write what a user asked for to the place that the user named: a file, whole or not at all.

    A link is followed. A pipe or a device stays what it is, and gets the content. Raises RunError for a folder, and the
    errors of `write_atomic`.
    """
    return write_output_by(path, lambda place: _discard(place.write_bytes(content)))


def write_output_by(path: Path, write: Callable[[Path], None]) -> Path:
    """As `write_output`, for what is too large to be held at once: `write` writes it to the path that it is given."""
    special = path.exists() and not path.is_file()  # such as /dev/stdout, a link to a pipe that has no path
    target = Path(os.path.realpath(path)) if path.is_symlink() and not special else path
    if target.is_dir():
        raise RunError(f"{path}: expected the name of a file to write, got a folder; try another")
    if not target.exists() or target.is_file():
        write_atomic(target, write)
        return path
    try:
        write(target)
    except OSError as error:
        if is_denied(error):
            raise no_access(path, error, to="write") from None
        raise OSError(error.errno, error.strerror, str(path)) from None
    return path


def write_bytes(path: Path, data: bytes) -> Path:
    """Atomically write `data`."""
    return write_atomic(path, lambda temporary: _discard(temporary.write_bytes(data)))


def write_json(path: Path, value: Any) -> Path:
    """Atomically write `value` as indented JSON, with whatever plain form its parts have."""
    return write_bytes(path, (json.dumps(plain(value), indent=2) + "\n").encode())


def write_memo(path: Path, text: str) -> None:
    """Write a file that saves time and decides nothing: a folder that is full or can't be written to costs no more."""
    with suppress(OSError, RunError, NoAccess):
        write_bytes(path, text.encode())


def _make_empty(path: Path) -> int:
    """Make a file empty, and return its permissions: those of any new file there, by the umask and the folder."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


def _discard(_: object) -> None:
    return None
