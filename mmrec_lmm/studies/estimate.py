"""Estimates a study before it runs: the cached files that its runs share, and time, memory and disk by probes.

A probe is a run of a few epochs for each model, data set, paradigm and width of features, in its own process and
folder. Features that don't exist yet are replaced by random ones of the same width: no encoder runs for a probe, except
one that trains with the recommender. The time to make features, and to tune encoders, is measured on some of the items.
The number of epochs can't be measured: it is the mean of the model's finished runs, or else `epochs`, as a maximum.
"""

import dataclasses
import multiprocessing
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..cache import fingerprint
from ..config.settings import Settings
from ..data.items import JOINT, loader, source_of
from ..data.opening import open_dataset
from ..disk.folders import scratch_folder
from ..disk.reading import read_json
from ..disk.writing import write_json
from ..errors import MMRecError, NoAccess
from ..features.encoding import build_encoder, encoder_spec
from ..features.inference import Inference
from ..formatting import first_line
from ..machine import choose_device, cpu_threads
from ..plugin.contracts import ItemEncoder
from ..plugin.registry import Registry
from ..running.inputs import cached_files, gather, open_for
from ..running.runner import Unobserved, run
from ..training.fine_tuning import PAIR
from ..typed_json import decode
from ..types import EpochReport, FeatureTable, Inputs, RunSpec
from .executor import MEMORY, Call, Job, Plan
from .leaderboard import FINISHED

EPOCHS = 2  # of a probe
LIMIT = 300.0  # seconds that a probe may take
SAMPLE = 16  # items per batch when measuring an encoder
BATCHES = 4  # batches to measure; the first isn't counted
LONG_ENOUGH = 5.0  # seconds after which measuring stops
TUNED = "tuned"  # the part with an encoder's weights, as `cached_files` calls it


_T = TypeVar("_T")
_Step = Callable[[Mapping[str, Tensor]], object]


@dataclass(frozen=True)
class CachedFile:
    """A file of the cache that runs share. `there`: it exists already. `reason`: why its name isn't known."""

    what: str
    there: bool
    reason: str = ""
    key: str = ""  # of a job that needs it
    part: str = ""  # its modality, or TUNED


@dataclass(frozen=True)
class Pace:
    """The speed of an encoder, when encoding or when tuned, measured on some items."""

    items: int = 0  # in all
    passes: int = 1  # over the items; for tuning, its maximum of epochs
    seconds_per_item: float = 0.0  # of one pass


@dataclass(frozen=True)
class Making:
    """The estimated time to make a cached file; `reason` says why there is no estimate."""

    what: str
    pace: Pace
    reason: str = ""
    together: str = ""  # equal for files that one process makes one after the other

    @property
    def minutes(self) -> float:
        return self.pace.items * self.pace.passes * self.pace.seconds_per_item / 60


@dataclass(frozen=True)
class Cost:
    """The measured cost of a run of a few epochs."""

    seconds_per_epoch: float = 0.0  # 0 of a model that isn't trained
    memory: int = 0  # bytes, the peak of the process
    disk: int = 0  # bytes of one run's folder


@dataclass(frozen=True)
class Probe:
    """The estimated cost of a run, from a few epochs; `reason` says why there is no estimate."""

    title: str
    keys: tuple[str, ...]  # of the unfinished jobs that it estimates
    cost: Cost
    epochs: float  # of a run
    at_most: bool = True  # True if `epochs` is the limit, because no run of the model is finished
    reason: str = ""

    @property
    def runs(self) -> int:
        return len(self.keys)


def shared_files(plan: Plan, registry: Registry) -> list[CachedFile]:
    """The feature tables and tuned encoders of all runs, each once."""
    found: dict[str, CachedFile] = {}
    seen: set[str] = set()
    for job in plan.jobs.values():
        if job.group in seen:
            continue
        seen.add(job.group)
        spec = job.spec
        name = job.axes.encoder or "-"
        try:
            paths = cached_files(spec, open_dataset(spec.dataset, spec.settings, registry), registry)
        except MMRecError as error:
            what = f"{name} on {spec.dataset}, {spec.paradigm}"
            found.setdefault(what, CachedFile(what, False, first_line(error)))
            continue
        for part, path in paths.items():
            how = "tuned" if TUNED in paths else "pre-trained"
            what = f"{name} tuned on {spec.dataset}" if part == TUNED else f"{part} of {spec.dataset} by {name}, {how}"
            found[str(path)] = CachedFile(what, path.is_file(), key=job.key, part=part)
    return list(found.values())


