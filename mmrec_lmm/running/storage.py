"""What the cache folder, a folder of runs and one of data sets hold, by kind, and removing what nobody needs.

Results and data sets are never removed, nor what a living process holds: a locked table, a claimed run.
"""

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..cache import home
from ..config.choices import REMOVABLE
from ..disk import temporaries
from .index import INDEX
from .run_folder import CHECKPOINT, CONFIG, LOCK, RESULT, STAGED

KEPT = {"results": "finished runs", "studies": "records of studies", "datasets": "data sets"}
KINDS = REMOVABLE | KEPT

_EARLIER = re.compile(r"\..+\.(\d+\.tmp|\d+\.old|making)")  # temporaries of earlier versions
_PARTIAL = (".part", ".part.origin")


@dataclass(frozen=True)
class Stored:
    """A file or folder of a kind."""

    kind: str
    path: Path
    bytes: int
    changed: float  # seconds since 1970, of the latest change in it
    beside: tuple[Path, ...] = ()  # goes with it
    locks: tuple[Path, ...] = ()  # held by a process that is at work on it


@dataclass(frozen=True)
class Removal:
    """What was removed, what a living process holds, and what this process may not remove."""

    removed: tuple[Stored, ...]
    held: tuple[Stored, ...]
    failed: tuple[Stored, ...]


def stored(out: Path, data_path: Path) -> list[Stored]:
    """All that the cache folder, the runs in `out` and the data sets in `data_path` hold, by kind and path."""
    found = [*_of_home(home()), *_of_runs(out), *_of_data(data_path)]
    order = {kind: place for place, kind in enumerate(KINDS)}
    return sorted(found, key=lambda one: (order[one.kind], one.path))


def remove(entries: Sequence[Stored]) -> Removal:
    """Remove entries of REMOVABLE kinds, except those that a living process holds."""
    removed: list[Stored] = []
    in_use: list[Stored] = []
    failed: list[Stored] = []
    for one in entries:
        assert one.kind in REMOVABLE
        with _all_locked(one.locks) as free:
            if not free:
                in_use.append(one)
                continue
            for path in (one.path, *one.beside):
                temporaries.remove(path)
            if one.kind == "checkpoints":
                _remove_empty_run(one.path.parent if one.path.name == CHECKPOINT else one.path)
            (failed if os.path.lexists(one.path) else removed).append(one)
    for folder in {one.path.parent for one in removed if one.kind in ("weights", "downloads", "partial")}:
        with contextlib.suppress(OSError):  # others are still in it
            folder.rmdir()
    return Removal(tuple(removed), tuple(in_use), tuple(failed))


def held(one: Stored) -> bool:
    """True if a living process is at work on it."""
    with _all_locked(one.locks) as free:
        return not free


def _of_home(home: Path) -> Iterator[Stored]:
    for kind in ("weights", "downloads"):
        for path in _files(home / kind):
            lock = path.with_name(f"{path.name.removesuffix('.origin').removesuffix('.part')}.lock")
            yield _stored("partial" if path.name.endswith(_PARTIAL) else kind, path, locks=(lock,))
    for kind in ("features", "tuned"):
        for path in _entries(home / kind):
            table = path.with_suffix(".safetensors")
            locks = tuple(path.with_name(f"{table.name}{end}") for end in (".lock", ".claims.lock"))
            if path.suffix == ".parts":
                yield _stored("shards", path, locks=locks)
            elif path == table:
                yield _stored(kind, path, beside=(home / "seconds" / path.stem,), locks=locks)
    for kind in ("prepared", "states"):
        for path in _entries(home / kind):
            if path.is_dir():
                yield _stored(kind, path, locks=(path.with_name(f"{path.name}.lock"),))
    for path in _entries(home / "mmrec"):
        yield _stored("graphs", path, locks=tuple(path.glob("*.lock")))
    for path in _entries(home / "file-hashes"):
        yield _stored("hashes", path)
    for name in ("weights", "downloads", "features", "tuned", "prepared", "states", "file-hashes", "seconds"):
        for folder, _, _ in os.walk(home / name):
            yield from _leftovers(Path(folder))


