"""Grids of runs, in MMRec's order: inputs are made once, and the winner is selected on validation."""

import logging
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..distributed import leading
from ..errors import RunError
from ..logs import log_statistics, metric_line
from ..machine import choose_device
from ..plugin.registry import Registry
from ..typed_json import plain
from ..types import Inputs, RunResult, RunSpec
from .inputs import gather, shared_keys
from .run_folder import document
from .runner import Interrupted, run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """One point of a grid: `parameters` without the seed, and its runs, one for each seed.

    Seeds are replicates: no seed is ever selected.
    """

    parameters: Mapping[str, Any]
    runs: tuple[RunResult, ...]

    @property
    def seeds(self) -> list[int]:
        return [run.record.seed for run in self.runs]

    def mean(self, split: str) -> dict[str, float]:
        """Each metric of "valid" or "test", averaged over the seeds."""
        return {name: float(np.mean(values)) for name, values in self._by_metric(split).items()}

    def deviation(self, split: str) -> dict[str, float] | None:
        """The standard deviation of each metric over the seeds; None for a single seed."""
        if len(self.runs) == 1:
            return None
        return {name: float(np.std(values, ddof=1)) for name, values in self._by_metric(split).items()}

    def _by_metric(self, split: str) -> dict[str, list[float]]:
        tables = [getattr(run, split) for run in self.runs]
        return {name: [table[name] for table in tables] for name in tables[0]}


@dataclass(frozen=True)
class Grid:
    """Finished runs in order, failed points with reasons, and the winner: the point with the best validation score,
    mean over its seeds.

    `best_on_test` is the point that MMRec's protocol reports, selected on TEST; None unless `protocol: mmrec` is set.
    """

    results: Sequence[RunResult]
    failures: Sequence[tuple[Mapping[str, Any], str]]
    winner: Point
    best_on_test: Point | None = None

    @property
    def points(self) -> list[Point]:
        return points_of(self.results)

    @property
    def best(self) -> RunResult:
        """The winner's run; of several seeds that of the first, not of the best."""
        return self.winner.runs[0]

    @property
    def is_replicated(self) -> bool:
        """True if some point has several seeds."""
        return len(self.points) < len(self.results)


def run_grid(
    specs: Sequence[RunSpec],
    registry: Registry,
    *,
    out: Path,
    resume: bool = False,
    force: bool = False,
    progress: bool = False,
) -> Grid:
    """Run all points in turn. A failed one is logged, and the others still run; RunError only if all fail."""
    results: list[RunResult] = []
    failures: list[tuple[Mapping[str, Any], str]] = []
    logger.info("██Server: \t%s", platform.node())
    logger.info("██Dir: \t%s\n", Path.cwd())
    logger.info("\n%s", _dump(specs))
    for number, (spec, inputs) in enumerate(_with_inputs(specs, registry, progress=progress), start=1):
        logger.info("=========%d/%d: Parameters:%s=======", number, len(specs), _point(spec.point))
        try:
            with (
                leading(choose_device(spec.settings)) if registry.paradigms.get(spec.paradigm).joint else nullcontext()
            ):
                results.append(
                    run(spec, registry, inputs=inputs, out=out, resume=resume, force=force, progress=progress)
                )
        except Interrupted:
            raise
        except (RunError, RuntimeError, MemoryError) as error:  # torch raises RuntimeError, also when out of memory
            if len(specs) == 1:
                raise
            logger.error("Parameters: %s failed: %s", _point(spec.point), error)
            failures.append((spec.point, str(error)))
            continue
        logger.info("████Current BEST████:\n%s", _summary(best_point(results, specs[0])))
        _log_best_on_test("Current BEST", results, specs[0])
    if not results:
        raise RunError(f"all {len(specs)} points of the grid failed; the last one: {failures[-1][1]}")
    best = best_point(results, specs[0])
    logger.info("\n============All Over=====================")
    for result in results:
        logger.info("%s", _summary(Point(result.parameters, (result,)), valid="best valid", test="best test"))
    logger.info("\n\n█████████████ BEST ████████████████\n%s", _summary(best))
    return Grid(results, failures, best, _log_best_on_test("BEST", results, specs[0]))


def help_grid(specs: Sequence[RunSpec], registry: Registry) -> None:
    """Do the share of a process after the first under torchrun: help with the encoders.

    Only the first process makes the runs.
    """
    for spec, inputs in _with_inputs(specs, registry):
        if registry.paradigms.get(spec.paradigm).joint:
            registry.paradigm(spec).help(spec, inputs, registry)


