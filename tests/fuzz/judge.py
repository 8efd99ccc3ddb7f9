"""Run a command in a fork of this process, with limits, and find what it did wrong.

This process should have imported everything that commands need, and have no threads: a fork then costs milliseconds.
"""

import atexit
import contextlib
import gc
import importlib
import io
import os
import pkgutil
import re
import resource
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

DOCUMENTED = (0, 1, 2, 4, 130)  # docs/cli.md
MEMORY = 2 << 30  # bytes that a command may need
ADDRESSES = 6 << 30  # bytes after which an allocation fails: the machine is shared
FILE_SIZE = 1 << 30
PROCESSES = 40  # of a command, after which it is killed
PATIENCE = 10  # seconds from SIGTERM to SIGKILL
HEAVY = ("torch", "pandas", "scipy.sparse", "open_clip", "sentence_transformers", "timm", "tokenizers", "sentencepiece")


@dataclass(frozen=True)
class Outcome:
    """What a command did: `code` is negative for a signal. `peak` is the most memory, in bytes, that it or a
    process of its own had, with what it shares with this process."""

    code: int
    out: str
    err: str
    seconds: float
    peak: int
    stopped: bool  # it took too long, and got SIGTERM
    processes: int

    @property
    def said(self) -> str:
        return self.out + self.err

    def faults(self, *, may_take_long: bool = False) -> list[str]:
        """The kinds of fault. A command that was asked for long work may be stopped by SIGTERM, as documented."""
        asked = may_take_long and self.stopped and self.code == 130
        checks = {
            "traceback": "Traceback (most recent call last)" in self.said,
            "hang": self.stopped and not asked,
            "exit code": self.code not in DOCUMENTED or (self.code == 130 and not self.stopped),
            "memory": self.peak > MEMORY,
            "processes": self.processes > PROCESSES,
            "silence": self.code not in (0, 130) and not self.said.strip(),
        }
        return [fault for fault, found in checks.items() if found]


def import_all() -> None:
    """Import all that commands import late, so that forks find it."""
    import mmrec_lmm_plugins  # noqa: TID251 - all its modules
    import torch

    import mmrec_lmm
    import mmrec_lmm_data_tools

    for name in HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for package in (mmrec_lmm, mmrec_lmm_plugins, mmrec_lmm_data_tools):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                with contextlib.suppress(ImportError):  # of an extra
                    importlib.import_module(module.name)
    torch.set_num_threads(1)
    gc.freeze()  # else each fork's first collection copies all memory


def run(
    argv: Sequence[str], folder: Path, *, seconds: float = 30, prepare: Callable[[], object] = lambda: None
) -> Outcome:
    """`mmrec-lmm ARGV` in `folder`; `prepare` is called in its process before."""
    out, err = folder.parent / "stdout", folder.parent / "stderr"
    began = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        _be(argv, folder, out, err, prepare)
    stopped, processes = _wait(child, began + seconds)
    _, status, usage = os.wait4(child, 0)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)  # what it left running
    return Outcome(
        code=os.waitstatus_to_exitcode(status),
        out=out.read_text("utf-8", "surrogateescape"),
        err=err.read_text("utf-8", "surrogateescape"),
        seconds=time.monotonic() - began,
        peak=usage.ru_maxrss * 1024,
        stopped=stopped,
        processes=processes,
    )


def _wait(child: int, deadline: float) -> tuple[bool, int]:
    """Wait for the end of `child`, which may be hastened. True if SIGTERM was sent; the most processes seen."""
    poll, most = select.poll(), 1
    descriptor = os.pidfd_open(child)
    poll.register(descriptor, select.POLLIN)
    try:
        stopped = False
        while not poll.poll(250):
            most = max(most, _processes(child))
            now = time.monotonic()
            if most > PROCESSES or now > deadline + PATIENCE:
                os.killpg(child, signal.SIGKILL)
            elif now > deadline and not stopped:
                os.kill(child, signal.SIGTERM)
                stopped = True
        return stopped, most
    finally:
        os.close(descriptor)


def _be(argv: Sequence[str], folder: Path, out: Path, err: Path, prepare: Callable[[], object]) -> None:
    """Become the command: this process never returns."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        os.environ |= {"MMREC_LMM_HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}
        for number, path, flags in ((0, os.devnull, os.O_RDONLY), (1, out, os.O_WRONLY), (2, err, os.O_WRONLY)):
            os.dup2(os.open(path, flags | os.O_CREAT | (os.O_TRUNC if number else 0), 0o644), number)
        sys.stdin = io.TextIOWrapper(io.FileIO(0))
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w")), "utf-8")
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w"), "utf-8", "backslashreplace", write_through=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        socket.socket.connect = _refuse  # type: ignore[method-assign, assignment]
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
        limit = _addresses() + ADDRESSES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        prepare()
        from mmrec_lmm.cli import main

        code = main(argv)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
            code = 120  # Python's own
        os._exit(code)


def _refuse(self: socket.socket, address: object) -> None:
    raise OSError(101, f"the fuzzer has no network, and {address} was asked for")


def _addresses() -> int:
    """The bytes of addresses that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _processes(session: int) -> int:
    """The number of living processes in a session."""
    count = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            count += re.sub(r".*\) ", "", stat.read_text()).split()[3] == str(session)
    return count
