"""What a study has found: the winner of each cell, as table, page and plots, and what is missing with its reason."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from helpers import call, points

from mmrec_lmm.running.run_folder import list_results
from mmrec_lmm.studies.leaderboard import FINISHED, NOT_APPLICABLE, PENDING, Leaderboard, read_leaderboard

STUDY = """
title: Two points of VBPR
models: [VBPR, LightGCN]
datasets: [toy]
encoders: [basic]
modalities: image+text
paradigms: [pt, ft]
seeds: [1, 2]
grids: {VBPR: {learning_rate: [0.1, 0.001]}}
settings: {epochs: 2, embedding_size: 4, threads: 1, valid_metric: NDCG@5}
controls: [none]
slices: true
metrics: [Recall@5, NDCG@20]
baseline: {model: LightGCN}
"""


@pytest.fixture(autouse=True)
def here(data_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data_path.parent)
    Path("points.yaml").write_text(STUDY)


def found() -> Leaderboard:
    return read_leaderboard(Path("runs/study/points/leaderboard.json"))


def test_a_row_is_the_grid_point_that_is_best_on_validation_over_all_seeds() -> None:
    assert call("study", "run", "points.yaml").code == 0
    answer = call("study", "table", "points.yaml")
    assert answer.code == 0, answer.err
    (row,) = [row for row in found().rows if row.key == "VBPR/toy/basic/pt/image+text"]
    results = [result for result in list_results(Path("runs")) if result.record.axes.model == "VBPR"]
    results = [result for result in results if result.record.axes.control is None]
    by_point: dict[float, list[float]] = {}
    for result in results:
        by_point.setdefault(result.parameters["learning_rate"], []).append(result.valid["ndcg@5"])
    best = row.parameters["learning_rate"]
    other = ({*by_point} - {best}).pop()
    assert sum(by_point[best]) > sum(by_point[other])
    tested = sorted(result.test["recall@5"] for result in results if result.parameters["learning_rate"] == best)
    assert sorted(row.scores["recall@5"].seeds) == pytest.approx(tested)
    assert row.scores["recall@5"].against == "LightGCN/toy/-/pt/-"
    assert set(row.content_gain) == {"none"}
    assert "least active users" in row.slices


def test_what_is_not_there_stays_in_the_table_and_says_why() -> None:
    answer = call("study", "table", "points.yaml", "--format", "csv")
    states = {row.key: row.state for row in found().rows}
    assert answer.code == 0, answer.err
    assert states["VBPR/toy/basic/ft/image+text"] == NOT_APPLICABLE
    assert states["LightGCN/toy/-/pt/-"] == PENDING
    assert FINISHED not in states.values()


def test_a_study_without_a_baseline_is_tested_against_its_id_only_model_and_ranks_by_what_selects() -> None:
    text = STUDY.replace("baseline: {model: LightGCN}\n", "").replace("[Recall@5, NDCG@20]", "[Recall@5, NDCG@5]")
    Path("points.yaml").write_text(text.replace("seeds: [1, 2]", "seeds: [1, 2, 3]").replace("slices: true\n", ""))
    waiting = call("study", "table", "points.yaml")
    assert waiting.out.startswith("**Nothing was tested: no row is finished yet. Two points of VBPR")
    assert call("study", "run", "points.yaml").code == 0
    answer = call("study", "table", "points.yaml")
    (row,) = [row for row in found().rows if row.key == "VBPR/toy/basic/pt/image+text"]
    assert row.scores["recall@5"].against == "LightGCN/toy/-/pt/-"
    assert row.scores["recall@5"].p is not None
    assert (found().ranked_by, found().baseline, found().untested) == ("ndcg@5", "model LightGCN", "")
    assert "rows are tested against LightGCN, its only ID-only model" in answer.out
    assert "over none: content gain, ndcg@5 above the twin" in answer.out
    ends = {result.run_id: result.best_epoch for result in list_results(Path("runs"))}
    assert {ends[run] for one in found().rows for run in one.runs if one.marks} <= {0, 1}, "of two epochs"
    assert all(one.marks for one in found().rows if one.runs), "the first and the last of two epochs are both marked"
    assert "†" in answer.out


def test_a_baseline_that_no_row_matches_is_one_error() -> None:
    Path("points.yaml").write_text(STUDY.replace("baseline: {model: LightGCN}", "baseline: {model: BPR}"))
    answer = call("study", "table", "points.yaml")
    assert (answer.code, answer.out) == (2, "")
    assert (
        "baseline: expected values that a cell of the study has, got model BPR; try model VBPR, LightGCN" in answer.err
    )


def test_a_study_becomes_a_page_and_plots(drawn: list[Any]) -> None:
    call("study", "run", "points.yaml")
    page = call("study", "page", "points.yaml", "-o", "points.html")
    assert (page.code, page.out) == (0, "points.html\n")
    (board,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', Path("points.html").read_text())
    assert json.loads(board)["title"] == "Two points of VBPR"
    table = call("study", "table", "points.yaml", "-o", "points.md", "--plots", "plots")
    assert (table.code, table.out) == (0, "")
    assert {path.name for path in Path("plots").iterdir()} == {
        f"{name}-toy{suffix}" for name in ("seeds", "pareto") for suffix in (".svg", ".pdf")
    }
    rows = {row.key: row for row in found().rows if row.scores}
    seeds, pareto = (figure.axes[0] for figure in drawn[:2])
    dots = [[x for x, _ in points(line)] for line in seeds.lines if line.get_marker() == "o"]
    assert dots == [list(row.scores["recall@5"].seeds) for row in rows.values()]
    assert len(dots[0]) == 2, "one for each seed"
    trained = [(row.seconds, row.scores["recall@5"].mean) for row in rows.values() if not row.axes.control]
    assert sorted(point for line in pareto.lines[:-1] for point in points(line)) == sorted(trained)
    assert Path("points.md").read_text() == call("study", "table", "points.yaml").out
    assert "| VBPR " in Path("points.md").read_text()
