"""Executes a study: its runs one after another, or in several processes, any of which may be killed.

    runs/study/<study>/
        <16 hex>.json            a record of each run that was tried: state, run_id or reason, seconds
        runs.claims.lock         which process does which run: locks on its bytes, which end with their process
        memory.json              the memory that runs need, if a dry run has probed it

A run's own result.json holds its results; its record only points there. The record's name is a hash of all that the run
reads and computes, its data included. So finished runs are found again without their inputs, and stale ones are not.

Every process goes through the runs that are not settled, ordered by shared inputs, and does each one that no other
process is doing. It skips what others are making (a run, a feature table, a tuned encoder) and comes back to it later.
Two commands on one study therefore share its runs; `--jobs` starts several such processes. Machines that share no
folder take a shard each instead: the runs at every Nth place of the study's file.
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
from multiprocessing import connection
from pathlib import Path
from typing import Any

from ..cache import fingerprint
from ..config.settings import OF_FEATURES, identifying
from ..config.yaml_layers import as_yaml
from ..data.images import READING
from ..data.opening import open_dataset
from ..disk.faults import of_path
from ..disk.hashing import hash_files
from ..disk.locks import Claims
from ..disk.reading import is_there, read_json
from ..disk.writing import write_json
from ..errors import DataError, MMRecError, NoAccess, NotApplicable, RunBusy
from ..features import encoding
from ..features.controls import NO_FEATURES
from ..logs import IN_FILE, start_log
from ..machine import TORCH_THREADS, share_libraries_of
from ..plugin.registry import Registry, load_registry
from ..running.inputs import gather, given_files, reads_timestamps, shared_keys
from ..running.provenance import NUMERICS_VERSION, plugin_code
from ..running.run_folder import has_result, load_result
from ..running.runner import Interrupted, run
from ..training import fine_tuning
from ..typed_json import ADDED, OPTIONAL, decode, plain
from ..types import Axes, Inputs, RunResult, RunSpec
from .file import Cell, Study, winner
from .leaderboard import FAILED, FINISHED, NOT_APPLICABLE, PARTIAL, PENDING
from .processes import context, without_main

logger = logging.getLogger(__name__)

MEMORY = "memory.json"  # key of a run -> bytes it needs, as probed by a dry run
RETRIES = 5  # of a process or task that was killed
PAUSE = 0.5  # seconds between two checks of what other processes have done


@dataclass(frozen=True)
class Job:
    """A run of a study: `title` is for people, `key` names its record.

    Jobs with the same `group` train on the same inputs; those with the same `encoded` share an encoder's output.
    """

    title: str
    key: str
    axes: Axes
    spec: RunSpec
    group: str
    encoded: str


@dataclass(frozen=True)
class Record:
    """The outcome of a run's last try; `at` is its time in seconds since 1970.

    `cell` and `point` say what was tried, also once the study's file asks for other runs.
    """

    state: str  # FINISHED, FAILED or NOT_APPLICABLE
    run_id: str | None = None
    reason: str = ""
    seconds: float = 0.0
    at: float = 0.0
    cell: str = dataclasses.field(default="", metadata=ADDED)
    point: Mapping[str, Any] | None = dataclasses.field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class Shard:
    """One of `count` parts of a study's runs, counted from 1."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


@dataclass(frozen=True)
class Outcome:
    """A cell's state and results, in the order of its runs; None where a run isn't finished."""

    cell: Cell
    state: str
    reason: str
    results: tuple[RunResult | None, ...]


