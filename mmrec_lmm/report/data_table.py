"""Table 2 of the paper: data sets with their sizes and feature widths, and encoders with their parameters.

In the formats of the other tables. What the paper prints of a data set is below ours.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..formatting import csv_text
from ..plugin.specs import EncoderSpec
from ..types import Dataset
from . import paper
from .writers import DASH, Line, Table, TableCell, as_text

MODALITIES = ("image", "text", "joint")
COUNTS = ("users", "items", "interactions")
SLIP = 0.05  # a printed density that is so far from that of the printed counts isn't rounded but wrong


@dataclass(frozen=True)
class DatasetLine:
    """A data set's sizes: `interactions` are distinct pairs, `widths` those of its feature files by modality.

    In a line of the paper `density` is as printed, and None where that isn't recorded here.
    """

    name: str
    users: int
    items: int
    interactions: int
    density: str | None
    widths: Mapping[str, int] = field(default_factory=dict)


def about(dataset: Dataset, widths: Mapping[str, int]) -> DatasetLine:
    """The line of a data set whose feature files have these widths."""
    splits = (dataset.train, dataset.valid, dataset.test)
    pairs = len(np.unique(np.concatenate([rows.users * dataset.n_items + rows.items for rows in splits])))
    density = _density(dataset.n_users, dataset.n_items, pairs)
    return DatasetLine(dataset.name, dataset.n_users, dataset.n_items, pairs, density, widths)


def _density(users: int, items: int, interactions: int) -> str:
    return f"{interactions / (users * items):.5f}"


def published() -> dict[str, DatasetLine]:
    """The paper's data sets by name."""
    facts: Mapping[str, Mapping[str, Any]] = paper.about()["datasets"]
    return {
        name: DatasetLine(name, one["users"], one["items"], one["interactions"], one.get("density"))
        for name, one in facts.items()
    }


def data_table(datasets: Sequence[DatasetLine], encoders: Sequence[EncoderSpec], format: str) -> str:
    """Both tables as text in one of FORMATS; as CSV one table, with a line for each figure."""
    known, lines = published(), list[tuple[DatasetLine, str]]()
    for one in datasets:
        lines.append((one, "ours"))
        if theirs := known.get(one.name.lower()):
            lines.append((theirs, "paper"))
    if format == "csv":
        return csv_text([*_figures_of_datasets(lines), *_figures_of_encoders(encoders)])
    tables = [_datasets("Data sets", lines), _encoders(encoders)]
    return "\n".join(as_text(table, format) for table in tables if table.lines)


def published_datasets(format: str) -> str:
    """The paper's own figures alone."""
    lines = [(one, "paper") for one in published().values()]
    if format == "csv":
        return csv_text(_figures_of_datasets(lines))
    return as_text(_datasets("Table 2 as published: data sets", lines), format)


def _datasets(caption: str, lines: Sequence[tuple[DatasetLine, str]]) -> Table:
    widths = [name for name in MODALITIES if any(name in one.widths for one, _ in lines)]
    beside = {source for _, source in lines} == {"ours", "paper"}
    return Table(
        caption=caption,
        labels=("dataset", "source") if beside else ("dataset",),
        columns=(*COUNTS, "density", *(f"{name} width" for name in widths)),
        lines=tuple(
            Line((one.name, source) if beside else (one.name,), tuple(_cells(one, source, widths)), source)
            for one, source in lines
        ),
        footnotes={},
        remarks=tuple(_remarks(lines, widths)),
    )


def _cells(one: DatasetLine, source: str, widths: Sequence[str]) -> Iterator[TableCell]:
    for count in COUNTS:
        yield TableCell(f"{getattr(one, count):,}")
    yield TableCell(one.density or "")
    for name in widths:
        yield TableCell("" if source == "paper" else f"{one.widths[name]:,}" if name in one.widths else DASH)


def _remarks(lines: Sequence[tuple[DatasetLine, str]], widths: Sequence[str]) -> Iterator[str]:
    of_paper = [one for one, source in lines if source == "paper"]
    if len(of_paper) < len(lines):
        yield "Interactions are distinct pairs of user and item; density is their share of all pairs."
    if widths:
        yield f"Widths are of the data set's own feature files; {DASH}: it has none."
    if of_paper:
        yield f"paper: the figures of {paper.about()['source']}, as far as they are recorded here."
    for one in of_paper:
        counted = _density(one.users, one.items, one.interactions)
        if one.density and abs(float(one.density) / float(counted) - 1) > SLIP:
            yield f"The paper prints a density of {one.density} for {one.name}; its counts give {counted}."


def _encoders(encoders: Sequence[EncoderSpec]) -> Table:
    widths = [name for name in MODALITIES if any(name in (spec.dims or {}) for spec in encoders)]
    return Table(
        caption="Encoders",
        labels=("encoder",),
        columns=("parameters", *(f"{name} width" for name in widths)),
        lines=tuple(
            Line(
                (spec.name,),
                (
                    TableCell(f"{spec.parameters:,}" if spec.parameters else DASH),
                    *(
                        TableCell(f"{(spec.dims or {})[name]:,}" if name in (spec.dims or {}) else DASH)
                        for name in widths
                    ),
                ),
            )
            for spec in encoders
        ),
        footnotes={},
        remarks=(f"At default settings; {DASH}: no parameters, or no features of that modality.",),
    )


def _figures_of_datasets(lines: Sequence[tuple[DatasetLine, str]]) -> Iterator[dict[str, object]]:
    for one, source in lines:
        figures: dict[str, object] = {count: getattr(one, count) for count in COUNTS}
        figures |= {"density": one.density} if one.density else {}
        figures |= {f"{name} width": width for name, width in one.widths.items()}
        for what, value in figures.items():
            yield {"kind": "dataset", "name": one.name, "source": source, "figure": what, "value": value}


def _figures_of_encoders(encoders: Sequence[EncoderSpec]) -> Iterator[dict[str, object]]:
    for spec in encoders:
        figures = {
            "parameters": spec.parameters or 0,
            **{f"{m} width": width for m, width in (spec.dims or {}).items()},
        }
        for what, value in figures.items():
            yield {"kind": "encoder", "name": spec.name, "source": "ours", "figure": what, "value": value}
