"""An encoder trained together with a recommender (`--paradigm ete`), in two passes through the feature table F.

1. The recommender's batches leave G = dL/dF in F, a leaf of their graphs; G is summed over `encoder_every` batches.
2. For the rows R where G isn't zero, or a sample of them, Z = encoder(items) is computed again with gradient, and
   sum(Z * G_R) is back-propagated: by the chain rule that gives dL/d(encoder). AdamW takes one step.
3. Then R is encoded once more, without gradient, and written into F, as Z is that of the old weights.

With all rows and a step per batch this equals back-propagation through model and encoder, as a test shows. It takes
the memory of one micro-batch, however large the catalog, and reaches items whose gradient came through a graph.
With other settings, rows outside R are stale until the next full refresh, and one step of the encoder serves several
steps of the recommender.

With `warm_epochs` the recommender first trains alone, on the features of the encoder as it is; with `auto` until its
validation stalls. Then its best weights are put back, and the encoder joins.

Under torchrun the first process holds the run: recommender, random draws, files. The others help with the encoder only
(encoder_side.py), which is most of the work.

Shapes: I items, R rows of a step, D feature width.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..config.settings import Settings
from ..distributed import processes, serve
from ..errors import ConfigError, NotApplicable, RunError, TrainingDiverged
from ..features.encoding import build_encoder, encoder_spec
from ..features.prepared import prepared_items
from ..machine import choose_device, cpu_threads, encode_batch, loader_processes, to_device
from ..plugin.contracts import Paradigm, TrainerCallback
from ..plugin.item_features import ItemFeatures
from ..plugin.registry import Registry
from ..typed_json import OPTIONAL, decode, plain
from ..types import Batch, Inputs, Interactions, RunSpec
from .encoder_side import EncoderWorker, choose_trained
from .optim import recompute_blocks
from .paradigms import EndToEnd
from .side import SideNetwork, SideReport, check_side, side_encoder
from .tune import check

logger = logging.getLogger(__name__)


class TrainedEndToEnd(Paradigm):
    """The paradigm ete: the encoder is trained with the recommender, on the recommender's loss."""

    config: EndToEnd

    def check(self, run: RunSpec, registry: Registry) -> None:
        encoder = registry.encoders.get(run.encoder) if run.encoder is not None else None
        if not registry.models.get(run.model).uses_features:
            raise NotApplicable(
                f"--paradigm ete: expected a model that uses item features, got {run.model}; try --paradigm pt"
            )
        if encoder is not None and (encoder.cls is None or encoder.feature_files is not None):
            raise NotApplicable(
                f"--paradigm ete: expected an encoder with weights to train, got {encoder.name}, which reads features "
                "from files; try --paradigm pt"
            )
        if encoder is None:
            raise NotApplicable("--paradigm ete: expected an encoder to train, got none; try --encoder NAME")
        if run.features:
            raise ConfigError(
                "--features: expected none under --paradigm ete, which trains the encoder of all features, got "
                f"{', '.join(run.features)}; try leaving it out"
            )
        if run.control is not None:
            raise NotApplicable(
                "--control: expected none under --paradigm ete, as a control replaces the features in training, got "
                f"{run.control}; try --ete.learning_rate=0, the control of ete"
            )
        if run.settings.missing != "zero":
            raise ConfigError(
                "missing: expected zero under --paradigm ete, where features of absent items are zero, got "
                f"{run.settings.missing}; try --missing=zero"
            )
        check(self.config, owner="ete")
        if self.config.tune == "side":
            check_side(run, registry)

    def callback(self, run: RunSpec, inputs: Inputs, features: ItemFeatures, registry: Registry) -> "JointEncoder":
        return joint_encoder(run, inputs, registry, features)

    def help(self, run: RunSpec, inputs: Inputs, registry: Registry) -> None:
        help_train(run, inputs, registry)


def joint_encoder(spec: RunSpec, inputs: Inputs, registry: Registry, features: ItemFeatures) -> "JointEncoder":
    """The encoder of an end-to-end run, which trains on the gradient of the model's joint `features`.

    Raises NotApplicable if it has nothing to train, ConfigError if it has no epoch to train in.
    """
    options: EndToEnd = spec.paradigm_config
    if must_learn(options):
        _check_joins(options, spec.settings, inputs.dataset.train)
    return JointEncoder(
        _worker(spec, inputs, registry, features.present),
        features,
        options,
        # A random stream independent of the batches' one; the generator reads 32 bits of the seed
        generator=torch.Generator().manual_seed(2**32 - 1 - spec.settings.seed),
        batch_size=encode_batch(spec.settings, next(iter(features.present.values())).device),
        model=spec.model,
    )


