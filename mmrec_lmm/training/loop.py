"""The training loop of recommenders and encoders: epochs, early stopping by patience, and the best weights so far.

A recommender (trainer.py) and an encoder in tuning (fine_tuning.py) define an epoch and its score. This loop decides
when training stops, which weights are kept, and what happens if training diverges.
"""

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..errors import TrainingDiverged

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Validation:
    """The result of one evaluation: the score that selects the epoch (larger is better), and all metrics."""

    score: float
    metrics: Mapping[str, float]


class EpochLoop(ABC):
    """Trains for at most `epochs` epochs; stops after more than `patience` evaluations without a better score.

    `epoch` is the number of epochs done; `best_epoch`, counted from `first_epoch`, has the best score.
    """

    first_epoch = 0

    def __init__(self, *, epochs: int, patience: int) -> None:
        self.epochs, self.patience = epochs, patience
        self.epoch = 0
        self.misses = 0  # evaluations since the last improvement
        self.best_epoch = self.first_epoch - 1  # none yet
        self.best = Validation(-math.inf, {})
        self.best_weights: dict[str, Tensor] = {}

    def run(self) -> str:
        """Train, and return why it ended: "epochs", "patience" or "diverged".

        `train_epoch` and `validate` raise TrainingDiverged for a loss or score that isn't finite. That ends training
        with the best weights so far (the current ones may be broken), or raises TrainingDiverged if there are none.
        """
        while self.epoch < self.epochs:
            if self.misses > self.patience:
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
        """Report the epoch, and save the state if it was evaluated."""

    def is_due(self) -> bool:
        """True if the epoch just trained is to be evaluated."""
        return True

    def counts_misses(self) -> bool:
        """True if an evaluation without improvement counts against patience by now."""
        return True

    def cure(self) -> str:
        """Advice for training that diverged before any evaluation."""
        return "try a smaller learning_rate"
