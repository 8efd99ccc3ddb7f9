"""The layouts (LAYOUTS) and formats (FORMATS) of tables; `tables.py` fills and prints them.

They are choices of the command line: this module imports almost nothing.
"""

from collections.abc import Mapping
from typing import NamedTuple

FORMATS = ("markdown", "latex", "csv", "html")
ALL = "all"  # in the rows of a layout: all axes but the control, data sets and splits outermost


class Layout(NamedTuple):
    """The layout of a table. An axis that isn't named here gets a column too, if it differs among the rows shown."""

    caption: str
    rows: tuple[str, ...]  # axes whose values label a line, outermost first
    compares: str | None = None  # only rows for which another differs in this axis alone; no control runs
    across: str = "metric"  # the axis whose values are the columns; or slice, claim, cost: tables of their own
    pre_trained: bool = False  # only rows whose encoder nothing trains
    table: int | None = None  # number of the table in the paper
    gains: bool = False  # also columns for content gain, if some row has control runs


LAYOUTS: Mapping[str, Layout] = {
    "plain": Layout("all rows", rows=(ALL,), gains=True),
    "table1": Layout(
        "modalities side by side",
        rows=("dataset", "metric", "model"),
        compares="modalities",
        across="modalities",
        table=1,
    ),
    "table3": Layout(
        "encoders as pre-trained",
        rows=("dataset", "model", "encoder"),
        compares="encoder",
        pre_trained=True,
        table=3,
    ),
    "table4": Layout(
        "pre-trained, fine-tuned and end-to-end encoders",
        rows=("dataset", "encoder", "model", "paradigm"),
        compares="paradigm",
        table=4,
    ),
    "table5": Layout(
        "one modality against both",
        rows=("metric", "encoder", "model", "modalities"),
        compares="modalities",
        across="dataset",
        table=5,
    ),
    "slices": Layout("parts of test", rows=("metric", ALL), across="slice"),
    "claims": Layout("how often one value of an axis beats another, all else equal", rows=(ALL,), across="claim"),
    "efficiency": Layout("seconds, parameters and memory", rows=("model", "modalities"), across="cost"),
}
