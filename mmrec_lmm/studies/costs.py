"""What a row's runs cost, from their records: seconds, parameters, memory; each the median over the row's seeds."""

from collections.abc import Callable, Sequence
from statistics import median

from ..types import PRE_TRAINED, EncoderCost, RunRecord, RunResult
from .leaderboard import Measured

CACHED = "found in the cache: the seconds of the run that made it"
NO_TIME = "found in the cache, which doesn't say how long it took"
NO_COUNT = "features found in the cache, which doesn't say how many parameters made them"
NOT_REPORTED = "its paradigm doesn't report it"
NOT_JOINT = "its encoder isn't trained with the recommender, or an earlier version did it"
NO_ENCODER, FROM_FILES = "no encoder", "features from files"
EARLIER = "run by an earlier version, which didn't record it"
UNMEASURED = "not measured"


#: The parts of an epoch that trains an encoder with the model.
PARTS = ("recommender", "loading", "forward", "backward", "refresh", "evaluation")


def cost_of(runs: Sequence[RunResult]) -> dict[str, Measured]:
    """The cost of a row's runs by name: seconds of `encode` and `tune`, `train` (all epochs with their evaluations) and
    one `epoch`; parameters of the model and of its encoder, trained and in all; `memory`, the peak in bytes; and of an
    encoder that is trained with the model, `cached` bytes and the seconds of a joint epoch by its PARTS."""
    records = [run.record for run in runs]
    epochs = [run.record.seconds.train / run.epochs if run.epochs else 0.0 for run in runs]
    return {
        "encode": _of_encoder(records, lambda cost: cost.encode, NO_TIME, lambda record: record.seconds.encode),
        "tune": _of_encoder(records, lambda cost: cost.tune, NO_TIME, lambda record: record.seconds.tune),
        "epoch": _median(epochs),
        "train": _median([record.seconds.train for record in records]),
        "parameters": _median([record.parameters for record in records], EARLIER),
        "parameters_trained": Measured(median(record.parameters_trained for record in records)),
        "encoder_parameters": _of_encoder(records, lambda cost: cost.parameters, NO_COUNT),
        "encoder_parameters_trained": _of_encoder(records, lambda cost: cost.parameters_trained, NOT_REPORTED),
        "memory": _median([record.peak_memory_bytes for record in records]),
        **_of_joint_epoch([record.encoder_cost for record in records]),
    }


def _of_joint_epoch(costs: Sequence[EncoderCost | None]) -> dict[str, Measured]:
    """What only encoders cost that are trained with the model; nothing for others."""
    seconds = [cost.epoch_seconds for cost in costs if cost is not None and cost.epoch_seconds is not None]
    cached = [cost.cached_bytes for cost in costs if cost is not None and cost.cached_bytes is not None]
    by_part = {part: Measured(median(each.get(part, 0.0) for each in seconds)) for part in PARTS if seconds}
    return {**by_part, **({"cached": Measured(median(cached))} if cached else {})}


def _median(values: Sequence[float | None], otherwise: str = UNMEASURED) -> Measured:
    """The median of the values that are known; 0 is none, as all that is measured so takes some."""
    known = [value for value in values if value]
    return Measured(median(known)) if known else Measured(None, otherwise)


def _of_encoder(
    records: Sequence[RunRecord],
    value: Callable[[EncoderCost], float | None],
    otherwise: str,
    here: Callable[[RunRecord], float] | None = None,
) -> Measured:
    """The median of a cost of the encoder. `here` is what a run itself spent on it: where that is less for each run,
    another run made it, and this is noted."""
    costs = [_encoder_cost(record) for record in records]
    if isinstance(costs[0], str):
        return Measured(None, costs[0])
    known = {
        place: number
        for place, cost in enumerate(costs)
        if not isinstance(cost, str) and (number := value(cost)) is not None
    }
    if not known:
        return Measured(None, otherwise)
    cached = here is not None and all(here(records[place]) < number for place, number in known.items())
    return Measured(median(known.values()), CACHED if cached else "")


def _encoder_cost(record: RunRecord) -> EncoderCost | str:
    """The cost of a run's encoder, or why there is none."""
    if record.encoder_cost is not None:
        return record.encoder_cost
    if record.axes.encoder is None:
        return NO_ENCODER
    if record.parameters is not None:
        return FROM_FILES
    if record.axes.paradigm == PRE_TRAINED and record.seconds.encoder:
        return EncoderCost(record.seconds.encoder, 0.0, None, 0)
    return EARLIER