@dataclass(frozen=True)
class Plan:
    """A study's cells, and their runs as jobs in order of execution.

    Control runs of winners (`controls_at: winner`) wait until their cell's grid is done: a plan made after that has
    them as jobs. Until then, the first point of the grid takes their place.
    """

    study: Study
    cells: tuple[Cell, ...]
    jobs: Mapping[str, Job]  # by key
    keys: tuple[tuple[str, ...], ...]  # for each cell the keys of its jobs, in the order of its runs
    out: Path
    waiting: Mapping[str, Job] = dataclasses.field(default_factory=dict)  # by key: jobs that can't start yet
    shard: Shard | None = None  # the jobs to do; None: all
    places: Mapping[str, int] = dataclasses.field(default_factory=dict)  # of all jobs in the study's file, by key

    @property
    def folder(self) -> Path:
        """The folder of the study's own records."""
        return self.out / "study" / self.study.name

    @property
    def expected(self) -> dict[str, Job]:
        """All runs of the study, including those that wait."""
        return {**self.jobs, **self.waiting}

    def record(self, job: Job) -> Record | None:
        """The record of a run; None if there is none, or the run's folder is gone."""
        path = self.folder / f"{job.key}.json"
        cure = "it counts as missing, and is written again when its run is done"
        try:
            if not is_there(path, cure):
                return None
            record = decode(Record, read_json(path, cure=cure), where=str(path), cure=cure)
        except NoAccess:
            raise
        except DataError as error:
            logger.warning("%s", error)
            return None
        return None if record.run_id and not has_result(self.out / record.run_id) else record

    @property
    def own(self) -> dict[str, Job]:
        """The jobs of the plan's shard, in order of execution. Shards are disjoint, and together have all jobs: a job's
        place doesn't depend on which winners are known."""
        if self.shard is None:
            return dict(self.jobs)
        rest, count = self.shard.number - 1, self.shard.count
        return {key: job for key, job in self.jobs.items() if self.places[key] % count == rest}

    def left(self, since: float) -> list[Job]:
        """The plan's own jobs that are not finished and were not tried after `since`."""
        return [job for job in self.own.values() if not is_settled(self.record(job), since)]

    @property
    def is_done(self) -> bool:
        """True if each of the plan's own jobs is finished, or can't be done."""
        records = map(self.record, self.own.values())
        return all(record is not None and record.state in (FINISHED, NOT_APPLICABLE) for record in records)

    def outcomes(self) -> list[Outcome]:
        """Every cell with its state and results."""
        return [self._outcome(cell, keys) for cell, keys in zip(self.cells, self.keys, strict=True)]

    def _outcome(self, cell: Cell, keys: Sequence[str]) -> Outcome:
        if not keys:
            return Outcome(cell, NOT_APPLICABLE, cell.reason, ())
        if keys[0] in self.waiting:
            return Outcome(cell, PENDING, "waits for the winner of its grid", (None,) * len(keys))
        results, damaged = self._found(cell, [self.jobs[key] for key in keys])
        records = [
            Record(FAILED, reason=damaged[key]) if key in damaged else self.record(self.jobs[key]) for key in keys
        ]
        states = [record.state if record else PENDING for record in records]
        state = states[0] if len(set(states)) == 1 else PARTIAL
        if state == PARTIAL and FINISHED not in states:
            state = FAILED if FAILED in states else PENDING
        reasons = dict.fromkeys(record.reason for record in records if record and record.reason)
        return Outcome(cell, state, "; ".join(reasons), results)

    def results(self, cell: Cell, jobs: Sequence[Job]) -> tuple[RunResult | None, ...]:
        """The results of a cell's runs, whose jobs are `jobs`, in their order; None where a run isn't finished, or its
        result is damaged."""
        return self._found(cell, jobs)[0]

    def _found(self, cell: Cell, jobs: Sequence[Job]) -> tuple[tuple[RunResult | None, ...], dict[str, str]]:
        """The results, and the reason for each damaged one, by the key of its job."""
        results: list[RunResult | None] = []
        damaged = {}
        for spec, job in zip(cell.runs, jobs, strict=True):
            record = self.record(job)
            try:
                found = load_result(self.out / record.run_id) if record and record.run_id else None
            except DataError as error:
                damaged[job.key] = str(error)
                found = None
            results.append(dataclasses.replace(found, parameters=spec.point) if found else None)
        return tuple(results), damaged


def make_plan(
    study: Study,
    registry: Registry,
    *,
    out: Path,
    threads: int = TORCH_THREADS,
    since: float = 0.0,
    shard: Shard | None = None,
) -> Plan:
    """The study's cells and jobs.

    A data set that a plugin makes is made now; if a data set can't be read, its runs report it. `threads` is used by
    runs that don't set `threads`, and is the same in every process. Runs that failed before `since` will be tried
    again, so a grid with such runs has no winner yet.
    """
    stamps: dict[str, str] = {}
    found = []
    for cell in study.cells(registry):
        cell = dataclasses.replace(cell, runs=tuple(_with_threads(spec, threads) for spec in cell.runs))
        found.append((cell, [_job(cell, spec, registry, stamps) for spec in cell.runs]))
    plan = _plan(study, found, out)
    plan = _seeds_at_winners(plan, since) if study.seeds_at == "winner" else plan
    plan = _at_winners(plan, since) if study.controls_at == "winner" else plan
    every = dict.fromkeys(job.key for _, of_cell in found for job in of_cell)
    return dataclasses.replace(plan, shard=shard, places={key: place for place, key in enumerate(every)})


def _plan(study: Study, found: Sequence[tuple[Cell, Sequence[Job]]], out: Path, waiting: Sequence[Job] = ()) -> Plan:
    """The plan of cells with their jobs; `waiting` are those that can't start yet."""
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
    """The plan with each grid on the first seed only, and its best point on all seeds.

    Until the best point is known, the other seeds of the first point wait in its place. Control runs under
    `controls_at: winner` have no grid of their own.
    """
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
    """The plan with control runs for winners only. While a grid isn't done, they wait, at the grid's first point."""
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
                cell = at_best if at_best.runs else cell  # else its grid has other keys, such as an encoder's
            else:
                reasons = "; ".join(f"{key} has no winner: {originals[key][0].reason}" for key in own)
                cell = dataclasses.replace(cell, runs=(), reason=reasons)
        found.append((cell, [plan.jobs[key] for key in keys if plan.jobs[key].spec in cell.runs]))
    return _plan(plan.study, found, plan.out, [*plan.waiting.values(), *waiting])


