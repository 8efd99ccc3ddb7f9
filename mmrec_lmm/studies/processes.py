"""The processes of `--jobs`, which start at once: on Linux they are forked from one that has imported all they need.

That one only imports: it starts no thread and touches no GPU, after which a process could not be forked safely. Other
systems import anew in each process.
"""

import multiprocessing
import sys
from multiprocessing.context import BaseContext

IMPORTED = ["mmrec_lmm.studies.executor"]


def import_ahead() -> None:
    """Start importing in the process that others will be forked from, while this process does other work."""
    if sys.platform == "linux":
        from multiprocessing import forkserver

        multiprocessing.set_forkserver_preload(IMPORTED)
        forkserver.ensure_running()


def context() -> BaseContext:
    """How processes start."""
    import_ahead()
    return multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
