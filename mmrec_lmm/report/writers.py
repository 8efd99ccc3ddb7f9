"""A Table, which is independent of its format, and its writers: Markdown, LaTeX and HTML, each with its own escapes.

Bold, stars, marks and footnotes of a cell look the same in all of them.
"""

import html
import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..formatting import aligned, printable

DASH = "–"  # for a missing figure
MINUS = "−"
MARK = "†"  # after figures that may reflect the training budget more than the model, and figures compared with them
LONG = 45  # lines that fit on a page; a longer table spans several
WIDE = 85  # characters that fit into a line of text


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


class Footnotes:
    """Assigns letters to footnotes in the order of first use; equal texts share a letter."""

    def __init__(self) -> None:
        self._letters: dict[str, str] = {}

    def letter(self, text: str) -> str:
        place = len(self._letters)
        letter = string.ascii_lowercase[place % 26] * (place // 26 + 1)  # a, b, ..., z, aa, bb
        return self._letters.setdefault(" ".join(text.split()), letter)

    def texts(self) -> dict[str, str]:
        return {letter: text for text, letter in self._letters.items()}


def digits(value: float, sign: str = "") -> str:
    """A figure with four decimals."""
    return f"{value:{sign}.4f}".replace("-", MINUS)


def as_text(table: Table, format: str) -> str:
    """A table in one of FORMATS but CSV."""
    return {"markdown": as_markdown, "latex": as_latex, "html": as_html}[format](table)


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
    """A booktabs table to \\input in a document; a longtable if it is longer than a page. Needs no other package; one
    that is wider than the text is scaled down to it if graphicx is loaded."""
    long = len(table.lines) > LONG
    scaled = not long and _width(table) > WIDE
    shape = "l" * len(table.labels) + "r" * len(table.columns)
    caption = f"\\caption{{{_tex(table.caption)}}}"
    head = [r"\toprule", " & ".join(map(_tex, (*table.labels, *table.columns))) + r" \\", r"\midrule"]
    start = (
        [rf"\begin{{longtable}}{{{shape}}}", rf"{caption} \\"]
        if long
        else [
            r"\begin{table}",
            r"\centering",
            caption,
            *([r"\providecommand{\resizebox}[3]{#3}\resizebox{\linewidth}{!}{%"] if scaled else []),
            rf"\begin{{tabular}}{{{shape}}}",
        ]
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
            rf"% \usepackage{{booktabs{',longtable' if long else ',graphicx' if scaled else ''}}}",
            r"{\footnotesize\setlength{\tabcolsep}{4pt}",
            *start,
            *head,
            *([r"\endfirsthead", *head, r"\endhead"] if long else []),
            *lines,
            r"\bottomrule",
            r"\end{longtable}" if long else r"\end{tabular}" + "}" * scaled,
            r"\par\smallskip\raggedright",
            *(rf"{note}\par" for note in notes),
            *([] if long else [r"\end{table}"]),
            r"}",
            "",
        ]
    )


def _width(table: Table) -> int:
    """The width of a table in characters: the longest of each column, and two between them."""
    lines = [(*line.labels, *(cell.text for cell in line.cells)) for line in table.lines]
    return sum(2 + max(map(len, column)) for column in zip((*table.labels, *table.columns), *lines, strict=True))


def _tex(text: str) -> str:
    """Text escaped for LaTeX; a character that its default fonts may lack is printed as its code point. Two hyphens or
    quotes stay two."""
    parted = re.sub(r"([-'`])(?=\1)", "\\1\0", printable(text, ""))
    return "".join(TEX.get(c, c if c.isascii() else rf"\texttt{{U+{ord(c):04X}}}") for c in parted).replace("\0", "{}")


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
