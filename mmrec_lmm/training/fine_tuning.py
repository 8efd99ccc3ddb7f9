"""Fine-tuning of an encoder on a catalog (`--paradigm ft`), before any recommender is trained.

    tuned = tune(catalog, spec, config, FineTuning(), text_fields=["title"])      from the cache, or tuned and cached
    tables = encode(catalog, spec, config, modalities=["image"], tuned=tuned)

Tuning minimizes the sum of the encoder's own losses (`tuning_losses`) over the items that have both an image and a
text. It sees only items: a catalog has no interactions.

The random numbers of an epoch follow from the seed and the epoch's number. No generator needs saving, and tuning that
was killed continues after its last checkpoint and ends with the same weights.

Processes of torchrun train together: each computes its rows of every batch, held-out ones included. All get the whole
batch's losses and gradients, so they decide alike (distributed.py). Only the first process reads and writes the cache.

Shapes: N items that have image and text, B batch, Q queries, D feature width.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..cache import fingerprint, home
from ..config.settings import Settings
from ..data.images import decoders
from ..data.items import JOINT, Source, nothing_readable, pad_and_stack, reason_of, source_of
from ..disk.locks import locked
from ..disk.reading import check_readable
from ..disk.sealed import DamagedFile, read_metadata, verify
from ..disk.temporaries import remove
from ..distributed import (
    all_gather,
    all_reduce,
    broadcast,
    is_first_process,
    join,
    local_slice,
    processes,
    rank,
    sharing,
    sum_gradients,
)
from ..errors import ConfigError, DataError, MMRecError, NotApplicable, PluginError, RunError, TrainingDiverged
from ..evaluation.retrieval import CUTOFFS, RecallChange, compared, own_ranks
from ..features.encoding import build_encoder, encoder_id, encoder_spec
from ..features.inference import OUT_OF_MEMORY
from ..features.prepared import PreparedItems, ahead, prepared_items, with_frozen_part
from ..logs import progress_bar
from ..machine import choose_device, loader_processes, precision, to_device
from ..plugin.contracts import ItemEncoder, Paradigm
from ..plugin.registry import Registry
from ..plugin.specs import EncoderSpec, resolve
from ..typed_json import FLAT, OPTIONAL, decode, plain
from ..types import ItemCatalog, RawItem, RunSpec, Tuned
from .loop import EpochLoop, TrainingState, Validation
from .optim import adamw, depth_factors, has_batch_norms, rate_factor, recompute_blocks, scale_rates, set_rate
from .pairs import Pairs, TuningSizes, count_batches, make_batches, split
from .paradigms import FineTuning
from .resume import Checkpoints, load_checkpoint, remove_checkpoint, restoring, save_weights
from .trainer import load_optimizer_state, optimizer_state
from .tune import FULL, SIDE, Choice, TrainedPart, check, choose

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger(__name__)

CURE = "try deleting it, to have the encoder tuned again"

FORMAT = 1  # increase it when the same encoder, items and settings would give other weights
PAIR = ("image", "text")


@dataclass(frozen=True)
class TuningEpoch:
    """An epoch of tuning: the mean of each loss over its batches, and that of the items held out."""

    losses: Mapping[str, float] = field(metadata=FLAT)
    held_out: float


@dataclass(frozen=True)
class TuningRecord:
    """The record of a tuning: its encoder, settings, sizes and results."""

    encoder: str
    made_by: tuple[Any, ...]  # by modality: the identity of the encoder before
    ft: Mapping[str, Any]  # the FineTuning
    sizes: TuningSizes
    frozen: tuple[str, ...]
    best_epoch: int  # from 1
    stopped: str  # "epochs", "patience" or "diverged"
    epochs: tuple[TuningEpoch, ...]
    held_out_before: float
    recall: Mapping[str, Mapping[str, RecallChange]] | None  # "image to text" -> "recall@1"; None: not comparable
    batches_per_epoch: int
    steps_per_epoch: int
    parameters_trained: int
    seconds: float
    device: str
    threads: int
    processes: int = 1  # that of earlier records, which lack the field
    parameters: int | None = field(default=None, metadata=OPTIONAL)  # of the encoder, in all
    tune: str = FULL
    trained: tuple[str, ...] = ()  # parameters, or the weights that lora updates; () under full: all that aren't frozen


class FineTuned(Paradigm):
    """The paradigm ft: the encoder is tuned before the recommender is trained."""

    config: FineTuning

    def check(self, run: RunSpec, registry: Registry) -> None:
        if run.model and not registry.models.get(run.model).uses_features:
            raise NotApplicable(
                f"--paradigm ft: expected a model that uses item features, got {run.model}; try --paradigm pt"
            )
        if run.encoder is None:
            raise NotApplicable("--paradigm ft: expected an encoder to tune, got none; try --encoder NAME")
        encoder = registry.encoders.get(run.encoder)
        if encoder.cls is None or not is_tunable(encoder_spec(run, registry), run.encoder_config):
            raise NotApplicable(
                f"--paradigm ft: expected an encoder with losses over images and texts, got {encoder.name}; try one of "
                f"{', '.join(tunable_encoders(registry))}"
            )
        if self.config.tune == SIDE:
            raise NotApplicable(
                "--paradigm ft: expected ft.tune of full, lora or last:N, got side: a side network learns from a "
                "recommender, and has no loss of its own; try --paradigm ete --ete.tune=side"
            )
        check(self.config, owner="ft")

    def prepare(self, run: RunSpec, catalog: ItemCatalog, registry: Registry, *, progress: bool) -> Tuned:
        settings, device = run.settings, choose_device(run.settings)
        return tune(
            catalog,
            encoder_spec(run, registry),
            run.encoder_config,
            self.config,
            text_fields=settings.text_fields,
            device=device,
            workers=loader_processes(settings, device),
            recompute=settings.recompute,
            checkpoint_seconds=settings.checkpoint_seconds,
            progress=progress,
        )

    def prepared_path(self, run: RunSpec, catalog: ItemCatalog, registry: Registry) -> Path:
        pairs = source_of(catalog, JOINT, run.settings.text_fields)
        return tuned_path(pairs, encoder_spec(run, registry), run.encoder_config, self.config)

    def probe(self, encoder: ItemEncoder, device: torch.device) -> tuple[Callable[[Mapping[str, Tensor]], float], int]:
        tuning = self.config
        part = trained_part(encoder, tuning, name=type(encoder).__name__)
        part.train()
        optimizer = adamw(encoder, learning_rate=tuning.learning_rate, weight_decay=tuning.weight_decay)

        def step(batch: Mapping[str, Tensor]) -> float:
            optimizer.zero_grad()
            with precision(device, tuning.dtype):
                losses = encoder.tuning_losses({key: rows.to(device) for key, rows in batch.items()})
            loss = torch.stack([*losses.values()]).sum()
            loss.backward()
            optimizer.step()
            return loss.item()  # waits for a GPU

        nothing = pad_and_stack([encoder.prepare(RawItem(0, None, ""))], padding=encoder.padding, encoder="")
        frozen = encoder.frozen_part({key: rows.to(device) for key, rows in nothing.items()})
        return step, tuning.epochs if frozen is None else 1  # what is trained is then the smaller part


def _nothing_readable(catalog: ItemCatalog, source: Source) -> DataError:
    """The error where no pair's image can be read. What was prepared keeps no reasons, so the first is read again."""
    item, reason = int(source.items.min()), "it could not be read when it was prepared"
    try:
        source.read(item)
    except Exception as error:  # decoders raise anything
        reason = reason_of(error, source.images[item])
    return nothing_readable(catalog, JOINT, item, reason, len(source.items))


