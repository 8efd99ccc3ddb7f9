"""A Leaderboard as tables for a paper: Markdown, LaTeX, CSV and HTML, in the layouts of LAYOUTS.

`arrange` makes a Table, which `writers.py` turns into text: labels, cells, footnotes, remarks. CSV differs: it has a
line for each row and metric, with all that was measured. If the paper has a figure for a row, it is printed below ours.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from ..errors import ConfigError
from ..formatting import csv_text, first_few
from ..studies.costs import NOT_JOINT, PARTS, UNMEASURED
from ..studies.leaderboard import FINISHED, STAR_SEEDS, Interval, Leaderboard, Measured, Row
from ..types import AXES, PRE_TRAINED
from . import paper
from .claims_table import claims_csv, claims_table
from .layouts import ALL, LAYOUTS, Layout
from .writers import DASH, MARK, Footnotes, Line, Table, TableCell, as_text, digits

OUTER_AXES = ("dataset", "split")  # outermost in a table
TABLE_AXES = (*OUTER_AXES, *(axis for axis in AXES if axis not in OUTER_AXES))
OF_BOARD = ("submission", "tier")  # label the rows of a board, whose axes may repeat
NONE = "-"  # for an axis on which a row has no value

Published = Callable[[Row], Mapping[str, float]]  # metric -> published figure for a row's combination


def render(
    board: Leaderboard, *, layout: str = "plain", format: str = "markdown", published: Published = paper.published
) -> str:
    """A leaderboard as text in one of LAYOUTS and FORMATS, beside `published` figures.

    Raises ConfigError if there are no rows, or none that the layout can compare.
    """
    plan = _with_axes(LAYOUTS[layout], board.rows)
    rows = _kept(board.rows, plan)
    if not board.rows:
        raise ConfigError(f"{board.study}: expected a leaderboard with rows, got none yet; try `study run`")
    if not rows:
        only = f" (of paradigm {PRE_TRAINED})" if plan.pre_trained else ""
        raise ConfigError(
            f"{board.study}: --layout {layout}: expected rows that differ in {plan.compares} alone{only}, got no two; "
            "try --layout plain, which shows all rows"
        )
    if plan.across == "slice" and not any(row.slices for row in rows):
        raise ConfigError(
            f"{board.study}: --layout slices: expected rows with slices, got none; try slices: true in the study's file"
        )
    if plan.across == "cost" and not any(row.cost for row in rows):
        raise ConfigError(
            f"{board.study}: --layout efficiency: expected finished rows with their cost, got none; try `study run`, "
            "or `study table` if this leaderboard is an earlier version's"
        )
    if plan.across == "claim":
        remarks = (*_of_marks(board, rows), *_of_split(board))
        return claims_csv(board) if format == "csv" else as_text(claims_table(board, remarks), format)
    if format == "csv":
        csv = {"slice": slices_csv, "cost": efficiency_csv}.get(plan.across)
        return csv(board, rows) if csv else as_csv(board, rows, published)
    special = {"slice": _sliced, "cost": _efficiency}.get(plan.across)
    return as_text(special(board, rows, plan) if special else arrange(board, rows, plan, published), format)


def _kept(rows: Sequence[Row], plan: Layout) -> list[Row]:
    """The rows that the layout can compare with another."""
    if plan.compares is None:
        return list(rows)
    others = [axis for axis in TABLE_AXES if axis != plan.compares]
    fit = [row for row in rows if not (row.axes.control or (plan.pre_trained and row.axes.paradigm != PRE_TRAINED))]
    alike = Counter(_labels(row, others) for row in fit)
    return [row for row in fit if alike[_labels(row, others)] > 1]


def arrange(board: Leaderboard, rows: Sequence[Row], plan: Layout, published: Published) -> Table:
    """The table of some rows of a leaderboard, in a layout."""
    axes = _axes(plan, rows)
    order = {axis: _order(axis, rows) for axis in (*TABLE_AXES, *OF_BOARD)} | {"metric": list(board.metrics)}
    found = {
        (*_labels(row, axes, metric), label(row, plan.across, metric)): (row, metric)
        for row in rows
        for metric in board.metrics
    }
    footnotes, marked = Footnotes(), board.marked()
    controls = _controls(rows) if plan.gains else []
    lines = []
    for labels in sorted(
        {place[:-1] for place in found},
        key=lambda labels: [order[axis].index(label) for axis, label in zip(axes, labels, strict=True)],
    ):
        shown = [found.get((*labels, column), (None, "")) for column in order[plan.across]]
        gains = [_gain(row, board.main_metric, control, marked) for row, _ in shown[:1] for control in controls]
        lines.append(Line(labels, (*(_cell(row, metric, footnotes, marked) for row, metric in shown), *gains)))
        figures = [published(row).get(metric) if row else None for row, metric in shown]
        if any(figures):
            above = [_difference(row, metric, figure) for (row, metric), figure in zip(shown, figures, strict=True)]
            lines.append(Line(labels, tuple(map(_number, figures)), "paper"))
            marks = [bool(row and row.marks) for row, _ in shown]
            cells = (_number(value, sign="+", mark=mark) for value, mark in zip(above, marks, strict=True))
            lines.append(Line(labels, tuple(cells), "difference"))
    beside = any(line.source != "ours" for line in lines)
    if beside:
        lines = [dataclasses.replace(line, labels=(*line.labels, line.source)) for line in lines]
    columns = (*order[plan.across], *(f"over {control}" for control in controls))
    return Table(
        caption=_caption(board, rows, plan),
        labels=(*axes, "source") if beside else axes,
        columns=columns,
        lines=tuple(
            dataclasses.replace(line, cells=(*line.cells, *[TableCell()] * (len(columns) - len(line.cells))))
            for line in lines
        ),
        footnotes=footnotes.texts(),
        remarks=tuple(_remarks(board, rows, plan, beside=beside)),
    )


def _sliced(board: Leaderboard, rows: Sequence[Row], plan: Layout) -> Table:
    """The table of rows with slices: their metrics on all of test and on each slice."""
    rows = [row for row in rows if row.slices]
    axes, parts = _axes(plan, rows), _slices_of(rows)
    lines = []
    for metric in board.metrics:
        for row in _in_order(rows, axes):
            found = [interval.mean if (interval := row.slices.get(part, {}).get(metric)) else None for part in parts]
            figures = [row.scores[metric].mean, *found]
            mark = bool(row.marks)
            cells = tuple(TableCell(DASH) if x is None else _number(x, mark=mark) for x in figures)
            lines.append(Line(_labels(row, axes, metric), cells))
    return Table(
        caption=_caption(board, rows, plan),
        labels=axes,
        columns=("all", *parts),
        lines=tuple(lines),
        footnotes={},
        remarks=tuple(_remarks(board, rows, plan, beside=False)),
    )


def _efficiency(board: Leaderboard, rows: Sequence[Row], plan: Layout) -> Table:
    """The table of what rows cost: a column for each of COSTS, and of JOINT_COSTS if a row has any."""
    axes, costs, footnotes = _axes(plan, rows), _costs(rows), Footnotes()
    lines = []
    for row in _in_order(rows, axes):
        reason = "" if row.state == FINISHED else f"{row.state}: {row.reason}" if row.reason else row.state
        missing = dict.fromkeys(JOINT_COSTS, Measured(None, reason or NOT_JOINT))
        found = {**missing, **row.cost}
        cells = [_cost(found.get(name), shown, footnotes, reason) for name, (_, shown) in costs.items()]
        lines.append(Line(_labels(row, axes), tuple(cells)))
    counts = {len(row.seeds) for row in rows if row.cost}
    devices = first_few(list(dict.fromkeys(one.device for row in rows if (one := row.reproducibility))))
    threads = first_few(sorted({one.threads for row in rows if (one := row.reproducibility)}))
    return Table(
        caption=f"{board.title}: {', '.join([plan.caption, *_shared(rows, plan)])}",
        labels=axes,
        columns=tuple(title for title, _ in costs.values()),
        lines=tuple(lines),
        footnotes=footnotes.texts(),
        remarks=(
            f"Medians over {_of_seeds(counts)}. Encode, tune, epoch, train: seconds; train is all epochs with their "
            "evaluations, epoch one of them, and both count an encoder that is trained end to end.",
            "Encoding and tuning are done once for all rows that share them: don't add them up over rows.",
            "Params, trained: the recommender's parameters, and those that are trained; enc.: its encoder's.",
            *(JOINT_REMARKS if len(costs) > len(COSTS) else ()),
            "Memory: the peak of the run's process; on a GPU, of the GPU's memory. "
            f"Device: {devices}; threads: {threads}.",
        ),
    )


def _costs(rows: Sequence[Row]) -> Mapping[str, tuple[str, Callable[[float], str]]]:
    """The costs that a table of these rows shows."""
    is_joint = any(row.cost[name].value is not None for row in rows for name in JOINT_COSTS if name in row.cost)
    return {**COSTS, **JOINT_COSTS} if is_joint else COSTS


def _cost(cost: Measured | None, shown: Callable[[float], str], footnotes: Footnotes, reason: str) -> TableCell:
    note = cost.note if cost and cost.note else reason
    if cost is None or cost.value is None:
        return TableCell(DASH, note=footnotes.letter(note or UNMEASURED))
    return TableCell(shown(cost.value), note=footnotes.letter(note) if note else "")


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _parameters(value: float) -> str:
    """Three digits with a unit: 2.40 M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:#.3g}".rstrip(".") + f" {unit}"
    return f"{value:.0f}"


