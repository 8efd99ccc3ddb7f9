"""A study on Ray: one task per run, on all machines of the cluster. They share the folder of runs and the cache.

A task does what a process of `--jobs` does with one run; its result is the run's own files. If its worker is killed,
the task starts again and continues from the run's checkpoint. Features and tuned encoders, which runs share, have tasks
of their own; the runs wait for these without holding a CPU. Only this module imports Ray.
"""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..disk.reading import read_json
from ..errors import ConfigError, DataError
from ..logs import start_log
from ..machine import choose_device, cpu_threads
from ..plugin.registry import Registry
from ..running.inputs import gather
from ..typed_json import decode
from ..types import RunSpec
from .executor import MEMORY, RETRIES, Call, Job, Plan, Record, Watch, Worker

logger = logging.getLogger(__name__)

#: Ray reads these on import: no usage reports, and a server that only this machine can reach.
SWITCHES = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def on_ray(call: Call, plan: Plan, *, on_progress: Callable[[Job, Record], None] | None = None) -> None:
    """Run the plan on the cluster at RAY_ADDRESS, or else on one that starts here and ends with the study.

    A task asks for its run's CPUs, GPU and, if a dry run has probed it, memory. ConfigError if Ray isn't installed.
    """
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "--on ray: expected Ray to be installed, got no module ray; try pip install 'mmrec-lmm[ray]'"
        ) from None
    here: dict[str, Any] = (
        {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False, "object_store_memory": 100 << 20}
    )
    own = {name: value for name, value in os.environ.items() if name.startswith("MMREC_LMM_")}
    ray.init(log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": own}, **here)
    try:
        watch = Watch(plan, call.since, on_progress)
        memory = _probed(plan.folder / MEMORY)
        prepared: dict[str, Any] = {}
        waiting = []
        for job in watch.left():
            resources = _resources(job.spec, memory.get(job.key))
            if job.encoded not in prepared:
                prepared[job.encoded] = ray.remote(_prepare).options(**resources).remote(call, job.key)
            waiting.append(ray.remote(_do).options(**resources).remote(call, job.key, prepared[job.encoded]))
        while waiting:
            done, waiting = ray.wait(waiting, timeout=1.0)
            watch.left()
            for task in done:
                try:
                    ray.get(task)
                except ray.exceptions.RayError as error:
                    logger.error("a task of Ray failed: %s", error)
        watch.left()
    finally:
        ray.shutdown()


def _probed(path: Path) -> Mapping[str, int]:
    """The memory that a dry run has probed, in bytes by job; empty without one."""
    if not os.path.lexists(path):
        return {}
    cure = "the runs ask for no memory; study run --dry-run writes it again"
    try:
        return decode(_Memory, {"of": read_json(path, cure=cure)}, where=str(path), cure=cure).of
    except DataError as error:
        logger.warning("%s", error)
        return {}


@dataclass(frozen=True)
class _Memory:
    of: Mapping[str, int]


def _resources(spec: RunSpec, memory: int | None) -> dict[str, Any]:
    name = spec.settings.device  # a GPU may be on another machine only
    cuda = name.startswith("cuda") or (name == "auto" and choose_device(spec.settings).type == "cuda")
    known = {"memory": memory} if memory else {}
    return {"num_cpus": cpu_threads(spec.settings), "num_gpus": int(cuda), "max_retries": RETRIES, **known}


def _prepare(call: Call, key: str) -> None:
    """Make what a job shares with others. If that fails, only log it: the runs report it."""
    plan, registry = _plan(call, key)
    try:
        gather(plan.jobs[key].spec, registry)
    except Exception as error:  # a plugin may raise anything
        logger.warning("%s: %s", type(error).__name__, error)


def _do(call: Call, key: str, prepared: None) -> None:
    """Do one run, unless it is settled. `prepared` makes the task wait for what the run shares."""
    plan, registry = _plan(call, key)
    Worker(plan, registry, since=call.since).work([plan.jobs[key]])


_plans: dict[float, tuple[Plan, Registry]] = {}  # of this worker, for its next tasks of the same call


def _plan(call: Call, key: str) -> tuple[Plan, Registry]:
    """A plan that has the job `key`. Control runs of a winner are only in plans made after its grid is done."""
    if call.since not in _plans or key not in _plans[call.since][0].jobs:
        os.chdir(call.folder)  # relative paths of data, configuration and runs start there
        start_log(call.out / "log", f"{call.study.name}-ray-{os.getpid()}", level=call.level, verbose=False)
        _plans.clear()
        _plans[call.since] = call.plan()
    return _plans[call.since]
