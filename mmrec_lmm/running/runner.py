"""One run, top to bottom, in `run`. Read this file first.

A grid (grid.py) does the same for each of its points, and gathers inputs once for all points that share them.
"""

import dataclasses
import logging
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ..config.settings import Settings
from ..data.arrays import blaming_changes, read_only
from ..data.sampling import Checked, TrainingRows, Uniform
from ..errors import PluginError, RunError, TrainingDiverged
from ..evaluation.measures import Measures, means
from ..evaluation.ranking import Evaluator, Ranking
from ..logs import log_epoch, metric_line, progress_bar
from ..machine import (
    OneAllocation,
    choose_device,
    cpu_threads,
    forget_peak_memory,
    keep_freed_memory,
    peak_memory,
)
from ..plugin.contracts import (
    Recommender,
    Sampler,
    TrainerCallback,
    check_model_class,
    check_sampler_class,
    device_of,
)
from ..plugin.item_features import ItemFeatures
from ..plugin.registry import Registry
from ..training.loop import Validation
from ..training.resume import (
    STATE,
    Checkpoints,
    check_storable,
    load_checkpoint,
    load_numbers,
    remove_checkpoint,
    restoring,
)
from ..training.trainer import FitResult, Trainer, TrainerNumbers
from ..typed_json import plain
from ..types import (
    ChanceBySplit,
    ColdItems,
    Dataset,
    EpochReport,
    Inputs,
    Interactions,
    RunResult,
    RunSpec,
    TrainingData,
)
from . import run_folder
from .inputs import check_sampler, gather, without_encoder
from .marks import marks
from .plugins import trust
from .provenance import code_hashes, plugin_code, run_id, run_record
from .run_folder import CHECKPOINT

logger = logging.getLogger(__name__)


class Interrupted(RunError):
    """The user stopped a run; its state is saved."""

    exit_code = 130


def build_model(spec: RunSpec, inputs: Inputs, registry: Registry, device: torch.device) -> Recommender:
    """The run's model with fresh weights, drawn from the run's seed."""
    dataset = inputs.dataset
    features = ItemFeatures.from_tables(inputs.tables, device, joint=registry.paradigms.get(spec.paradigm).joint)
    torch.manual_seed(spec.settings.seed)
    owner = _owner(spec, registry)
    model_class = registry.models.load(spec.model, "cls")
    check_model_class(model_class, owner=owner)
    data = training_data(dataset)
    with OneAllocation(f"model {spec.model}"), blaming_changes(owner), _sharing_arrays():
        model: Recommender = model_class.for_run(spec, data, features, device)
    check_storable(model.state_dict(), owner=owner)
    check_features(model, owner)
    return model.to(device)


def check_features(model: Recommender, owner: str) -> None:
    """Raise PluginError if a model has written into frozen features, or trains them in place: on the CPU they are the
    arrays of the run's inputs, which other runs read."""
    tables = {} if model.features.joint else model.features()
    of_cpu = {name: table for name, table in tables.items() if table.device.type == "cpu" and table.numel()}
    places = {table.untyped_storage().data_ptr(): name for name, table in of_cpu.items()}
    odd = {name: f"a change of {name}" for name, table in of_cpu.items() if table._version}
    for parameter, values in model.named_parameters():
        if values.requires_grad and (name := places.get(values.untyped_storage().data_ptr())):
            odd[name] = f"the parameter {parameter}, which trains {name} in place"
    for name, got in odd.items():
        raise PluginError(
            f"{owner}: expected it to leave the item features as they are, got {got}; try "
            f"features()[{name!r}].clone() for a copy"
        )


def training_data(dataset: Dataset) -> TrainingData:
    """What a model and a sampler may see of a data set."""
    train = Interactions(read_only(dataset.train.users), read_only(dataset.train.items))
    times = None if dataset.timestamps is None else read_only(dataset.timestamps)
    return TrainingData(dataset.n_users, dataset.n_items, train, times)


