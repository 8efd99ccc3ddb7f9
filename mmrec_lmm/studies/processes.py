"""The processes of `--jobs`, which start at once: on Linux they are forked from one that has imported all they need.

That one only imports: it starts no thread and touches no GPU, after which a process could not be forked safely. Other
systems import anew in each process.
"""

import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from types import ModuleType

IMPORTED = ["mmrec_lmm.studies.executor"]


def import_ahead() -> None:
    """Start importing in the process that others will be forked from, while this process does other work."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line sets it; see docs/performance.md
    if sys.platform == "linux":
        from multiprocessing import forkserver

        multiprocessing.set_forkserver_preload(IMPORTED)
        forkserver.ensure_running()


def context() -> BaseContext:
    """How processes start."""
    import_ahead()
    return multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")


@contextmanager
def without_main() -> Iterator[None]:
    """A context in which processes start without importing this program's main module. They need nothing of it: it may
    be a notebook, a script that would begin another study, or text on stdin, which can't be read again."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
