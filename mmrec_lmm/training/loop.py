"""The training loop of recommenders and encoders: epochs, early stopping by patience, and the best weights so far.

A recommender (trainer.py) and an encoder in tuning (fine_tuning.py) define an epoch and its score. This loop decides
when training stops, which weights are kept, and what happens if training diverges.
"""

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from ..errors import TrainingDiverged

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Validation:
    """The result of one evaluation: the score that selects the epoch (larger is better), and all metrics.

    `found` are tensors of whoever evaluates, such as a ranking. Those of the best evaluation are kept and saved with
    the best weights; the loop doesn't know what they mean.
    """

    score: float
    metrics: Mapping[str, float]
    found: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)


class Numbers(Protocol):
    """The numbers of a training state, a dataclass that JSON can hold."""

    @property
    def best_epoch(self) -> int: ...

    @property
    def stopped(self) -> str | None:
        """Why training ended, once it has."""


N = TypeVar("N", bound=Numbers)


@dataclass(frozen=True)
class TrainingState(Generic[N]):
    """All that training continues from: `tensors` (weights, optimizer, generators), plain `numbers`, and the `best`
    weights so far, those of `numbers.best_epoch`.

    `tensors` leaves out the weights if they are the best ones, and the optimizer's state once training has ended. It
    may share memory with live tensors; what `best` holds never changes.
    """

    tensors: Mapping[str, Tensor]
    numbers: N
    best: Mapping[str, Tensor]


class EpochLoop(ABC, Generic[N]):
    """Trains for at most `epochs` epochs; stops after more than `patience` evaluations without a better score.

    `epoch` is the number of epochs done; `best_epoch`, counted from `first_epoch`, has the best score. `stopped` says
    why training ended ("epochs", "patience" or "diverged"), once it has.
    """

    first_epoch = 0

    def __init__(self, *, epochs: int, patience: int) -> None:
        self.epochs, self.patience = epochs, patience
        self.epoch = 0
        self.misses = 0  # evaluations since the last improvement
        self.best_epoch = self.first_epoch - 1  # none yet
        self.best = Validation(-math.inf, {})
        self.best_weights: dict[str, Tensor] = {}
        self.stopped: str | None = None
        self._on_checkpoint: Callable[[TrainingState[N]], None] = lambda state: None

    def run(self, on_checkpoint: Callable[[TrainingState[N]], None] = lambda state: None) -> str:
        """Train, unless training has ended, and return why it ended.

        `on_checkpoint` gets the state after each evaluation and at the end.
        """
        self._on_checkpoint = on_checkpoint
        if self.stopped is None:
            self.stopped = self._run_epochs()
            self.offer_state()
        return self.stopped

    def offer_state(self) -> None:
        """Give the state to `on_checkpoint`."""
        self._on_checkpoint(self.state())

    def _run_epochs(self) -> str:
        """Run epochs until one of the reasons to stop.

        `train_epoch` and `validate` raise TrainingDiverged for a loss or score that isn't finite. That ends training
        with the best weights so far (the current ones may be broken), or raises TrainingDiverged if there are none.
        """
        while self.epoch < self.epochs:
            if self.misses > self.patience and not self.goes_on():
                return "patience"
            started = time.perf_counter()
            self.epoch += 1
            try:
                losses = self.train_epoch(self.epoch - 1 + self.first_epoch)
                trained = time.perf_counter()
                validation = self.evaluate() if self.is_due() else None
            except TrainingDiverged as error:
                if not self.best_weights:
                    raise TrainingDiverged(f"{error}, before any evaluation; {self.cure()}") from None
                logger.warning("%s; keeping the weights of epoch %d", error, self.best_epoch)
                return "diverged"
            self.epoch_finished(losses, validation, trained - started, time.perf_counter() - trained)
        return "epochs"

    def evaluate(self) -> Validation:
        """Validate, and keep the weights if they are the best so far. Only a strictly higher score is better."""
        validation = self.validate()
        if math.isnan(validation.score):
            raise TrainingDiverged("the metric that selects the epoch is NaN, so no epoch can be the best")
        if validation.score > self.best.score:
            self.best_epoch = max(0, self.epoch - 1) + self.first_epoch
            self.best, self.misses = validation, 0
            self.best_weights = self.copied_weights()
        elif self.counts_misses():
            self.misses += 1
        return validation

    @property
    def is_at_best(self) -> bool:
        """True if the last epoch is the best one, so `best_weights` are the current weights."""
        return bool(self.best_weights) and self.best_epoch == self.epoch - 1 + self.first_epoch

    @abstractmethod
    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Make one pass over the training data; return each loss term, summed or averaged over the batches."""

    @abstractmethod
    def validate(self) -> Validation:
        """Score the weights as they are."""

    @abstractmethod
    def copied_weights(self) -> dict[str, Tensor]:
        """A copy of all that training changes."""

    @abstractmethod
    def epoch_finished(
        self, losses: dict[str, float], validation: Validation | None, train_seconds: float, valid_seconds: float
    ) -> None:
        """Keep the epoch's numbers, report it, and call `offer_state` if it was evaluated."""

    @abstractmethod
    def state(self) -> TrainingState[N]:
        """The state of training, after an evaluation or at the end. It shares memory with the live tensors."""

    def is_due(self) -> bool:
        """True if the epoch just trained is to be evaluated."""
        return True

    def counts_misses(self) -> bool:
        """True if an evaluation without improvement counts against patience by now."""
        return True

    def goes_on(self) -> bool:
        """True if training goes on though patience has run out; `misses` is 0 then."""
        return False

    def cure(self) -> str:
        """Advice for training that diverged before any evaluation."""
        return "try a smaller learning_rate"