def _is_twin(cell: Cell, original: Cell) -> bool:
    """True if `cell` is a control of `original`. One without features is a control of all cells with its modalities."""
    own, others = cell.axes, original.axes
    if others.control is not None or not original.runs:
        return False
    if own.control != NO_FEATURES:
        return dataclasses.replace(own, control=None).key == others.key
    same = (own.model, own.tested_on) == (others.model, others.tested_on)
    return same and others.modalities in (None, own.modalities) and others.modalities != ()


def _with_threads(spec: RunSpec, threads: int) -> RunSpec:
    return dataclasses.replace(
        spec, settings=dataclasses.replace(spec.settings, threads=spec.settings.threads or threads)
    )


def _job(cell: Cell, spec: RunSpec, registry: Registry, stamps: dict[str, str]) -> Job:
    shared = shared_keys(spec, registry)
    if shared.files not in stamps:
        stamps[shared.files] = _stamp(spec, registry)
    identity = identifying(spec.settings, and_also=OF_FEATURES)
    version = registry.encoders.get(spec.encoder).version if spec.encoder else None
    bare = plain(spec) | {"settings": None, "point": {}}
    if reads_timestamps(spec, registry):
        bare["TIME_FIELD"] = spec.settings.TIME_FIELD
    if code := _code(spec, registry):  # of plugins that don't come with mmrec-lmm: a changed one is run again
        bare["code"] = code
    return Job(
        title=" ".join([cell.key, *(f"{name}={as_yaml(value)}" for name, value in spec.point.items())]),
        key=fingerprint([NUMERICS_VERSION, version, stamps[shared.files], identity, bare])[:16],
        axes=cell.axes,
        spec=spec,
        group=shared.inputs,
        encoded=shared.encoded,
    )


def _code(spec: RunSpec, registry: Registry) -> dict[str, str]:
    try:
        return plugin_code(spec, registry)
    except MMRecError:  # its run reports it
        return {}


def _stamp(spec: RunSpec, registry: Registry) -> str:
    """A hash of what a run reads: interactions, an encoder's input, and the user's files of features and weights.

    Empty if one of them can't be read.
    """
    try:
        dataset = open_dataset(spec.dataset, spec.settings, registry)
        files = given_files(spec, dataset, registry)
    except (MMRecError, OSError):
        return ""
    formats = [encoding.FORMAT, fine_tuning.FORMAT, READING]
    encoded = [dataset.catalog.fingerprint, *formats] if spec.encoder and dataset.catalog else []
    return fingerprint([dataset.fingerprint, encoded, {name: hash_files([path]) for name, path in files.items()}])