@contextmanager
def _sharing_arrays() -> Iterator[None]:
    """A context in which torch doesn't warn of a tensor that shares memory with an array which is read-only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writ", UserWarning)
        yield


def training_rows(spec: RunSpec, dataset: Dataset, registry: Registry, device: torch.device) -> TrainingRows:
    """The training rows with the negatives of the run's sampler. Raises NotApplicable if it doesn't fit the model."""
    check_sampler(spec, registry)
    settings, sampler = spec.settings, registry.samplers.get(spec.settings.sampler)
    made: Sampler | None = None
    if sampler.cls is not None:
        data = training_data(dataset)
        owner = f"plugin {registry.samplers.provider(sampler.name)}: sampler {sampler.name}"
        sampler_class = registry.samplers.load(sampler.name, "cls")
        check_sampler_class(sampler_class, owner=owner)
        with blaming_changes(owner), _sharing_arrays():
            made = sampler_class(data, spec.sampler_config)
        if type(made) is not Uniform:
            made = Checked(made, data, name=owner)
    count = settings.n_negatives if made else 0
    return TrainingRows(
        dataset.train, dataset.n_users, settings.train_batch_size, device, sampler=made, n_negatives=count
    )


def measures_of(spec: RunSpec, inputs: Inputs, registry: Registry) -> Measures:
    """The run's metrics. Those that need features of items see them as they were before any joint training."""
    dataset = inputs.dataset
    return Measures(
        registry.metrics, spec.settings.metrics, dataset.train, dataset.n_users, dataset.n_items, inputs.tables
    )


def _owner(spec: RunSpec, registry: Registry) -> str:
    """The beginning of a message on a run's model."""
    return f"plugin {registry.models.provider(spec.model)}: model {spec.model}"


class Observers(Protocol):
    """Receives a run's start, epochs and result: by default the registry, which notifies its plugins."""

    def notify_start(self, run: RunSpec, folder: Path) -> None: ...
    def notify_epoch(self, run: RunSpec, epoch: EpochReport) -> None: ...
    def notify_run(self, run: RunSpec, result: RunResult) -> None: ...


class Unobserved:
    """Observers in place of the registry's plugins, which aren't notified: the run isn't one of its user's."""

    def notify_start(self, run: RunSpec, folder: Path) -> None: ...
    def notify_epoch(self, run: RunSpec, epoch: EpochReport) -> None: ...
    def notify_run(self, run: RunSpec, result: RunResult) -> None: ...


def run(
    spec: RunSpec,
    registry: Registry,
    *,
    out: Path,
    inputs: Inputs | None = None,
    observers: Observers | None = None,
    resume: bool = False,
    force: bool = False,
    progress: bool = False,
) -> RunResult:
    """Encode, train, rank and record one run under `out`; return a finished run's stored result unless `force`.

    `inputs` are the result of `gather`, if several runs share it. `resume` continues from the checkpoint of a run that
    was killed. Raises RunBusy if another process makes this run, Interrupted at Ctrl-C (the state is saved),
    TrainingDiverged if the loss is NaN before any evaluation.
    """
    inputs = inputs or gather(spec, registry, progress=progress)  # the data set, and the encoder's tables of features
    observers = observers or registry
    spec = without_encoder(spec, inputs)
    device = prepare_machine(spec.settings)
    folder = out / run_id(spec, inputs, registry)
    run_folder.complete_run(folder)
    if (finished := _finished(folder, force, spec, registry, quiet=True)) is not None:  # read without a lock
        return as_stored(finished, spec, registry)
    with run_folder.claimed(folder) as claim_again:
        if (finished := _finished(folder, force, spec, registry)) is not None:  # by another process meanwhile
            return as_stored(finished, spec, registry)
        if not (folder / run_folder.RESULT).exists():
            if resume and (folder / run_folder.CONFIG).is_file() and not (folder / CHECKPOINT / STATE).is_file():
                logger.info("%s has no checkpoint yet: it starts over", folder.name)
            run_folder.save_config(folder, spec)
        model = build_model(spec, inputs, registry, device)
        measures = measures_of(spec, inputs, registry)
        validation = evaluator_of("valid", inputs.dataset, spec.settings)
        observers.notify_start(spec, folder)
        try:
            callback = registry.paradigm(spec).callback(spec, inputs, model.features, registry)
            fit = train(
                model, spec, inputs, validation, measures, folder,
                registry=registry, callback=callback, observers=observers, resume=resume, progress=progress,
            )  # fmt: skip
            ranked = rank(model, validation, fit.validation, inputs.dataset, measures, spec.settings)
        except KeyboardInterrupt:
            raise Interrupted(_where_stopped(folder)) from None
        except TrainingDiverged as error:
            raise TrainingDiverged(f"{_owner(spec, registry)}: {error}") from None
        result = result_of(folder, spec, inputs, registry, model, callback, fit, ranked)
        claim_again()
        result = run_folder.save_run(
            folder, spec, result, model, callback, fit.history, ranked.rankings, ranked.per_user
        )
    trust(result.record.plugins or {})
    announce(spec, result, observers)
    return result