def _check_joins(options: EndToEnd, settings: Settings, train: Interactions) -> None:
    """ConfigError if training ends before the encoder can join."""
    if isinstance(options.warm_epochs, int):
        if settings.epochs <= options.warm_epochs:
            raise ConfigError(
                f"ete.warm_epochs: expected less than epochs ({settings.epochs}), to leave one that trains the "
                f"encoder, got {options.warm_epochs}; try lowering it, or raising epochs"
            )
        return
    batches = math.ceil(len(train) / settings.train_batch_size)  # of an epoch
    every = settings.eval_step
    first = max(2, math.ceil(settings.min_steps / batches / every))  # evaluation that may miss: the first one can't
    least = every * (first + settings.stopping_step)  # epochs, if none improves on the first one
    if settings.epochs <= least:
        raise ConfigError(
            f"ete.warm_epochs: auto: expected more than {least} epochs, before which the recommender can't stall "
            f"(stopping_step {settings.stopping_step}, min_steps {settings.min_steps}, {batches} steps an epoch), got "
            f"{settings.epochs}; try more epochs, a lower stopping_step or min_steps, or a number for ete.warm_epochs"
        )


def help_train(spec: RunSpec, inputs: Inputs, registry: Registry) -> None:
    """Do the share of a process after the first: help with the encoder until the run ends.

    A run that is finished needs no help, and this returns at once.
    """
    torch.set_num_threads(cpu_threads(spec.settings))
    device = choose_device(spec.settings)
    present = {name: torch.as_tensor(table.present, device=device) for name, table in inputs.tables.items()}
    serve(device, lambda: _worker(spec, inputs, registry, present))


def _worker(spec: RunSpec, inputs: Inputs, registry: Registry, present: Mapping[str, Tensor]) -> EncoderWorker:
    """The run's encoder with its initial weights, and all items that it may encode."""
    known = encoder_spec(spec, registry)
    if spec.paradigm_config.tune == "side":
        network, states = side_encoder(spec, inputs, registry, next(iter(present.values())).device)
        return EncoderWorker(network, states, present, spec.paradigm_config, name=f"{known.name}'s side network")
    assert inputs.dataset.catalog is not None  # the features came from there
    encoder = build_encoder(known, spec.encoder_config, [*present])
    if spec.settings.recompute:
        recompute_blocks(encoder)
    if not any(True for _ in encoder.parameters()):
        raise NotApplicable(
            f"--paradigm ete: expected an encoder with parameters to train, got {known.name}, which has none; try "
            "--paradigm pt"
        )
    options: EndToEnd = spec.paradigm_config
    choice = choose_trained(encoder, options, name=known.name)  # before a catalog is prepared for nothing
    items = prepared_items(
        inputs.dataset.catalog,
        known,
        spec.encoder_config,
        encoder,
        text_fields=spec.settings.text_fields,
        workers=loader_processes(spec.settings, next(iter(present.values())).device),
    )
    return EncoderWorker(
        encoder, items, present, options,
        name=known.name, seed=spec.settings.seed, choice=choice, unit=spec.settings.normalize == "unit",
    )  # fmt: skip


def must_learn(options: EndToEnd) -> bool:
    """True if a run fails when no gradient reaches the encoder.

    With learning_rate 0, the control, everything runs and no weight changes.
    """
    return options.mode != "released" and options.learning_rate > 0


@dataclass(frozen=True)
class Phase:
    """The epochs before the encoder joined, or those since: how many, the best score on validation, seconds by part."""

    epochs: int = 0
    best: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class EncoderNumbers:
    """The progress of an encoder's training, as a checkpoint saves it."""

    steps: int
    rows: int  # encoded with gradient, in all steps
    norm_sum: float  # of the gradient, over the steps
    norm_last: float
    joined: int | None = None  # the first epoch that trains the encoder
    warm: Phase = Phase()
    joint: Phase = Phase()


@dataclass(frozen=True)
class GradientNorm:
    """The norm of an encoder's gradient before clipping: the mean over steps, and the last one."""

    mean: float
    last: float


