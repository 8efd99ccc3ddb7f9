"""What a study would take, before it is done: the artefacts that its runs share, and time, memory and disk by a probe.

A probe is a run of a few epochs for each model, data set, paradigm and width of features, in a process and a folder of
its own. Where features aren't there yet it has random ones of their width, so that no encoder runs for it but one that
trains along. What it can't tell is how many epochs a run takes: those of the finished runs of its model, or at most
`epochs`; and how long encoding and tuning take.
"""

import dataclasses
import multiprocessing
import signal
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .artifacts import fingerprint, read_json, write_json
from .encoding import build_encoder
from .engine import MEMORY, Call, Job, Plan
from .errors import MMRecError
from .inputs import Inputs, artefacts, encoder_spec, gather, open_dataset
from .leaderboard import FINISHED
from .registry import Registry
from .runner import run
from .types import EpochReport, FeatureTable, RunResult, RunSpec

EPOCHS = 2  # of a probe
LIMIT = 300.0  # seconds that a probe may take


@dataclass(frozen=True)
class Artefact:
    """A file of the store that runs share, there or to be made; `reason` says why it can't be named."""

    what: str
    there: bool
    reason: str = ""


@dataclass(frozen=True)
class Probe:
    """What a run of a few epochs took, or why there is no telling."""

    title: str
    keys: tuple[str, ...] = ()  # of the jobs, still to be done, that it speaks for
    seconds_per_epoch: float = 0.0
    epochs: float = 0.0  # of a run
    at_most: bool = True  # `epochs` is the limit, as no run of the model is finished
    memory: int = 0  # bytes, the peak of the process
    disk: int = 0  # bytes of one run's folder
    reason: str = ""

    @property
    def runs(self) -> int:
        return len(self.keys)


def shared_artefacts(plan: Plan, registry: Registry) -> list[Artefact]:
    """The tables and tuned encoders of all runs, each once."""
    found: dict[str, Artefact] = {}
    seen: set[str] = set()
    for job in plan.jobs.values():
        if job.group in seen:
            continue
        seen.add(job.group)
        spec = job.spec
        name = job.title.split("/")[2]
        try:
            paths = artefacts(spec, open_dataset(spec.dataset, spec.settings, registry), registry)
        except MMRecError as error:
            what = f"{name} on {spec.dataset}, {spec.paradigm}"
            found.setdefault(what, Artefact(what, False, str(error).splitlines()[0]))
            continue
        for part, path in paths.items():
            how = "tuned" if "tuned" in paths else "pre-trained"
            what = (
                f"{name} tuned on {spec.dataset}" if part == "tuned" else f"{part} of {spec.dataset} by {name}, {how}"
            )
            found[str(path)] = Artefact(what, path.is_file())
    return list(found.values())


def probe(plan: Plan, call: Call, registry: Registry, *, told: Callable[[Probe], None] | None = None) -> list[Probe]:
    """Probe one of the runs of each kind that are still to be done. It takes a while: `told` hears of each. What memory
    they need is kept beside the study's records."""
    records = {key: plan.record(job) for key, job in plan.expected.items()}
    kinds: dict[str, list[Job]] = {}
    widths: dict[str, Mapping[str, int] | str] = {}  # by group; the reason where they can't be told
    for key, job in plan.expected.items():
        record = records[key]
        if record is None or record.state != FINISHED:
            if job.group not in widths:
                try:
                    widths[job.group] = _widths(job.spec, registry)
                except MMRecError as error:
                    widths[job.group] = str(error)
            kinds.setdefault(_kind(job, widths[job.group]), []).append(job)
    lengths: dict[str, list[int]] = {}
    for outcome in plan.outcomes():
        lengths.setdefault(outcome.cell.model, []).extend(one.epochs for one in outcome.results if one is not None)
    found = []
    for jobs in kinds.values():
        spec = jobs[0].spec
        known = lengths.get(spec.model)
        found.append(
            dataclasses.replace(
                _probe_alone(call, jobs[0]),
                keys=tuple(job.key for job in jobs),
                epochs=float(np.mean(known)) if known else spec.settings.epochs,
                at_most=not known,
            )
        )
        if told:
            told(found[-1])
    memory = {key: one.memory for one in found for key in one.keys if not one.reason}
    write_json(plan.folder / MEMORY, memory)
    return found


