"""Studies from a program: `study("demo").run(jobs=2).to_frame()`."""

from __future__ import annotations

import copy
import dataclasses
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Self

import pandas as pd

from ..config.resolve import Value
from ..disk.writing import write_output
from ..distributed import processes
from ..errors import ConfigError, did_you_mean
from ..formatting import first_few
from ..logs import keep_log, only_errors, progress_bar
from ..plugin.registry import Registry
from ..report.layouts import FORMATS, LAYOUTS
from ..report.page import page
from ..report.tables import render, table_rows
from ..studies import executor
from ..studies.executor import Call, Job, Outcome, Plan, Record, Shard
from ..studies.file import Study as StudyFile
from ..studies.file import find_study, load_study
from ..studies.findings import find
from ..studies.leaderboard import FINISHED, NOT_APPLICABLE, Leaderboard
from ..user_paths import expand_home, user_path
from .request import StrPath, as_a_guest, values_of

logger = logging.getLogger(__name__)


def study(
    study: StrPath,
    *,
    data_path: StrPath | None = None,
    device: str | None = None,
    configs: StrPath | None = None,
    out: StrPath = "runs",
    plugins: Iterable[StrPath] = (),
) -> Study:
    """The study of a YAML file, or of that name in the folder `study` of configs. ConfigError has one line for each
    problem in the file."""
    given = {"data_path": data_path, "device": device}
    return open_study(
        str(study), configs=configs, out=out, plugins=plugins,
        overrides=values_of({name: value for name, value in given.items() if value is not None}),
    )  # fmt: skip


def open_study(
    name: str,
    *,
    configs: StrPath | None,
    out: StrPath,
    plugins: Iterable[StrPath],
    overrides: dict[str, str | Value] | dict[str, Value],
) -> Study:
    """The study of that name or file, with the values that its runs get from flags or arguments."""
    configs = None if configs is None else user_path(configs)
    file = load_study(find_study(expand_home(name), configs), configs=configs, overrides={**overrides})
    return Study(file, out=out, plugins=plugins)


class StudySteps:
    """A study with the folder of its runs, and the steps that `Study` and the command line do."""

    def __init__(self, study: StudyFile, *, out: StrPath = "runs", plugins: Iterable[StrPath] = ()) -> None:
        self.call = Call(study, Path.cwd(), user_path(out), tuple(str(plugin) for plugin in plugins))

    @property
    def name(self) -> str:
        return self.call.study.name

    @property
    def folder(self) -> Path:
        """The folder of the study's own records."""
        return self.call.out / "study" / self.name

    def do(
        self,
        plan: Plan,
        registry: Registry,
        *,
        jobs: int = 1,
        on: str | None = None,
        progress: bool = False,
        on_progress: Callable[[Job, Record], None] | None = None,
    ) -> Plan:
        """Do a plan's jobs, and return the plan as it is then."""
        call = self.call

        def work(plan: Plan) -> None:
            if on == "ray":
                from ..studies.ray import on_ray

                on_ray(call, plan, on_progress=on_progress)
            elif jobs > 1:
                executor.in_processes(call, plan, jobs, on_progress=on_progress)
            else:
                executor.Worker(plan, registry, since=call.since, progress=progress, on_progress=on_progress).work()

        return executor.do_all(call, plan, work)

    def refuse_torchrun(self) -> None:
        """ConfigError in one of torchrun's processes."""
        if processes() > 1:
            raise ConfigError(
                "study run: expected one process, got torchrun; try --jobs N or --on ray to share the runs"
            )

    def from_now(self, shard: Shard | None = None) -> Self:
        """The study whose runs that have failed so far will be tried again, or a shard of it."""
        now = copy.copy(self)
        now.call = dataclasses.replace(self.call, since=time.time(), shard=shard)
        return now

    def plan(self) -> tuple[Plan, Registry]:
        """The study's cells and jobs, and the registry that they use."""
        return self.call.plan()

    def outcomes(self) -> list[Outcome]:
        """Every cell with its state and results."""
        return self.plan()[0].outcomes()

    def leaderboard(self) -> Leaderboard:
        """The rows of the finished runs, compared."""
        return find(*self.plan())


