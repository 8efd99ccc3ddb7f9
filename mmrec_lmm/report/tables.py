"""A Leaderboard as tables for a paper: Markdown, LaTeX, CSV and HTML, in the layouts of LAYOUTS.

`arrange` makes a Table, which is independent of the format: labels, cells, footnotes, remarks. The writers below turn
it into text, each with its own escapes. CSV differs: it has a line for each row and metric, with all that was measured.
If the paper has a figure for a row, it is printed below ours.
"""

import dataclasses
import html
import string
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..errors import ConfigError
from ..formatting import aligned, csv_text, first_few, printable
from ..studies.leaderboard import FINISHED, STAR_SEEDS, Interval, Leaderboard, Row
from ..types import AXES, PRE_TRAINED
from . import paper
from .layouts import ALL, LAYOUTS, Layout

OUTER_AXES = ("dataset", "split")  # outermost in a table
TABLE_AXES = (*OUTER_AXES, *(axis for axis in AXES if axis not in OUTER_AXES))
DASH = "–"  # for a missing figure
MINUS = "−"
MARK = "†"  # after figures that may reflect the training budget more than the model, and figures compared with them
NONE = "-"  # for an axis on which a row has no value
LONG = 45  # lines that fit on a page; a longer table spans several

Published = Callable[[Row], Mapping[str, float]]  # metric -> published figure for a row's combination


@dataclass(frozen=True)
class TableCell:
    """One entry of a table."""

    text: str = ""
    bold: bool = False
    star: bool = False
    mark: bool = False
    note: str = ""  # the letter of its footnote


@dataclass(frozen=True)
class Line:
    """One line of a table: its labels, and a cell for each column."""

    labels: tuple[str, ...]
    cells: tuple[TableCell, ...]
    source: str = "ours"  # or "paper", or "difference"


@dataclass(frozen=True)
class Table:
    """A table, independent of its format."""

    caption: str
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    footnotes: Mapping[str, str]  # letter -> text
    remarks: tuple[str, ...]

    def breaks(self) -> Iterator[tuple[Line, int]]:
        """Each line, with the number of leading labels that it shares with the line before."""
        before: tuple[str, ...] = ()
        for line in self.lines:
            same = [mine == other for mine, other in zip(line.labels, before, strict=False)]
            yield line, same.index(False) if False in same else len(same)
            before = line.labels


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
    if format == "csv":
        return slices_csv(board, rows) if plan.across == "slice" else as_csv(board, rows, published)
    table = _sliced(board, rows, plan) if plan.across == "slice" else arrange(board, rows, plan, published)
    return as_text(table, format)


def as_text(table: Table, format: str) -> str:
    """A table in one of FORMATS but CSV."""
    return {"markdown": as_markdown, "latex": as_latex, "html": as_html}[format](table)


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
    order = {axis: _order(axis, rows) for axis in TABLE_AXES} | {"metric": list(board.metrics)}
    found = {
        (*_labels(row, axes, metric), label(row, plan.across, metric)): (row, metric)
        for row in rows
        for metric in board.metrics
    }
    footnotes, marked = _Footnotes(), board.marked()
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
        for row in rows:
            found = [row.slices[part][metric].mean if part in row.slices else None for part in parts]
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


def _slices_of(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(part for row in rows for part in row.slices))


def _controls(rows: Iterable[Row]) -> list[str]:
    """The controls over which some row has a content gain."""
    return list(dict.fromkeys(control for row in rows for control in row.content_gain))


def _caption(board: Leaderboard, rows: Sequence[Row], plan: Layout) -> str:
    """The caption: why nothing was tested, if so; the title, the layout, and values that all rows share."""
    shared = [axis for axis in TABLE_AXES if axis not in (*plan.rows, plan.across) and len(_order(axis, rows)) == 1]
    values = [value for axis in shared if (value := label(rows[0], axis)) != NONE]
    return f"{board.untested} {board.title}: {', '.join([plan.caption, *values])}".lstrip()


def _axes(plan: Layout, rows: Sequence[Row]) -> tuple[str, ...]:
    """The axes that label a line: the layout's, with others that differ inserted before its last."""
    known = (*plan.rows, plan.across)
    others = [axis for axis in TABLE_AXES if axis not in known and len(_order(axis, rows)) > 1]
    return (*plan.rows[:-1], *others, plan.rows[-1])


def _order(axis: str, rows: Sequence[Row]) -> list[str]:
    """The values of an axis in the order of the study, but with the pre-trained paradigm first."""
    found = dict.fromkeys(label(row, axis) for row in rows)
    return sorted(found, key=lambda value: value != PRE_TRAINED) if axis == "paradigm" else list(found)


