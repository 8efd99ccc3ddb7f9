"""The command line for tests: called in this process, which takes milliseconds, or started as one of its own."""

import io
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrec_lmm.cli import main
from mmrec_lmm.types import AXES, Axes, EncoderName


@dataclass(frozen=True)
class Answer:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str


def call(*arguments: object) -> Answer:
    """`mmrec-lmm ARGUMENTS` in this process, which is afterwards as it was: logging, signals."""
    out, err = io.StringIO(), io.StringIO()
    logger, on_term = logging.getLogger("mmrec_lmm"), signal.getsignal(signal.SIGTERM)
    handlers, level = list(logger.handlers), logger.level
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse
        code = int(stop.code or 0)
    finally:
        for handler in set(logger.handlers) - set(handlers):
            handler.close()
        logger.handlers = handlers
        logger.setLevel(level)
        signal.signal(signal.SIGTERM, on_term)
    return Answer(code, out.getvalue(), err.getvalue())


def start(*arguments: object) -> "subprocess.Popen[str]":
    """`mmrec-lmm ARGUMENTS` as a process, with Ctrl-C as a terminal gives it even where the tests run in background."""
    return subprocess.Popen(
        [sys.executable, "-m", "mmrec_lmm", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def start_together(*command: object, count: int = 2) -> "list[subprocess.Popen[str]]":
    """`python COMMAND` as so many processes that share a work, in the environment that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    shared |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]


def finish(processes: "list[subprocess.Popen[str]]", *, seconds: float = 120) -> list[Answer]:
    """What each process said, once all have ended; those that take longer are ended."""
    try:
        answers = [(*process.communicate(timeout=seconds), process.returncode) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [Answer(code, out, err) for out, err, code in answers]


def wait_until(condition: Callable[[], object], process: "subprocess.Popen[str]", *, seconds: float = 120) -> None:
    """Return as soon as `condition` holds; fail where the process ends, or time runs out, before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"the process ended too early: {process.communicate()}"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


def dead_temporary(path: Path) -> Path:
    """The name that a process that has ended gave to what was to become `path`."""
    code = "import sys, pathlib, mmrec_lmm.cache as c; print(c.temporary_path(pathlib.Path(sys.argv[1])))"
    told = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    return Path(told.stdout.strip())


def plugin(path: Path, body: str) -> Path:
    """Write a plugin for `-p`: `body` after the imports that it needs."""
    path.write_text(
        "from dataclasses import dataclass\nfrom pathlib import Path\nimport os, signal, time\n"
        f"from mmrec_lmm.api import *\n\n{body}"
    )
    return path


def points(line: Any) -> list[tuple[float, float]]:
    """The points of a plot's line, all of which the axes show."""
    left, right = sorted(line.axes.get_xlim())
    low, high = sorted(line.axes.get_ylim())
    found = [(float(x), float(y)) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]
    assert all(left <= x <= right and low <= y <= high for x, y in found)
    return found


def axes_of(**fields: Any) -> tuple[Axes, dict[str, Any]]:
    """The axes among the fields of a row, whose encoder is text or None, and the other fields."""
    axes = {axis: fields.pop(axis) for axis in AXES if axis in fields}
    if axes.get("encoder"):
        axes["encoder"] = EncoderName.parse(axes["encoder"])
    return Axes(**axes), fields
