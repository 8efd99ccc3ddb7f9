"""The paper's figures as carried here: complete, printed as they are, and recounted."""

import math
from pathlib import Path

import pytest
from helpers import call

from mmrec_lmm.report import paper
from mmrec_lmm.studies.leaderboard import Row
from mmrec_lmm.types import Axes, EncoderName


def test_the_slips_of_the_papers_text_are_counted_in_its_tables() -> None:
    found = {count.what: (count.won, count.of, count.text) for count in paper.counts()}
    assert found == {
        "better than cnn_sbert": (84, 120, "79 %"),
        "better than cnn_sbert with a star": (83, 120, None),
        "ft better than pt": (87, 120, "70 %"),
        "clip ete better than ft": (49, 60, "83 %"),
        "vlmo ete better than ft": (28, 60, None),
    }


def test_a_count_reads_as_a_sentence() -> None:
    assert str(paper.counts(3)[0]) == (
        "Table 3: better than cnn_sbert in 84 of 120 cells (70 %); the paper's text says 79 %."
    )


def test_all_figures_are_here_and_tables_that_repeat_one_agree() -> None:
    assert len(paper.figures()) == 576
    values: dict[tuple[str, ...], set[float]] = {}
    for figure in paper.figures():
        values.setdefault((*figure.place, figure.metric), set()).add(figure.value)
    assert all(len(found) == 1 for found in values.values())


@pytest.mark.parametrize(("table", "rows", "stars"), [(1, 18, 0), (3, 45, 116), (4, 90, 217), (5, 18, 10)])
def test_each_table_is_a_leaderboard_with_the_papers_own_stars(table: int, rows: int, stars: int) -> None:
    board = paper.leaderboard(table)
    scores = [score for row in board.rows for score in row.scores.values()]
    assert len(board.rows) == rows
    assert sum(score.star for score in scores) == stars
    assert all(math.isnan(score.interval.low) and not score.seeds for score in scores), "the paper prints none"


def test_the_best_of_a_group_is_marked() -> None:
    lattice = {
        row.axes.value("encoder"): row.scores["recall@20"].best
        for row in paper.leaderboard(3).rows
        if (row.axes.model, row.axes.dataset) == ("LATTICE", "baby")
    }
    assert lattice == {"cnn_sbert": True, "vlmo": False, "clip": False}


def test_a_row_finds_its_figures_whatever_the_case_and_order_of_names_and_a_twin_finds_none() -> None:
    row = Row(Axes("vbpr", "Baby", EncoderName("CNN_SBERT"), "pt", ("text", "image")))
    assert paper.published(row) == {"recall@10": 0.0479, "recall@20": 0.0740, "ndcg@10": 0.0262, "ndcg@20": 0.0329}
    assert not paper.published(Row(Axes("vbpr", "baby", EncoderName("cnn_sbert"), "pt", ("image", "text"), "shuffled")))
    assert not paper.published(Row(Axes("vbpr", "baby", None, "pt", ("image", "text"))))


def test_the_verb_prints_one_table_or_all_with_their_counts() -> None:
    one = call("paper", "--table", "4")
    assert one.code == 0
    assert "| **0.1012** |" in one.out
    assert "28 of 60 cells (46.7 %)" in one.out
    assert "ours" not in one.out
    every = call("paper").out
    assert all(f"Table {table} as published" in every for table in paper.tables())
    assert "arXiv:2310.20343" in every


def test_a_csv_of_the_paper_holds_one_table() -> None:
    assert call("paper", "--format", "csv").code == 2
    assert call("paper", "--format", "csv", "--table", "1").out.count("\n") == 19


def test_the_documentation_has_the_counts_that_the_tables_give() -> None:
    page = (Path(__file__).parents[1] / "docs" / "tables.md").read_text(encoding="utf-8")
    counts = paper.counts()
    assert len(counts) > 1
    for count in counts:
        assert f"| {count.won} of {count.of}, {100 * count.won / count.of:.3g} % | {count.text or ''}".rstrip() in page