def _with_inputs(
    specs: Sequence[RunSpec], registry: Registry, *, progress: bool = False
) -> Iterator[tuple[RunSpec, Inputs]]:
    """Each run with its inputs."""
    latest: dict[str, Inputs] = {}  # only one: tables are large
    for spec in specs:
        key = shared_keys(spec, registry).inputs
        if key not in latest:
            latest = {key: gather(spec, registry, progress=progress)}
            log_statistics(latest[key].dataset)
        yield spec, latest[key]


def points_of(results: Sequence[RunResult]) -> list[Point]:
    """The points of a grid's runs, in the order of their first runs."""
    found: dict[str, tuple[dict[str, Any], list[RunResult]]] = {}
    for result in results:
        parameters = {name: value for name, value in result.parameters.items() if name != "seed"}
        found.setdefault(repr(parameters), (parameters, []))[1].append(result)
    return [Point(parameters, tuple(runs)) for parameters, runs in found.values()]


def best_point(results: Sequence[RunResult], spec: RunSpec) -> Point:
    """The point with the highest `valid_metric` on validation, mean over its seeds; the first of equals.

    Only points with the most seeds are compared: those with failed runs have means of fewer.
    """
    metric = spec.settings.valid_metric.lower()
    return max(_complete(results), key=lambda point: point.mean("valid")[metric])


def best_on_test(results: Sequence[RunResult], spec: RunSpec) -> Point:
    """The point that MMRec's quick_start calls BEST: the highest `valid_metric` on TEST, rounded to 4 decimals; the
    first of equals.

    Selecting on test leaks it; this is only for comparison with published numbers.
    """
    metric = spec.settings.valid_metric.lower()
    return max(_complete(results), key=lambda point: round(point.mean("test")[metric], 4))


def _complete(results: Sequence[RunResult]) -> list[Point]:
    points = points_of(results)
    most = max(len(point.runs) for point in points)
    return [point for point in points if len(point.runs) == most]


def _log_best_on_test(title: str, results: Sequence[RunResult], spec: RunSpec) -> Point | None:
    """Log and return the point that MMRec's protocol selects; None if `protocol` isn't mmrec."""
    if spec.settings.protocol != "mmrec":
        return None
    best = best_on_test(results, spec)
    logger.info("████%s by MMRec's protocol, selected on TEST████:\n%s", title, _summary(best))
    return best


def document_of(grid: Grid) -> dict[str, Any]:
    """A grid as `--json` prints it: its points and the winner.

    If only seeds differ, it is the single point with mean and deviation, without a winner.
    """
    failures = [{"parameters": dict(point), "error": reason} for point, reason in grid.failures]
    if len(grid.points) == 1 and grid.is_replicated:
        return {**_point_document(grid.winner), "failures": failures}
    as_document = _point_document if grid.is_replicated else lambda point: document(point.runs[0])
    points = [as_document(point) for point in grid.points]
    found = {"winner": as_document(grid.winner), "points": points, "failures": failures}
    return found | ({"best_on_test": as_document(grid.best_on_test)} if grid.best_on_test is not None else {})


def _point_document(point: Point) -> dict[str, Any]:
    splits = ("valid", "test")
    return {
        "parameters": dict(point.parameters),
        "seeds": point.seeds,
        "mean": {split: point.mean(split) for split in splits},
        "deviation": {split: point.deviation(split) for split in splits},
        "runs": [document(run) for run in point.runs],
    }


def _dump(specs: Sequence[RunSpec]) -> str:
    """The configuration as `key=value` lines; a grid's axes with all their values."""
    first = specs[0]
    values: dict[str, Any] = {name: getattr(first, name) for name in ("model", "dataset", "encoder", "paradigm")}
    values |= plain(first.settings) | plain(first.model_config)
    if first.encoder_config is not None:
        values |= {f"encoder.{key}": value for key, value in plain(first.encoder_config).items()}
    values["hyper_parameters"] = list(first.point)
    for name in first.point:
        points = [spec.point[name] for spec in specs]
        values[name] = plain([point for place, point in enumerate(points) if point not in points[:place]])
    return "\n".join(f"{key}={value}" for key, value in values.items())


def _point(parameters: Mapping[str, Any]) -> str:
    """A grid point in MMRec's format: `['seed', 'reg_weight']=(999, 0.1)`."""
    return f"{list(parameters)}={tuple(parameters.values())}"


def _summary(point: Point, *, valid: str = "Valid", test: str = "Test") -> str:
    scores = f"{valid}: {metric_line(point.mean('valid'))},\n{test}: {metric_line(point.mean('test'))}"
    of = point.runs[0].parameters if len(point.runs) == 1 else {"seed": point.seeds, **point.parameters}
    return f"Parameters: {_point(of)},\n{scores}\n"
