"""A study's claims as a table, "better in x of 120 cells, y of them starred", beside the paper's own counts."""

from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError
from ..formatting import csv_text
from ..studies.leaderboard import FINISHED, Claim, Leaderboard
from . import paper
from .layouts import LAYOUTS
from .writers import DASH, Footnotes, Line, Table, TableCell

NO_STAR = (
    "no star is possible: it needs three seeds on both sides; with one seed some star would be false in 15 to 30 % of "
    "the studies in which nothing differs"
)


def claims_table(board: Leaderboard, remarks: Sequence[str]) -> Table:
    """The table of a leaderboard's claims; `remarks` follow its own. ConfigError if there are none."""
    claims, footnotes = _claims(board), Footnotes()
    encoders, published = any(claim.encoder for claim in claims), any(map(paper.count_of, claims))
    columns = ["cells", "better", "better *", "worse", "worse *"]
    lines = []
    for claim in claims:
        place = (f"{claim.better} over {claim.than}", *([claim.encoder or "all"] if encoders else []))
        cells = [*_cells(claim, footnotes), *([_of_paper(claim)] if published else [])]
        lines.append(Line(place, tuple(cells)))
    return Table(
        caption=f"{board.title}: {LAYOUTS['claims'].caption}",
        labels=("claim", *(["encoder"] if encoders else [])),
        columns=(*columns, *(["paper"] if published else [])),
        lines=tuple(lines),
        footnotes=footnotes.texts(),
        remarks=(*about(board), *(["paper: cells that are better in its tables."] if published else []), *remarks),
    )


def about(board: Leaderboard) -> list[str]:
    """How the claims were counted, for readers."""
    test = (
        f"p < {board.alpha:g} (paired {board.test}, Holm-Bonferroni over the {board.claim_comparisons:,} comparisons "
        "of all claims), three seeds or more on both sides"
    )
    waiting = sum(row.state != FINISHED for row in board.rows)
    return [
        f"A cell is a pair of finished rows that differ in this axis alone, on one of {', '.join(board.metrics)}. It "
        "is better if its mean on test is, by however little: where nothing differs, half of the cells are.",
        f"*: starred, {test}." if board.claim_comparisons else "Nothing was tested, as no pair has two seeds.",
        "A count is no test: cells share users, rows and data sets, and metrics go together.",
        *([f"{waiting} of {len(board.rows)} rows have no finished result, and count nowhere."] if waiting else []),
    ]


def claims_csv(board: Leaderboard) -> str:
    """One line for each claim; without a test for any cell, stars are empty."""
    return csv_text(_csv_line(board, claim) for claim in _claims(board))


def _csv_line(board: Leaderboard, claim: Claim) -> dict[str, Any]:
    published = paper.count_of(claim)
    return {
        "axis": claim.axis,
        "better": claim.better,
        "than": claim.than,
        "encoder": claim.encoder,
        "pairs": claim.pairs,
        "cells": claim.cells,
        "won": claim.won,
        "won_starred": claim.won_starred if claim.testable else None,
        "lost": claim.lost,
        "lost_starred": claim.lost_starred if claim.testable else None,
        "testable": claim.testable,
        "marked": claim.marked,
        "test": board.test,
        "alpha": board.alpha,
        "comparisons": board.claim_comparisons,
        "paper_won": published and published.won,
        "paper_cells": published and published.of,
    }


def _claims(board: Leaderboard) -> Sequence[Claim]:
    if not board.claims:
        raise ConfigError(
            f"{board.study}: --layout claims: expected finished rows that differ in the encoder, the paradigm, the "
            "modalities or the control alone, got no two; try --layout plain, or `study table` if this leaderboard is "
            "an earlier version's"
        )
    return board.claims


def _cells(claim: Claim, footnotes: Footnotes) -> list[TableCell]:
    note = ""
    if not claim.testable:
        note = footnotes.letter(NO_STAR)
    elif claim.testable < claim.cells:
        note = footnotes.letter(f"{claim.testable} of the {claim.cells} cells have three seeds on both sides")
    mark = claim.marked > 0

    def counted(number: int) -> TableCell:
        return TableCell(f"{number} ({100 * number / claim.cells:.3g} %)", mark=mark)

    def starred(number: int) -> TableCell:
        return TableCell(str(number) if claim.testable else DASH, mark=mark and claim.testable > 0, note=note)

    return [
        TableCell(str(claim.cells)),
        *(counted(claim.won), starred(claim.won_starred), counted(claim.lost), starred(claim.lost_starred)),
    ]


def _of_paper(claim: Claim) -> TableCell:
    found = paper.count_of(claim)
    return TableCell(f"{found.won} of {found.of} ({100 * found.won / found.of:.3g} %)") if found else TableCell()
