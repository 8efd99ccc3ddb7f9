"""Plots of a run and of a leaderboard, for a paper: one column wide, in a color-blind-safe palette.

Each function draws one figure; the suffix of its path sets the format: .svg, .pdf or .png. With the same version of
matplotlib (extra `plots`), equal data give identical files. Only `_figure` imports matplotlib.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..disk.writing import write_atomic
from ..errors import ConfigError, DataError
from ..running.run_folder import CONFIG, CURE, HISTORY, load_history, load_result, load_settings
from ..studies.leaderboard import Leaderboard, Row
from ..types import EpochReport
from .tables import NONE, TABLE_AXES, label
from .writers import MARK

WIDTH = 3.3  # inches: a column of a two-column page
SUFFIXES = (".svg", ".pdf")  # for screens and for LaTeX
METADATA = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {}}  # no dates: equal data, equal files
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe & Ito, 2008
MARKERS = "osD^vP*"  # series also differ in print without colors
STYLE: Mapping[Any, Any] = {
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.4,
    "axes.axisbelow": True,
    "lines.linewidth": 1.0,
    "lines.markersize": 3,
    "legend.frameon": False,
    "legend.fontsize": 6,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "mmrec-lmm",
    "pdf.fonttype": 42,  # TrueType, which publishers ask for
}


def run_plots(folder: Path, out: Path) -> list[Path]:
    """Plot a finished run's learning curves and metrics by cutoff, as SVG and PDF in `out`; return the files."""
    result = load_result(folder)
    if result is None:
        raise DataError(f"{folder}: expected a finished run, got a folder without results; try run --resume first")
    settings = load_settings(folder)
    if settings is None:
        raise DataError(
            f"{folder / CONFIG}: expected the run's configuration, for the metric that selected it, got no file; "
            "try running it again with --force"
        )
    metric = settings.valid_metric.lower()
    history = load_history(folder)
    seen = [report.valid for report in history if report.valid]
    if history and (not seen or any(metric not in valid for valid in seen)):
        raise DataError(f"{folder / HISTORY}: expected validation's {metric}, got epochs without it; {CURE}")
    written = []
    for suffix in SUFFIXES:
        if history:  # an untrained model has none
            written.append(learning_curves(history, metric, out / f"learning-curves{suffix}", best=result.best_epoch))
        written.append(metric_by_cutoff(result.test, out / f"metric-by-cutoff{suffix}"))
    return written


def leaderboard_plots(board: Leaderboard, out: Path) -> list[Path]:
    """Plot each data set's rows by seed, and quality against time, as SVG and PDF in `out`; return the files."""
    metric = board.main_metric
    written = []
    for dataset in dict.fromkeys(row.axes.tested_on for row in board.rows):
        name = re.sub(r"[^\w.-]+", "_", dataset)
        rows = [row for row in board.rows if row.axes.tested_on == dataset and metric in row.scores]
        timed = [row for row in rows if row.seconds and not row.axes.control]
        for suffix in SUFFIXES:
            if rows:
                written.append(seeds(rows, metric, out / f"seeds-{name}{suffix}"))
            if timed:
                written.append(pareto(timed, metric, out / f"pareto-{name}{suffix}"))
    return written


def learning_curves(history: Sequence[EpochReport], metric: str, path: Path, *, best: int) -> Path:
    """Plot the summed training loss and a validation metric by epoch; a line marks the `best` epoch."""
    with _figure(path, height=2.6) as figure:
        loss, quality = figure.subplots(2, sharex=True)
        loss.plot(
            [report.epoch for report in history], [sum(report.losses.values()) for report in history], color=COLORS[0]
        )
        loss.set_ylabel("training loss")
        seen = [(report.epoch, report.valid[metric]) for report in history if report.valid]
        quality.plot(*zip(*seen, strict=True), color=COLORS[1])
        quality.axvline(best, color="#666666", linewidth=0.6, linestyle="--")
        quality.set_ylabel(f"validation {metric}")
        quality.set_xlabel(f"epoch (dashed: {best}, the best)")
    return path


def metric_by_cutoff(test: Mapping[str, float], path: Path) -> Path:
    """Plot each metric of the test split by cutoff; `test` is {"recall@5": .04, "recall@10": ...}."""
    with _figure(path, height=2.0) as figure:
        axes = figure.subplots()
        names = list(dict.fromkeys(key.partition("@")[0] for key in test))
        for place, name in enumerate(names):
            points = sorted(
                (int(key.partition("@")[2]), value) for key, value in test.items() if key.startswith(f"{name}@")
            )
            axes.plot(*zip(*points, strict=True), label=name, **_series(place))
        cutoffs = sorted({int(key.partition("@")[2]) for key in test})
        axes.set_xticks(cutoffs)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("items recommended to a user")
        axes.set_ylabel("mean over users, test")
        axes.legend()
    return path