@dataclass(frozen=True)
class EndToEndReport:
    """The part of an end-to-end run's record about its encoder's training.

    `epoch_seconds` are those of the mean epoch since the encoder joined, `warm_epoch_seconds` of one before, by part:
    "recommender" (its batches, and the choice of the encoder's rows), "loading" (prepared items are read and moved),
    "forward" and "backward" (of the encoder, with gradient; its optimizer's step), "refresh" (items encoded again,
    without), "evaluation" (ranking). They add up to the epoch, which doesn't include the saving of its state. Under
    torchrun they are those of the first process. PartClock says what is measured on a GPU.
    """

    mode: str
    tune: str
    trained: tuple[str, ...]  # parameters, or the weights that lora updates; () under full: all that aren't frozen
    frozen: tuple[str, ...]
    steps: int
    rows_per_step: float
    gradient_norm: GradientNorm
    weight_change: Mapping[str, float]  # block -> |w - w_0| / |w_0|
    parameters: int  # of the encoder, in all
    parameters_trained: int
    cached_bytes: int  # of what items are encoded from: prepared items on disk, or what frozen layers made of them
    joined_at: int | None  # the first epoch that trains the encoder; None: it never joined
    best_joint: float | None  # the best score on validation since then
    best_warm: float | None = field(default=None, metadata=OPTIONAL)  # and before; None: there was no epoch before
    epoch_seconds: Mapping[str, float] = field(default_factory=dict, compare=False)
    warm_epoch_seconds: Mapping[str, float] | None = field(default=None, compare=False, metadata=OPTIONAL)
    side: SideReport | None = field(default=None, metadata=OPTIONAL)  # None: the encoder itself is trained