def _with_axes(plan: Layout, rows: Sequence[Row]) -> Layout:
    """The layout with the axes among its rows in place of ALL: without the control, and without a split if there is
    none."""
    named = tuple(axis for axis in _named_axes(rows) if axis != "control")
    return plan._replace(rows=tuple(axis for name in plan.rows for axis in (named if name == ALL else (name,))))


def _named_axes(rows: Iterable[Row]) -> tuple[str, ...]:
    """TABLE_AXES, without the split if no row has one."""
    return TABLE_AXES if any(row.axes.split for row in rows) else tuple(axis for axis in TABLE_AXES if axis != "split")


def label(row: Row, axis: str, metric: str = "") -> str:
    """A row's value on one of TABLE_AXES as text; on the axis "metric", the argument `metric`."""
    if axis == "metric":
        return metric
    return row.axes.value(axis) or NONE


def _labels(row: Row, axes: Iterable[str], metric: str = "") -> tuple[str, ...]:
    return tuple(label(row, axis, metric) for axis in axes)


class _Footnotes:
    """Assigns letters to footnotes in the order of first use; equal texts share a letter."""

    def __init__(self) -> None:
        self._letters: dict[str, str] = {}

    def letter(self, text: str) -> str:
        place = len(self._letters)
        letter = string.ascii_lowercase[place % 26] * (place // 26 + 1)  # a, b, ..., z, aa, bb
        return self._letters.setdefault(" ".join(text.split()), letter)

    def texts(self) -> dict[str, str]:
        return {letter: text for text, letter in self._letters.items()}


def _cell(row: Row | None, metric: str, footnotes: _Footnotes, marked: Mapping[str, tuple[str, ...]]) -> TableCell:
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
    return TableCell() if value is None else TableCell(_digits(value, sign), mark=mark)


def _digits(value: float, sign: str = "") -> str:
    return f"{value:{sign}.4f}".replace("-", MINUS)


def _gain(row: Row | None, metric: str, control: str, marked: Mapping[str, tuple[str, ...]]) -> TableCell:
    """A row's gain over its control run, with the interval if there is one; marked if either is; else empty."""
    gain: Interval | None = row.content_gain.get(control, {}).get(metric) if row else None
    if row is None or gain is None:
        return TableCell()
    text = _digits(gain.mean, "+")
    if gain.low is not None and gain.high is not None:
        text += f" ({_digits(gain.low, '+')} to {_digits(gain.high, '+')})"
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


def _remarks(board: Leaderboard, rows: Sequence[Row], plan: Layout, *, beside: bool) -> Iterator[str]:
    """The remarks below a table, needed to judge its figures."""
    counts = {len(score.seeds) for row in rows for score in row.scores.values()} - {0}
    if counts:
        few, many = min(counts), max(counts)
        seeds = f"{few} to {many} seeds" if few < many else f"{few} seeds" if few > 1 else "1 seed"
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
    if board.users:
        yield "All intervals and p are conditional on this one split of the data: another split would move them all."
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


# Markdown


def as_markdown(table: Table) -> str:
    """A table in GitHub's Markdown, aligned to be readable as plain text too."""
    header = [_md(name) for name in (*table.labels, *table.columns)]
    body = [
        [
            *("" if place < said else _md(label) for place, label in enumerate(line.labels)),
            *map(_md_cell, line.cells),
        ]
        for line, said in table.breaks()
    ]
    right = [*(False for _ in table.labels), *(True for _ in table.columns)]
    head, *rows = aligned([header, *body], right=right, at_least=3)
    rule = ["-" * (len(text) - 1) + ":" if end else "-" * len(text) for text, end in zip(head, right, strict=True)]
    lines = [f"| {' | '.join(line)} |" for line in (head, rule, *rows)]
    notes = [f"({letter}) {_md(text)}" for letter, text in table.footnotes.items()] + list(map(_md, table.remarks))
    return "\n".join([f"**{_md(table.caption)}**", "", *lines, "", "  \n".join(notes)]).rstrip() + "\n"


def _md(text: str) -> str:
    return "".join(
        f"\\{character}" if character in "\\`*_[]<>|&~$#" else character for character in printable(text, "")
    )


def _md_cell(cell: TableCell) -> str:
    text = f"**{_md(cell.text)}**" if cell.bold else _md(cell.text)
    text += ("\\*" if cell.star else "") + (MARK if cell.mark else "")
    return text + (f" ({cell.note})" if cell.note else "")


# LaTeX

TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    DASH: "--",
    MARK: r"\dag{}",
    MINUS: "$-$",
    **{character: f"\\{character}" for character in "{}$&#%_"},
}


