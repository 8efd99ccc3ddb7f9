"""Doing a study: its runs one after another, or in several processes, whatever is killed meanwhile.

    runs/study/<study>/
        <16 hex>.json            of each run that was tried: state, run_id or reason, seconds
        runs.claims.lock         who is at what: claims on its bytes, which end with their process
        memory.json              what memory the runs need, if a dry run has probed it

A run's own result.json stays the truth; a record says where it is, under a name that changes with all that the run
reads and computes, its data included. So what is finished is found again without its inputs, and nothing stale is.

Every process does the same: it goes through the runs that are not settled, in an order in which those that share their
inputs follow each other, does each that nobody else is at, and leaves what others are making, a run, a table of
features or a tuned encoder, for later. Two commands on one study therefore share its runs, and `--jobs` is no more.
"""

import dataclasses
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cache import Claims, fingerprint, hash_files, plain, read_json, write_json
from ..config.resolve import as_yaml
from ..config.settings import NOT_IDENTITY, OF_FEATURES
from ..errors import MMRecError, NotApplicable, RunBusy
from ..features import encoding
from ..features.controls import NO_FEATURES
from ..logs import start_log
from ..machine import TORCH_THREADS
from ..plugin.registry import Registry, load_registry
from ..running.inputs import gather, given_files, open_dataset, shared_keys
from ..running.provenance import NUMERICS_VERSION
from ..running.run_folder import load_result
from ..running.runner import Interrupted, run
from ..training import fine_tuning
from ..typed_json import decode
from ..types import Axes, Inputs, RunResult, RunSpec
from .file import Cell, Study, winner
from .leaderboard import FAILED, FINISHED, NOT_APPLICABLE, PARTIAL, PENDING

logger = logging.getLogger(__name__)

MEMORY = "memory.json"  # bytes that runs need by their keys, where a dry run has probed them
RETRIES = 5  # of a process or task that was killed
PAUSE = 0.5  # seconds between two looks at what other processes are doing


@dataclass(frozen=True)
class Job:
    """A run of a study: `title` for people, `key` for its record. Jobs of one `group` train on the same inputs, and
    those of one `encoded` share what an encoder makes for these."""

    title: str
    key: str
    axes: Axes
    spec: RunSpec
    group: str
    encoded: str


@dataclass(frozen=True)
class Record:
    """What became of a run when it was last tried; `at` is in seconds since 1970."""

    state: str  # FINISHED, FAILED or NOT_APPLICABLE
    run_id: str | None = None
    reason: str = ""
    seconds: float = 0.0
    at: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """A cell and what is there of it: results in the order of its runs, None where there is none."""

    cell: Cell
    state: str
    reason: str
    results: tuple[RunResult | None, ...]