def _bytes(value: float) -> str:
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


#: By the name in `Row.cost`: the title of its column, and how its figures are printed.
COSTS: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "encode": ("encode", _seconds),
    "tune": ("tune", _seconds),
    "epoch": ("epoch", _seconds),
    "train": ("train", _seconds),
    "parameters_trained": ("trained", _parameters),
    "parameters": ("params", _parameters),
    "encoder_parameters_trained": ("enc. trained", _parameters),
    "encoder_parameters": ("enc. params", _parameters),
    "memory": ("memory", _bytes),
}
#: More of them, only of encoders that are trained with the recommender.
JOINT_COSTS: Mapping[str, tuple[str, Callable[[float], str]]] = {
    **{part: (part, _seconds) for part in PARTS},
    "cached": ("cached", _bytes),
}
JOINT_REMARKS = (
    "Recommender to evaluation: seconds of an epoch that trains the encoder, by part. Forward and backward are with "
    "gradient; refresh: items encoded again, without; loading: reading what items are encoded from, of size cached.",
)


def _slices_of(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(part for row in rows for part in row.slices))


def _controls(rows: Iterable[Row]) -> list[str]:
    """The controls over which some row has a content gain."""
    return list(dict.fromkeys(control for row in rows for control in row.content_gain))


def _caption(board: Leaderboard, rows: Sequence[Row], plan: Layout) -> str:
    """The caption: why nothing was tested, if so; the title, the layout, and values that all rows share."""
    return f"{board.untested} {board.title}: {', '.join([plan.caption, *_shared(rows, plan)])}".lstrip()


