"""What a study has found so far, as a leaderboard: of each cell the winner on validation, compared on test."""

from typing import Any

from .artifacts import write_json
from .comparison import Entry, compare
from .engine import Outcome, Plan
from .inputs import open_dataset
from .leaderboard import Leaderboard
from .registry import Registry
from .slices import Slicer
from .study import winner

LEADERBOARD = "leaderboard.json"  # in the study's folder


def find(plan: Plan, registry: Registry) -> Leaderboard:
    """The leaderboard of what is finished; cells that are pending, failed or not applicable stay, with the reason.

    It is also written to the study's folder. Raises ConfigError where the runs lack a metric that the study compares,
    DataError where runs on one data set were tested on different users.
    """
    study, outcomes = plan.study, plan.outcomes()
    entries: dict[Any, Entry] = {}
    for place, outcome in enumerate(outcomes):
        entry = _entry(outcome)
        # Where a data set has one modality, "all that there are" and that one are the same runs, and one row
        entries.setdefault(tuple(run.run_id for run in entry.runs) or place, entry)
    board = compare(
        [*entries.values()],
        study=study.name,
        title=study.title,
        metrics=study.metrics,
        baseline=study.baseline,
        test=study.test,
        alpha=study.alpha,
        best_within=study.best_within,
        family=study.family,
        slicers=_slicers(outcomes, registry) if study.slices else None,
    )
    write_json(plan.folder / LEADERBOARD, board.document())
    return board


def _entry(outcome: Outcome) -> Entry:
    cell = outcome.cell
    return Entry(
        cell.model,
        cell.dataset,
        cell.encoder,
        cell.paradigm,
        cell.modalities,
        cell.control,
        runs=winner(cell, outcome.results) if cell.runs else (),
        state=outcome.state,
        reason=outcome.reason,
    )


def _slicers(outcomes: list[Outcome], registry: Registry) -> dict[str, Slicer]:
    """For each data set on which something is finished."""
    slicers: dict[str, Slicer] = {}
    for outcome in outcomes:
        if outcome.cell.dataset not in slicers and any(outcome.results):
            settings = outcome.cell.runs[0].settings
            dataset = open_dataset(outcome.cell.dataset, settings, registry)
            slicers[outcome.cell.dataset] = Slicer(dataset, settings.text_fields, registry)
    return slicers
