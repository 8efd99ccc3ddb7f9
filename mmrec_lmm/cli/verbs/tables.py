"""`table` and `paper`: print leaderboards as tables."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ConfigError
from ...report.layouts import LAYOUTS
from ..parser import add_verb, how_to_print, which_layout
from ..shared import write

if TYPE_CHECKING:
    from ..parser import Verbs


DATA_SETS = 2  # the paper's table that is no leaderboard
TABLES = tuple(sorted({DATA_SETS, *(layout.table for layout in LAYOUTS.values() if layout.table)}))  # the paper's


def add(verbs: Verbs) -> None:
    table = add_verb(verbs, "table", _table, "Print a study's leaderboard as a table.")
    table.add_argument("file", type=Path, help="a leaderboard as JSON, as a study writes it")
    which_layout(table)
    how_to_print(table)

    paper = add_verb(verbs, "paper", _paper, "Print the paper's own tables, with its claims recounted.")
    paper.add_argument("--table", type=int, choices=TABLES, help="one table (default: all)")
    how_to_print(paper)


def _table(options: argparse.Namespace) -> int:
    from ...report.tables import render
    from ...studies.leaderboard import read_leaderboard

    write(render(read_leaderboard(options.file), layout=options.layout, format=options.format), options.output)
    return 0


def _paper(options: argparse.Namespace) -> int:
    from ...report import paper
    from ...report.data_table import published_datasets
    from ...report.tables import render

    if options.format == "csv" and options.table is None:
        raise ConfigError("--format csv: expected one table, as CSV holds no more, got all; try --table 3")
    texts = [
        published_datasets(options.format)
        if table == DATA_SETS
        else render(paper.leaderboard(table), layout=f"table{table}", format=options.format, published=lambda row: {})
        for table in ([options.table] if options.table else TABLES)
    ]
    write("\n".join(texts), options.output)
    return 0