def _kind(job: Job, widths: Mapping[str, int] | str) -> str:
    """Equal for runs that one probe speaks for: frozen features cost what their width does, whoever made them."""
    spec = job.spec
    trained = [spec.encoder, spec.encoder_config, spec.paradigm_config] if spec.paradigm == "ete" else None
    return fingerprint([spec.model, spec.dataset, spec.settings.train_batch_size, widths, trained])


def _widths(spec: RunSpec, registry: Registry) -> dict[str, int]:
    """The widths of the features that an encoder makes for a run."""
    wanted = artefacts(spec, open_dataset(spec.dataset, spec.settings, registry), registry)
    modalities = tuple(part for part in wanted if part != "tuned")
    if not modalities:
        return {}
    return dict(build_encoder(encoder_spec(spec, registry), spec.encoder_config, modalities).dims)


def _probe_alone(call: Call, job: Job) -> Probe:
    """Probe in a process of its own, whose peak of memory is the run's."""
    with tempfile.TemporaryDirectory() as folder:
        process = multiprocessing.get_context("spawn").Process(target=_probe, args=(call, job.key, Path(folder)))
        process.start()
        process.join(LIMIT)
        if process.is_alive():
            process.kill()
            process.join()
            return Probe(job.title, reason=f"{EPOCHS} epochs take more than {LIMIT:.0f} s")
        answer = Path(folder) / "answer.json"
        if not answer.is_file():
            hint = ": out of memory?" if process.exitcode == -signal.SIGKILL else ""
            return Probe(job.title, reason=f"the probe died with exit code {process.exitcode}{hint}")
        return Probe(title=job.title, **read_json(answer))


def _probe(call: Call, key: str, folder: Path) -> None:
    plan, registry = call.plan()
    spec = plan.expected[key].spec
    few = dataclasses.replace(spec.settings, epochs=EPOCHS, stopping_step=EPOCHS, eval_step=1)
    watched = _Watched(**{part.name: getattr(registry, part.name) for part in dataclasses.fields(registry)})
    try:
        inputs = _inputs(spec, registry)
        result = run(dataclasses.replace(spec, settings=few), inputs, watched, out=folder / "runs")
    except Exception as error:  # a plugin may raise anything
        write_json(folder / "answer.json", {"reason": f"{type(error).__name__}: {error}"})
        return
    last = watched.epochs[-1]  # the first one pays for what is loaded and allocated once
    write_json(
        folder / "answer.json",
        {
            "seconds_per_epoch": last.train_seconds + last.valid_seconds / spec.settings.eval_step,
            "memory": result.record["peak_memory_bytes"],
            "disk": sum(path.stat().st_size for path in result.path.rglob("*") if path.is_file()),
        },
    )


@dataclass(frozen=True)
class _Watched(Registry):
    """A registry that keeps the reports of epochs to itself: observers are not to hear of probes."""

    epochs: list[EpochReport] = dataclasses.field(default_factory=list)

    def notify_epoch(self, run: RunSpec, epoch: EpochReport) -> None:
        self.epochs.append(epoch)

    def notify_run(self, run: RunSpec, result: RunResult) -> None:
        pass


def _inputs(spec: RunSpec, registry: Registry) -> Inputs:
    """The run's own inputs where nothing has to be made for them, else random tables of the same widths."""
    dataset = open_dataset(spec.dataset, spec.settings, registry)
    wanted = artefacts(spec, dataset, registry)
    if all(path.is_file() for path in wanted.values()):
        return gather(spec, registry)
    present, draw = np.ones(dataset.n_items, bool), np.random.default_rng(0)
    tables = {
        modality: FeatureTable(modality, draw.standard_normal((dataset.n_items, width), np.float32), present, "probe")
        for modality, width in _widths(spec, registry).items()
    }
    return Inputs(dataset, tables, {})