class Worker:
    """Does the jobs of a plan; other workers may do so at the same time. Jobs that failed before `since` run again."""

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
        self._gathered: dict[str, Inputs] = {}  # of the last group only: tables are large
        self._failed: dict[str, Exception] = {}  # group -> why its inputs couldn't be made
        self._begun: set[str] = set()  # jobs whose title is in the log

    def work(self, jobs: Iterable[Job] | None = None) -> None:
        """Return when every job is settled, by this process or another. Raises only Interrupted, no run's error."""
        jobs = list(self.plan.own.values() if jobs is None else jobs)
        if not (jobs := [job for job in jobs if not self._is_settled(job)]):
            return  # a finished study is read without a lock
        with Claims(self.plan.folder / "runs") as claims:
            while jobs := [job for job in jobs if not self._is_settled(job)]:
                if not sum([self._attempt(job, claims) for job in jobs]):
                    time.sleep(PAUSE)

    def _is_settled(self, job: Job) -> bool:
        return is_settled(self.plan.record(job), self.since)

    def _attempt(self, job: Job, claims: Claims) -> bool:
        """Do a job unless another process is doing it or making its inputs. Return True if it is settled now."""
        if not claims.claim(_piece(job.key)):
            return False
        try:
            if self._is_settled(job):
                return True
            started = time.perf_counter()
            record = self._do(job, claims)
            if record is None:
                return False
            if record.state == FAILED:
                self._gathered = {}  # which a faulty plugin may have changed
            record = dataclasses.replace(
                record,
                seconds=time.perf_counter() - started,
                at=time.time(),
                cell=job.axes.key,
                point=plain(job.spec.point),
            )
            write_json(self.plan.folder / f"{job.key}.json", record)
        finally:
            claims.give_up(_piece(job.key))
        if self.on_progress:
            self.on_progress(job, record)
        return True

    def _do(self, job: Job, claims: Claims) -> Record | None:
        """Run a job and return its record, even if it fails; None if another process has what it needs.

        Raises only Interrupted.
        """
        try:
            inputs = self._inputs(job, claims)
            if inputs is None:
                return None
            result = run(job.spec, self.registry, inputs=inputs, out=self.plan.out, resume=True, progress=self.progress)
        except (Interrupted, KeyboardInterrupt):
            raise Interrupted("interrupted; finished runs are kept, and the same command continues") from None
        except RunBusy:  # another study or a command is doing the same run
            return None
        except NotApplicable as error:
            return Record(NOT_APPLICABLE, reason=str(error))
        except MMRecError as error:
            return Record(FAILED, reason=str(error))
        except Exception as error:  # a plugin may raise anything, and the other runs continue
            if isinstance(error, OSError) and error.filename is not None:  # of the user's files, not of code
                return Record(FAILED, reason=str(of_path(error)))
            logger.error("a run of %s failed", job.spec.model, exc_info=True, extra=IN_FILE)  # its reason is printed
            return Record(FAILED, reason=f"{type(error).__name__}: {error}")
        return Record(FINISHED, run_id=result.run_id)

    def _inputs(self, job: Job, claims: Claims) -> Inputs | None:
        """The job's inputs; None while another process is encoding them. If they fail, all jobs of the group do."""
        known = job.group in self._failed or job.group in self._gathered
        if not known and not claims.claim(_piece(job.encoded)):
            return None
        if job.key not in self._begun:
            self._begun.add(job.key)
            logger.info("========= %s", job.title)
        if job.group in self._failed:
            raise self._failed[job.group]
        if not known:
            try:
                self._gathered = {}  # first free the last group's tables: memory holds one group at a time
                self._gathered[job.group] = gather(job.spec, self.registry, progress=self.progress)
            except Exception as error:
                self._failed[job.group] = error.with_traceback(None)  # a traceback would keep tensors alive
                raise
            finally:
                claims.give_up(_piece(job.encoded))
        return self._gathered[job.group]


def is_settled(record: Record | None, since: float) -> bool:
    """True if a run is finished, or was tried after `since`."""
    return record is not None and (record.state == FINISHED or record.at >= since)


def _piece(key: str) -> int:
    """The byte to lock in the claims' file for a job or a cached file."""
    return int(key[:15], 16)


@dataclass(frozen=True)
class Call:
    """Everything another process needs to make the same plan. Runs that failed before `since` are tried again."""

    study: Study
    folder: Path  # the working directory of the command
    out: Path
    plugins: tuple[str, ...]
    since: float = 0.0
    level: str = "INFO"
    threads: int = TORCH_THREADS
    shard: Shard | None = None

    def plan(self) -> tuple[Plan, Registry]:
        """The plan, and the registry that it uses."""
        registry = load_registry(self.plugins)
        plan = make_plan(self.study, registry, out=self.out, threads=self.threads, since=self.since, shard=self.shard)
        return plan, registry


def do_all(call: Call, plan: Plan, do: Callable[[Plan], None]) -> Plan:
    """Call `do` on the plan until no job is left or none gets done; return the last plan.

    Where winners get more runs (`controls_at`, `seeds_at`), the plan is made again once the grids have results.
    """
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
    """Do the plan with `count` processes, which print only to their logs.

    A killed process is replaced, up to RETRIES times `count` in all; jobs that are left after that stay pending.
    """
    start: Any = context()
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
                workers.append(start.Process(target=_process, args=(call, started), name=f"process {started}"))
                with without_main():
                    workers[-1].start()
            if not workers:
                logger.error("%d runs are left: %d processes that tried them were killed", len(left), deaths)
                return
            connection.wait([worker.sentinel for worker in workers], PAUSE)
        for worker in workers:
            worker.join()
    finally:
        for worker in workers:  # on SIGTERM a run saves its state
            if worker.is_alive():
                worker.terminate()
        for worker in workers:
            worker.join()


class Watch:
    """Follows what other processes do, by their records."""

    def __init__(self, plan: Plan, since: float, on_progress: Callable[[Job, Record], None] | None) -> None:
        self.plan, self.since, self.on_progress = plan, since, on_progress
        self._left = plan.left(since)

    def left(self) -> list[Job]:
        """The jobs that are not settled. Calls `on_progress` once for each job that is."""
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
    os.chdir(call.folder)  # relative paths start there; a program may have changed its folder since it began
    share_libraries_of(os.getppid())
    log = start_log(call.out / "log", f"{call.study.name}-{number}-{os.getpid()}", level=call.level, verbose=False)
    with (log or Path(os.devnull)).open("a") as file:  # also for what libraries print
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
    """Interrupt this process when its parent ends: a killed command leaves no process behind."""
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
