"""Tables from a leaderboard of a few rows, each of whose cells is known: bold, stars, dashes, order, escapes."""

import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from helpers import axes_of, call

from mmrec_lmm.errors import ConfigError, DataError
from mmrec_lmm.report.layouts import FORMATS, LAYOUTS
from mmrec_lmm.report.tables import render
from mmrec_lmm.studies.leaderboard import (
    FAILED,
    NOT_APPLICABLE,
    PARTIAL,
    Claim,
    Interval,
    Leaderboard,
    Measured,
    Row,
    Score,
    read_leaderboard,
)

NASTY = r"a_b & 50% #1 {x} $y ~z^ <i>|\*"


def score(mean: float, **more: object) -> Score:
    return Score(mean, Interval(mean, mean - 0.01, mean + 0.02), (mean - 0.001, mean + 0.001), **more)


def row(mean: float | None = 0.1, metric: str = "recall@20", *, model: str = "VBPR", **more: object) -> Row:
    places = {"dataset": "toys", "encoder": "tiny", "modalities": ("image", "text")}
    flags = {name: more.pop(name) for name in ("best", "star", "p", "difference") if name in more}
    scores = {} if mean is None else {metric: score(mean, **flags)}
    axes, more = axes_of(model=model, **places | more)
    return Row(axes, **{"scores": scores, **more})


def board(*rows: Row, **more: object) -> Leaderboard:
    given = {"study": "s", "title": "Toys", "metrics": ("recall@20",), "users": {"toys": 1234}}
    return Leaderboard(**{**given, "rows": rows, **more})