def tunable_encoders(registry: Registry) -> list[str]:
    """The encoders that can be tuned, or their variants that can; without encoders whose libraries are missing."""
    names = []
    for encoder in registry.encoders:
        with suppress(MMRecError, ImportError, TypeError, ValueError):  # the last two: a key without a default
            config = registry.encoders.load(encoder.name, "config")
            if is_tunable(encoder, config()):
                names.append(encoder.name)
            else:
                variants = (each for each in encoder.variants if is_tunable(encoder, config(variant=each)))
                names += [f"{encoder.name}:{variant}" for variant in variants]
    return names


def is_tunable(spec: EncoderSpec, config: Any) -> bool:
    """True if an encoder of this configuration encodes images and texts, and has tuning losses."""
    encoder_class = resolve(spec.cls)
    return encoder_class is not None and encoder_class.is_tunable(config) and {*PAIR} <= {*spec.modalities}


def tune(
    catalog: ItemCatalog,
    spec: EncoderSpec,
    config: Any,
    tuning: FineTuning,
    *,
    text_fields: Sequence[str],
    device: torch.device | str = "cpu",
    workers: int = 0,
    recompute: bool = False,
    checkpoint_seconds: float = Settings.checkpoint_seconds,
    progress: bool = False,
) -> Tuned:
    """The encoder tuned on the catalog: from the cache if it is there, else tuned and cached.

    Its file is named by everything that determines its weights: encoder, configuration, `tuning`, and the items'
    content. The device and the numbers of threads and processes change the weights by rounding, and are recorded in the
    file; `recompute` saves memory and changes nothing (`optim.recompute_blocks`). `checkpoint_seconds` pass between two
    checkpoints at least.

    Raises NotApplicable for an encoder without losses, DataError if too few items have an image and a text, ConfigError
    if `freeze` or the number of processes doesn't fit the encoder, TrainingDiverged, and RunError if memory runs out
    or another process has failed.
    """
    if not is_tunable(spec, config):
        raise NotApplicable(
            f"--paradigm ft: expected an encoder with losses over images and texts, got {spec.name}; try --paradigm pt"
        )
    try:
        source = source_of(catalog, JOINT, text_fields)
    except DataError:
        raise DataError(
            f"--paradigm ft: expected items with both an image and a text in the fields {', '.join(text_fields)}, to "
            f"tune encoder {spec.name} on, got none; try --paradigm pt"
        ) from None
    made_by = [encoder_id(spec, config, modality) for modality in PAIR]
    path = tuned_path(source, spec, config, tuning)
    device = torch.device(device)
    join(device)
    check_readable(path)
    stored = broadcast(is_first_process() and _is_stored(path, source))  # what exists is read without a lock
    with nullcontext() if stored or not is_first_process() else locked(path):
        if stored or broadcast(is_first_process() and _is_stored(path, source)):
            logger.info("%s: tuned before, found in the cache, %s", spec.name, path)
            if is_first_process():
                remove(path.with_suffix(".parts"))  # of a process that was killed just before its end
        else:
            encoder = build_encoder(spec, config, PAIR)
            _check_shareable(encoder, name=spec.name)
            choice = choose_trained(encoder, tuning, name=spec.name)  # before a catalog is prepared for nothing
            if recompute:
                recompute_blocks(encoder)
            prepared = prepared_items(catalog, spec, config, encoder, text_fields=text_fields, workers=workers)
            if prepared.unreadable.issuperset(source.items.tolist()):
                raise _nothing_readable(catalog, source)
            part = trained_part(encoder, tuning, name=spec.name, choice=choice)
            train, held_out, sizes = split(source, prepared.unreadable, tuning, name=spec.name)
            with torch.random.fork_rng([device] if device.type == "cuda" else []):  # keeps the caller's random state
                tuner = _Tuner(encoder.to(device), prepared, train, held_out, tuning, name=spec.name, part=part)
                with sharing():
                    made = tuner.tune(
                        path.with_suffix(".parts"), checkpoint_seconds,
                        made_by=made_by, sizes=sizes, progress=progress,
                    )  # fmt: skip
            if is_first_process():
                left_out = _LeftOut(tuple(sorted(prepared.unreadable & {*source.items.tolist()})), decoders())
                about = {"name": path.stem, "about": made, "left_out": left_out}
                save_weights(path, part.state(), {key: json.dumps(plain(each)) for key, each in about.items()})
                remove_checkpoint(path.with_suffix(".parts"))
        found = broadcast((load_record(path), _load_left_out(path).items) if is_first_process() else None)
    assert found is not None
    record, missing = found
    logger.info("%s: %s", spec.name, summary(record))
    return Tuned(path, fingerprint([path.stem, missing]) if missing else path.stem, record, record.seconds)


