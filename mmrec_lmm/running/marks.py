"""Marks: warnings that a run's numbers may reflect its budget or its data, and not its model.

If the best epoch is the first that was evaluated, the run has learned nothing after it; if it is the last, the run was
still learning when the budget ended; if the score is at chance, it has learned nothing that ranks items; if most items
lack a modality, it has learned without most of the content. Such a result is shown with its mark, and so is everything
that is compared with it.
"""

from collections import Counter
from collections.abc import Sequence

from ..features.controls import NO_FEATURES
from ..features.files import scarcity
from ..types import Chance, RunResult
from .run_folder import settings_of

UNTRAINED = "not trained"
FIRST = "best epoch is the first evaluated"
LAST = "best epoch is the last: still rising when the budget ended"
DEVIATIONS = 3  # above the mean of random rankings; a score up to there is at chance


def marks(result: RunResult) -> tuple[str, ...]:
    """The marks of a finished run, in plain words, if any."""
    found = [reason for reason in (_epoch_mark(result),) if reason]
    chance = result.record.chance
    if chance is not None:  # None in earlier runs
        splits = [name for name, found in (("validation", chance.valid), ("test", chance.test)) if at_chance(found)]
        found += [f"{chance.metric} at chance on {' and '.join(splits)}"] if splits else []
    record = result.record
    if record.axes.control != NO_FEATURES:  # `n_items` is 0 in earlier records
        scarce = (scarcity(modality, count, record.n_items) for modality, count in record.present.items())
        found += filter(None, scarce)
    return tuple(found)


def at_chance(found: Chance) -> bool:
    """True if random rankings could well reach the score."""
    return found.score <= found.mean + DEVIATIONS * found.deviation


def marks_of(results: Sequence[RunResult]) -> tuple[str, ...]:
    """The marks of a row, from the runs of its seeds; each with the number of runs if not all have it."""
    counts = Counter(reason for result in results for reason in marks(result))
    return tuple(
        reason if count == len(results) else f"{reason} ({count} of {len(results)} seeds)"
        for reason, count in counts.items()
    )


def _epoch_mark(result: RunResult) -> str:
    """The mark for the position of the best epoch; empty if it is between the first and the last."""
    if result.stopped == "untrained":
        return UNTRAINED
    settings = settings_of(result)
    epochs, every = (settings.epochs, settings.eval_step) if settings is not None else (result.epochs, 1)
    evaluated = result.epochs // every + (result.epochs == epochs and epochs % every > 0)
    if evaluated > 1 and result.best_epoch == min(every, epochs) - 1:
        return FIRST
    if result.stopped == "epochs" and result.best_epoch == epochs - 1:
        return LAST
    return ""
