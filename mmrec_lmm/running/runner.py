"""One run, top to bottom: load, encode, assemble, train, rank, record. Read this file first.

    spec = resolve(...)                      config.py: what exactly is to be run
    inputs = gather(spec, registry)          data set and feature tables; the encoder runs here, or its cache answers
    result = run(spec, inputs, registry)     train on validation, rank test once, write the run's folder

A grid (grid.py) is the same for every point, with one `gather` for all that share their inputs.
"""

import dataclasses
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..cache import plain
from ..config.settings import Settings
from ..data.sampling import TrainingRows
from ..errors import RunError
from ..evaluation.ranking import Evaluator, MetricFunction, Ranking, metric_values
from ..logs import log_epoch, metric_line
from ..machine import choose_device, cpu_threads, forget_peak_memory, keep_freed_memory, peak_memory
from ..plugin.contracts import Recommender, TrainerCallback
from ..plugin.item_features import ItemFeatures
from ..plugin.registry import Registry
from ..training.loop import Validation
from ..training.resume import STATE, load_checkpoint, remove_checkpoint, restoring, save_checkpoint, save_weights
from ..training.trainer import FitResult, Trainer, TrainerNumbers
from ..types import ChanceBySplit, Dataset, EpochReport, Inputs, RunResult, RunSpec, TrainingData
from . import run_folder
from .inputs import without_encoder
from .marks import marks
from .provenance import code_hashes, run_id, run_record

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint"  # folder within a run's


class Interrupted(RunError):
    """The user stopped a run; its state is saved."""

    exit_code = 130


def build_model(spec: RunSpec, inputs: Inputs, registry: Registry, device: torch.device) -> Recommender:
    """The run's model with fresh weights, drawn from the run's seed."""
    dataset = inputs.dataset
    features = ItemFeatures.from_tables(inputs.tables, device, joint=registry.paradigms.get(spec.paradigm).joint)
    torch.manual_seed(spec.settings.seed)
    model_class = registry.models.load(spec.model, "cls")
    data = TrainingData(dataset.n_users, dataset.n_items, dataset.train)
    model: Recommender = model_class(data, features, spec.model_config).to(device)
    return model


def run(
    spec: RunSpec,
    inputs: Inputs,
    registry: Registry,
    *,
    out: Path,
    resume: bool = False,
    force: bool = False,
    progress: bool = False,
) -> RunResult:
    """Train, rank and record one run under `out`; a finished one is returned as it is unless `force`.

    `resume` continues from the checkpoint of a run that was killed. Raises RunBusy if another process is at this run,
    Interrupted at Ctrl-C (the state is saved), TrainingDiverged if the loss is NaN before any evaluation.
    """
    spec = without_encoder(spec, inputs)
    torch.set_num_threads(cpu_threads(spec.settings))
    keep_freed_memory()
    device = choose_device(spec.settings)
    name = run_id(spec, inputs, registry)
    folder = out / name
    with run_folder.claimed(folder):
        finished = run_folder.load_result(folder)
        if finished is not None and not force:
            logger.info("%s is finished: its stored result is returned (--force runs it again)", name)
            _warn_of_other_code(finished, spec, registry)
            return dataclasses.replace(finished, parameters=spec.point)  # it may have been a point of another grid
        run_folder.save_config(folder, spec)
        forget_peak_memory(device)
        model = build_model(spec, inputs, registry, device)
        metrics = _metric_functions(spec.settings, registry)
        try:
            callback = registry.paradigm(spec).callback(spec, inputs, model.features, registry)
            validation = evaluator_of("valid", inputs.dataset, spec.settings)
            fit = train(
                model, spec, inputs, registry, validation, metrics, folder,
                callback=callback, resume=resume, progress=progress,
            )  # fmt: skip
            trained = time.perf_counter()
            evaluators = {"valid": validation, "test": evaluator_of("test", inputs.dataset, spec.settings)}
            rankings = rank(model, evaluators, spec.settings)
        except KeyboardInterrupt:
            raise Interrupted(_where_stopped(folder)) from None
        per_user = {split: metric_values(found, metrics, spec.settings.topk) for split, found in rankings.items()}
        in_epochs = sum(report.train_seconds + report.valid_seconds for report in fit.history)  # before a kill, too
        seconds = dataclasses.replace(inputs.seconds, train=in_epochs, rank=time.perf_counter() - trained)
        result = RunResult(
            run_id=name,
            path=folder,
            parameters=spec.point,
            valid=_means(per_user["valid"]),
            test=_means(per_user["test"]),
            best_epoch=fit.best_epoch,
            epochs=fit.epochs,
            stopped=fit.stopped,
            record=run_record(
                spec,
                inputs,
                model,
                registry,
                device,
                seconds=seconds,
                peak_memory_bytes=peak_memory(device),
                chance=chance_of(rankings, evaluators, spec.settings),
                reports=reports_of(spec, inputs, callback),
            ),
        )
        save_weights(folder / run_folder.WEIGHTS, model.state_dict())
        if callback is not None and (trained_beside := callback.weights()):
            save_weights(folder / run_folder.ENCODER, trained_beside)
        if model.features.joint:
            save_weights(folder / run_folder.FEATURES, model.features())
        run_folder.save_per_user(folder, {s: {"users": rankings[s].users, **values} for s, values in per_user.items()})
        run_folder.save_history(folder, fit.history)
        if spec.settings.save_recommended_topk:
            run_folder.save_topk(folder, rankings["test"].users, rankings["test"].items)
        run_folder.save_result(folder, result)
        remove_checkpoint(folder / CHECKPOINT)
    logger.info("best valid result: \n%s", metric_line(result.valid))
    logger.info("test result: \n%s", metric_line(result.test))
    for mark in marks(result):
        logger.info("%s is marked: %s", name, mark)
    registry.notify_run(spec, result)
    return result