@dataclass(frozen=True)
class Plan:
    """A study's cells, and their runs as jobs in the order in which they are done.

    Twins of winners (`controls_at: winner`) wait until their cell's grid is done; a plan made then has them as jobs.
    Until then one point of the grid stands for them."""

    study: Study
    cells: tuple[Cell, ...]
    jobs: Mapping[str, Job]  # by key
    keys: tuple[tuple[str, ...], ...]  # of the jobs of each cell, in the order of its runs
    out: Path
    waiting: Mapping[str, Job] = dataclasses.field(default_factory=dict)  # by key: not to be done yet

    @property
    def folder(self) -> Path:
        """Of the study's own records."""
        return self.out / "study" / self.study.name

    @property
    def expected(self) -> dict[str, Job]:
        """All runs that the study comes to, those that wait too."""
        return {**self.jobs, **self.waiting}

    def record(self, job: Job) -> Record | None:
        """What is known of a run; None if it is still to be done, or its folder is gone."""
        path = self.folder / f"{job.key}.json"
        if not path.is_file():
            return None
        record = decode(Record, read_json(path), where=str(path), cure="try deleting it, to have the run found again")
        gone = record.run_id is not None and not (self.out / record.run_id / "result.json").is_file()
        return None if gone else record

    def left(self, since: float) -> list[Job]:
        """The jobs that are neither finished nor were tried after `since`."""
        return [job for job in self.jobs.values() if not is_settled(self.record(job), since)]

    def outcomes(self) -> list[Outcome]:
        """Every cell with its state and results."""
        return [self._outcome(cell, keys) for cell, keys in zip(self.cells, self.keys, strict=True)]

    def _outcome(self, cell: Cell, keys: Sequence[str]) -> Outcome:
        if not keys:
            return Outcome(cell, NOT_APPLICABLE, cell.reason, ())
        if keys[0] in self.waiting:
            return Outcome(cell, PENDING, "waits for the winner of its grid", (None,) * len(keys))
        records = [self.record(self.jobs[key]) for key in keys]
        states = [record.state if record else PENDING for record in records]
        state = states[0] if len(set(states)) == 1 else PARTIAL
        if state == PARTIAL and FINISHED not in states:
            state = FAILED if FAILED in states else PENDING
        reasons = dict.fromkeys(record.reason for record in records if record and record.reason)
        return Outcome(cell, state, "; ".join(reasons), self.results(cell, [self.jobs[key] for key in keys]))

    def results(self, cell: Cell, jobs: Sequence[Job]) -> tuple[RunResult | None, ...]:
        """What is there of a cell's runs, given as jobs, in their order."""
        results = []
        for spec, job in zip(cell.runs, jobs, strict=True):
            record = self.record(job)
            found = load_result(self.out / record.run_id) if record and record.run_id else None
            results.append(dataclasses.replace(found, parameters=spec.point) if found else None)
        return tuple(results)


def make_plan(study: Study, registry: Registry, *, out: Path, threads: int = TORCH_THREADS, since: float = 0.0) -> Plan:
    """The study's cells and jobs. A data set that a plugin makes is made now; of one that can't be read, the runs will
    say so. `threads` is what a run without `threads` computes with, the same in every process. What failed before
    `since` is to be tried again, so that winners aren't known before that."""
    stamps: dict[str, str] = {}
    found = []
    for cell in study.cells(registry):
        cell = dataclasses.replace(cell, runs=tuple(_with_threads(spec, threads) for spec in cell.runs))
        found.append((cell, [_job(cell, spec, registry, stamps) for spec in cell.runs]))
    plan = _plan(study, found, out)
    plan = _seeds_at_winners(plan, since) if study.seeds_at == "winner" else plan
    return _at_winners(plan, since) if study.controls_at == "winner" else plan


def _plan(study: Study, found: Sequence[tuple[Cell, Sequence[Job]]], out: Path, waiting: Sequence[Job] = ()) -> Plan:
    """The plan of cells with their jobs, those that wait apart."""
    apart = {job.key: job for job in waiting}
    jobs = {job.key: job for _, of_cell in found for job in of_cell if job.key not in apart}
    order = {encoded: place for place, encoded in enumerate(dict.fromkeys(job.encoded for job in jobs.values()))}
    groups = {group: place for place, group in enumerate(dict.fromkeys(job.group for job in jobs.values()))}
    in_order = sorted(jobs.values(), key=lambda job: (order[job.encoded], groups[job.group]))
    return Plan(
        study,
        tuple(cell for cell, _ in found),
        {job.key: job for job in in_order},
        tuple(tuple(job.key for job in of_cell) for _, of_cell in found),
        out,
        apart,
    )