def seeds(rows: Sequence[Row], metric: str, path: Path) -> Path:
    """Plot one line per row: its seeds as dots, its mean as a bar, and its 95 % interval."""
    names = _names(rows)
    with _figure(path, height=0.7 + 0.15 * len(rows)) as figure:
        axes = figure.subplots()
        for place, row in enumerate(rows):
            score = row.scores[metric]
            axes.hlines(place, score.interval.low, score.interval.high, color="#AAAAAA", linewidth=2.5)
            axes.plot(score.mean, place, "|", color=COLORS[1], markersize=7, markeredgewidth=1.4)
            axes.plot(score.seeds, [place] * len(score.seeds), "o", color=COLORS[0], markersize=2.2)
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.5, -0.5)  # the first row on top
        axes.grid(visible=False, axis="y")
        figure.supxlabel(f"test {metric} (dots: seeds; gray: 95 % interval)", fontsize=STYLE["font.size"])
    return path


def pareto(rows: Sequence[Row], metric: str, path: Path) -> Path:
    """Plot quality against seconds of training, one point per row; a line joins the Pareto front."""
    points = sorted((row.seconds or 0.0, -row.scores[metric].mean, place) for place, row in enumerate(rows))
    front: list[tuple[float, float, int]] = []
    for seconds, worse, place in points:
        if not front or worse < -front[-1][1]:
            front.append((seconds, -worse, place))
    names = _names(rows)
    with _figure(path, height=2.6) as figure:
        axes = figure.subplots()
        for series, model in enumerate(dict.fromkeys(row.axes.model for row in rows)):
            own = [row for row in rows if row.axes.model == model]
            style = {**_series(series), "linestyle": "none"}
            axes.plot([row.seconds for row in own], [row.scores[metric].mean for row in own], label=model, **style)
        axes.step(
            [seconds for seconds, _, _ in front],
            [mean for _, mean, _ in front],
            where="post",
            color="#666666",
            linewidth=0.6,
        )
        for seconds, mean, place in front:
            late = seconds > math.sqrt(points[0][0] * points[-1][0])  # in the right half: put the name on its left
            axes.annotate(
                names[place],
                (seconds, mean),
                xytext=(0, 4),
                textcoords="offset points",
                ha="right" if late else "left",
                fontsize=5,
                color="#444444",
            )
        axes.set_xscale("log")
        axes.margins(y=0.1)  # room for the names
        axes.set_xlabel("seconds of training, mean over seeds")
        axes.set_ylabel(f"test {metric}")
        figure.legend(loc="outside upper center", ncols=4)
    return path


def need_matplotlib() -> None:
    """Raise ConfigError if matplotlib isn't installed. Called before a long run, to fail early."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"--plots: expected matplotlib to be installed, got {error}; try pip install 'mmrec-lmm[plots]'"
        ) from None


@contextmanager
def _figure(path: Path, *, height: float) -> Iterator[Any]:
    """A figure of WIDTH x `height` inches in STYLE, written to `path` when the context ends."""
    if path.suffix not in METADATA:
        raise ConfigError(f"{path}: expected a suffix of {', '.join(METADATA)}, got {path.suffix or 'none'}")
    need_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot: no display, nothing global

    with matplotlib.rc_context(dict(STYLE)):
        figure = Figure(figsize=(WIDTH, height))
        yield figure
        write_atomic(
            path,
            lambda temporary: figure.savefig(
                temporary, format=path.suffix[1:], dpi=300, metadata=METADATA[path.suffix]
            ),
        )


def _series(place: int) -> dict[str, str]:
    return {"color": COLORS[place % len(COLORS)], "marker": MARKERS[place % len(MARKERS)]}


def _names(rows: Sequence[Row]) -> list[str]:
    """A label for each row: its model and its values on the axes that differ, with its mark."""
    differ = [axis for axis in TABLE_AXES if axis == "model" or len({label(row, axis) for row in rows}) > 1]
    names = [" ".join(value for axis in differ if (value := label(row, axis)) != NONE) for row in rows]
    marks = [MARK if row.marks else "" for row in rows]
    return [name.replace("$", r"\$") + mark for name, mark in zip(names, marks, strict=True)]  # $ starts a formula
