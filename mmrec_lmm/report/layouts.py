"""What tables there are: the layouts of LAYOUTS in the formats of FORMATS. `tables.py` fills and prints them.

The command line's choices: this imports next to nothing.
"""

from collections.abc import Mapping
from typing import NamedTuple

from ..types import AXES, PRE_TRAINED

FORMATS = ("markdown", "latex", "csv", "html")
TABLE_AXES = ("dataset", *(axis for axis in AXES if axis != "dataset"))  # data sets are outermost in a table


class Layout(NamedTuple):
    """How a table is laid out. An axis that isn't named here, but differs among the rows shown, gets a column too."""

    caption: str
    rows: tuple[str, ...]  # axes whose values name a line, outermost first
    compares: str | None = None  # only rows that have another beside them which differs in this axis alone, no control
    across: str = "metric"  # the axis whose values stand side by side
    paradigm: str | None = None  # only rows of this one
    table: int | None = None  # of the paper
    gains: bool = False  # columns for what each row is above its control twins, where it has any


LAYOUTS: Mapping[str, Layout] = {
    "plain": Layout("all rows", rows=TABLE_AXES[:-1], gains=True),
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
        paradigm=PRE_TRAINED,
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
    "slices": Layout("parts of test", rows=("metric", *TABLE_AXES[:-1]), across="slice"),
}