def as_latex(table: Table) -> str:
    """A booktabs table to \\input in a document; a longtable if it is longer than a page. Needs no other package."""
    long = len(table.lines) > LONG
    shape = "l" * len(table.labels) + "r" * len(table.columns)
    caption = f"\\caption{{{_tex(table.caption)}}}"
    head = [r"\toprule", " & ".join(map(_tex, (*table.labels, *table.columns))) + r" \\", r"\midrule"]
    start = (
        [rf"\begin{{longtable}}{{{shape}}}", rf"{caption} \\"]
        if long
        else [r"\begin{table}", r"\centering", caption, rf"\begin{{tabular}}{{{shape}}}"]
    )
    names = len([label for label in table.labels if label != "source"])
    lines: list[str] = []
    for line, said in table.breaks():
        if lines and said == 0 and len(line.labels) > 1:
            lines.append(r"\midrule")
        elif lines and said < names - 1:
            lines.append(r"\addlinespace")
        labels = ["" if place < said else _tex(label) for place, label in enumerate(line.labels)]
        lines.append(
            " & ".join([*labels, *(_tex_cell(cell, italic=line.source != "ours") for cell in line.cells)]) + r" \\"
        )
    notes = [rf"\textsuperscript{{{letter}}} {_tex(text)}" for letter, text in table.footnotes.items()]
    notes += map(_tex, table.remarks)
    return "\n".join(
        [
            rf"% \usepackage{{booktabs{',longtable' if long else ''}}}",
            r"{\footnotesize\setlength{\tabcolsep}{4pt}",
            *start,
            *head,
            *([r"\endfirsthead", *head, r"\endhead"] if long else []),
            *lines,
            r"\bottomrule",
            r"\end{longtable}" if long else r"\end{tabular}",
            r"\par\smallskip\raggedright",
            *(rf"{note}\par" for note in notes),
            *([] if long else [r"\end{table}"]),
            r"}",
            "",
        ]
    )


def _tex(text: str) -> str:
    """Text escaped for LaTeX; a character that its default fonts may lack is printed as its code point."""
    return "".join(TEX.get(c, c if c.isascii() else rf"\texttt{{U+{ord(c):04X}}}") for c in printable(text, ""))


def _tex_cell(cell: TableCell, *, italic: bool) -> str:
    text = _tex(cell.text)
    if cell.bold:
        text = rf"\textbf{{{text}}}"
    if italic and text:
        text = rf"\textit{{{text}}}"
    text += ("*" if cell.star else "") + (_tex(MARK) if cell.mark else "")
    return text + (rf"\textsuperscript{{{cell.note}}}" if cell.note else "")


# HTML


def as_html(table: Table) -> str:
    """A table element and its notes, without style, to put into any page."""
    names = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in (*table.labels, *table.columns))
    lines = [
        f"<table>\n<caption>{html.escape(table.caption)}</caption>",
        f"<thead>\n<tr>{names}</tr>\n</thead>\n<tbody>",
    ]
    for line in table.lines:
        labels = "".join(f'<th scope="row">{html.escape(label)}</th>' for label in line.labels)
        lines.append(f"<tr>{labels}{''.join(f'<td>{_html_cell(cell)}</td>' for cell in line.cells)}</tr>")
    notes = [f"<sup>{letter}</sup> {html.escape(text)}" for letter, text in table.footnotes.items()]
    notes += map(html.escape, table.remarks)
    return "\n".join([*lines, "</tbody>\n</table>", *(f"<p>{note}</p>" for note in notes), ""])


def _html_cell(cell: TableCell) -> str:
    text = html.escape(cell.text)
    text = f"<strong>{text}</strong>" if cell.bold else text
    text += ("*" if cell.star else "") + (MARK if cell.mark else "")
    return text + (f"<sup>{cell.note}</sup>" if cell.note else "")


# CSV


def as_csv(board: Leaderboard, rows: Sequence[Row], published: Published) -> str:
    """One line for each row and metric; missing values are empty."""
    controls = _controls(rows)
    return csv_text(
        _csv_line(board, row, metric, published(row).get(metric), controls) for row in rows for metric in board.metrics
    )


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


def _csv_axes(board: Leaderboard, row: Row) -> dict[str, object]:
    return {axis: row.axes.value(axis) for axis in _named_axes(board.rows)}


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
