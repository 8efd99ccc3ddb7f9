"""The published results that this benchmark was built to check: as a Leaderboard, beside our rows, and recounted.

`results.csv` has the figures, `paper.yaml` what they compare and what the paper's text claims, `README.md` their source
and terms. Names of encoders and models are only in the data, not in this code.
"""

import csv
import functools
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ...studies.claims import ANY_OTHER
from ...studies.leaderboard import Claim, Interval, Leaderboard, Row, Score
from ...types import AXES, RARE_AXES, Axes, EncoderName

HERE = Path(__file__).parent
PRINTED = tuple(axis for axis in AXES if axis not in RARE_AXES)  # the axes of a figure; the paper has no others


@dataclass(frozen=True)
class Figure:
    """One printed number: its place on the axes PRINTED, and True in `starred` if the paper stars it."""

    table: int
    place: tuple[str, ...]  # one value for each of PRINTED
    metric: str
    value: float
    starred: bool


@dataclass(frozen=True)
class Count:
    """The number of cells of a table in which one side beats the other, recounted from the printed figures."""

    table: int
    what: str
    won: int
    of: int
    text: str | None  # the share that the paper's text states

    def __str__(self) -> str:
        share = f"{self.won} of {self.of} cells ({100 * self.won / self.of:.3g} %)"
        said = f"; the paper's text says {self.text}" if self.text else ""
        return f"Table {self.table}: {self.what} in {share}{said}."


@functools.cache
def about() -> Mapping[str, Any]:
    """The content of `paper.yaml`: source, tables, claims."""
    return yaml.safe_load((HERE / "paper.yaml").read_text(encoding="utf-8"))


def tables() -> list[int]:
    """The numbers, in the paper, of the tables in `results.csv`."""
    return list(about()["tables"])


@functools.cache
def figures() -> tuple[Figure, ...]:
    """All printed numbers, in the order of the file."""
    with (HERE / "results.csv").open(encoding="utf-8", newline="") as file:
        return tuple(
            Figure(
                table=int(line["table"]),
                place=tuple(line[axis] for axis in PRINTED),
                metric=line["metric"],
                value=float(line["value"]),
                starred=line["starred"] == "1",
            )
            for line in csv.DictReader(file)
        )


def published(row: Row) -> Mapping[str, float]:
    """The paper's figures for a row's combination: {"recall@20": 0.0740, ...}; empty if it has none."""
    return {} if row.axes.control or row.axes.split else _by_place().get(_place(row), {})


@functools.cache
def _by_place() -> Mapping[tuple[str, ...], Mapping[str, float]]:
    """The figures by place, in lower case. Tables that repeat a figure agree on it."""
    found: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    for figure in figures():
        found[tuple(name.lower() for name in figure.place)][figure.metric] = figure.value
    return found


def _place(row: Row) -> tuple[str, ...]:
    axes = replace(row.axes, modalities=tuple(sorted(row.axes.modalities or ())))
    return tuple((axes.value(axis) or "").lower() for axis in PRINTED)


def leaderboard(table: int) -> Leaderboard:
    """One of the paper's tables. Its scores have no intervals (NaN), seeds or p; their stars are the paper's own."""
    of_table = [figure for figure in figures() if figure.table == table]
    facts = about()["tables"][table]
    group = [PRINTED.index(axis) for axis in facts["best_within"]]
    best: dict[tuple[str, ...], float] = {}
    for figure in of_table:
        rivals = (*(figure.place[axis] for axis in group), figure.metric)
        best[rivals] = max(figure.value, best.get(rivals, 0))
    rows: dict[tuple[str, ...], dict[str, Score]] = defaultdict(dict)
    for figure in of_table:
        rivals = (*(figure.place[axis] for axis in group), figure.metric)
        rows[figure.place][figure.metric] = Score(
            mean=figure.value,
            interval=Interval(figure.value, math.nan, math.nan),
            seeds=(),
            best=figure.value == best[rivals],
            star=figure.starred,
        )
    star = (f"*: {facts['star']}, as the paper marks it.",) if "star" in facts else ()
    return Leaderboard(
        study="paper",
        title=f"Table {table} as published",
        metrics=tuple(dict.fromkeys(figure.metric for figure in of_table)),
        rows=[
            Row(Axes(model, dataset, EncoderName.parse(encoder), paradigm, tuple(modalities.split("+"))), scores=scores)
            for (model, dataset, encoder, paradigm, modalities), scores in rows.items()
        ],
        notes=(*star, f"Source: {about()['source']}.", *map(str, counts(table))),
    )


def counts(table: int | None = None) -> list[Count]:
    """The claims of the paper's text about its tables, recounted from the tables; for one table, or for all."""
    return [_count(**claim) for claim in about()["claims"] if table in (None, claim["table"])]


def count_of(claim: Claim) -> Count | None:
    """The paper's count of the same claim, if it makes it."""
    asked = (claim.axis, claim.better, claim.than, claim.encoder)
    for own in about()["claims"]:
        if (own["axis"], own.get("better", ANY_OTHER), own["than"], own.get("encoder", "")) == asked:
            return _count(**own)
    return None


def _count(
    *,
    table: int,
    axis: str,
    than: str,
    better: str | None = None,
    starred: bool = False,
    text: str | None = None,
    **only: str,
) -> Count:
    """Count the cells of `table` with `better` (None: any other value) on `axis` that beat the one with `than`."""
    at = PRINTED.index(axis)

    def rest(figure: Figure) -> tuple[str, ...]:
        return (*figure.place[:at], *figure.place[at + 1 :], figure.metric)

    cells = [
        figure
        for figure in figures()
        if figure.table == table and all(figure.place[PRINTED.index(name)] == value for name, value in only.items())
    ]
    base = {rest(figure): figure.value for figure in cells if figure.place[at] == than}
    rivals = [figure for figure in cells if figure.place[at] == better or (better is None and figure.place[at] != than)]
    won = sum(figure.value > base[rest(figure)] and (figure.starred or not starred) for figure in rivals)
    what = " ".join([*only.values(), better or "", "better than", than, "with a star" if starred else ""])
    return Count(table, " ".join(what.split()), won, len(rivals), text)