def tuned_path(source: Source, spec: EncoderSpec, config: Any, tuning: FineTuning) -> Path:
    """The cached file of the encoder tuned on a catalog's pairs, existing or not; its stem is the fingerprint."""
    made_by = [encoder_id(spec, config, modality) for modality in PAIR]
    name = fingerprint([FORMAT, made_by, tuning, source.fingerprint])
    return home() / "tuned" / f"{name}.safetensors"


@dataclass(frozen=True)
class _LeftOut:
    """The pairs that an encoder wasn't tuned on, as these decoders couldn't read their image."""

    items: tuple[int, ...] = ()
    decoders: str = ""


def _is_stored(path: Path, source: Source) -> bool:
    """True if the tuned encoder at `path` is as it was written, and no pair can be read that couldn't be when it was
    made; otherwise it is deleted, with a warning."""
    if not path.exists():
        return False
    try:
        verify(path, sealed=False)  # earlier versions wrote no checksum
        left_out = _load_left_out(path)
        if (name := read_metadata(path, "name", cure=CURE, default=path.stem)) != path.stem:
            raise DamagedFile(f"{path}: expected the encoder of that name, got {name}")
    except DamagedFile as error:
        reason = str(error)
    else:
        if not left_out.items or left_out.decoders == decoders() or not _any_readable(source, left_out.items):
            return True
        reason = f"{path}: {decoders()} can read images that couldn't be read"
    logger.warning("%s; the encoder is tuned again", reason)
    path.unlink()
    return False