class JointEncoder(TrainerCallback):
    """The callback that collects the gradient of a model's joint features, and trains the encoder with it.

    `model` is the model's name, for messages; `batch_size` is the number of items encoded at once without gradient.
    """

    def __init__(
        self,
        worker: EncoderWorker,
        features: ItemFeatures,
        options: EndToEnd,
        *,
        generator: torch.Generator,
        batch_size: int = 64,
        model: str = "model",
    ) -> None:
        self._worker, self._features, self._options = worker, features, options
        self._generator, self._batch_size, self._model = generator, batch_size, model
        self._device = next(iter(features.present.values())).device
        self._items = torch.stack([*features.present.values()]).any(dim=0).nonzero().squeeze(1).cpu()  # to encode
        self._initial = {key: value.cpu().clone() for key, value in worker.parameters().items()}
        self._collecting = False  # True if the model's batches leave a gradient
        self._pending: dict[str, Tensor] = {}  # modality -> G (I, D) so far
        self._batches = 0  # summed in G
        self._stale = True  # True if F has rows of an earlier state of the encoder
        self._age = math.inf  # epochs since the last full refresh
        self._steps, self._rows = 0, 0  # rows: encoded with gradient, in all steps
        self._norm_sum, self._norm_last = 0.0, 0.0
        self._joined: int | None = None  # the first epoch that trains the encoder, once it is known
        self._warm, self._joint = Phase(), Phase()
        self._clock = worker.clock

    def epoch_started(self, epoch: int) -> None:
        options = self._options
        self._clock.start()
        if isinstance(options.warm_epochs, int) and epoch >= options.warm_epochs:
            self._joined = options.warm_epochs
        self._collecting = options.mode != "released" and self._joined is not None
        for leaf in self._features().values():
            leaf.requires_grad_(self._collecting)
        if self._stale and self._age >= options.refresh_epochs:
            self._refresh()

    def after_batch(self, batch: Batch) -> None:
        if not self._collecting:
            return
        for modality, leaf in self._features().items():
            gradient, leaf.grad = leaf.grad, None
            if gradient is None:
                continue
            if self._options.mode == "splice":
                gradient = _only(gradient, torch.cat([batch.positives, batch.negatives.flatten()]))
            known = self._pending.get(modality)
            self._pending[modality] = gradient if known is None else known.add_(gradient)
        self._batches += 1
        if self._batches == self._options.encoder_every:
            self._step()

    def epoch_finished(self, epoch: int) -> None:
        """Take a step on the pending gradient, as the saved state has no place for it.

        Raises RunError if no gradient has reached the encoder by the end of the first epoch that trains it.
        """
        if self._batches:
            self._step()
        self._age += 1
        self._stale = self._stale or self._options.mode == "released"  # this mode encodes all again each epoch
        if self._collecting and not self._steps and must_learn(self._options):
            raise RunError(
                f"no gradient of {self._model}'s loss reached encoder {self._worker.name} in epoch {epoch}: it isn't "
                "trained, and the result would be that of --paradigm pt. Does the model detach or copy its features, "
                "do its settings give them no weight, or does the encoder detach its output?"
            )
        if self._steps:
            logger.info("encoder %s: %d steps, gradient norm %.3g", self._worker.name, self._steps, self._norm_last)
        self._clock.lap("recommender")
        self._note(1, None)

    def before_evaluation(self) -> None:
        self._clock.start()
        if self._stale:
            self._refresh()

    def evaluated(self, score: float) -> None:
        self._clock.lap("evaluation")
        self._note(0, score)

    def stalled(self, epoch: int) -> bool:
        """True if the encoder joins now, at the end of its automatic `warm_epochs`."""
        if self._joined is not None or self._options.warm_epochs != "auto":
            return False
        self._joined = epoch
        logger.info("encoder %s joins in epoch %d", self._worker.name, epoch)
        return True

    def _note(self, epochs: int, score: float | None) -> None:
        """Add what the clock has, an epoch or an evaluation, to the numbers of the phase."""
        phase = self._warm if self._joined is None else self._joint
        seconds = {**phase.seconds}
        for part, spent in self._clock.take().items():
            seconds[part] = seconds.get(part, 0.0) + spent
        best = max((known for known in (phase.best, score) if known is not None), default=None)
        phase = Phase(phase.epochs + epochs, best, seconds)
        if self._joined is None:
            self._warm = phase
        else:
            self._joint = phase

    def weights(self) -> dict[str, Tensor]:
        return self._worker.weights()

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        self._worker.load_weights(weights)
        self._stale, self._age = True, math.inf

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"optimizer.{name}": value for name, value in self._worker.optimizer_state().items()}
        numbers = EncoderNumbers(
            self._steps, self._rows, self._norm_sum, self._norm_last, self._joined, self._warm, self._joint
        )
        return {**tensors, "generator": self._generator.get_state()}, plain(numbers)

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        if tensors:
            slots = {name.removeprefix("optimizer."): value for name, value in tensors.items() if name != "generator"}
            self._worker.load_optimizer_state(slots)
            self._generator.set_state(tensors["generator"])
        known = decode(EncoderNumbers, numbers, where="companion", cure="an end-to-end run saves it")
        self._steps, self._rows = known.steps, known.rows
        self._norm_sum, self._norm_last = known.norm_sum, known.norm_last
        self._joined, self._warm, self._joint = known.joined, known.warm, known.joint

    def report(self) -> EndToEndReport:
        """The report for the run's record. RunError if training ended before the encoder's first step."""
        if not self._steps and must_learn(self._options):
            raise RunError(self._why_never_joined())
        steps, side = max(1, self._steps), self._side.report if self._side else None
        return EndToEndReport(
            mode=self._options.mode,
            tune=self._options.tune,
            trained=self._worker.part.names,
            frozen=self._options.freeze,
            steps=self._steps,
            rows_per_step=self._rows / steps,
            gradient_norm=GradientNorm(self._norm_sum / steps, self._norm_last),
            weight_change=weight_change(self._initial, self._worker.parameters()),
            parameters=sum(each.numel() for each in self._worker.parameters().values())
            + ((side.frozen_parameters or 0) if side else 0),
            parameters_trained=self._worker.trained if must_learn(self._options) else 0,
            cached_bytes=self._worker.cached_bytes,
            joined_at=self._joined,
            best_joint=self._joint.best,
            best_warm=self._warm.best,
            epoch_seconds=_per_epoch(self._joint),
            warm_epoch_seconds=_per_epoch(self._warm) if self._warm.epochs else None,
            side=side,
        )

    def _why_never_joined(self) -> str:
        ended = f"training ended before encoder {self._worker.name} joined"
        if self._options.warm_epochs == "auto":
            return (
                f"{ended}: {self._model} had not stalled after {self._warm.epochs} epochs, and ete.warm_epochs=auto "
                "waits for that; try more epochs, a lower stopping_step or min_steps, or a number for ete.warm_epochs"
            )
        return (
            f"{self._model} stopped improving in its {self._options.warm_epochs} ete.warm_epochs, so {ended}; try "
            "ete.warm_epochs=auto, with which it joins then, or a lower number, or a higher stopping_step"
        )

    def about_weights(self) -> Mapping[str, Any]:
        return self._side.about if self._side else self._worker.part.about()

    @property
    def _side(self) -> SideNetwork | None:
        """The side network, if that is what is trained."""
        return self._worker.encoder if isinstance(self._worker.encoder, SideNetwork) else None

    def _step(self) -> None:
        """Take one step of the encoder on the pending gradient, and encode the step's rows again."""
        present = self._features.present
        gradients = {name: value * present[name].unsqueeze(1) for name, value in self._pending.items()}  # (I, D)
        self._pending, self._batches = {}, 0
        if not gradients:
            return
        rows, weights = self._draw(gradients)
        if not len(rows):
            return
        places = to_device(rows, self._device)
        drawn = {name: value.index_select(0, places) * weights for name, value in gradients.items()}  # (R, D)
        self._clock.lap("recommender")
        norm = self._worker.step(rows, drawn, self._rate())
        if not math.isfinite(norm):
            raise TrainingDiverged(f"the gradient of encoder {self._worker.name} became {norm}")
        if norm == 0:
            return
        self._steps, self._rows = self._steps + 1, self._rows + len(rows)
        self._norm_sum, self._norm_last = self._norm_sum + norm, norm
        self._stale = True
        self._write(rows, partial=True)

    def _draw(self, gradients: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The rows R of a step, each once, on the CPU, and their weights (R, 1).

        They are all rows with a gradient, or a sample if there are more than the budget. The norms are all that the
        host waits for.
        """
        by_modality = torch.stack([torch.linalg.vector_norm(gradient, dim=1) for gradient in gradients.values()])
        norms = torch.zeros(by_modality.shape[1], dtype=torch.float64)  # (I,)
        for part in by_modality.cpu():
            norms += part
        if not norms.isfinite().all():
            raise TrainingDiverged(f"the gradient of {self._model}'s features became NaN or infinite")
        rows = norms.nonzero().squeeze(1)
        weights = norms.new_ones(len(rows))
        if 0 < self._options.rows < len(rows):
            rows, weights = draw_rows(norms, self._options.rows, self._generator)
        return rows, to_device(weights.to(by_modality.dtype).unsqueeze(1), self._device)

    def _rate(self) -> float:
        """The learning rate of the next step."""
        rising = (self._steps + 1) / self._options.warmup_steps if self._options.warmup_steps else 1.0
        return self._options.learning_rate * min(1.0, rising)

    def _refresh(self) -> None:
        """Encode all items with the encoder's current weights, and write them into F."""
        self._write(self._items, partial=False)
        self._stale, self._age = False, 0

    def _write(self, items: Tensor, *, partial: bool) -> None:
        for part in items.split(self._batch_size * processes()):
            rows = to_device(part, self._device)
            for modality, values in self._worker.encode(part).items():
                self._features.refresh(modality, rows, values, partial=partial)
        self._clock.lap("refresh")


def draw_rows(norms: Tensor, budget: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw `budget` rows with replacement by p_i = norms_i / sum, norms (I,).

    Return the rows drawn, each once, and the weights n_i / (budget p_i) of rows drawn n_i times. The expected weight is
    1, so weighted sums over the rows are unbiased. With p from gradient norms, rows with large gradients are drawn
    most, and no weighted gradient becomes large.
    """
    p = norms / norms.sum()
    rows, counts = torch.multinomial(p, budget, replacement=True, generator=generator).unique(return_counts=True)
    return rows, counts / (budget * p[rows])


def _per_epoch(phase: Phase) -> dict[str, float]:
    """The seconds by part of a phase's mean epoch."""
    return {part: seconds / max(1, phase.epochs) for part, seconds in phase.seconds.items()}


def weight_change(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """|after - before| / |before| by block; |after| for a block of zeros.

    A block is the first two parts of parameter names, after the prefix that all names share.
    """
    paths = {name: name.split(".") for name in before}
    shortest = min(map(len, paths.values()))
    common = next((at for at in range(shortest) if len({path[at] for path in paths.values()}) > 1), shortest - 1)
    squares: dict[str, tuple[float, float]] = {}
    for name, path in paths.items():
        old = before[name].double()
        moved = (after[name].detach().cpu().double() - old).square().sum().item()
        block = ".".join(path[common:-1][:2] or path[-1:])
        known = squares.get(block, (0.0, 0.0))
        squares[block] = (known[0] + moved, known[1] + old.square().sum().item())
    return {block: math.sqrt(moved / (was or 1.0)) for block, (moved, was) in squares.items()}


def _only(gradient: Tensor, items: Tensor) -> Tensor:
    """The gradient (I, D) of `items`, with zeros elsewhere."""
    kept = torch.zeros_like(gradient)
    kept[items] = gradient[items]
    return kept
