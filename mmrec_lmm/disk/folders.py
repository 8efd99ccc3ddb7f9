"""Folders that appear whole: built beside their place, and exchanged with the older one."""

import ctypes
import errno
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import RunError
from .faults import is_disk_full
from .temporaries import is_dead, is_temporary_of, remove, sweep, sweep_once, temporary_path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux
logger = logging.getLogger(__name__)


@contextmanager
def new_folder(folder: Path, *, check: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """A temporary folder beside `folder` to fill. It takes the place of `folder` if the block succeeds, after `check`.

    Raises RunError where the disk is full. Whenever the process is killed, the name has the old folder or the new one;
    on a file system that can't exchange two names the old one may be under a hidden name, until `restore_folder`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep_once(folder.parent)
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


def restore_folder(folder: Path) -> None:
    """Put the folder back that a killed `new_folder` had moved aside; call it before looking for `folder`."""
    if not folder.parent.is_dir():
        return
    found = [path for path in folder.parent.glob(".*.old") if is_temporary_of(path, folder)]
    if found and not folder.exists():
        time.sleep(1)  # a living process needs microseconds between its two renames
    for path in found:
        if folder.exists():
            if is_dead(path):
                remove(path)
            continue
        try:
            path.rename(folder)
            logger.warning("%s: a killed command had replaced half of it; the old one is back", folder)
        except OSError as error:
            logger.warning("%s is in %s after a killed command: rename it back (%s)", folder, path, error)


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