def _of_runs(out: Path) -> Iterator[Stored]:
    yield from _leftovers(out)
    for path in _entries(out / "log"):
        yield _stored("logs", path)
    for study in _entries(out / "study"):
        yield _stored("studies", study)
        yield from _leftovers(study)
    if (out / INDEX).is_file():
        yield _stored("index", out / INDEX, locks=(out / f"{INDEX}.lock",))
    for run in (path for path in _entries(out) if os.access(path, os.X_OK)):
        lock = (run / LOCK,)
        for folder in (run, run / CHECKPOINT):
            yield from (_with_locks(one, lock) for one in _leftovers(folder, locks=False))
        if (run / RESULT).is_file():
            yield _stored("results", run)
            if (run / CHECKPOINT).is_dir():
                yield _stored("checkpoints", run / CHECKPOINT, locks=lock)
        elif (run / CONFIG).is_file() or (run / CHECKPOINT).is_dir():
            own = (run / CHECKPOINT, run / STAGED, run / CONFIG)
            size, changed = _size(run)
            yield Stored("checkpoints", run / CHECKPOINT, size, changed, beside=own[1:], locks=lock)


def _of_data(data_path: Path) -> Iterator[Stored]:
    yield from _leftovers(data_path)
    for path in _entries(data_path):
        if (path / f"{path.name}.inter").is_file():
            yield _stored("datasets", path)
            yield from _leftovers(path, locks=False)


def _leftovers(folder: Path, *, locks: bool = True) -> Iterator[Stored]:
    """Temporaries of dead processes in a folder, and lock files."""
    for path in temporaries.dead_temporaries(folder):
        yield _stored("temporaries", path)
    for path in _listed(folder):
        if _EARLIER.fullmatch(path.name):
            one = _stored("temporaries", path)
            if time.time() - one.changed > temporaries.ABANDONED:
                yield one
        elif locks and path.name.endswith(".lock"):
            yield _stored("locks", path, locks=(path,))


def _stored(kind: str, path: Path, *, beside: tuple[Path, ...] = (), locks: tuple[Path, ...] = ()) -> Stored:
    size, changed = _size(path)
    return Stored(kind, path, size, changed, beside, locks)


def _with_locks(one: Stored, locks: tuple[Path, ...]) -> Stored:
    return Stored(one.kind, one.path, one.bytes, one.changed, one.beside, locks)


def _size(path: Path) -> tuple[int, float]:
    """Bytes of a file or of all files in a folder, and when one of them last changed. Links aren't followed."""
    size, changed = 0, 0.0
    for each in [path, *(Path(folder, name) for folder, _, names in os.walk(path) for name in names)]:
        with contextlib.suppress(OSError):  # removed meanwhile
            stat = each.lstat()
            changed = max(changed, stat.st_mtime)
            size += 0 if each.is_dir() and not each.is_symlink() else stat.st_size
    return size, changed


def _files(folder: Path) -> Iterator[Path]:
    """All files in a folder and below that aren't hidden, nor locks."""
    for place, _, names in os.walk(folder):
        yield from (Path(place, name) for name in names if not name.startswith(".") and not name.endswith(".lock"))


def _entries(folder: Path) -> Iterator[Path]:
    """What is in a folder and isn't hidden, nor a lock."""
    return (path for path in _listed(folder) if not path.name.startswith(".") and not path.name.endswith(".lock"))


def _listed(folder: Path) -> list[Path]:
    try:
        return [Path(folder, name) for name in os.listdir(folder)]
    except OSError:  # it isn't there, or may not be read
        return []


def _remove_empty_run(run: Path) -> None:
    """Remove an unfinished run's folder, unless someone put other files there."""
    if {path.name for path in _listed(run)} <= {LOCK}:
        temporaries.remove(run)


@contextlib.contextmanager
def _all_locked(paths: Sequence[Path]) -> Iterator[bool]:
    """Lock the lock files that exist, for this context; False if another process holds one of them."""
    with contextlib.ExitStack() as stack:
        yield all(_lock(path, stack) for path in paths if path.is_file())


def _lock(path: Path, stack: contextlib.ExitStack) -> bool:
    """Lock a file by both kinds of lock of `disk.locks`, until the stack ends; False if another process holds one."""
    for mode, take in (("rb", fcntl.flock), ("rb+", fcntl.lockf)):
        with contextlib.suppress(PermissionError):  # another user's: where it can't be locked it can't be removed
            file = stack.enter_context(path.open(mode))
            try:
                take(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
    return True