def _finished(folder: Path, force: bool, spec: RunSpec, registry: Registry, *, quiet: bool = False) -> RunResult | None:
    """The result in a run's folder, unless it is to be made again: by `force`, or as the code of a plugin that doesn't
    come with mmrec-lmm changed, which is logged unless `quiet`. What a kill left there is removed."""
    result = None if force else run_folder.load_result(folder)
    if result is None:
        return None
    then, now = result.record.code, plugin_code(spec, registry)
    if changed := [part for part in now if part in then and now[part] != then[part]]:
        if not quiet:
            said = "%s: the code of its %s changed since its result was made: it is run again"
            logger.warning(said, folder.name, _and(changed))
        return None
    run_folder.tidy(folder)
    return result


def prepare_machine(settings: Settings) -> torch.device:
    """Set threads and memory options of this process for a run, and return the run's device."""
    torch.set_num_threads(cpu_threads(settings))
    keep_freed_memory()
    device = choose_device(settings)
    forget_peak_memory(device)
    return device


def as_stored(finished: RunResult, spec: RunSpec, registry: Registry) -> RunResult:
    """A finished run's result with the parameters of this grid's point; it may come from another grid."""
    logger.info("%s is finished: its stored result is returned (--force runs it again)", finished.run_id)
    _warn_of_other_code(finished, spec, registry)
    return dataclasses.replace(finished, parameters=spec.point)


def train(
    model: Recommender,
    spec: RunSpec,
    inputs: Inputs,
    validation: Evaluator,
    measures: Measures,
    folder: Path,
    *,
    registry: Registry,
    callback: TrainerCallback | None,
    observers: Observers,
    resume: bool,
    progress: bool,
) -> FitResult:
    """Fit the model, selecting the epoch on validation, with checkpoints in `folder`."""
    settings, dataset = spec.settings, inputs.dataset
    name, checkpoint = folder.name, folder / CHECKPOINT
    trainer = Trainer(
        model,
        training_rows(spec, dataset, registry, device_of(model)),
        settings,
        validate=lambda: validate(model, validation, measures, settings),
        generator=torch.Generator().manual_seed(settings.seed),
        callback=callback,
        owner=_owner(spec, registry),
    )
    watched = evaluator_of("test", dataset, settings) if settings.protocol == "mmrec" else None
    state = load_checkpoint(checkpoint, TrainerNumbers) if resume else None
    if state is not None:
        with restoring(checkpoint):
            trainer.restore(state)
            validated(validation, trainer.best)
        logger.info("%s", _continued(name, state.numbers))
    else:
        if (checkpoint / STATE).is_file():
            logger.warning("%s starts over; --resume would have continued it from its checkpoint", name)
        remove_checkpoint(checkpoint)
    logger.info("%s\nTrainable parameters: %d", model, sum(parameter.numel() for parameter in model.parameters()))
    done = state.numbers.epoch if state is not None else 0
    with (
        Checkpoints[TrainerNumbers](checkpoint, settings.checkpoint_seconds) as checkpoints,
        progress_bar(shown=progress, desc=name, total=settings.epochs, initial=done, unit="epoch") as bar,
    ):

        def on_epoch(report: EpochReport) -> None:
            check_features(model, _owner(spec, registry))
            score = None if report.valid is None else report.valid[settings.valid_metric.lower()]
            test = watch_test(model, watched, measures, settings) if watched and report.valid else None
            log_epoch(report, model=spec.model, score=score, test=test)
            valid = "" if score is None else f" {settings.valid_metric.lower()} {score:.4f}"
            bar.set_postfix_str(f"loss {sum(report.losses.values()):.4f}{valid}")
            bar.update()
            observers.notify_epoch(spec, report)

        fit = trainer.fit(on_epoch=on_epoch, on_checkpoint=checkpoints.offer)
    logger.info("+++++Finished training, best eval result in epoch %d", fit.best_epoch)
    return fit