def measure(
    shared: Sequence[CachedFile], plan: Plan, call: Call, *, on_progress: Callable[[Making], None] | None = None
) -> list[Making]:
    """Estimate the time to make each cached file that doesn't exist yet.

    Tuning doesn't change how long an encoder takes, so its tables are measured once for both.
    """
    answers: dict[str, Pace | str] = {}
    found = []
    for one in shared:
        if one.there or one.reason:
            continue
        spec = plan.expected[one.key].spec
        tuning = spec.paradigm_config if one.part == TUNED else None
        kind = fingerprint([spec.dataset, spec.encoder, spec.encoder_config, one.part, tuning])
        if kind not in answers:
            answers[kind] = _alone(_measure, Pace, call, one.key, one.part)
        answer = answers[kind]
        pace, reason = (Pace(), answer) if isinstance(answer, str) else (answer, "")
        found.append(Making(one.what, pace, reason, together=plan.expected[one.key].encoded))
        if on_progress:
            on_progress(found[-1])
    return found


def probe(
    plan: Plan, call: Call, registry: Registry, *, on_progress: Callable[[Probe], None] | None = None
) -> list[Probe]:
    """Probe one unfinished run of each kind. This takes minutes: `on_progress` gets each probe as it ends.

    Writes the memory that the runs need to the study's folder, as MEMORY.
    """
    records = {key: plan.record(job) for key, job in plan.expected.items()}
    kinds: dict[str, list[Job]] = {}
    widths: dict[str, Mapping[str, int] | str] = {}  # by features; the reason where they are unknown
    for key, job in plan.expected.items():
        record = records[key]
        if record is None or record.state != FINISHED:
            features = f"{job.encoded} {job.spec.modalities}"
            if features not in widths:
                try:
                    widths[features] = _widths(job.spec, registry)
                except Exception as error:  # a plugin may raise anything; the probe reports it
                    widths[features] = str(error)
            kinds.setdefault(_kind(job, widths[features], registry), []).append(job)
    lengths: dict[str, list[int]] = {}
    for outcome in plan.outcomes():
        lengths.setdefault(outcome.cell.axes.model, []).extend(one.epochs for one in outcome.results if one is not None)
    found = []
    for jobs in kinds.values():
        spec = jobs[0].spec
        known = lengths.get(spec.model)
        answer = _alone(_probe, Cost, call, jobs[0].key)
        cost, reason = (Cost(), answer) if isinstance(answer, str) else (answer, "")
        trains = cost.seconds_per_epoch > 0
        found.append(
            Probe(
                title=jobs[0].title,
                keys=tuple(job.key for job in jobs),
                cost=cost,
                epochs=float(np.mean(known)) if known else spec.settings.epochs if trains else 0,
                at_most=not known and trains,
                reason=reason,
            )
        )
        if on_progress:
            on_progress(found[-1])
    memory = {key: one.cost.memory for one in found for key in one.keys if not one.reason}
    with suppress(NoAccess):  # in another user's folder it serves this command alone
        write_json(plan.folder / MEMORY, memory)
    return found


def _kind(job: Job, widths: Mapping[str, int] | str, registry: Registry) -> str:
    """Equal for runs that one probe estimates: the cost of frozen features depends only on their width."""
    spec = job.spec
    joint = registry.paradigms.get(spec.paradigm).joint
    trained = [spec.encoder, spec.encoder_config, spec.paradigm_config] if joint else None
    return fingerprint([spec.model, spec.axes.tested_on, spec.settings.train_batch_size, widths, trained])


def _widths(spec: RunSpec, registry: Registry) -> dict[str, int]:
    """The widths of a run's encoded features, by modality."""
    wanted = cached_files(spec, open_dataset(spec.dataset, spec.settings, registry), registry)
    modalities = tuple(part for part in wanted if part != TUNED)
    if not modalities:
        return {}
    return dict(build_encoder(encoder_spec(spec, registry), spec.encoder_config, modalities).dims)


def _alone(target: Callable[..., _T], kind: type[_T], call: Call, *arguments: Any) -> _T | str:
    """The result of `target`, a `kind`, or the reason for its failure.

    It runs in a process of its own, whose peak memory is then its own too.
    """
    with scratch_folder() as folder:
        spawn = multiprocessing.get_context("spawn")
        process = spawn.Process(target=_answer, args=(target, call, arguments, folder))
        process.start()
        process.join(LIMIT)
        if process.is_alive():
            process.kill()
            process.join()
            return f"it takes more than {LIMIT:.0f} s"
        answer = folder / "answer.json"
        if not answer.is_file():
            hint = ": out of memory?" if process.exitcode == -signal.SIGKILL else ""
            return f"the probe died with exit code {process.exitcode}{hint}"
        content = read_json(answer)
        return content if isinstance(content, str) else decode(kind, content, where=str(answer), cure="try again")


