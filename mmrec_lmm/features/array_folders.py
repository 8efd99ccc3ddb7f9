"""Folders of array files in the cache: made once, whole or not at all, and made again where they aren't as written."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from ..disk.hashing import hash_file
from ..disk.locks import locked
from ..disk.reading import check_readable

logger = logging.getLogger(__name__)

ABOUT = "about.json"  # what a folder says of itself, with the SHA-256 of each of its files


def ensure(folder: Path, *, why_again: Callable[[], str], make: Callable[[], None]) -> None:
    """Make the folder if it isn't there, or if `why_again` gives a reason, with a warning. Of several processes one
    makes it."""
    check_readable(folder)
    if not folder.exists() or why_again():  # to read no lock is needed
        with locked(folder):
            reason = why_again() if folder.exists() else ""
            if reason:
                logger.warning("%s: %s; it is made again", folder, reason)
            if reason or not folder.exists():
                make()


def what_differs(folder: Path, name: str, sha256: Mapping[str, str]) -> str:
    """What isn't as it was written in a folder that calls itself `name`; empty if nothing is. Files are read only if
    they changed since last time."""
    if name != folder.name:
        return f"expected the items of that name, got {name}"
    changed = (file for file, digest in sha256.items() if hash_file(folder / file) != digest)
    return next((f"{file} isn't what was written" for file in changed), "")


class ArrayFile:
    """An array file of `n_items` rows, which are written in order, and the hash of what was written."""

    def __init__(self, file: Any, row: np.ndarray, n_items: int) -> None:
        self.file, self.digest = file, hashlib.sha256()
        about = {"descr": row.dtype.str, "fortran_order": False, "shape": (n_items, *row.shape)}
        np.lib.format.write_array_header_1_0(cast(BinaryIO, self), about)

    def write(self, data: Any) -> None:
        self.digest.update(data)
        self.file.write(data)