def validate(model: Recommender, evaluator: Evaluator, measures: Measures, settings: Settings) -> Validation:
    """All metrics on validation, unrounded, the one that selects epochs and grid points, and the items ranked."""
    found = _rank(model, evaluator, measures, settings)
    values = means(measures.values(found, settings.topk))
    kept = {"items": torch.from_numpy(found.items).int()}  # (U, K)
    if found.places is not None:
        kept["above"] = torch.from_numpy(found.places.above)  # (P,)
    return Validation(values[settings.valid_metric.lower()], values, kept)


def validated(evaluator: Evaluator, best: Validation) -> Ranking:
    """The ranking that a result of `validate` keeps."""
    return evaluator.ranking(best.found["items"].long(), best.found.get("above"))


def _rank(model: Recommender, evaluator: Evaluator, measures: Measures, settings: Settings) -> Ranking:
    return evaluator.rank(model, max(settings.topk), batch_size=settings.eval_batch_size, places=measures.needs_places)


def watch_test(model: Recommender, evaluator: Evaluator, measures: Measures, settings: Settings) -> dict[str, float]:
    """Test metrics with the current weights, for the log of MMRec's protocol.

    They select nothing, and training continues with the same random state.
    """
    device = device_of(model)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):  # a model's scores may use random numbers
        found = _rank(model, evaluator, measures, settings)
    return means(measures.values(found, settings.topk))


@dataclass(frozen=True)
class Ranked:
    """The rankings by split, "valid" and "test"; each metric's values, by user or one for all; recall beside chance;
    and the seconds it took.

    A `cold-item` split has another ranking, COLD: that of test with cold items as the only candidates.
    """

    rankings: Mapping[str, Ranking]
    values: Mapping[str, Mapping[str, np.ndarray]]
    chance: ChanceBySplit
    seconds: float
    cold_items: ColdItems | None = None

    @property
    def per_user(self) -> dict[str, dict[str, np.ndarray]]:
        """The values (U,) of the metrics that have one for each user."""
        return {
            split: {name: array for name, array in found.items() if array.ndim} for split, found in self.values.items()
        }


def rank(
    model: Recommender,
    validation: Evaluator,
    best: Validation,
    dataset: Dataset,
    measures: Measures,
    settings: Settings,
) -> Ranked:
    """Rank test with the model's best weights, for the run's result; validation was ranked with them in training."""
    started = time.perf_counter()
    test = evaluator_of("test", dataset, settings)
    rankings = {
        "valid": validated(validation, best),
        "test": _rank(model, test, measures, settings),
    }
    k = int(settings.valid_metric.partition("@")[2])
    evaluators = {"valid": validation, "test": test}
    cold = np.bincount(dataset.train.items, minlength=dataset.n_items) == 0  # (I,)
    if settings.split == "cold-item":
        evaluators[run_folder.COLD] = evaluator_of("test", dataset, settings, among=cold)
        rankings[run_folder.COLD] = _rank(model, evaluators[run_folder.COLD], measures, settings)
    chances = {split: evaluator.chance(rankings[split], k) for split, evaluator in evaluators.items()}
    seconds = time.perf_counter() - started
    values = {split: measures.values(found, settings.topk) for split, found in rankings.items()}
    of_cold = None
    if run_folder.COLD in evaluators:
        of_cold = ColdItems(int(cold.sum()), means(values[run_folder.COLD]), chances[run_folder.COLD])
    by_split = ChanceBySplit(f"recall@{k}", chances["valid"], chances["test"])
    return Ranked(rankings, values, by_split, seconds, of_cold)