def _answer(target: Callable[..., object], call: Call, arguments: Sequence[Any], folder: Path) -> None:
    try:
        found = target(*call.plan(), folder, *arguments)
    except Exception as error:  # a plugin may raise anything
        found = f"{type(error).__name__}: {error}"
    write_json(folder / "answer.json", found)


def _probe(plan: Plan, registry: Registry, folder: Path, key: str) -> Cost:
    """Measure a run of a few epochs."""
    spec = plan.expected[key].spec
    few = dataclasses.replace(spec.settings, epochs=EPOCHS, stopping_step=EPOCHS, eval_step=1)
    epochs = _Epochs()
    inputs = _inputs(spec, registry)
    result = run(
        dataclasses.replace(spec, settings=few), registry, inputs=inputs, observers=epochs, out=folder / "runs"
    )
    last = epochs.reports[-1] if epochs.reports else None  # the first one also loads; a model may train none
    return Cost(
        seconds_per_epoch=last.train_seconds + last.valid_seconds / spec.settings.eval_step if last else 0.0,
        memory=result.record.peak_memory_bytes,
        disk=sum(path.stat().st_size for path in result.path.rglob("*") if path.is_file()),
    )


def _measure(plan: Plan, registry: Registry, folder: Path, key: str, part: str) -> Pace:
    """Measure encoding some items, or tuning on them."""
    spec = plan.expected[key].spec
    settings, tuned = spec.settings, part == TUNED
    torch.set_num_threads(cpu_threads(settings))
    dataset = open_dataset(spec.dataset, settings, registry)
    assert dataset.catalog is not None
    source = source_of(dataset.catalog, JOINT if tuned else part, settings.text_fields)
    by, device = encoder_spec(spec, registry), choose_device(settings)
    encoder = build_encoder(by, spec.encoder_config, PAIR if tuned else (part,)).to(device)
    if tuned:
        step, passes = registry.paradigm(spec).probe(encoder, device)
    else:
        step, passes = _encoding_step(encoder, part, settings, device), 1
    spread = np.linspace(0, len(source.items) - 1, BATCHES * SAMPLE).astype(int)  # short and long texts alike
    places = np.random.default_rng(0).permutation(spread).reshape(BATCHES, SAMPLE)
    prepared = loader(source, encoder, by.name, source.items[places].tolist(), workers=0, pin=False)
    seconds: list[float] = []
    started = time.perf_counter()
    for batch in prepared:
        if isinstance(batch, MMRecError):
            raise batch
        step(batch.tensors)
        seconds.append(time.perf_counter() - started)
        if sum(seconds[1:]) > LONG_ENOUGH:
            break
        started = time.perf_counter()
    return Pace(
        items=len(source.items),
        passes=passes,
        seconds_per_item=float(np.mean(seconds[1:])) / SAMPLE,  # the first one also loads
    )


def _encoding_step(encoder: ItemEncoder, modality: str, settings: Settings, device: torch.device) -> _Step:
    model = Inference(
        encoder, modality, name="", device=device, dtype=settings.encode_dtype, compile=False, batch_size=SAMPLE
    )
    return lambda batch: model.fetched(model(batch))


class _Epochs(Unobserved):
    """The epochs of a probe."""

    def __init__(self) -> None:
        self.reports: list[EpochReport] = []

    def notify_epoch(self, run: RunSpec, epoch: EpochReport) -> None:
        self.reports.append(epoch)


def _inputs(spec: RunSpec, registry: Registry) -> Inputs:
    """The run's own inputs if they exist already, else random tables of the same widths."""
    dataset = open_for(spec, registry)
    wanted = cached_files(spec, dataset, registry)
    if all(path.is_file() for path in wanted.values()):
        return gather(spec, registry)
    present, draw = np.ones(dataset.n_items, bool), np.random.default_rng(0)
    tables = {
        modality: FeatureTable(modality, draw.standard_normal((dataset.n_items, width), np.float32), present, "probe")
        for modality, width in _widths(spec, registry).items()
    }
    return Inputs(dataset, tables)