def _shared(rows: Sequence[Row], plan: Layout) -> list[str]:
    """The values that all rows share, on axes that have no place in the layout."""
    shared = [axis for axis in TABLE_AXES if axis not in (*plan.rows, plan.across) and len(_order(axis, rows)) == 1]
    return [value for axis in shared if (value := label(rows[0], axis)) != NONE]


def _axes(plan: Layout, rows: Sequence[Row]) -> tuple[str, ...]:
    """The axes that label a line: the layout's, with others that differ inserted before its last."""
    known = (*plan.rows, plan.across)
    others = [axis for axis in TABLE_AXES if axis not in known and len(_order(axis, rows)) > 1]
    return (*plan.rows[:-1], *others, plan.rows[-1])


def _order(axis: str, rows: Sequence[Row]) -> list[str]:
    """The values of an axis in the order of the study, but with the pre-trained paradigm first."""
    found = dict.fromkeys(label(row, axis) for row in rows)
    return sorted(found, key=lambda value: value != PRE_TRAINED) if axis == "paradigm" else list(found)


def _in_order(rows: Sequence[Row], axes: Sequence[str]) -> list[Row]:
    """The rows by the axes that label them, outermost first, so that equal labels are neighbors."""
    order = {axis: _order(axis, rows) for axis in axes if axis != "metric"}
    return sorted(rows, key=lambda row: [order[axis].index(label(row, axis)) for axis in order])


def _with_axes(plan: Layout, rows: Sequence[Row]) -> Layout:
    """The layout with the axes among its rows in place of ALL: without the control, and without a split if there is
    none."""
    named = tuple(axis for axis in _named_axes(rows) if axis != "control")
    return plan._replace(rows=tuple(axis for name in plan.rows for axis in (named if name == ALL else (name,))))


def _named_axes(rows: Iterable[Row]) -> tuple[str, ...]:
    """TABLE_AXES, without the split if no row has one; of a board's rows also OF_BOARD."""
    rows = list(rows)
    axes = TABLE_AXES if any(row.axes.split for row in rows) else tuple(axis for axis in TABLE_AXES if axis != "split")
    return (*axes, *OF_BOARD) if any(row.submission for row in rows) else axes