def _seeds_at_winners(plan: Plan, since: float) -> Plan:
    """The plan with a grid's points on the first seed alone, and its best point on all; until that is known, the other
    seeds of the first point wait in its place. Twins of winners alone (`controls_at`) have no grid of their own."""
    found, waiting = [], []
    for cell, keys in zip(plan.cells, plan.keys, strict=True):
        jobs = [plan.jobs[key] for key in keys]
        first = [job for job in jobs if job.spec.settings.seed == plan.study.seeds[0]] if plan.study.seeds else jobs
        if len(first) < 2 or (cell.axes.control and plan.study.controls_at == "winner"):
            found.append((cell, jobs))
            continue
        of_first = dataclasses.replace(cell, runs=tuple(job.spec for job in first))
        settled = all(is_settled(plan.record(job), since) for job in first)
        best = winner(of_first, plan.results(of_first, first)) if settled else ()
        others = cell.like(best[0].parameters if best else first[0].spec.point).runs
        later = [job for job in jobs if job.spec in others and job not in first]
        if not settled:
            waiting += later
        more = later if best else []
        runs = (*of_first.runs, *(job.spec for job in more))
        found.append((dataclasses.replace(cell, runs=runs), [*first, *more]))
    return _plan(plan.study, found, plan.out, waiting)


def _at_winners(plan: Plan, since: float) -> Plan:
    """The plan with twins of winners alone; where a grid isn't done yet its first point stands for the winner, and the
    twins wait."""
    originals = {outcome.cell.key: (outcome, keys) for outcome, keys in zip(plan.outcomes(), plan.keys, strict=True)}
    left = {job.key for job in plan.left(since)}
    found, waiting = [], []
    for cell, keys in zip(plan.cells, plan.keys, strict=True):
        own = [key for key, (original, _) in originals.items() if _is_twin(cell, original.cell)]
        if cell.axes.control and cell.runs and own:
            winners = [winner(outcome.cell, outcome.results) for outcome, _ in (originals[key] for key in own)]
            metric = cell.runs[0].settings.valid_metric.lower()
            best = max(winners, key=lambda runs: sum(run.valid[metric] for run in runs) / max(1, len(runs)))
            if not left.isdisjoint(key for original in own for key in originals[original][1]):
                cell = cell.like(cell.runs[0].point)
                waiting += [plan.jobs[key] for key in keys if plan.jobs[key].spec in cell.runs]
            elif best:
                at_best = cell.like(best[0].parameters)
                cell = at_best if at_best.runs else cell  # its grid may have other keys, of an encoder's training
            else:
                reasons = "; ".join(f"{key} has no winner: {originals[key][0].reason}" for key in own)
                cell = dataclasses.replace(cell, runs=(), reason=reasons)
        found.append((cell, [plan.jobs[key] for key in keys if plan.jobs[key].spec in cell.runs]))
    return _plan(plan.study, found, plan.out, [*plan.waiting.values(), *waiting])


def _is_twin(cell: Cell, original: Cell) -> bool:
    """Whether a cell is a control of another: of one cell or, without features, of all that have its modalities."""
    own, others = cell.axes, original.axes
    if others.control is not None or not original.runs:
        return False
    if own.control != NO_FEATURES:
        return dataclasses.replace(own, control=None).key == others.key
    same = (own.model, own.dataset) == (others.model, others.dataset)
    return same and others.modalities in (None, own.modalities) and others.modalities != ()


def _with_threads(spec: RunSpec, threads: int) -> RunSpec:
    return dataclasses.replace(
        spec, settings=dataclasses.replace(spec.settings, threads=spec.settings.threads or threads)
    )


def _job(cell: Cell, spec: RunSpec, registry: Registry, stamps: dict[str, str]) -> Job:
    shared = shared_keys(spec, registry)
    if shared.encoded not in stamps:
        stamps[shared.encoded] = _stamp(spec, registry)
    settings = plain(spec.settings)
    identity = {name: value for name, value in settings.items() if name not in NOT_IDENTITY - OF_FEATURES}
    version = registry.encoders.get(spec.encoder).version if spec.encoder else None
    bare = plain(spec) | {"settings": None, "point": {}}
    return Job(
        title=" ".join([cell.key, *(f"{name}={as_yaml(value)}" for name, value in spec.point.items())]),
        key=fingerprint([NUMERICS_VERSION, version, stamps[shared.encoded], identity, bare])[:16],
        axes=cell.axes,
        spec=spec,
        group=shared.inputs,
        encoded=shared.encoded,
    )