def _load_left_out(path: Path) -> _LeftOut:
    return decode(_LeftOut, read_metadata(path, "left_out", cure=CURE, default={}), where=str(path), cure=CURE)


def _any_readable(source: Source, items: Iterable[int]) -> bool:
    for item in items:
        try:
            source.read(item)
        except MMRecError:
            raise
        except Exception:  # decoders raise anything
            continue
        return True
    return False


def _check_shareable(encoder: nn.Module, *, name: str) -> None:
    """Raise ConfigError if several processes would train an encoder to other weights than one process."""
    if processes() > 1 and has_batch_norms(encoder):
        raise ConfigError(
            f"torchrun: expected one process to tune encoder {name}, as its batch norms need all rows of a batch, got "
            f"{processes()} processes; try tuning it without torchrun, and then encoding with it"
        )


def summary(record: TuningRecord) -> str:
    """A tuning in one line: the epoch selected, and the held-out items' recall before and after."""
    losses = [epoch.held_out for epoch in record.epochs]
    line = (
        f"epoch {record.best_epoch} of {len(losses)} has the lowest loss on {record.sizes.held_out:,} items "
        f"held out, {min(losses):.4f} ({record.held_out_before:.4f} before)"
    )
    for way, recalls in (record.recall or {}).items():
        shares = recalls["recall@10"]
        (before, *_), (after, *_), (_, low, high) = shares.before, shares.after, shares.difference
        line += f"; {way} recall@10 {before:.4f} -> {after:.4f} ({low:+.4f} to {high:+.4f})"
    return line


def load_record(path: Path) -> TuningRecord:
    """The record in a tuned encoder's file; DataError if the file is damaged."""
    return decode(TuningRecord, read_metadata(path, "about", cure=CURE), where=str(path), cure=CURE)


def choose_trained(encoder: ItemEncoder, tuning: FineTuning, *, name: str) -> Choice:
    """What of the encoder `ft.tune` trains. Raises ConfigError if that doesn't fit the encoder."""
    return choose(encoder, tuning, _sum_of_losses(encoder), owner=_owner(name))


def trained_part(encoder: ItemEncoder, tuning: FineTuning, *, name: str, choice: Choice | None = None) -> TrainedPart:
    """The encoder set up for training, by a `choice` that was made before or by its own."""
    choice = choice or choose_trained(encoder, tuning, name=name)
    return TrainedPart(encoder, choice, tuning, owner=_owner(name), seed=tuning.seed, objective=_sum_of_losses(encoder))


def _owner(name: str) -> str:
    return f"encoder {name}, ft"


def _sum_of_losses(encoder: ItemEncoder) -> Callable[[dict[str, Tensor]], Tensor]:
    return lambda batch: torch.stack([*encoder.tuning_losses(batch).values()]).sum()


# Training


@dataclass(frozen=True)
class TunerNumbers:
    """The progress of a tuning, as a checkpoint saves it."""

    best_epoch: int
    best_loss: float
    epochs: tuple[TuningEpoch, ...]
    seconds: float
    stopped: str | None = field(default=None, metadata=OPTIONAL)  # why training ended, once it has