class Study(StudySteps):
    """A study: it does its runs, and shows what they found so far."""

    def run(
        self,
        jobs: int = 1,
        *,
        on: Literal["ray"] | None = None,
        shard: tuple[int, int] | None = None,
        progress: bool = True,
    ) -> Study:
        """Do the runs that aren't finished, in `jobs` processes or on a Ray cluster, and return the study. A run that
        fails is logged, and stays in the study with the reason. `shard=(2, 8)` does the second of eight parts."""
        if isinstance(jobs, bool) or not isinstance(jobs, int) or not 1 <= jobs <= 1024:
            raise ConfigError(f"jobs: expected a whole number from 1 to 1,024, got {jobs!r}")
        if on not in (None, "ray"):
            raise ConfigError(f"on: expected ray, or None for this machine, got {on!r}")
        if shard is not None and not (len(shard) == 2 and 1 <= shard[0] <= shard[1]):
            raise ConfigError(f"shard: expected (I, N) with I from 1 to N, got {shard!r}; try (1, 8)")
        part = None if shard is None else Shard(*shard)
        self.refuse_torchrun()
        elsewhere = jobs > 1 or on is not None
        with as_a_guest(), keep_log(self.call.out / "log", self.name, level=self.call.level):
            now = self.from_now(part)
            plan, registry = now.plan()
            waiting = 0 if part else len(plan.waiting)
            total, left = len(plan.own) + waiting, len(plan.left(now.call.since)) + waiting
            with progress_bar(
                shown=progress and elsewhere, desc=self.name, total=total, initial=total - left, unit="run"
            ) as bar:

                def on_progress(job: Job, record: Record) -> None:
                    bar.update()

                plan = now.do(
                    plan, registry, jobs=jobs, on=on, progress=progress and not elsewhere, on_progress=on_progress
                )
        outcomes = plan.outcomes()
        failed = [outcome for outcome in outcomes if outcome.state not in (FINISHED, NOT_APPLICABLE)]
        if failed and not (part and plan.is_done):
            reasons = first_few([f"{one.cell.key} ({one.reason or one.state})" for one in failed], 3)
            logger.warning("%s: %d of %d cells aren't finished: %s", self.name, len(failed), len(outcomes), reasons)
        return self

    def status(self) -> pd.DataFrame:
        """A row for each cell: its state, its runs, how many are done, and the reason if it can't be."""
        with as_a_guest(), only_errors():
            return pd.DataFrame(outcome_rows(self.outcomes()))

    def to_frame(self) -> pd.DataFrame:
        """A row for each row of the leaderboard and metric: axes, mean and interval on test, the test against the
        baseline, content gain."""
        with as_a_guest(), only_errors():
            board = self.leaderboard()
            return pd.DataFrame(table_rows(board, board.rows))

    def table(self, layout: str = "plain", format: str = "markdown") -> str:
        """The results so far as text in one of the layouts and formats of `study table`."""
        for what, name, known in (("layout", layout, tuple(LAYOUTS)), ("format", format, FORMATS)):
            if name not in known:
                raise ConfigError(f"--{what}: expected {', '.join(known)}, got {name!r}{did_you_mean(name, known)}")
        with as_a_guest(), only_errors():
            return render(self.leaderboard(), layout=layout, format=format)

    def page(self, path: StrPath = "leaderboard.html") -> Path:
        """Write the results so far as one HTML page, and return its path."""
        with as_a_guest(), only_errors():
            return write_output(user_path(path), page(self.leaderboard()).encode())

    def __repr__(self) -> str:
        return f"<Study {self.name} in {self.call.out}>"


def outcome_rows(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """`study status`: one row per cell."""
    return [
        {
            "cell": outcome.cell.key,
            "state": outcome.state,
            "runs": len(outcome.results),
            "done": sum(result is not None for result in outcome.results),
            "reason": outcome.reason,
        }
        for outcome in outcomes
    ]