def _stamp(spec: RunSpec, registry: Registry) -> str:
    """A hash of what a run reads: interactions, what an encoder encodes, and the user's files of features and weights;
    empty if it can't be read."""
    try:
        dataset = open_dataset(spec.dataset, spec.settings, registry)
        files = given_files(spec, dataset, registry)
    except MMRecError:
        return ""
    encoded = (
        [dataset.catalog.fingerprint, encoding.FORMAT, fine_tuning.FORMAT] if spec.encoder and dataset.catalog else []
    )
    return fingerprint([dataset.fingerprint, encoded, {name: hash_files([path]) for name, path in files.items()}])


class Worker:
    """Does jobs of a plan, beside whoever else does. `since`: what failed before that time is tried again."""

    def __init__(
        self,
        plan: Plan,
        registry: Registry,
        *,
        since: float,
        progress: bool = False,
        on_progress: Callable[[Job, Record], None] | None = None,
    ) -> None:
        self.plan, self.registry, self.since, self.progress, self.on_progress = (
            plan,
            registry,
            since,
            progress,
            on_progress,
        )
        self._gathered: dict[str, Inputs] = {}  # the last group's only: tables are large
        self._failed: dict[str, Exception] = {}  # what became of groups whose inputs couldn't be made

    def work(self, jobs: Iterable[Job] | None = None) -> None:
        """Return when every job is settled, by this process or another. Raises Interrupted, and nothing of a run."""
        jobs = list(self.plan.jobs.values() if jobs is None else jobs)
        with Claims(self.plan.folder / "runs") as claims:
            while jobs := [job for job in jobs if not self._is_settled(job)]:
                if not sum([self._attempt(job, claims) for job in jobs]):
                    time.sleep(PAUSE)

    def _is_settled(self, job: Job) -> bool:
        return is_settled(self.plan.record(job), self.since)

    def _attempt(self, job: Job, claims: Claims) -> bool:
        """Do a job unless another process is at it, or at making its inputs; whether it is settled now."""
        if not claims.claim(_piece(job.key)):
            return False
        try:
            if self._is_settled(job):
                return True
            started = time.perf_counter()
            record = self._do(job, claims)
            if record is None:
                return False
            record = dataclasses.replace(record, seconds=time.perf_counter() - started, at=time.time())
            write_json(self.plan.folder / f"{job.key}.json", record)
        finally:
            claims.give_up(_piece(job.key))
        if self.on_progress:
            self.on_progress(job, record)
        return True

    def _do(self, job: Job, claims: Claims) -> Record | None:
        """Run a job whatever it raises, but for Ctrl-C; None where another process has what it needs."""
        logger.info("========= %s", job.title)
        try:
            inputs = self._inputs(job, claims)
            if inputs is None:
                return None
            result = run(job.spec, inputs, self.registry, out=self.plan.out, resume=True, progress=self.progress)
        except (Interrupted, KeyboardInterrupt):
            raise Interrupted("interrupted; what is finished is kept, and the same command goes on") from None
        except RunBusy:  # the same run, of another study or by itself
            return None
        except NotApplicable as error:
            return Record(NOT_APPLICABLE, reason=str(error))
        except MMRecError as error:
            return Record(FAILED, reason=str(error))
        except Exception as error:  # a plugin may raise anything, and the other runs are to go on
            logger.error("a run of %s failed", job.spec.model, exc_info=True)
            return Record(FAILED, reason=f"{type(error).__name__}: {error}")
        return Record(FINISHED, run_id=result.run_id)

    def _inputs(self, job: Job, claims: Claims) -> Inputs | None:
        """The job's inputs; None while another process is making what an encoder makes for them. What they failed with
        is raised again for each job of the group."""
        if job.group in self._failed:
            raise self._failed[job.group]
        if job.group not in self._gathered:
            if not claims.claim(_piece(job.encoded)):
                return None
            try:
                self._gathered = {}  # before, so that two groups' tables are never held
                self._gathered[job.group] = gather(job.spec, self.registry, progress=self.progress)
            except Exception as error:
                self._failed[job.group] = error.with_traceback(None)  # which would hold tensors
                raise
            finally:
                claims.give_up(_piece(job.encoded))
        return self._gathered[job.group]


