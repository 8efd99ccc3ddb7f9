"""The leaderboard of a study so far: the winner of each cell on validation, compared on test."""

import logging
from dataclasses import replace

from ..data.opening import open_dataset
from ..disk.writing import write_json
from ..errors import DataError, NoAccess
from ..plugin.registry import Registry
from ..running.run_folder import load_per_user, settings_of
from ..running.slices import Slicer
from .budgets import budgets, verdict
from .comparison import Entry, Method, compare, smaller_is_better
from .executor import Outcome, Plan
from .file import winner
from .leaderboard import FAILED, Leaderboard

logger = logging.getLogger(__name__)

LEADERBOARD = "leaderboard.json"  # in the study's folder


def find(plan: Plan, registry: Registry) -> Leaderboard:
    """The leaderboard of the finished runs, also written to the study's folder if this user may write there.

    Cells that are pending, failed or not applicable stay, with the reason. Raises ConfigError if runs lack a metric
    that the study compares, DataError if runs on one data set were tested on different users.
    """
    study, outcomes = plan.study, plan.outcomes()
    entries: dict[str, Entry] = {}
    for entry in map(_entry, outcomes):
        # On a data set with one modality, "all" and that one are the same row: keep the entry with more runs
        entries[entry.key] = max(entries.get(entry.key, entry), entry, key=lambda one: len(one.runs))
    method = Method(
        metrics=study.metrics,
        baseline=study.baseline,
        test=study.test,
        alpha=study.alpha,
        best_within=study.best_within,
        family=study.family,
        streams={encoder.name: encoder.streams for encoder in registry.encoders if encoder.streams},
        smaller=smaller_is_better(registry),
    )
    slicers = _slicers(outcomes, registry) if study.slices else None
    board = compare([*entries.values()], method, study=study.name, title=study.title, slicers=slicers)
    if study.search == "random":
        board = replace(board, notes=(*board.notes, _sentence(verdict(plan, budgets(plan)))))
    try:
        write_json(plan.folder / LEADERBOARD, board.document())
    except NoAccess as error:
        logger.warning("the leaderboard isn't kept: %s", error)
    return board


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _entry(outcome: Outcome) -> Entry:
    """The winner of a cell. One whose settings or numbers by user can't be read is failed, with the reason: other rows
    go on."""
    cell = outcome.cell
    runs = winner(cell, outcome.results) if cell.runs else ()
    axes = replace(cell.axes, modalities=runs[0].record.axes.modalities) if runs else cell.axes
    try:
        for run in runs:
            load_per_user(run.path)
            settings_of(run)
    except DataError as error:
        return Entry(axes, state=FAILED, reason=str(error))
    return Entry(axes, runs=runs, state=outcome.state, reason=outcome.reason)


def _slicers(outcomes: list[Outcome], registry: Registry) -> dict[str, Slicer]:
    """A slicer for each data set and split with a finished run."""
    slicers: dict[str, Slicer] = {}
    for outcome in outcomes:
        axes = outcome.cell.axes
        if axes.tested_on not in slicers and any(outcome.results):
            settings = outcome.cell.runs[0].settings
            dataset = open_dataset(axes.dataset, settings, registry)
            slicers[axes.tested_on] = Slicer(dataset, settings.text_fields, registry)
    return slicers
