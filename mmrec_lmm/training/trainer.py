"""The training of a recommender: epochs of steps on its loss, without knowledge of metrics or file formats.

A trainer that restores the `state()` of another after an epoch ends with the same weights, bit for bit, on the CPU with
the same number of threads. The state therefore has every source of randomness: the generator of batches and negatives,
and torch's default generator (dropout, sampling in models).

A TrainerCallback trains beside the model (an encoder, for example); the trainer calls it and knows nothing else of it.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..config.settings import Settings
from ..data.sampling import TrainingRows
from ..errors import PluginError, TrainingDiverged, did_you_mean
from ..plugin.contracts import Recommender, TrainerCallback, device_of
from ..typed_json import OPTIONAL
from ..types import EpochReport
from .loop import EpochLoop, TrainingState, Validation
from .optim import SWEEP_STEPS, drop_faint_momentum, eager, set_rate

logger = logging.getLogger(__name__)

LEARNERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": eager(torch.optim.Adam),
    "sgd": eager(torch.optim.SGD),
    "adagrad": eager(torch.optim.Adagrad),
    "rmsprop": eager(torch.optim.RMSprop),
}

#: Options of torch's optimizers that aren't a group's to choose.
HOSTS_OPTIONS = frozenset({"lr", "fused", "foreach", "capturable", "differentiable", "decoupled_weight_decay"})


@dataclass(frozen=True)
class TrainerNumbers:
    """The progress of a Trainer, as a checkpoint saves it."""

    epoch: int  # epochs done
    misses: int  # evaluations since the last improvement
    best_epoch: int
    best_score: float
    best_metrics: Mapping[str, float]
    stopped: str | None  # why training ended, once it has
    history: tuple[EpochReport, ...] = ()
    companion: Mapping[str, Any] | None = field(default=None, metadata=OPTIONAL)  # the callback's own numbers
    phase_start: int = 0  # epochs done when the callback's phase began


@dataclass(frozen=True)
class FitResult:
    """The outcome of training, which leaves the best weights in the model.

    `stopped` is "patience", "epochs", "diverged" or "untrained"; `history` has the report of each epoch, including
    those before a resumption.
    """

    best_epoch: int
    epochs: int
    validation: Validation
    stopped: str
    history: Sequence[EpochReport] = field(default=(), compare=False, repr=False)  # it holds seconds, which vary


class Trainer(EpochLoop[TrainerNumbers]):
    """Trains `model` on `rows`; `validate()` scores the model on validation data, which the trainer doesn't see.

    A `callback` takes its step after the model's in every batch; its best weights are those of the model's best epoch.
    Where it begins another phase when patience has run out, training goes on from the best weights.
    A model without trainable parameters is evaluated once, unless a callback trains beside it. Messages on the model
    begin with `owner`.
    """

    def __init__(
        self,
        model: Recommender,
        rows: TrainingRows,
        settings: Settings,
        *,
        validate: Callable[[], Validation],
        generator: torch.Generator,
        callback: TrainerCallback | None = None,
        owner: str = "",
    ) -> None:
        trains = callback is not None or any(parameter.requires_grad for parameter in model.parameters())
        super().__init__(epochs=settings.epochs if trains else 0, patience=settings.stopping_step)
        self._model, self._rows, self._settings = model, rows, settings
        self._validate, self._generator, self._callback = validate, generator, callback
        self._device = device_of(model)
        self._owner = owner or type(model).__name__
        self._optimizer = build_optimizer(model, settings, owner=self._owner)
        self._history: list[EpochReport] = []
        self._phase_start = 0  # epochs done when the callback's phase began
        self._on_epoch: Callable[[EpochReport], None] = lambda report: None

    def fit(
        self,
        *,
        on_epoch: Callable[[EpochReport], None] = lambda report: None,
        on_checkpoint: Callable[[TrainingState[TrainerNumbers]], None] = lambda state: None,
    ) -> FitResult:
        """Train until patience or epochs run out, then put the best weights back into the model.

        `on_epoch` gets a report of each epoch, `on_checkpoint` the state after each evaluation and at the end. Raises
        TrainingDiverged if the loss or the score is NaN or infinite before any evaluation; later, the best weights so
        far are kept.
        """
        self._on_epoch = on_epoch
        self._note_patience()
        if self.epochs or self.best_weights:
            stopped = self.run(on_checkpoint)
        else:
            self.evaluate()
            stopped = "untrained"
        self._load_weights(self.best_weights)
        if self._callback is not None:
            self._callback.before_evaluation()
        return FitResult(self.best_epoch, self.epoch, self.best, stopped, tuple(self._history))

    def is_due(self) -> bool:
        return self.epoch % self._settings.eval_step == 0 or self.epoch == self.epochs

    def counts_misses(self) -> bool:
        return (self.epoch - self._phase_start) * len(self._rows) >= self._settings.min_steps

    def goes_on(self) -> bool:
        """True if the callback begins another phase: from the best weights, with as much patience as at the start, and
        min_steps ahead: what the callback trains now has to begin, too.

        The optimizer keeps its state. It is that of some epochs later, but the gradients' sizes, which Adam averages
        over a thousand steps, are still about right. Without them its next steps are longer: they have the full rate in
        each number, whatever the gradient (docs/paradigms.md has figures).
        """
        if self._callback is None or not self._callback.stalled(self.epoch):
            return False
        logger.info("patience has run out: training goes on from the weights of epoch %d", self.best_epoch)
        self._load_weights(self.best_weights)
        self.misses, self._phase_start = 0, self.epoch
        return True

    def epoch_finished(
        self, losses: dict[str, float], validation: Validation | None, train_seconds: float, valid_seconds: float
    ) -> None:
        epoch = self.epoch - 1
        report = EpochReport(epoch, losses, train_seconds)
        if validation is not None:
            improved = self.best_epoch == epoch
            report = replace(report, valid=validation.metrics, valid_seconds=valid_seconds, improved=improved)
        self._history.append(report)
        try:
            self._on_epoch(report)  # it may draw random numbers, or be interrupted
        finally:
            if validation is not None:
                self.offer_state()

    def _note_patience(self) -> None:
        """Log it if training has fewer steps than min_steps, so patience can't end it."""
        settings, steps = self._settings, self.epochs * len(self._rows)
        if 0 < steps < settings.min_steps:
            is_explicit = settings.min_steps != Settings.min_steps
            logger.log(
                logging.WARNING if is_explicit else logging.INFO,
                "min_steps: expected at most the %d steps of %d epochs, got %d; stopping_step never counts here",
                steps,
                self.epochs,
                settings.min_steps,
            )

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Make one pass over all rows; return the sum of each loss term over the batches.

        Raises TrainingDiverged if a sum isn't finite.
        """
        model, settings, optimizer = self._model, self._settings, self._optimizer
        if optimizer is not None:
            set_rate(optimizer, _rate(settings, epoch))
        schedules = type(model).rate_factor is not Recommender.rate_factor
        model.train()
        if self._callback is not None:
            self._callback.epoch_started(epoch)
        model.on_epoch_start(epoch)
        totals: dict[str, Tensor] = {}
        for step, batch in enumerate(self._rows.epoch(self._generator), start=1):
            if optimizer is not None:
                if schedules:
                    done = epoch + (step - 1) / len(self._rows)
                    factor = model.rate_factor(done)
                    _check_factor(factor, f"{self._owner}: rate_factor({done:.2f})")
                    set_rate(optimizer, _rate(settings, epoch) * factor)
                optimizer.zero_grad(set_to_none=settings.zero_grad_to_none)
            terms = model.training_loss(batch)
            torch.stack([*terms.values()]).sum().backward()
            if settings.clip_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), **settings.clip_grad_norm)
            if optimizer is not None:
                optimizer.step()
                if step % SWEEP_STEPS == 0:
                    drop_faint_momentum(optimizer)
            for name, term in terms.items():
                totals[name] = totals[name] + term.detach() if name in totals else term.detach().clone()
            if self._callback is not None:
                self._callback.after_batch(batch)
        model.on_epoch_end(epoch)
        sums = {name: total.item() for name, total in totals.items()}
        for name, total in sums.items():
            if not math.isfinite(total):
                raise TrainingDiverged(f"loss term {name!r} became {total} in epoch {epoch}")
        if self._callback is not None:
            self._callback.epoch_finished(epoch)
        return sums

    def validate(self) -> Validation:
        if self._callback is not None:
            self._callback.before_evaluation()
        validation = self._validate()
        if self._callback is not None:
            self._callback.evaluated(validation.score)
        return validation

    def copied_weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self._weights().items()}

    def cure(self) -> str:
        """Advice for training that diverged; it names a modality that no item has, as a mean over it is NaN."""
        nowhere = [modality for modality, present in self._model.features.present.items() if not present.any()]
        if nowhere:
            return (
                f"no item has {', '.join(nowhere)}: a mean over its present items is 0 / 0; try testing.check_model, "
                "which says whether the model takes such a modality; if it does, try a smaller learning_rate"
            )
        return super().cure()

    def _weights(self) -> dict[str, Tensor]:
        """The live weights of the model and its callback."""
        weights = {f"model.{name}": value for name, value in self._model.state_dict().items()}
        if self._callback is not None:
            weights |= {f"companion.{name}": value for name, value in self._callback.weights().items()}
        return weights

    def _load_weights(self, weights: Mapping[str, Tensor]) -> None:
        self._model.load_state_dict(_under("model.", weights))
        if self._callback is not None:
            self._callback.load_weights(_under("companion.", weights))

    def state(self) -> TrainingState[TrainerNumbers]:
        tensors = {"generator.rows": self._generator.get_state(), "generator.torch": torch.get_rng_state()}
        if self._device.type == "cuda":
            tensors["generator.cuda"] = torch.cuda.get_rng_state(self._device)
        of_callback, own = self._callback.state() if self._callback is not None else ({}, None)
        if self.stopped is None:
            tensors |= {} if self.is_at_best else self._weights()
            if self._optimizer is not None:
                tensors |= {f"optimizer.{name}": value for name, value in optimizer_state(self._optimizer).items()}
            tensors |= {f"companion_state.{name}": value for name, value in of_callback.items()}
        numbers = TrainerNumbers(
            epoch=self.epoch,
            misses=self.misses,
            best_epoch=self.best_epoch,
            best_score=self.best.score,
            best_metrics=dict(self.best.metrics),
            stopped=self.stopped,
            history=tuple(self._history),
            companion=own,
            phase_start=self._phase_start,
        )
        found = {f"validation.{name}": value for name, value in self.best.found.items()}
        return TrainingState(tensors, numbers, self.best_weights | found)

    def restore(self, state: TrainingState[TrainerNumbers]) -> None:
        """Continue from `state` instead of from the start."""
        numbers = state.numbers
        self._load_weights(state.best)  # which end as the model's: they must fit, too
        self._load_weights({**state.best, **state.tensors})
        if self._optimizer is not None:
            load_optimizer_state(self._optimizer, _under("optimizer.", state.tensors))
        if self._callback is not None:
            self._callback.restore(_under("companion_state.", state.tensors), numbers.companion or {})
        self._generator.set_state(state.tensors["generator.rows"])
        torch.set_rng_state(state.tensors["generator.torch"])
        if "generator.cuda" in state.tensors and self._device.type == "cuda":
            torch.cuda.set_rng_state(state.tensors["generator.cuda"], self._device)
        self.epoch, self.misses, self.best_epoch = numbers.epoch, numbers.misses, numbers.best_epoch
        self.best = Validation(numbers.best_score, numbers.best_metrics, _under("validation.", state.best))
        self.best_weights = {name: value for name, value in state.best.items() if not name.startswith("validation.")}
        self._history, self._phase_start = [*numbers.history], numbers.phase_start
        self.stopped = numbers.stopped


def _rate(settings: Settings, epoch: int) -> float:
    """The learning rate of an epoch: rate x s0 ** (epoch / s1)."""
    s0, s1 = settings.learning_rate_scheduler
    try:
        return float(settings.learning_rate * s0 ** (epoch / s1))
    except OverflowError:
        raise TrainingDiverged(
            f"learning_rate_scheduler: expected a rate that stays finite, got [{s0:g}, {s1:g}], which overflows "
            f"in epoch {epoch}; try [1.0, 50]"
        ) from None


def build_optimizer(model: Recommender, settings: Settings, *, owner: str = "") -> torch.optim.Optimizer | None:
    """MMRec's optimizers, over the model's groups of parameters; None if none is trained. Adam is torch's fused one:
    the same step, faster. PluginError, which begins with `owner`, for groups that don't fit the model or the learner.
    """
    owner = owner or type(model).__name__
    groups = _trained_groups(model, owner)
    if not groups:
        return None
    device = groups[0]["params"][0].device
    fused = {"fused": True} if settings.learner == "adam" and device.type in ("cpu", "cuda") else {}
    asked = {key for group in groups for key in group}  # torch adds its own
    optimizer = LEARNERS[settings.learner](
        groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, **fused
    )
    known = sorted({*optimizer.defaults, "params", "rate_factor"} - HOSTS_OPTIONS)
    if unknown := min(asked - {*known}, default=""):
        meant = "; try rate_factor, a factor of learning_rate" if unknown == "lr" else did_you_mean(unknown, known)
        raise PluginError(
            f"{owner}: parameter_groups: expected keys among {', '.join(known)}, as the learner is {settings.learner}, "
            f"got {unknown}{meant}"
        )
    return optimizer


def _trained_groups(model: Recommender, owner: str) -> list[dict[str, Any]]:
    """The model's groups, without parameters that aren't trained. PluginError unless each that is trained is in one."""
    try:
        groups = [{**group, "params": [*group["params"]]} for group in model.parameter_groups()]
    except (TypeError, KeyError) as error:
        raise PluginError(
            f"{owner}: parameter_groups: expected mappings with params, such as {{'params': [self.items]}}, got what "
            f"lacks them ({type(error).__name__}: {error})"
        ) from None
    names = {parameter: name for name, parameter in model.named_parameters()}
    times = Counter(parameter for group in groups for parameter in group["params"])
    faults = [f"{name} in none" for one, name in names.items() if one.requires_grad and not times[one]]
    faults += [f"{name} {times[one]} times" for one, name in names.items() if times[one] > 1]
    faults += [f"a tensor {tuple(other.shape)} that isn't a parameter of it" for other in times if other not in names]
    if faults:
        raise PluginError(f"{owner}: parameter_groups: expected each parameter in one group, got {faults[0]}")
    for group in groups:
        _check_factor(group.get("rate_factor", 1.0), f"{owner}: parameter_groups: rate_factor")
        group["params"] = [parameter for parameter in group["params"] if parameter.requires_grad]
    return [group for group in groups if group["params"]]


def _check_factor(factor: Any, where: str) -> None:
    if not isinstance(factor, Real) or not math.isfinite(factor) or factor < 0:
        raise PluginError(f"{where}: expected a finite number of 0 or more, got {factor!r}")


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's live state by `<number of the parameter>.<slot>`."""
    return {
        f"{index}.{slot}": value
        for index, slots in optimizer.state_dict()["state"].items()
        for slot, value in slots.items()
        if value is not None
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the result of `optimizer_state` into an optimizer of the same parameters."""
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, slot = name.partition(".")
        slots.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries whose name starts with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