def cells(text: str) -> list[list[str]]:
    """The lines of a Markdown table without its header."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


# Cells


def test_the_best_is_bold_a_corrected_star_follows_and_a_missing_cell_is_a_dash_with_its_reason() -> None:
    text = render(
        board(
            row(0.1, encoder="weak"),
            row(0.25, encoder="good", best=True, star=True, p=0.01),
            row(None, encoder="bad", state=FAILED, reason="the loss became\nNaN"),
            row(None, encoder="odd", state=NOT_APPLICABLE, reason="nothing to tune"),
            row(None, encoder="evil", state=FAILED, reason="the loss became\nNaN"),
        ),
        layout="table3",
    )
    assert [line[2:] for line in cells(text)] == [
        ["weak", "0.1000"],
        ["good", r"**0.2500**\*"],
        ["bad", "– (a)"],
        ["odd", "– (b)"],
        ["evil", "– (a)"],
    ]
    assert "(a) failed: the loss became NaN" in text
    assert "(b) not applicable: nothing to tune" in text


def test_the_remarks_name_test_alpha_family_seeds_and_users() -> None:
    compared = board(
        row(encoder="weak"), row(0.2, encoder="good", star=True), comparisons=12, alpha=0.01, baseline="weak",
        notes=("One cell failed.",), detectable={"toys": {"recall@20": 0.01234}},
    )  # fmt: skip
    text = render(compared, layout="table3")
    assert r"\*: above weak, p \< 0.01 (paired t-test, Holm-Bonferroni over 12 comparisons)." in text
    assert "means over users (toys 1,234), each averaged over 2 seeds." in text
    assert "Detectable on toys: recall@20 0.0123." in text
    assert "One cell failed." in text


def test_without_comparisons_nothing_is_said_of_stars_and_without_a_best_nothing_of_bold() -> None:
    text = render(board(row()))
    assert "\\*" not in text
    assert "Bold" not in text


def test_a_row_that_lacks_seeds_shows_its_score_and_says_so() -> None:
    text = render(board(row(state=PARTIAL, reason="1 of 2 seeds failed")))
    assert "| 0.1000 (a) |" in text
    assert "(a) partial: 1 of 2 seeds failed" in text


def test_more_reasons_than_letters_get_double_letters() -> None:
    text = render(board(*(row(None, encoder=f"e{n}", state=FAILED, reason=f"r{n}") for n in range(28))))
    assert "(z) failed: r25" in text
    assert "(bb) failed: r27" in text


FIRST = ("best epoch is the first evaluated (2 of 3 seeds)",)


def marked_board() -> Leaderboard:
    """A marked baseline, a row tested against it, one with a marked twin, and one with nothing to do with either."""
    gain = {"content_gain": {"none": {"recall@20": Interval(0.02, 0.01, 0.03)}}}
    base = row(0.1, encoder="base", marks=FIRST)
    twin = row(0.05, encoder=None, control="none", marks=("not trained",))
    tested = row(0.2, encoder="tested", star=True, best=True)
    against = replace(tested.scores["recall@20"], against=base.key)
    return board(
        base, replace(tested, scores={"recall@20": against}),
        row(0.15, encoder="gained", twins={"none": twin.key}, **gain), twin,
    )  # fmt: skip


def test_a_mark_stands_behind_a_row_and_all_that_is_compared_with_it() -> None:
    text = render(marked_board())
    assert [line[-2:] for line in cells(text)] == [
        ["0.1000†", ""],
        ["**0.2000**\\*†", ""],
        ["0.1500", "+0.0200 (+0.0100 to +0.0300)†"],
        ["0.0500†", ""],
    ]
    assert (
        "†: the figure may say more about the training budget or the data than about the model, or is compared with "
        "one that may. "
        "VBPR/toys/base/pt/image+text: best epoch is the first evaluated (2 of 3 seeds). "
        "VBPR/toys/-/pt/image+text/none: not trained."
    ) in text
    assert "†" not in render(board(row()))


def test_a_mark_survives_each_format_and_layout() -> None:
    assert "0.1000\\dag{}" in render(marked_board(), format="latex")
    assert "<td><strong>0.2000</strong>*†</td>" in render(marked_board(), format="html")
    table = pd.read_csv(io.StringIO(render(marked_board(), format="csv")), keep_default_na=False)
    assert table.marks.tolist() == [*FIRST, "", "", "not trained"]
    assert table.against_marks.tolist() == ["", *FIRST, "", ""]
    assert table.gain_over_none_marks.tolist() == ["", "", "not trained", ""]
    assert [line[-1] for line in cells(render(marked_board(), layout="table3"))] == [
        "0.1000†", "**0.2000**\\*†", "0.1500",
    ]  # fmt: skip
    sliced = board(row(0.1, marks=FIRST, slices={"long tail": {"recall@20": Interval(0.05, 0.04, 0.06)}}))
    assert [line[-2:] for line in cells(render(sliced, layout="slices"))] == [["0.1000†", "0.0500†"]]
    table = pd.read_csv(io.StringIO(render(sliced, layout="slices", format="csv")))
    assert table.marks.tolist() == [*FIRST]


def test_a_mark_of_many_rows_names_some_of_them() -> None:
    text = render(board(*(row(encoder=f"e{n}", marks=("not trained",)) for n in range(9))))
    assert re.search(r"VBPR/toys/e0/.*, VBPR/toys/e5/pt/image\+text and 3 more: not trained\.", text)
    assert "VBPR/toys/e6/" not in text


@pytest.mark.parametrize("format", ["markdown", "latex", "html"])
def test_a_board_in_which_nothing_was_tested_says_so_before_all_else(format: str) -> None:
    text = render(board(row(), untested="Nothing was tested: no baseline."), format=format)
    first = next(line for line in text.splitlines() if "Toys" in line or "tested" in line)
    assert re.search(r"(\*\*|\{|<caption>)Nothing was tested: no baseline\. Toys", first)
    assert "Nothing" not in render(board(row()), format=format)


def test_in_csv_each_line_says_that_nothing_was_tested() -> None:
    text = render(board(row(), untested="Nothing was tested: no baseline."), format="csv")
    assert pd.read_csv(io.StringIO(text)).untested.tolist() == ["Nothing was tested: no baseline."]


def test_a_difference_of_one_seed_has_no_ends_in_any_format() -> None:
    alone = {
        "difference": Interval(0.02, None, None),
        "content_gain": {"none": {"recall@20": Interval(0.02, None, None)}},
    }
    made = board(row(**alone))
    assert cells(render(made))[0][-1] == "+0.0200"
    table = pd.read_csv(io.StringIO(render(made, format="csv")))
    assert (table.difference[0], table.gain_over_none[0]) == (0.02, 0.02)
    names = ["difference_low", "difference_high", "gain_over_none_low", "gain_over_none_high", "p"]
    assert table[names].isna().all(axis=None)
    for format in ("latex", "html"):
        assert "+0.0200" in render(made, format=format)


def test_the_remarks_say_that_three_seeds_make_a_star_where_they_do_and_that_there_is_one_split() -> None:
    three = replace(score(0.2, star=True), seeds=(0.1, 0.2, 0.3))
    compared = board(row(), row(encoder="b", star=True), comparisons=1)
    assert "three seeds" not in render(compared), "an earlier file has stars of two"
    compared = replace(compared, rows=[row(), replace(row(encoder="b"), scores={"recall@20": three})])
    assert "(paired t-test, Holm-Bonferroni over 1 comparisons), three seeds or more on both sides." in render(compared)
    assert "conditional on this one split of the data" in render(compared)


def test_content_gain_is_in_the_metric_by_which_rows_rank() -> None:
    gain = {"none": {"recall@20": Interval(0.02, 0.01, 0.03), "ndcg@20": Interval(0.04, 0.03, 0.05)}}
    scores = {metric: score(0.1) for metric in ("recall@20", "ndcg@20")}
    made = board(row(scores=scores, content_gain=gain), metrics=("recall@20", "ndcg@20"), ranked_by="ndcg@20")
    text = render(made)
    assert cells(text)[0][-1] == "+0.0400 (+0.0300 to +0.0500)"
    assert "content gain, ndcg@20 above the twin" in text


# Layouts


def test_table_1_sets_modalities_side_by_side_and_dashes_what_was_not_run() -> None:
    both, image, text = ("image", "text"), ("image",), ("text",)
    made = render(
        board(
            *(row(mean, modalities=has) for mean, has in ((0.3, both), (0.1, image), (0.2, text))),
            row(0.5, model="BPR", modalities=both),
            row(0.6, model="BPR", modalities=text),
            row(0.7, model="lonely"),
        ),
        layout="table1",
    )
    assert "| dataset | metric    | model | image+text |  image |   text |" in made
    assert cells(made) == [
        ["toys", "recall@20", "VBPR", "0.3000", "0.1000", "0.2000"],
        ["", "", "BPR", "0.5000", "– (a)", "0.6000"],
    ]
    assert "(a) not part of the study" in made
    assert "1 of 6 rows have no place in this layout" in made
    assert made.startswith("**Toys: modalities side by side, tiny, pt**"), "what all rows share is told once"


def test_table_3_has_pre_trained_rows_alone_and_no_controls() -> None:
    text = render(
        board(row(encoder="a"), row(encoder="b"), row(encoder="b", control="none"), row(encoder="b", paradigm="ft")),
        layout="table3",
    )
    assert [line[2] for line in cells(text)] == ["a", "b"]
    assert "2 of 4 rows have no place" in text


def test_table_4_has_the_pre_trained_paradigm_first_and_all_else_in_the_order_of_the_study() -> None:
    rows = [row(encoder=encoder, paradigm=paradigm) for paradigm in ("ete", "pt", "ft") for encoder in ("z", "a")]
    found = cells(render(board(*rows), layout="table4"))
    assert [line[3] for line in found] == ["pt", "ete", "ft"] * 2
    assert [line[1] for line in found] == ["z", "", "", "a", "", ""], "a label that repeats isn't said again"


def test_table_5_has_modalities_below_each_other_and_data_sets_side_by_side() -> None:
    rows = [
        row(mean, dataset=dataset, modalities=has)
        for mean, dataset, has in (
            (0.1, "toys", ("image", "text")), (0.2, "tools", ("image", "text")), (0.3, "toys", ("text",)),
            (0.4, "tools", ("text",)),
        )
    ]  # fmt: skip
    text = render(board(*rows), layout="table5")
    assert "|   toys |  tools |" in text
    assert [line[3:] for line in cells(text)] == [["image+text", "0.1000", "0.2000"], ["text", "0.3000", "0.4000"]]


def test_an_axis_that_differs_gets_a_column_even_where_the_layout_does_not_name_it() -> None:
    rows = [row(encoder=encoder, modalities=has) for encoder in ("a", "b") for has in (("image",), ("text",))]
    text = render(board(*rows), layout="table3")
    assert "| dataset | model | modalities | encoder |" in text
    assert [line[2:4] for line in cells(text)] == [["image", "a"], ["", "b"], ["text", "a"], ["", "b"]]


def test_the_plain_layout_has_every_row() -> None:
    rows = [row(), row(control="shuffled"), row(model="BPR", encoder=None, modalities=())]
    assert [line[1:6] for line in cells(render(board(*rows)))] == [
        ["VBPR", "tiny", "pt", "-", "image+text"],
        ["", "", "", "shuffled", "image+text"],
        ["BPR", "-", "pt", "-", "-"],
    ]


def test_content_gain_is_a_column_for_each_control_in_the_plain_layout_alone() -> None:
    gain = {
        "shuffled": {"recall@20": Interval(0.02, -0.01, 0.05)},
        "none": {"recall@20": Interval(-0.001, -0.02, 0.01)},
    }
    rows = [row(0.12, content_gain=gain), row(control="shuffled"), row(model="BPR", encoder=None)]
    text = render(board(*rows))
    assert re.search(r"\| recall@20 \| +over shuffled \| +over none \|", text)
    assert [line[-3:] for line in cells(text)] == [
        ["0.1200", "+0.0200 (−0.0100 to +0.0500)", "−0.0010 (−0.0200 to +0.0100)"],
        ["0.1000", "", ""],
        ["0.1000", "", ""],
    ]
    assert "over shuffled, over none: content gain, recall@20 above the twin" in text
    assert "over none" not in render(board(*rows, row(encoder="other")), layout="table3")


def test_content_gain_beside_the_papers_figures_leaves_their_lines_empty() -> None:
    gain = {"none": {"recall@20": Interval(0.02, 0.01, 0.03)}}
    found = cells(render(board(row(0.08, dataset="baby", encoder="cnn_sbert", content_gain=gain))))
    assert [line[-2:] for line in found] == [
        ["0.0800", "+0.0200 (+0.0100 to +0.0300)"],
        ["0.0740", ""],
        ["+0.0060", ""],
    ]


def test_slices_stand_side_by_side_with_all_of_test() -> None:
    parts = {
        "cold items": {"recall@20": Interval(0.01, 0.0, 0.02)},
        "long tail": {"recall@20": Interval(0.05, 0.04, 0.06)},
    }
    sliced = board(row(0.1, slices=parts, best=True, star=True), row(model="pending", slices={}), comparisons=3)
    text = render(sliced, layout="slices")
    assert re.search(r"\| +all \| +cold items \| +long tail \|", text)
    assert [line[-3:] for line in cells(text)] == [["0.1000", "0.0100", "0.0500"]]
    assert "\\*" not in text, "nothing of a slice is tested"
    table = pd.read_csv(io.StringIO(render(sliced, layout="slices", format="csv")))
    assert table[["slice", "mean", "low", "high"]].to_numpy().tolist() == [
        ["cold items", 0.01, 0.0, 0.02], ["long tail", 0.05, 0.04, 0.06],
    ]  # fmt: skip


def test_a_leaderboard_without_slices_says_how_to_get_them() -> None:
    with pytest.raises(ConfigError, match="got none; try slices: true in the study's file"):
        render(board(row()), layout="slices")


@pytest.mark.parametrize("layout", [layout for layout, plan in LAYOUTS.items() if plan.compares])
def test_a_layout_with_nothing_to_compare_says_what_it_compares(layout: str) -> None:
    with pytest.raises(ConfigError, match=rf"{layout}: expected rows that differ in {LAYOUTS[layout].compares} alone"):
        render(board(row(), row(model="BPR")), layout=layout)


def test_a_leaderboard_without_rows_says_so() -> None:
    with pytest.raises(ConfigError, match="expected a leaderboard with rows, got none yet"):
        render(board())


# The paper beside us


def test_the_papers_figure_and_the_difference_stand_below_ours() -> None:
    ours = row(0.0800, dataset="Baby", encoder="cnn_sbert")  # the paper has .0740
    found = cells(render(board(ours, row(dataset="Baby", encoder="mine")), layout="table3"))
    assert [line[2:] for line in found] == [
        [r"cnn\_sbert", "ours", "0.0800"],
        ["", "paper", "0.0740"],
        ["", "difference", "+0.0060"],
        ["mine", "ours", "0.1000"],
    ]


def test_a_failed_row_still_has_the_papers_figure_and_a_control_has_none() -> None:
    places = {"dataset": "baby", "encoder": "cnn_sbert"}
    failed = row(None, state=FAILED, **places)
    found = cells(render(board(failed, row(control="shuffled", **places))))
    assert [line[-2:] for line in found] == [
        ["ours", "– (a)"],
        ["paper", "0.0740"],
        ["difference", ""],
        ["ours", "0.1000"],
    ]


def test_where_the_paper_is_quoted_its_slips_are_told_and_elsewhere_not() -> None:
    rows = [row(0.06, dataset="baby", encoder=encoder) for encoder in ("cnn_sbert", "clip")]
    text = render(board(*rows), layout="table3")
    assert "84 of 120 cells (70 %); the paper's text says 79 %" in text
    assert "49 of 60" not in text, "that one is table 4's"
    assert "paper" not in render(board(row()))


# Formats


def test_csv_has_a_line_for_each_row_and_metric_that_pandas_reads_back() -> None:
    made = board(
        row(
            0.08, dataset="baby", encoder="cnn_sbert", best=True, star=True, p=0.01,
            difference=Interval(0.02, 0.01, 0.03),
        ),
        row(None, model=NASTY, encoder=None, modalities=(), state=FAILED, reason='it said "no",\nand died'),
        metrics=("recall@20", "ndcg@20"),
        users={"baby": 19445},
    )  # fmt: skip
    table = pd.read_csv(io.StringIO(render(made, format="csv")))
    assert list(table.metric) == ["recall@20", "ndcg@20"] * 2
    first = table.iloc[0]
    assert (first["mean"], first.low, first.high, first.seeds, first.users) == (0.08, 0.08 - 0.01, 0.1, 2, 19445)
    assert (first.best, first.star, first.p, first.difference, first.difference_low) == (1, 1, 0.01, 0.02, 0.01)
    assert "gain_over_none" not in table
    assert (first.paper, first.difference_to_paper) == (0.074, pytest.approx(0.006))
    last = table.iloc[3]
    assert (last.model, last.state, last.reason) == (NASTY, "failed", 'it said "no",\nand died')
    assert last[["mean", "star", "p", "paper", "encoder"]].isna().all()


def test_csv_has_content_gain_with_its_interval_where_there_are_controls() -> None:
    made = board(row(0.1, content_gain={"none": {"recall@20": Interval(0.02, 0.01, 0.03)}}), row(control="none"))
    table = pd.read_csv(io.StringIO(render(made, format="csv")))
    names = ["gain_over_none", "gain_over_none_low", "gain_over_none_high"]
    assert table[names].iloc[0].tolist() == [0.02, 0.01, 0.03]
    assert table[names].iloc[1].isna().all()


def test_special_characters_of_names_are_escaped_in_markdown() -> None:
    text = render(board(row(model=NASTY)))
    assert r"a\_b \& 50% \#1 {x} \$y \~z^ \<i\>\|\\\*" in text
    assert len(cells(text)) == 1, "an escaped | makes no cell"


def test_special_characters_of_names_are_escaped_in_html() -> None:
    class Labels(HTMLParser):
        found: list[str] = []  # noqa: RUF012

        def handle_data(self, data: str) -> None:
            self.found.append(data)

    parser = Labels()
    parser.feed(render(board(row(model=NASTY, best=True)), format="html"))
    assert NASTY in parser.found


def test_special_characters_of_names_are_escaped_in_latex() -> None:
    text = render(board(row(model=NASTY + "é")), format="latex")
    assert r"a\_b \& 50\% \#1 \{x\} \$y \textasciitilde{}z\textasciicircum{} " in text
    assert r"\textless{}i\textgreater{}\textbar{}\textbackslash{}*\texttt{U+00E9}" in text
    assert "-{}-paradigm=`{}`x'{}'" in render(board(row(model="--paradigm=``x''")), format="latex")


def test_html_marks_labels_best_star_and_footnote() -> None:
    made = board(row(best=True, star=True), row(None, model="BPR", state=FAILED))
    text = render(made, format="html")
    assert '<th scope="row">VBPR</th>' in text
    assert "<td><strong>0.1000</strong>*</td>" in text
    assert "<td>–<sup>a</sup></td>" in text
    assert "<p><sup>a</sup> failed</p>" in text


def test_latex_draws_a_rule_between_data_sets_and_a_long_table_runs_over_pages() -> None:
    rows = [row(-0.1, dataset=dataset, encoder=f"e{n}") for dataset in ("x", "y") for n in range(2)]
    text = render(board(*rows), layout="table3", format="latex")
    assert text.count(r"\midrule") == 2
    assert r"\begin{tabular}{lllr}" in text
    many = [row(encoder=f"e{n}") for n in range(50)]
    assert r"\begin{longtable}{lllr}" in render(board(*many), layout="table3", format="latex")


def test_a_latex_table_wider_than_the_text_is_scaled_to_it_and_needs_no_package_for_that() -> None:
    wide = render(board(row(model="m" * 60, encoder="a"), row(model="m" * 60, encoder="b")), format="latex")
    assert wide.startswith(r"% \usepackage{booktabs,graphicx}")
    assert r"\providecommand{\resizebox}[3]{#3}\resizebox{\linewidth}{!}{%" in wide
    assert "\n\\end{tabular}}\n" in wide
    assert "resizebox" not in render(board(row()), format="latex")


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_compiles_as_latex_short_and_long(layout: str, tmp_path: Path) -> None:
    if not shutil.which("pdflatex"):
        pytest.skip("pdflatex isn't installed")
    for lines in (1, 30):
        rows = [
            row(
                *(() if paradigm == "pt" else (None,)), model=f"{NASTY} é→{n}", dataset=dataset, encoder=encoder,
                paradigm=paradigm, modalities=has, state=FAILED if paradigm == "ft" else "finished", reason=NASTY,
                slices={NASTY: {"recall@20": Interval(-0.1, 0.0, 0.2)}} if paradigm == "pt" else {},
                content_gain={"none": {"recall@20": Interval(0.1, -0.2, 0.2)}} if paradigm == "pt" else {},
                cost={"encode": Measured(12.5, NASTY), "memory": Measured(None, NASTY)} if paradigm == "pt" else {},
            )
            for n in range(lines)
            for dataset in ("baby", NASTY)
            for encoder in ("clip", "cnn_sbert")
            for paradigm in ("pt", "ft")
            for has in (("image", "text"), ("text",))
        ]  # fmt: skip
        claims = (Claim("encoder", NASTY, NASTY, 1, 2, 1, 0, 1, 0, 0, 1, NASTY),) * lines
        made = board(*rows, title=NASTY, claims=claims)
        (tmp_path / "table.tex").write_text(render(made, layout=layout, format="latex"))
        (tmp_path / "page.tex").write_text(
            r"\documentclass{article}\usepackage{booktabs,longtable}\begin{document}\input{table}\end{document}"
        )
        done = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"],
            cwd=tmp_path, capture_output=True, text=True, errors="replace",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:]
        assert "Missing character" not in (tmp_path / "page.log").read_text(errors="replace")


# The verb


def test_the_verb_prints_each_format_or_writes_it(tmp_path: Path) -> None:
    made = board(row(best=True), row(encoder="b"))
    path = tmp_path / "leaderboard.json"
    path.write_text(json.dumps(made.document()))
    assert read_leaderboard(path) == replace(made, rows=list(made.rows))
    for name in FORMATS:
        answer = call("table", path, "--layout", "table3", "--format", name)
        assert (answer.code, answer.out) == (0, render(made, layout="table3", format=name))
    assert call("table", path, "-o", tmp_path / "out" / "table.md").out == ""
    assert (tmp_path / "out" / "table.md").read_text() == render(made)


def test_the_verbs_choices_are_those_of_the_layouts_and_formats() -> None:
    answer = call("table", "--help")
    assert f"{{{','.join(LAYOUTS)}}}" in answer.out
    assert f"{{{','.join(FORMATS)}}}" in re.sub(r"\s+", "", answer.out)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "study: expected text, got nothing; try `study table`, which writes it again"),
        ("[]", r"expected an object, got \[\]; try"),
        ("{", "expected JSON"),
        ('{"study": "s", "title": "", "metrics": [], "rows": [{}]}', "rows.0.model: expected text, got nothing; try"),
        ('{"study": "s", "title": "", "metrics": "m", "rows": []}', "metrics: expected a list, got 'm'; try"),
    ],
)
def test_a_file_that_is_no_leaderboard_is_one_clear_error(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"other\.json: {message}"):
        read_leaderboard(path)


def test_a_file_that_is_not_there_is_exit_code_4(tmp_path: Path) -> None:
    answer = call("table", tmp_path / "none.json")
    assert (answer.code, answer.out) == (DataError.exit_code, "")
    assert "none.json: no such file" in answer.err
