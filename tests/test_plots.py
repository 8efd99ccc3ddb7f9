"""Figures: that each shows what a run or a leaderboard holds, in each format, the same each time."""

import builtins
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from helpers import axes_of, call, points

from mmrec_lmm.errors import ConfigError, DataError
from mmrec_lmm.report import plots
from mmrec_lmm.report.plots import leaderboard_plots, learning_curves, metric_by_cutoff, run_plots
from mmrec_lmm.studies.leaderboard import FAILED, Interval, Leaderboard, Row, Score
from mmrec_lmm.types import Axes, EpochReport

HISTORY = [
    EpochReport(epoch, {"bpr": 1 / (epoch + 1)}, 0.1, {"recall@20": epoch / 10} if epoch % 2 else None)
    for epoch in range(4)
]
STARTS = {".svg": b"<?xml", ".pdf": b"%PDF", ".png": b"\x89PNG"}


def row(model: str, mean: float, seconds: float | None, **more: object) -> Row:
    score = Score(mean, Interval(mean, mean - 0.01, mean + 0.01), (mean - 0.005, mean + 0.005))
    places = {"dataset": "toys", "encoder": "tiny", "modalities": ("image",)}
    axes, more = axes_of(model=model, **places | more)
    return Row(axes, **{"scores": {"recall@20": score}, "seconds": seconds, **more})


def needs_matplotlib() -> None:
    pytest.importorskip("matplotlib")


def test_learning_curves_show_each_epochs_loss_each_evaluation_and_the_best_epoch(
    drawn: list[Any], tmp_path: Path
) -> None:
    losses = [dataclasses.replace(report, losses={**report.losses, "reg": 2.0}) for report in HISTORY]
    learning_curves(losses, "recall@20", tmp_path / "a.svg", best=3)
    loss, quality = drawn[0].axes
    assert [points(line) for line in loss.lines] == [[(0, 3), (1, 2.5), (2, 2 + 1 / 3), (3, 2.25)]], "the terms' sum"
    evaluated, best = quality.lines
    assert points(evaluated) == [(1, 0.1), (3, 0.3)]
    assert list(best.get_xdata()) == [3, 3]
    assert (loss.get_ylabel(), quality.get_ylabel()) == ("training loss", "validation recall@20")


def test_each_metric_is_a_line_over_its_cutoffs_from_zero_up(drawn: list[Any], tmp_path: Path) -> None:
    metric_by_cutoff({"recall@10": 0.2, "recall@5": 0.1, "ndcg@5": 0.04, "ndcg@10": 0.06}, tmp_path / "a.svg")
    (axes,) = drawn[0].axes
    assert {line.get_label(): points(line) for line in axes.lines} == {
        "recall": [(5, 0.1), (10, 0.2)], "ndcg": [(5, 0.04), (10, 0.06)],
    }  # fmt: skip
    assert list(axes.get_xticks()) == [5, 10]
    assert axes.get_ylim()[0] == 0


def test_seeds_shows_each_rows_seeds_mean_and_interval_on_its_line(drawn: list[Any], tmp_path: Path) -> None:
    plots.seeds([row("A", 0.1, 10), row("B", 0.3, 10)], "recall@20", tmp_path / "a.svg")
    (axes,) = drawn[0].axes
    dots = [points(line) for line in axes.lines if line.get_marker() == "o"]
    means = [points(line) for line in axes.lines if line.get_marker() == "|"]
    intervals = [segment.tolist() for lines in axes.collections for segment in lines.get_segments()]
    assert dots == [[(0.1 - 0.005, 0), (0.1 + 0.005, 0)], [(0.3 - 0.005, 1), (0.3 + 0.005, 1)]]
    assert means == [[(0.1, 0)], [(0.3, 1)]]
    assert intervals == [[[0.1 - 0.01, 0], [0.1 + 0.01, 0]], [[0.3 - 0.01, 1], [0.3 + 0.01, 1]]]
    assert [(tick.get_position()[1], tick.get_text()) for tick in axes.get_yticklabels()] == [(0, "A"), (1, "B")]
    assert axes.yaxis_inverted(), "the first row is on top"


def test_pareto_joins_the_rows_that_no_other_beats_in_both_quality_and_seconds(
    drawn: list[Any], tmp_path: Path
) -> None:
    quick, good, worse, equal = row("A", 0.1, 10), row("B", 0.3, 200), row("C", 0.09, 50), row("D", 0.3, 300)
    plots.pareto([worse, equal, good, quick], "recall@20", tmp_path / "a.svg")
    (axes,) = drawn[0].axes
    *models, front = axes.lines
    assert {line.get_label(): points(line) for line in models} == {
        "A": [(10, 0.1)], "B": [(200, 0.3)], "C": [(50, 0.09)], "D": [(300, 0.3)],
    }  # fmt: skip
    assert points(front) == [(10, 0.1), (200, 0.3)]
    assert front.get_drawstyle() == "steps-post"
    assert {text.get_text(): text.xy for text in axes.texts} == {"A": (10, 0.1), "B": (200, 0.3)}
    assert (axes.get_xscale(), axes.get_ylabel()) == ("log", "test recall@20")