class _Tuner(EpochLoop[TunerNumbers]):
    """Trains an encoder on some items and scores it on others, the held-out items.

    Epochs are counted from 1. The score is the mean contrastive loss of the held-out items, negated.
    """

    first_epoch = 1

    def __init__(
        self,
        encoder: ItemEncoder,
        prepared: PreparedItems,
        train: Pairs,
        held_out: Pairs,
        tuning: FineTuning,
        *,
        name: str,
        part: TrainedPart | None = None,
    ) -> None:
        super().__init__(epochs=tuning.epochs, patience=tuning.patience)
        self.encoder, self.name, self.tuning = encoder, name, tuning
        self.part = part or trained_part(encoder, tuning, name=name)
        self._train, self._held_out = train, held_out
        self._device = next(encoder.parameters()).device
        self._batches = count_batches(train.groups, tuning.batch_size)  # of an epoch
        self._steps = math.ceil(self._batches / tuning.accumulate)  # of an epoch
        judged = math.ceil(len(held_out) / tuning.batch_size)
        self._judged = make_batches(held_out.groups, judged, tuning.batch_size, self._random(0))
        smallest = min(len(places) for places in [*self._judged, *self._make_batches(self._random(1))])
        if smallest < processes():
            raise ConfigError(
                f"torchrun: expected at most {smallest} processes to tune encoder {name}, as each takes items of the "
                f"smallest batch, got {processes()}; try fewer, or a larger ft.batch_size or ft.held_out"
            )
        self._trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
        self._optimizer = adamw(encoder, learning_rate=tuning.learning_rate, weight_decay=tuning.weight_decay)
        self._epochs: list[TuningEpoch] = []  # by epoch, the mean of each loss, and the loss of the held-out items
        started = time.perf_counter()
        self._prepared = with_frozen_part(
            prepared, encoder, np.concatenate([train.items, held_out.items]), batch_size=tuning.batch_size,
            device=self._device, dtype=tuning.dtype,
        )  # fmt: skip
        if tuning.layer_decay is not None:
            batch = {key: to_device(rows, self._device) for key, rows in self._prepared.batch(train.items[:2]).items()}
            owner = f"encoder {name}: ft.layer_decay"
            scale_rates(self._optimizer, depth_factors(encoder.eval(), batch, tuning.layer_decay, owner=owner))
        self._seconds = time.perf_counter() - started
        self._bar: tqdm[Any] | None = None

    def tune(
        self,
        checkpoint: Path,
        checkpoint_seconds: float,
        *,
        made_by: Sequence[Any],
        sizes: TuningSizes,
        progress: bool,
    ) -> TuningRecord:
        """Train, or continue from the folder `checkpoint`; return the record, and leave the weights in `best_weights`.

        `made_by` and `sizes` go into the record.
        """
        ranks, held_out_before = self._ranks(), self._held_out_loss()
        try:
            stopped = self._fit(checkpoint, checkpoint_seconds, progress=progress)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY):
                raise RunError(
                    f"encoder {self.name}: {self._device} ran out of memory in training on {self.tuning.batch_size} "
                    "items at once; try --recompute=true (much less memory, a third more time), ft.dtype=bfloat16 "
                    "(half of it on a GPU), or a smaller ft.batch_size (another loss)"
                ) from None
            raise
        self.part.load(self.best_weights)
        best_loss = -self.best.score
        if best_loss >= held_out_before:
            logger.warning(
                "encoder %s: tuning did not lower the loss on held-out items (%.4f before, %.4f at best); a smaller "
                "ft.learning_rate may",
                self.name, held_out_before, best_loss,
            )  # fmt: skip
        return TuningRecord(
            encoder=self.name,
            made_by=tuple(made_by),
            ft=plain(self.tuning),
            sizes=sizes,
            frozen=self.part.frozen,
            best_epoch=self.best_epoch,
            stopped=stopped,
            epochs=tuple(self._epochs),
            held_out_before=held_out_before,
            recall=self._recalls(ranks, self._ranks()),
            batches_per_epoch=self._batches,
            steps_per_epoch=self._steps,
            parameters_trained=sum(each.numel() for each in self._trained),
            seconds=self._seconds,
            device=torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else self._device.type,
            threads=torch.get_num_threads(),
            processes=processes(),
            parameters=sum(each.numel() for each in self.part.parameters().values()),
            tune=self.part.tune,
            trained=self.part.names,
        )

    def _fit(self, checkpoint: Path, checkpoint_seconds: float, *, progress: bool) -> str:
        """Run all epochs, and return why they ended: "epochs", "patience" or "diverged"."""
        state = load_checkpoint(checkpoint, TunerNumbers)
        if state is not None:
            with restoring(checkpoint):
                self._restore(state)
            logger.info("%s: tuning continues after epoch %d", self.name, self.epoch)
        with (
            Checkpoints[TunerNumbers](checkpoint, checkpoint_seconds) as checkpoints,
            progress_bar(
                shown=progress and is_first_process(),
                desc=f"tuning {self.name}",
                total=self.epochs * self._batches,
                initial=self.epoch * self._batches,
                unit=" batches",
            ) as self._bar,
        ):
            return self.run(checkpoints.offer if is_first_process() else lambda state: None)

    def validate(self) -> Validation:
        return Validation(-self._held_out_loss(), {})

    def copied_weights(self) -> dict[str, Tensor]:
        return {key: value.to("cpu", copy=True) for key, value in self.part.tensors().items()}

    def cure(self) -> str:
        return "try a smaller ft.learning_rate"

    def epoch_finished(
        self, losses: dict[str, float], validation: Validation | None, train_seconds: float, valid_seconds: float
    ) -> None:
        assert validation is not None  # each epoch is evaluated
        epoch = TuningEpoch(losses, -validation.score)
        self._epochs.append(epoch)
        self._seconds += train_seconds + valid_seconds
        self.offer_state()
        shown = ", ".join(f"{key} {value:.4f}" for key, value in plain(epoch).items())
        logger.info("%s: epoch %d: %s", self.name, self.epoch, shown)
        if self._bar is not None:
            self._bar.set_postfix_str(shown)

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Make one pass; return the mean of each loss over the batches. TrainingDiverged if one isn't finite."""
        tuning, first = self.tuning, (epoch - 1) * self._steps
        batches = self._loaded(self._train.items[places] for places in self._make_batches(self._random(epoch)))
        self.part.train()
        totals: dict[str, Tensor] = {}
        for step in range(self._steps):
            factor = rate_factor(
                first + step, tuning.epochs * self._steps, warmup=tuning.warmup, schedule=tuning.schedule
            )
            set_rate(self._optimizer, tuning.learning_rate * factor)
            self._optimizer.zero_grad()
            count = min(tuning.accumulate, self._batches - step * tuning.accumulate)
            for batch in islice(batches, count):
                terms = self._losses(batch)
                (torch.stack([*terms.values()]).sum() / count).backward()
                for key, term in terms.items():
                    totals[key] = totals.get(key, torch.zeros_like(term)) + term.detach()
                if self._bar is not None:
                    self._bar.update()
            sum_gradients(self._trained)
            torch.nn.utils.clip_grad_norm_(self._trained, tuning.clip_grad_norm)
            self._optimizer.step()
        sums = all_reduce(torch.stack([*totals.values()])).tolist()
        means = {key: total / self._batches for key, total in zip(totals, sums, strict=True)}
        for key, mean in means.items():
            if not math.isfinite(mean):
                raise TrainingDiverged(f"encoder {self.name}: tuning loss {key!r} became {mean} in epoch {epoch}")
        return means

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        """The mean contrastive loss of the held-out items, always in the same batches."""
        self._random(0)
        self.encoder.eval()
        total = torch.zeros((), device=self._device)
        batches = self._loaded(self._held_out.items[places] for places in self._judged)
        for places, batch in zip(self._judged, batches, strict=True):
            losses = self._losses(batch)
            contrastive = [term for key, term in losses.items() if key.startswith("itc")]
            if not contrastive:
                raise PluginError(
                    f"encoder {self.name}: tuning_losses: expected one called itc, which selects the epoch, got "
                    f"{', '.join(losses) or 'none'}"
                )
            total += torch.stack(contrastive).mean() * len(places)
        loss = all_reduce(total).item() / sum(map(len, self._judged))
        if not math.isfinite(loss):
            raise TrainingDiverged(f"encoder {self.name}: the loss of the held-out items became {loss}")
        return loss

    def _make_batches(self, rng: np.random.Generator) -> list[np.ndarray]:
        return make_batches(self._train.groups, self._batches, self.tuning.batch_size, rng)

    def _losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        with precision(self._device, self.tuning.dtype):
            return self.encoder.tuning_losses(batch)

    def _loaded(self, parts: Iterable[np.ndarray]) -> Iterator[dict[str, Tensor]]:
        """This process's rows of batches of items, on the encoder's device."""
        batches = (
            {key: to_device(rows, self._device) for key, rows in self._prepared.batch(items, own).items()}
            for items, own in [(items, local_slice(len(items))) for items in parts]
        )
        # On a GPU one batch ahead: a loss that waits for the GPU doesn't keep the next items from being read
        return ahead(batches) if self._device.type == "cuda" else batches

    def _random(self, epoch: int) -> np.random.Generator:
        """Return the epoch's generator, and seed torch's default generators from it, differently in each process.

        Masks and dropout are drawn from torch's generators.
        """
        rng = np.random.default_rng([self.tuning.seed, 1, epoch])
        torch.default_generator.manual_seed(int(rng.integers(2**62)) + rank())
        if self._device.type == "cuda":
            with torch.cuda.device(self._device):
                torch.cuda.manual_seed(int(rng.integers(2**62)) + rank())
        return rng

    def state(self) -> TrainingState[TunerNumbers]:
        tensors: dict[str, Tensor] = {}
        if self.stopped is None:
            tensors |= {f"optimizer.{key}": value for key, value in optimizer_state(self._optimizer).items()}
            if not self.is_at_best:  # copies, as tied weights share memory, which safetensors refuses
                tensors |= {f"encoder.{key}": value.clone() for key, value in self.part.tensors().items()}
        numbers = TunerNumbers(self.best_epoch, -self.best.score, tuple(self._epochs), self._seconds, self.stopped)
        return TrainingState(tensors, numbers, self.best_weights)

    def _restore(self, state: TrainingState[TunerNumbers]) -> None:
        parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "optimizer": {}}
        for name, value in state.tensors.items():
            part, _, key = name.partition(".")
            parts[part][key] = value
        self.part.load(state.best)  # which end as the encoder's: they must fit, too
        if parts["encoder"]:
            self.part.load(parts["encoder"])
        load_optimizer_state(self._optimizer, parts["optimizer"])
        numbers = state.numbers
        self._epochs, self._seconds = [*numbers.epochs], numbers.seconds
        self.epoch, self.best_epoch = len(self._epochs), numbers.best_epoch
        self.misses = self.epoch - self.best_epoch
        self.best, self.best_weights = Validation(-numbers.best_loss, {}), dict(state.best)
        self.stopped = numbers.stopped

    @torch.no_grad()
    def _ranks(self) -> dict[str, np.ndarray] | None:
        """The rank (Q,) of each held-out item's counterpart, in both directions.

        None if vectors of image and text differ in width and can't be compared.
        """
        if self.encoder.dims["image"] != self.encoder.dims["text"]:
            return None
        self.encoder.eval()
        rows: dict[str, list[Tensor]] = {modality: [] for modality in PAIR}
        parts = np.array_split(self._held_out.items, math.ceil(len(self._held_out) / self.tuning.batch_size))
        for batch in self._loaded(parts):
            with precision(self._device, self.tuning.dtype):
                vectors = self.encoder(batch)
            for modality in PAIR:
                rows[modality].append(normalize(all_gather(vectors[modality].float()).cpu(), dim=1))
        image, text = (torch.cat(rows[modality]) for modality in PAIR)  # (Q, D)
        return {
            "image to text": own_ranks(image, text, self._held_out.groups),
            "text to image": own_ranks(text, image, self._held_out.groups),
        }

    def _recalls(
        self, before: Mapping[str, np.ndarray] | None, after: Mapping[str, np.ndarray] | None
    ) -> dict[str, dict[str, RecallChange]] | None:
        if before is None or after is None:
            return None
        rng = np.random.default_rng([self.tuning.seed, 2])
        return {way: {f"recall@{k}": compared(before[way] < k, after[way] < k, rng) for k in CUTOFFS} for way in before}