def is_settled(record: Record | None, since: float) -> bool:
    """Whether there is nothing to do: it is finished, or was tried after `since`."""
    return record is not None and (record.state == FINISHED or record.at >= since)


def _piece(key: str) -> int:
    """The byte of the claims' file that stands for a job or an artifact."""
    return int(key[:15], 16)


@dataclass(frozen=True)
class Call:
    """What another process must know to do a study's runs: all that makes the same plan there. What failed before
    `since` is tried again."""

    study: Study
    folder: Path  # in which it was called
    out: Path
    plugins: tuple[str, ...]
    since: float = 0.0
    level: str = "INFO"
    threads: int = TORCH_THREADS

    def plan(self) -> tuple[Plan, Registry]:
        """The plan, and the registry that it was made with."""
        registry = load_registry(self.plugins)
        return make_plan(self.study, registry, out=self.out, threads=self.threads, since=self.since), registry


def do_all(call: Call, plan: Plan, do: Callable[[Plan], None]) -> Plan:
    """Have `do` do the plan, and then the twins of winners, which only the grids' results tell, until nothing is left
    or nothing more gets done; the plan then."""
    before: list[Job] = []
    while (left := plan.left(call.since)) and left != before:
        do(plan)
        before = left
        if "winner" in (plan.study.controls_at, plan.study.seeds_at):
            plan, _ = call.plan()
    return plan


def in_processes(
    call: Call, plan: Plan, count: int, *, on_progress: Callable[[Job, Record], None] | None = None
) -> None:
    """Do the plan with `count` processes that print nothing but to their logs. One that is killed is replaced, RETRIES
    times for each of the `count`; what is left then stays pending."""
    spawn = multiprocessing.get_context("spawn")
    watch = Watch(plan, call.since, on_progress)
    workers: list[Any] = []
    started = deaths = 0
    try:
        while left := watch.left():
            for worker in [worker for worker in workers if not worker.is_alive()]:
                workers.remove(worker)
                if worker.exitcode:
                    deaths += 1
                    logger.warning("%s ended with exit code %s", worker.name, worker.exitcode)
            for _ in range(min(count, len(left)) - len(workers) if deaths < RETRIES * count else 0):
                started += 1
                workers.append(spawn.Process(target=_process, args=(call, started), name=f"process {started}"))
                workers[-1].start()
            if not workers:
                logger.error("%d runs are left: %d processes that tried them were killed", len(left), deaths)
                return
            time.sleep(PAUSE)
        for worker in workers:
            worker.join()
    finally:
        for worker in workers:  # SIGTERM saves a run's state
            if worker.is_alive():
                worker.terminate()
        for worker in workers:
            worker.join()


class Watch:
    """Follows by their records what other processes do."""

    def __init__(self, plan: Plan, since: float, on_progress: Callable[[Job, Record], None] | None) -> None:
        self.plan, self.since, self.on_progress = plan, since, on_progress
        self._left = plan.left(since)

    def left(self) -> list[Job]:
        """The jobs that are still to be settled; the others have been told, each once."""
        left = []
        for job in self._left:
            record = self.plan.record(job)
            if record is None or not is_settled(record, self.since):
                left.append(job)
            elif self.on_progress:
                self.on_progress(job, record)
        self._left = left
        return left


def _process(call: Call, number: int) -> None:
    """One of the processes of `--jobs`."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    log = start_log(call.out / "log", f"{call.study.name}-{number}-{os.getpid()}", level=call.level, verbose=False)
    assert log is not None
    with log.open("a") as file:  # what libraries print goes there, too
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    plan, registry = call.plan()
    try:
        Worker(plan, registry, since=call.since).work()
    except (Interrupted, KeyboardInterrupt) as stop:
        logger.warning("%s", stop or "interrupted")


def _end_with(parent: Any) -> None:
    """Interrupt this process when its parent ends, so that a killed command leaves nobody at work."""
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
