"""The command line for tests: called in this process, which takes milliseconds, or started as one of its own."""

import io
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from mmrec_lmm.cli import main


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


def wait_until(condition: Callable[[], object], process: "subprocess.Popen[str]", *, seconds: float = 120) -> None:
    """Return as soon as `condition` holds; fail where the process ends, or time runs out, before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"the process ended too early: {process.communicate()}"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


def plugin(path: Path, body: str) -> Path:
    """Write a plugin for `-p`: `body` after the imports that it needs."""
    path.write_text(
        "from dataclasses import dataclass\nfrom pathlib import Path\nimport os, signal, time\n"
        f"from mmrec_lmm.api import *\n\n{body}"
    )
    return path
