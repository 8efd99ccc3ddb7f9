"""Temporary files and folders: hidden names that say whose they are, and the removal of those that the dead left."""

import functools
import hashlib
import os
import platform
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path

#: The hidden names of `temporary_path`: machine, process, and when that process started.
_TEMPORARY = re.compile(r"\..*\.([0-9a-f]{8})-(\d+)-(\d+)\.(tmp|old)", re.DOTALL)
ABANDONED = 86_400.0  # seconds without a change after which a temporary of another machine counts as a dead process's


def temporary_path(path: Path) -> Path:
    """A hidden name beside `path`, for what will be renamed to it. It says whose it is, for `dead_temporaries`."""
    return path.with_name(f"{_hidden(path)}{_machine()}-{os.getpid()}-{_started(os.getpid()) or 0}.tmp")


def is_temporary_of(path: Path, original: Path) -> bool:
    """True if `path` is a hidden name for `original` that some process made."""
    name = _TEMPORARY.fullmatch(path.name)
    return name is not None and path.name[: name.start(1)] == _hidden(original)


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
    return [folder / name for name in names if is_dead(folder / name)]


def sweep(folder: Path) -> None:
    """Remove what dead processes left in `folder` itself, as far as this process may."""
    for path in dead_temporaries(folder):
        remove(path)


@functools.cache
def sweep_once(folder: Path) -> None:
    """Sweep a folder the first time that this process writes there: a folder of memos may have a million files."""
    sweep(folder)


def remove(path: Path) -> None:
    """Delete a file or a folder as far as this process may; another one may delete it at the same time."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def is_dead(path: Path) -> bool:
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


def _hidden(path: Path) -> str:
    """How the names of temporaries of `path` begin. File systems allow 255 bytes."""
    return f".{path.name.encode(errors='ignore')[:150].decode(errors='ignore')}."


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
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
