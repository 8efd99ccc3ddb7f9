"""Marks: why a run's numbers may say more of its budget than of its model.

A run whose best epoch is the first or the last that was evaluated has learned nothing after the first, or was still
learning when the budget ended; one whose score is at chance has learned nothing that ranks items. Such a result is
shown, with the mark, and so is everything that is compared with it.
"""

from collections import Counter
from collections.abc import Sequence

from ..types import Chance, RunResult
from .run_folder import load_settings

UNTRAINED = "not trained"
FIRST = "best epoch is the first evaluated"
LAST = "best epoch is the last: still rising when the budget ended"
DEVIATIONS = 3  # above the mean of random rankings, from where on a score is no chance


def marks(result: RunResult) -> tuple[str, ...]:
    """The reasons why a finished run is marked, in plain words; none where it isn't."""
    found = [reason for reason in (_epoch_mark(result),) if reason]
    chance = result.record.chance
    if chance is not None:  # earlier runs don't say
        splits = [name for name, found in (("validation", chance.valid), ("test", chance.test)) if at_chance(found)]
        found += [f"{chance.metric} at chance on {' and '.join(splits)}"] if splits else []
    return tuple(found)


def at_chance(found: Chance) -> bool:
    """Whether a score is no better than random rankings may well be."""
    return found.score <= found.mean + DEVIATIONS * found.deviation


def marks_of(results: Sequence[RunResult]) -> tuple[str, ...]:
    """The marks of a row, from the runs of its seeds; with how many of them where not all share one."""
    counts = Counter(reason for result in results for reason in marks(result))
    return tuple(
        reason if count == len(results) else f"{reason} ({count} of {len(results)} seeds)"
        for reason, count in counts.items()
    )


def _epoch_mark(result: RunResult) -> str:
    """What the best epoch's place says; nothing where it lies between the first and the last."""
    if result.stopped == "untrained":
        return UNTRAINED
    settings = load_settings(result.path)
    epochs, every = (settings.epochs, settings.eval_step) if settings is not None else (result.epochs, 1)
    evaluated = result.epochs // every + (result.epochs == epochs and epochs % every > 0)
    if evaluated > 1 and result.best_epoch == min(every, epochs) - 1:
        return FIRST
    if result.stopped == "epochs" and result.best_epoch == epochs - 1:
        return LAST
    return ""