def label(row: Row, axis: str, metric: str = "") -> str:
    """A row's value on one of TABLE_AXES or OF_BOARD as text; on the axis "metric", the argument `metric`."""
    if axis == "metric":
        return metric
    return _value(row, axis) or NONE


def _value(row: Row, axis: str) -> str | None:
    value: str | None = getattr(row, axis) if axis in OF_BOARD else row.axes.value(axis)
    return value


def _labels(row: Row, axes: Iterable[str], metric: str = "") -> tuple[str, ...]:
    return tuple(label(row, axis, metric) for axis in axes)


def _cell(row: Row | None, metric: str, footnotes: Footnotes, marked: Mapping[str, tuple[str, ...]]) -> TableCell:
    """A score with four decimals, marked if it or its baseline is; a dash with a footnote if there is no score."""
    if row is None:
        return TableCell(DASH, note=footnotes.letter("not part of the study"))
    reason = "" if row.state == FINISHED else f"{row.state}: {row.reason}" if row.reason else row.state
    score = row.scores.get(metric)
    if score is None:
        return TableCell(DASH, note=footnotes.letter(reason or f"no {metric} was measured"))
    note = footnotes.letter(reason) if reason else ""
    return TableCell(f"{score.mean:.4f}", score.best, score.star, bool(row.marks) or score.against in marked, note)


def _difference(row: Row | None, metric: str, figure: float | None) -> float | None:
    """Our score minus a published figure."""
    score = row.scores.get(metric) if row else None
    return None if score is None or figure is None else score.mean - figure


def _number(value: float | None, *, sign: str = "", mark: bool = False) -> TableCell:
    return TableCell() if value is None else TableCell(digits(value, sign), mark=mark)


def _gain(row: Row | None, metric: str, control: str, marked: Mapping[str, tuple[str, ...]]) -> TableCell:
    """A row's gain over its control run, with the interval if there is one; marked if either is; else empty."""
    gain: Interval | None = row.content_gain.get(control, {}).get(metric) if row else None
    if row is None or gain is None:
        return TableCell()
    text = digits(gain.mean, "+")
    if gain.low is not None and gain.high is not None:
        text += f" ({digits(gain.low, '+')} to {digits(gain.high, '+')})"
    return TableCell(text, mark=bool(row.marks) or row.twins.get(control) in marked)


def _of_marks(board: Leaderboard, rows: Sequence[Row]) -> Iterator[str]:
    """The meaning of the mark, and the marked rows among those shown and those that they are compared with."""
    keys = {row.key for row in rows}
    keys |= {score.against for row in rows for score in row.scores.values() if score.against}
    keys |= {twin for row in rows for twin in row.twins.values()}
    reasons: dict[str, list[str]] = {}
    for key, why in board.marked().items():
        if key in keys:
            reasons.setdefault("; ".join(why), []).append(key)
    if reasons:
        named = ". ".join(f"{first_few(found, 6)}: {why}" for why, found in reasons.items())
        yield (
            f"{MARK}: the figure may say more about the training budget or the data than about the model, or is "
            f"compared with one that may. {named}."
        )


def _of_seeds(counts: Collection[int]) -> str:
    few, many = min(counts), max(counts)
    return f"{few} to {many} seeds" if few < many else f"{few} seeds" if few > 1 else "1 seed"


def _of_split(board: Leaderboard) -> Iterator[str]:
    if board.users:
        yield "All intervals and p are conditional on this one split of the data: another split would move them all."


def _remarks(board: Leaderboard, rows: Sequence[Row], plan: Layout, *, beside: bool) -> Iterator[str]:
    """The remarks below a table, needed to judge its figures."""
    counts = {len(score.seeds) for row in rows for score in row.scores.values()} - {0}
    if counts:
        seeds = _of_seeds(counts)
        users = ", ".join(f"{name} {number:,}" for name, number in board.users.items())
        yield f"Test split; means over users{f' ({users})' if users else ''}, each averaged over {seeds}."
    if plan.across != "slice" and any(score.best for row in rows for score in row.scores.values()):
        yield "Bold: the best of its group."
    if board.comparisons and plan.across != "slice":
        starred = [len(score.seeds) for row in rows for score in row.scores.values() if score.star]
        seeds = ", three seeds or more on both sides" if min(starred, default=STAR_SEEDS) >= STAR_SEEDS else ""
        yield (
            f"*: above {board.baseline or 'the baseline'}, p < {board.alpha:g} (paired {board.test}, Holm-Bonferroni "
            f"over {board.comparisons:,} comparisons){seeds}."
        )
    if plan.gains and (controls := _controls(rows)):
        twins = ", ".join(f"over {control}" for control in controls)
        metric = board.main_metric
        yield f"{twins}: content gain, {metric} above the twin whose features are so, with its 95 % interval."
    yield from _of_marks(board, rows)
    yield from _of_split(board)
    if plan.across == "slice":
        yield "Slices are described, not tested; their intervals are in the CSV."
    if plan.across != "slice":
        for dataset, least in board.detectable.items():
            values = ", ".join(f"{metric} {value:.4f}" for metric, value in least.items())
            yield f"Detectable on {dataset}: {values}."
    if len(rows) < len(board.rows):
        others = len(board.rows) - len(rows)
        yield f"{others} of {len(board.rows)} rows have no place in this layout; plain shows all."
    if plan.across != "slice":
        yield from board.notes
    if beside:
        yield f"paper: the figures of {paper.about()['source']}; difference: ours less the paper's."
        yield from (str(count) for count in paper.counts(plan.table))