def train(
    model: Recommender,
    spec: RunSpec,
    inputs: Inputs,
    registry: Registry,
    validation: Evaluator,
    metrics: Mapping[str, MetricFunction],
    folder: Path,
    *,
    callback: TrainerCallback | None = None,
    resume: bool,
    progress: bool,
) -> FitResult:
    """FitResult the model, selecting the epoch on validation, with a checkpoint in `folder` after each evaluation."""
    settings, dataset = spec.settings, inputs.dataset
    name, checkpoint = folder.name, folder / CHECKPOINT
    trainer = Trainer(
        model,
        TrainingRows(dataset.train, dataset.n_users, settings.train_batch_size, next(model.parameters()).device),
        settings,
        validate=lambda: validate(model, validation, metrics, settings),
        generator=torch.Generator().manual_seed(settings.seed),
        callback=callback,
    )
    watched = evaluator_of("test", dataset, settings) if settings.protocol == "mmrec" else None
    state = load_checkpoint(checkpoint, TrainerNumbers) if resume else None
    if state is not None:
        with restoring(checkpoint):
            trainer.restore(state)
        logger.info("continuing %s after epoch %d", name, state.numbers.epoch - 1)
    else:
        if (checkpoint / STATE).is_file():
            logger.warning("%s starts over; --resume would have continued it where it was stopped", name)
        remove_checkpoint(checkpoint)
    logger.info("%s\nTrainable parameters: %d", model, sum(parameter.numel() for parameter in model.parameters()))
    done = state.numbers.epoch if state is not None else 0
    with tqdm(desc=name, total=settings.epochs, initial=done, unit="epoch", disable=None if progress else True) as bar:

        def on_epoch(report: EpochReport) -> None:
            score = None if report.valid is None else report.valid[settings.valid_metric.lower()]
            test = watch_test(model, watched, metrics, settings) if watched and report.valid else None
            log_epoch(report, model=spec.model, score=score, test=test)
            valid = "" if score is None else f" {settings.valid_metric.lower()} {score:.4f}"
            bar.set_postfix_str(f"loss {sum(report.losses.values()):.4f}{valid}")
            bar.update()
            registry.notify_epoch(spec, report)

        fit = trainer.fit(on_epoch=on_epoch, on_checkpoint=lambda state: save_checkpoint(checkpoint, state))
    logger.info("+++++Finished training, best eval result in epoch %d", fit.best_epoch)
    return fit