def result_of(
    folder: Path,
    spec: RunSpec,
    inputs: Inputs,
    registry: Registry,
    model: Recommender,
    callback: TrainerCallback | None,
    fit: FitResult,
    ranked: Ranked,
) -> RunResult:
    """The result of a run, with its record."""
    device = device_of(model)
    in_epochs = sum(report.train_seconds + report.valid_seconds for report in fit.history)  # resumed ones too
    return RunResult(
        run_id=folder.name,
        path=folder,
        parameters=spec.point,
        valid=means(ranked.values["valid"]),
        test=means(ranked.values["test"]),
        best_epoch=fit.best_epoch,
        epochs=fit.epochs,
        stopped=fit.stopped,
        record=run_record(
            spec,
            inputs,
            model,
            registry,
            device,
            seconds=dataclasses.replace(inputs.seconds, train=in_epochs, rank=ranked.seconds),
            peak_memory_bytes=peak_memory(device),
            chance=ranked.chance,
            cold_items=ranked.cold_items,
            reports=reports_of(spec, inputs, model, callback),
        ),
    )


def announce(spec: RunSpec, result: RunResult, observers: Observers) -> None:
    """Log the result with its marks, and notify the observers."""
    logger.info("best valid result: \n%s", metric_line(result.valid))
    logger.info("test result: \n%s", metric_line(result.test))
    for mark in marks(result):
        logger.info("%s is marked: %s", result.run_id, mark)
    observers.notify_run(spec, result)


def reports_of(spec: RunSpec, inputs: Inputs, model: Recommender, callback: TrainerCallback | None) -> dict[str, Any]:
    """The model's report under its name, and the paradigm's: on the encoder that it prepared, and on the callback's
    training."""
    report: dict[str, Any] = {}
    if inputs.tuned is not None:
        report |= {"fingerprint": inputs.tuned.fingerprint, **plain(inputs.tuned.record)}
    if callback is not None:
        report |= plain(callback.report())
    reports = {spec.paradigm: report, spec.model: plain(model.report())}
    return {name: found for name, found in reports.items() if found}


def evaluator_of(split: str, dataset: Dataset, settings: Settings, *, among: np.ndarray | None = None) -> Evaluator:
    """The evaluator of "valid" or "test", for all items or those of a mask (I,)."""
    if split == "valid":
        return Evaluator(of_some_users(dataset.valid, settings.valid_users), [dataset.train], dataset.n_items, among)
    masked = [dataset.train, dataset.valid] if settings.mask_valid_in_test else [dataset.train]
    return Evaluator(dataset.test, masked, dataset.n_items, among)


def of_some_users(rows: Interactions, count: int) -> Interactions:
    """The rows of `count` random users; all if there are no more, or `count` is 0.

    The draw depends on nothing but the users: all runs on a data set are selected on the same ones, whatever the seed,
    and a larger sample has the users of a smaller one.
    """
    users = np.unique(rows.users)
    if not 0 < count < len(users):
        return rows
    drawn = np.isin(rows.users, np.random.default_rng(0).permutation(users)[:count])
    return Interactions(rows.users[drawn], rows.items[drawn])


def _warn_of_other_code(finished: RunResult, spec: RunSpec, registry: Registry) -> None:
    """Warn if a plugin's code changed since the run: code isn't part of a run's id, so an old result is returned."""
    then, now = finished.record.code, code_hashes(spec, registry)
    changed = [part for part in now if part != "host" and now[part] != then.get(part)]
    if changed:
        logger.warning(
            "%s: the code of its %s changed since this result was made; --force runs it again",
            finished.run_id,
            _and(changed),
        )


def _and(parts: Sequence[str]) -> str:
    return " and its ".join(parts)


def _continued(name: str, saved: TrainerNumbers) -> str:
    """The line of the log on a run that is resumed."""
    if saved.stopped:
        return f"{name} is trained: continuing with the ranking of its best weights, those of epoch {saved.best_epoch}"
    return f"continuing {name} after epoch {saved.epoch - 1}"


def _where_stopped(folder: Path) -> str:
    """The message to a user who stopped the run in `folder`."""
    if not (folder / CHECKPOINT / STATE).is_file():
        return f"{folder.name}: interrupted before the first evaluation; nothing is saved, the same command starts over"
    saved = load_numbers(folder / CHECKPOINT, TrainerNumbers)
    where = "the trained model is saved" if saved.stopped else f"the state after epoch {saved.epoch - 1} is saved"
    return f"{folder.name}: interrupted; {where}; the same command with --resume continues"