# CSV


def as_csv(board: Leaderboard, rows: Sequence[Row], published: Published) -> str:
    """One line for each row and metric; missing values are empty."""
    return csv_text(table_rows(board, rows, published))


def table_rows(
    board: Leaderboard, rows: Sequence[Row], published: Published = paper.published
) -> list[dict[str, object]]:
    """A mapping for each row and metric; missing values are None."""
    controls = _controls(rows)
    return [
        _csv_line(board, row, metric, published(row).get(metric), controls) for row in rows for metric in board.metrics
    ]


def slices_csv(board: Leaderboard, rows: Sequence[Row]) -> str:
    """One line for each row, metric and slice."""
    return csv_text(
        {
            **_csv_axes(board, row),
            "metric": metric,
            "slice": part,
            **_csv_interval(found.get(metric)),
            "marks": "; ".join(row.marks),
            "untested": board.untested,
        }
        for row in rows
        for metric in board.metrics
        for part, found in row.slices.items()
    )


def efficiency_csv(board: Leaderboard, rows: Sequence[Row]) -> str:
    """One line for each row, with each of its costs and a note on it."""
    costs = _costs(rows)
    return csv_text(
        {
            **_csv_axes(board, row),
            "state": row.state,
            "reason": row.reason,
            "seeds": len(row.seeds),
            **{name: row.cost[name].value if name in row.cost else None for name in costs},
            **{f"{name}_note": row.cost[name].note if name in row.cost else "" for name in costs},
            "device": row.reproducibility and row.reproducibility.device,
            "threads": row.reproducibility and row.reproducibility.threads,
        }
        for row in rows
    )


def _csv_axes(board: Leaderboard, row: Row) -> dict[str, object]:
    return {axis: _value(row, axis) for axis in _named_axes(board.rows)}


def _csv_interval(interval: Interval | None, names: Sequence[str] = ("mean", "low", "high")) -> dict[str, object]:
    values = (interval.mean, interval.low, interval.high) if interval else (None,) * 3
    return dict(zip(names, values, strict=True))


def _csv_line(
    board: Leaderboard, row: Row, metric: str, figure: float | None, controls: Sequence[str]
) -> dict[str, object]:
    score, marked = row.scores.get(metric), board.marked()
    gains: dict[str, object] = {}
    for control in controls:
        name = f"gain_over_{control}"
        gains |= _csv_interval(row.content_gain.get(control, {}).get(metric), (name, f"{name}_low", f"{name}_high"))
        gains[f"{name}_marks"] = "; ".join(marked.get(row.twins.get(control, ""), ()))
    return {
        **_csv_axes(board, row),
        **({"attempts": row.attempts["runs"] + row.attempts["earlier"]} if row.attempts else {}),
        "state": row.state,
        "reason": row.reason,
        "metric": metric,
        **_csv_interval(score.interval if score else None),
        "seeds": len(score.seeds) if score else 0,
        "users": board.users.get(row.axes.tested_on),
        "best": int(score.best) if score else None,
        "against": score and score.against,
        **_csv_interval(score.difference if score else None, ("difference", "difference_low", "difference_high")),
        "effect": score and score.effect,
        "p": score and score.p,
        "star": int(score.star) if score else None,
        "marks": "; ".join(row.marks),
        "against_marks": "; ".join(marked.get(score.against or "", ())) if score else "",
        "untested": board.untested,
        "paper": figure,
        "difference_to_paper": _difference(row, metric, figure),
        **gains,
    }
