"""The content-addressed cache: every derived file is named by a hash of all that it depends on.

Change the encoder, its weights, the preprocessing or the catalog, and the name changes. A file appears whole or not at
all (disk/writing.py), and two processes that want the same file make it once (disk/locks.py).

Three rules make the names hold. A hash is remembered only together with the file's inode and its time of change, which
no program can set back (disk/hashing.py). What is loaded or encoded is compared with what was hashed. And stored
tensors carry a checksum (disk/sealed.py). One case remains: a file system without a time of change of its own (FAT,
squashfs, some network file systems), where a file is replaced by another of equal size, time and number.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import platformdirs

from .typed_json import plain
from .user_paths import user_path


def home() -> Path:
    """The folder of everything that outlives a run: `MMREC_LMM_HOME`, else the platform's cache folder."""
    chosen = os.environ.get("MMREC_LMM_HOME")
    return user_path(chosen) if chosen else Path(platformdirs.user_cache_dir("mmrec-lmm"))


def fingerprint(value: Any) -> str:
    """A 32-digit hex hash of plain data: dataclasses, mappings (in any order), sequences, scalars, paths, arrays."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()[:32]
