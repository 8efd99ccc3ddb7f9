"""What a study has found so far, as a leaderboard: of each cell the winner on validation, compared on test."""

from dataclasses import replace

from ..cache import write_json
from ..data.opening import open_dataset
from ..plugin.registry import Registry
from ..running.slices import Slicer
from .comparison import Entry, compare
from .executor import Outcome, Plan
from .file import winner
from .leaderboard import Leaderboard

LEADERBOARD = "leaderboard.json"  # in the study's folder


def find(plan: Plan, registry: Registry) -> Leaderboard:
    """The leaderboard of what is finished; cells that are pending, failed or not applicable stay, with the reason.

    It is also written to the study's folder. Raises ConfigError where the runs lack a metric that the study compares,
    DataError where runs on one data set were tested on different users.
    """
    study, outcomes = plan.study, plan.outcomes()
    entries: dict[str, Entry] = {}
    for entry in map(_entry, outcomes):
        # Where a data set has one modality, "all that there are" and that one are one row: of whichever got further
        entries[entry.key] = max(entries.get(entry.key, entry), entry, key=lambda one: len(one.runs))
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
    runs = winner(cell, outcome.results) if cell.runs else ()
    axes = replace(cell.axes, modalities=runs[0].record.axes.modalities) if runs else cell.axes
    return Entry(axes, runs=runs, state=outcome.state, reason=outcome.reason)


def _slicers(outcomes: list[Outcome], registry: Registry) -> dict[str, Slicer]:
    """For each data set on which something is finished."""
    slicers: dict[str, Slicer] = {}
    for outcome in outcomes:
        name = outcome.cell.axes.dataset
        if name not in slicers and any(outcome.results):
            settings = outcome.cell.runs[0].settings
            slicers[name] = Slicer(open_dataset(name, settings, registry), settings.text_fields, registry)
    return slicers
