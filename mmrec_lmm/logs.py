"""The log, in the format of MMRec's: scripts that grep its lines keep working. And progress bars.

Everything goes to `<out>/log/<model>-<data set>-<time>.log`; the console shows warnings, or all of it on request. A
program that calls the library has its own handlers: `keep_log` leaves them as they are.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import is_denied
from .formatting import printable
from .types import Dataset, EpochReport, Interactions

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger(__name__)


class _Printable(logging.Formatter):
    """Lines that a terminal doesn't obey, whatever texts of data sets are in them."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


FILE_FORMAT = _Printable("%(asctime)-15s %(levelname)s %(message)s", "%a %d %b %Y %H:%M:%S")
CONSOLE_FORMAT = _Printable("%(asctime)-15s %(levelname)s %(message)s", "%d %b %H:%M")


#: For `extra=` of what only the file of the log gets: a traceback, whose error is printed in a line by other means.
IN_FILE = {"only_in_file": True}


def start_log(folder: Path | None, name: str, *, level: str, verbose: bool) -> Path | None:
    """Send the package's log to stderr and to a new file in `folder`; returns its path, or None where there is none:
    without a folder, or in one that this user may not write to, as a run of another user's can still be read."""
    logging.raiseExceptions = False  # a full disk costs lines of the log, and prints no traceback for each
    root = logging.getLogger("mmrec_lmm")
    root.setLevel(level)
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(CONSOLE_FORMAT)
    console.setLevel(logging.NOTSET if verbose else logging.WARNING)
    if not verbose:
        console.addFilter(lambda record: not getattr(record, "only_in_file", False))
    root.addHandler(console)
    file = _file_handler(folder, name)
    if folder is None or file is None:
        return None
    root.addHandler(file)
    return folder / Path(file.baseFilename).name


@contextmanager
def keep_log(folder: Path, name: str, *, level: str) -> Iterator[None]:
    """A context in which the package's log goes to a new file in `folder`, for a program with a log of its own: its
    handlers get what they would get without the file, each record once. Logging is afterwards as it was."""
    package = logging.getLogger("mmrec_lmm")
    before = list(package.handlers), package.level, package.propagate
    onward = _Onward(package)
    file = _file_handler(folder, name)
    package.handlers = [onward] if file is None else [file, onward]
    package.propagate = False
    package.setLevel(min(logging.getLevelNamesMapping()[level.upper()], onward.level))
    try:
        yield
    finally:
        package.handlers, package.propagate = before[0], before[2]
        package.setLevel(before[1])
        if file is not None:
            file.close()


@contextmanager
def only_errors() -> Iterator[None]:
    """A context in which the package logs no warnings: of work on a finished run, which has given them before."""
    package = logging.getLogger("mmrec_lmm")
    before = package.level
    package.setLevel(max(logging.ERROR, package.getEffectiveLevel()))
    try:
        yield
    finally:
        package.setLevel(before)


class _Onward(logging.Handler):
    """Passes records on to where a logger sent them before, from the level that it had."""

    def __init__(self, before: logging.Logger) -> None:
        super().__init__(before.getEffectiveLevel())
        self._before = logging.Logger(before.name)
        self._before.handlers, self._before.propagate = list(before.handlers), before.propagate
        self._before.parent = before.parent

    def emit(self, record: logging.LogRecord) -> None:
        self._before.callHandlers(record)


class _File(logging.FileHandler):
    """A file of lines. A full disk costs lines of it, and prints no traceback for each."""

    def handleError(self, record: logging.LogRecord) -> None:
        return None


def _file_handler(folder: Path | None, name: str) -> logging.FileHandler | None:
    """The handler of a new file in `folder`; None without a folder, or where this user may not write."""
    if folder is None:
        return None
    path = folder / f"{name}-{datetime.now():%b-%d-%Y-%H-%M-%S}.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _File(path, encoding="utf-8")
    except OSError as error:
        if not is_denied(error):
            raise
        logger.warning("no log is kept: %s: %s", path, error.strerror)
        return None
    file.setFormatter(FILE_FORMAT)
    return file


def progress_bar(*, shown: bool = True, **options: Any) -> tqdm[Any]:
    """A progress bar of tqdm with its `options`: in a notebook a widget if ipywidgets is installed, else text; on a
    terminal text; quiet elsewhere, and if it isn't to be `shown`."""
    from tqdm import tqdm

    if not in_notebook():
        return tqdm(disable=None if shown else True, **options)
    if shown and importlib.util.find_spec("ipywidgets"):
        from tqdm.notebook import tqdm as widget

        return widget(**options)
    return tqdm(disable=not shown, **options)


def in_notebook() -> bool:
    """True in a process that runs a notebook's cells. It has imported IPython; nothing is imported here."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", ())


def metric_line(metrics: Mapping[str, float]) -> str:
    """`recall@5: 0.0123    recall@10: 0.0210 ...`"""
    return "    ".join(f"{name}: {value:.4f}" for name, value in metrics.items())


def log_statistics(dataset: Dataset) -> None:
    """MMRec's lines on the data: users, items, interactions, sparsity, for all and for each split."""
    splits = {"Training": dataset.train, "Validation": dataset.valid, "Testing": dataset.test}
    users = np.concatenate([rows.users for rows in splits.values()])
    items = np.concatenate([rows.items for rows in splits.values()])
    logger.info("%s", _statistics(dataset.name, Interactions(users, items)))
    for title, rows in splits.items():
        logger.info("====%s====\n%s", title, _statistics(dataset.name, rows))


def log_epoch(report: EpochReport, *, model: str, score: float | None, test: Mapping[str, float] | None = None) -> None:
    """MMRec's lines on one epoch. `test` is for MMRec's protocol; by default test is ranked once, at the end."""
    loss = sum(report.losses.values())
    logger.info("epoch %d training [time: %.2fs, train loss: %.4f]", report.epoch, report.train_seconds, loss)
    if report.valid is None:
        return
    logger.info("epoch %d evaluating [time: %.2fs, valid_score: %.6f]", report.epoch, report.valid_seconds, score)
    logger.info("valid result: \n%s", metric_line(report.valid))
    if test is not None:
        logger.info("test result: \n%s", metric_line(test))
    if report.improved:
        logger.info("██ %s--Best validation results updated!!!", model)


def _statistics(name: str, rows: Interactions) -> str:
    users, items = len(np.unique(rows.users)), len(np.unique(rows.items))
    return (
        f"{name}\nThe number of users: {users}\nAverage actions of users: {len(rows) / users}\n"
        f"The number of items: {items}\nAverage actions of items: {len(rows) / items}\n"
        f"The number of inters: {len(rows)}\nThe sparsity of the dataset: {100 * (1 - len(rows) / users / items)}%"
    )