@pytest.mark.parametrize("suffix", STARTS)
def test_a_plot_has_the_format_of_its_suffix_and_equal_data_give_equal_files(suffix: str, tmp_path: Path) -> None:
    needs_matplotlib()
    first = learning_curves(HISTORY, "recall@20", tmp_path / f"a{suffix}", best=3).read_bytes()
    assert first.startswith(STARTS[suffix])
    assert learning_curves(HISTORY, "recall@20", tmp_path / f"b{suffix}", best=3).read_bytes() == first
    other = learning_curves(HISTORY[:2], "recall@20", tmp_path / f"c{suffix}", best=1).read_bytes()
    assert other != first


def test_another_suffix_is_an_error_that_names_the_ones_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a suffix of \.svg, \.pdf, \.png, got \.bmp"):
        metric_by_cutoff({"recall@5": 0.1}, tmp_path / "a.bmp")


def test_without_matplotlib_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str, *rest: object) -> object:
        if name.startswith("matplotlib"):
            raise ImportError("No module named 'matplotlib'")
        return real(name, *rest)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigError, match=r"pip install 'mmrec-lmm\[plots\]'"):
        metric_by_cutoff({"recall@5": 0.1}, tmp_path / "a.svg")


def test_a_leaderboard_gives_seeds_and_pareto_for_each_data_set_that_has_scores(
    drawn: list[Any], tmp_path: Path
) -> None:
    rows = [
        row("A", 0.1, 10),
        row("B$_x", 0.2, 100),
        row("A", 0.05, 10, control="shuffled"),
        row("A", 0.1, None, dataset="../un timed"),
        Row(Axes("A", "empty", modalities=()), state=FAILED),
    ]
    board = Leaderboard("s", "S", ("recall@20",), rows)
    written = leaderboard_plots(board, tmp_path / "out")
    assert {path.name for path in written if path.suffix == ".svg"} == {
        "seeds-toys.svg", "pareto-toys.svg", "seeds-.._un_timed.svg",
    }  # fmt: skip
    assert {path.parent for path in written} == {tmp_path / "out"}, "a data set's name leads nowhere else"
    assert all(path.read_bytes().startswith(STARTS[path.suffix]) for path in written)
    shown = {path.name: len(figure.axes[0].lines) for path, figure in zip(written, drawn, strict=True)}
    assert shown["seeds-toys.svg"] == shown["seeds-toys.pdf"] == 2 * 3, "a mean and its seeds for each row"
    assert shown["seeds-.._un_timed.svg"] == 2
    assert shown["pareto-toys.svg"] == 2 + 1, "a series for each model, without controls, and the front"


def test_a_marked_row_is_marked_in_plots_too() -> None:
    marked = row("A", 0.1, 10, marks=("not trained",))
    assert plots._names([marked, row("B", 0.2, 10)]) == ["A†", "B"]


def test_plots_are_of_the_metric_by_which_rows_rank(tmp_path: Path) -> None:
    needs_matplotlib()
    one = row("A", 0.1, 10)
    one = dataclasses.replace(one, scores={**one.scores, "ndcg@20": row("A", 0.3, 10).scores["recall@20"]})
    leaderboard_plots(Leaderboard("s", "S", ("recall@20", "ndcg@20"), [one], ranked_by="ndcg@20"), tmp_path)
    expected = plots.seeds([one], "ndcg@20", tmp_path / "expected.svg").read_bytes()
    assert (tmp_path / "seeds-toys.svg").read_bytes() == expected
    assert plots.seeds([one], "recall@20", tmp_path / "other.svg").read_bytes() != expected


def test_run_draws_its_curves_where_plots_says(drawn: list[Any], data_path: Path, tmp_path: Path) -> None:
    flags = ["--epochs=3", "--embedding_size=4", "--topk=[2,20]", "--data-path", data_path, "--out", tmp_path / "runs"]
    answer = call("run", "-m", "VBPR", "-d", "toy", *flags, "--plots", tmp_path / "plots")
    assert answer.code == 0, answer.err
    names = {"learning-curves", "metric-by-cutoff"}
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        f"{name}{s}" for name in names for s in (".svg", ".pdf")
    }
    (folder,) = (tmp_path / "runs").glob("VBPR-*")
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    test = json.loads((folder / "result.json").read_text())["test"]
    curves, cutoffs = drawn[:2]
    loss, quality = (points(axes.lines[0]) for axes in curves.axes)
    assert loss == [(epoch["epoch"], sum(epoch["losses"].values())) for epoch in history]
    assert quality == [(epoch["epoch"], epoch["valid"]["recall@20"]) for epoch in history if epoch["valid"]]
    assert len(loss) == 3
    assert len(quality) > 0
    lines = {line.get_label(): points(line) for line in cutoffs.axes[0].lines}
    assert {f"{name}@{k:.0f}": value for name, line in lines.items() for k, value in line} == test
    assert re.search(rb'width="237\.6pt"', (tmp_path / "plots" / "learning-curves.svg").read_bytes()), "one column"


def test_a_folder_without_a_finished_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a finished run, got a folder without results"):
        run_plots(tmp_path, tmp_path)
