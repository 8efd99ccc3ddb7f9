"""Figures: that each is drawn from what a run or a leaderboard holds, in each format, the same each time."""

import builtins
import dataclasses
import re
from pathlib import Path

import pytest
from helpers import axes_of, call

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


@pytest.mark.parametrize("suffix", STARTS)
def test_a_plot_has_the_format_of_its_suffix_and_equal_data_give_equal_files(suffix: str, tmp_path: Path) -> None:
    needs_matplotlib()
    first = learning_curves(HISTORY, "recall@20", tmp_path / f"a{suffix}", best=3).read_bytes()
    assert first.startswith(STARTS[suffix])
    assert learning_curves(HISTORY, "recall@20", tmp_path / f"b{suffix}", best=3).read_bytes() == first
    other = learning_curves(HISTORY[:2], "recall@20", tmp_path / f"c{suffix}", best=1).read_bytes()
    assert other != first


def test_another_suffix_is_an_error_that_names_the_ones_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a plot is written as \.svg, \.pdf, \.png, not \.bmp"):
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


def test_a_leaderboard_gives_seeds_and_pareto_for_each_data_set_that_has_scores(tmp_path: Path) -> None:
    needs_matplotlib()
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
    assert all(path.is_file() for path in written)


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


def test_run_draws_its_curves_where_plots_says(data_path: Path, tmp_path: Path) -> None:
    needs_matplotlib()
    flags = ["--epochs=3", "--embedding_size=4", "--topk=[2,20]", "--data-path", data_path, "--out", tmp_path / "runs"]
    answer = call("run", "-m", "VBPR", "-d", "toy", *flags, "--plots", tmp_path / "plots")
    assert answer.code == 0, answer.err
    names = {"learning-curves", "metric-by-cutoff"}
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        f"{name}{s}" for name in names for s in (".svg", ".pdf")
    }
    assert re.search(rb'width="237\.6pt"', (tmp_path / "plots" / "learning-curves.svg").read_bytes()), "one column"


def test_a_folder_without_a_finished_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished run lies here"):
        run_plots(tmp_path, tmp_path)