def validate(
    model: Recommender, evaluator: Evaluator, metrics: Mapping[str, MetricFunction], settings: Settings
) -> Validation:
    """All metrics on validation, and the one that selects epochs and grid points. Nothing is rounded."""
    found = evaluator.rank(model, max(settings.topk), batch_size=settings.eval_batch_size)
    means = _means(metric_values(found, metrics, settings.topk))
    return Validation(means[settings.valid_metric.lower()], means)


def watch_test(
    model: Recommender, evaluator: Evaluator, metrics: Mapping[str, MetricFunction], settings: Settings
) -> dict[str, float]:
    """Test at the weights of the moment, for the log of MMRec's protocol: nothing is selected by it, and training goes
    on as if it hadn't been ranked."""
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):  # a scorer may draw
        found = evaluator.rank(model, max(settings.topk), batch_size=settings.eval_batch_size)
    return _means(metric_values(found, metrics, settings.topk))


def rank(model: Recommender, evaluators: Mapping[str, Evaluator], settings: Settings) -> dict[str, Ranking]:
    """Validation once more, and test for the only time that anything is kept of, at the weights that the model has
    now."""
    return {
        split: evaluator.rank(model, max(settings.topk), batch_size=settings.eval_batch_size)
        for split, evaluator in evaluators.items()
    }


def chance_of(
    rankings: Mapping[str, Ranking], evaluators: Mapping[str, Evaluator], settings: Settings
) -> ChanceBySplit:
    """Recall at the cutoff that selects, beside what random rankings give, by split; marks.py judges by it."""
    k = int(settings.valid_metric.partition("@")[2])
    valid, test = (evaluators[split].chance(rankings[split], k) for split in ("valid", "test"))
    return ChanceBySplit(f"recall@{k}", valid, test)


def reports_of(spec: RunSpec, inputs: Inputs, callback: TrainerCallback | None) -> dict[str, Any]:
    """What the paradigm says, under its name, of the encoder that it prepared and of what trained beside the model."""
    report: dict[str, Any] = {}
    if inputs.tuned is not None:
        report |= {"fingerprint": inputs.tuned.fingerprint, **plain(inputs.tuned.record)}
    if callback is not None:
        report |= plain(callback.report())
    return {spec.paradigm: report} if report else {}


def evaluator_of(split: str, dataset: Dataset, settings: Settings) -> Evaluator:
    """The evaluator of "valid" or "test"."""
    masked = [dataset.train]
    if split == "test" and settings.mask_valid_in_test:
        masked.append(dataset.valid)
    return Evaluator(getattr(dataset, split), masked, dataset.n_items)


def _warn_of_other_code(finished: RunResult, spec: RunSpec, registry: Registry) -> None:
    """The code is no part of a run's identity, so that a plugin under work would go on answering from its old runs."""
    then, now = finished.record.code, code_hashes(spec, registry)
    changed = [part for part in now if part != "host" and now[part] != then.get(part)]
    if changed:
        logger.warning(
            "%s: the code of its %s changed since this result was made; --force runs it again",
            finished.run_id,
            " and its ".join(changed),
        )


def _where_stopped(folder: Path) -> str:
    """What to tell the user who stopped the run in `folder`."""
    saved = load_checkpoint(folder / CHECKPOINT, TrainerNumbers)
    if saved is None:
        return f"{folder.name}: interrupted before the first evaluation; nothing is saved, the same command starts over"
    where = f"the state after epoch {saved.numbers.epoch - 1} is saved"
    return f"{folder.name}: interrupted; {where}; the same command with --resume continues"


def _metric_functions(settings: Settings, registry: Registry) -> dict[str, MetricFunction]:
    """The functions of the reported metrics, by lower-case name."""
    return {name.lower(): registry.metrics.load(name, "fn") for name in settings.metrics}


def _means(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {name: float(array.mean()) for name, array in values.items()}
