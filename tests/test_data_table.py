"""The paper's table 2: data sets and encoders, beside the paper's counts, in each format."""

import csv
import io
import json
from pathlib import Path

import pytest
from helpers import call

from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.report.data_table import DatasetLine, data_table
from mmrec_lmm.report.layouts import FORMATS

BABY = DatasetLine("baby", 19445, 7050, 160792, "0.00117", {"image": 4096, "text": 384})


def cells(text: str, start: str) -> list[str]:
    """The cells of the first line of a Markdown table that begins so."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_a_data_set_has_its_counts_and_the_widths_of_its_files(data_path: Path) -> None:
    text = call("data", "table", "-d", "toy", "--data-path", data_path).out
    assert cells(text, "dataset") == [
        "dataset", "users", "items", "interactions", "density", "image width", "text width",
    ]  # fmt: skip
    assert cells(text, "toy") == ["toy", "12", "16", "96", "0.50000", "5", "6"]


def test_the_papers_counts_stand_below_ours_and_its_slip_is_told() -> None:
    text = data_table([BABY], [], "markdown")
    assert cells(text, "baby") == ["baby", "ours", "19,445", "7,050", "160,792", "0.00117", "4,096", "384"]
    assert cells(text, " ") == ["", "paper", "19,445", "7,037", "160,522", "0.00012", "", ""]
    assert "prints a density of 0.00012 for baby; its counts give 0.00117" in text
    assert "paper" not in data_table([DatasetLine("shop", 1, 2, 1, "0.50000")], [], "markdown")


def test_encoders_have_their_parameters_and_widths() -> None:
    registry = load_registry()
    text = data_table([], [registry.encoders.get("clip"), registry.encoders.get("basic")], "markdown")
    assert cells(text, "clip") == ["clip", "149,620,737", "512", "512"]
    assert cells(text, "basic") == ["basic", "–", "384", "1,024"]


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_has_both_tables(format: str, data_path: Path, tmp_path: Path) -> None:
    command = ("data", "table", "-d", "toy", "--data-path", data_path, "--encoders", "clip", "--format", format)
    answer = call(*command)
    assert answer.code == 0
    assert "toy" in answer.out
    assert "clip" in answer.out
    assert call(*command, "-o", tmp_path / "table").out == ""
    assert (tmp_path / "table").read_text(encoding="utf-8") == answer.out


def test_csv_has_a_line_for_each_figure() -> None:
    rows = list(csv.DictReader(io.StringIO(data_table([BABY], [], "csv"))))
    found = {(row["source"], row["figure"]): row["value"] for row in rows}
    assert found[("ours", "items")] == "7050"
    assert found[("paper", "items")] == "7037"
    assert found[("ours", "image width")] == "4096"
    assert len(rows) == 4 + 2 + 4


def test_a_name_of_markup_is_escaped(tmp_path: Path) -> None:
    nasty = [DatasetLine("<b>&_%", 1, 2, 1, "0.50000")]
    assert "<b>" not in data_table(nasty, [], "html")
    assert r"\textless{}b\textgreater{}\&\_\%" in data_table(nasty, [], "latex")


def test_the_paper_alone_is_its_table_2() -> None:
    text = call("paper", "--table", "2").out
    assert text.startswith("**Table 2 as published: data sets**\n")
    assert cells(text, "clothing") == ["clothing", "39,387", "22,499", "271,001", ""]
    assert "Table 2 as published" in call("paper").out
    assert call("paper", "--table", "2", "--format", "csv").out.count("\n") == 1 + 3 * 3 + 1


def test_a_name_that_is_not_known_is_one_message(data_path: Path) -> None:
    wrong = call("data", "table", "-d", "toy", "--data-path", data_path, "--encoders", "clp")
    assert (wrong.code, wrong.out) == (2, "")
    assert "did you mean clip?" in wrong.err
    wrong = call("data", "table", "-d", "toy,ty", "--data-path", data_path)
    assert wrong.code == 4
    assert "did you mean toy?" in wrong.err


def test_a_drawn_split_does_not_change_the_counts(data_path: Path) -> None:
    own, drawn = (
        call("data", "table", "-d", "toy", "--data-path", data_path, *flags).out for flags in ((), ("--split=ratio",))
    )
    assert own == drawn


def test_counts_are_those_of_data_check(data_path: Path) -> None:
    report = json.loads(call("data", "check", "-d", "toy", "--data-path", data_path, "--format", "json").out)
    counts = report["counts"]
    text = call("data", "table", "-d", "toy", "--data-path", data_path).out
    assert cells(text, "toy")[1:4] == [str(counts[name]) for name in ("users", "items", "interactions")]
