"""Many runs from one request: a grid in MMRec's order, its inputs made once, its winner picked on validation."""

import logging
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .artifacts import plain
from .errors import RunError
from .inputs import Inputs, gather, shared_keys
from .joint import help_train
from .logs import log_statistics, metric_line
from .machine import choose_device
from .parallel import leading
from .registry import Registry
from .runner import Interrupted, run
from .types import RunResult, RunSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Grid:
    """Finished points in order, those that failed with the reason, and the winner on validation.

    `best_on_test` is what MMRec's protocol would report, selected on TEST: None unless `protocol: mmrec` asks for it.
    """

    results: Sequence[RunResult]
    failures: Sequence[tuple[Mapping[str, Any], str]]
    best: RunResult
    best_on_test: RunResult | None = None


def run_grid(
    specs: Sequence[RunSpec],
    registry: Registry,
    *,
    out: Path,
    resume: bool = False,
    force: bool = False,
    progress: bool = False,
) -> Grid:
    """Run every point in turn. One that fails is logged and the rest goes on; RunError only if all fail."""
    results: list[RunResult] = []
    failures: list[tuple[Mapping[str, Any], str]] = []
    logger.info("██Server: \t%s", platform.node())
    logger.info("██Dir: \t%s\n", Path.cwd())
    logger.info("\n%s", _dump(specs))
    for number, (spec, inputs) in enumerate(_with_inputs(specs, registry, progress=progress), start=1):
        logger.info("=========%d/%d: Parameters:%s=======", number, len(specs), _point(spec.point))
        try:
            with leading(choose_device(spec.settings)) if spec.paradigm == "ete" else nullcontext():
                results.append(run(spec, inputs, registry, out=out, resume=resume, force=force, progress=progress))
        except Interrupted:
            raise
        except (RunError, RuntimeError, MemoryError) as error:  # torch's errors are RuntimeErrors, out of memory too
            if len(specs) == 1:
                raise
            logger.error("Parameters: %s failed: %s", _point(spec.point), error)
            failures.append((spec.point, str(error)))
            continue
        logger.info("████Current BEST████:\n%s", _summary(best_result(results, specs[0])))
        _log_best_on_test("Current BEST", results, specs[0])
    if not results:
        raise RunError(f"all {len(specs)} points of the grid failed; the last one: {failures[-1][1]}")
    best = best_result(results, specs[0])
    logger.info("\n============All Over=====================")
    for result in results:
        logger.info("%s", _summary(result, valid="best valid", test="best test"))
    logger.info("\n\n█████████████ BEST ████████████████\n%s", _summary(best))
    return Grid(results, failures, best, _log_best_on_test("BEST", results, specs[0]))


def help_grid(specs: Sequence[RunSpec], registry: Registry) -> None:
    """What another process than the first does where torchrun started several: its part of the work on encoders. The
    runs are the first process' alone."""
    for spec, inputs in _with_inputs(specs, registry):
        if spec.paradigm == "ete":
            help_train(spec, inputs, registry)


def _with_inputs(
    specs: Sequence[RunSpec], registry: Registry, *, progress: bool = False
) -> Iterator[tuple[RunSpec, Inputs]]:
    """Each run with what it trains on."""
    gathered: dict[str, Inputs] = {}
    for spec in specs:
        key = shared_keys(spec, registry).inputs
        if key not in gathered:
            gathered = {key: gather(spec, registry, progress=progress)}  # the last one only: tables are large
            log_statistics(gathered[key].dataset)
        yield spec, gathered[key]


def best_result(results: Sequence[RunResult], spec: RunSpec) -> RunResult:
    """The run with the highest `valid_metric` on validation; of equals the first."""
    return max(results, key=lambda result: result.valid[spec.settings.valid_metric.lower()])


def best_on_test(results: Sequence[RunResult], spec: RunSpec) -> RunResult:
    """The run that MMRec's quick_start calls BEST: the highest `valid_metric` on TEST, rounded to 4 decimals; of equals
    the first. It leaks test into the choice, and serves only to place published numbers."""
    return max(results, key=lambda result: round(result.test[spec.settings.valid_metric.lower()], 4))


def _log_best_on_test(title: str, results: Sequence[RunResult], spec: RunSpec) -> RunResult | None:
    """Log and return what MMRec's protocol selects, where that is asked for."""
    if spec.settings.protocol != "mmrec":
        return None
    best = best_on_test(results, spec)
    logger.info("████%s by MMRec's protocol, selected on TEST████:\n%s", title, _summary(best))
    return best


def _dump(specs: Sequence[RunSpec]) -> str:
    """All that was asked for as `key=value` lines; a grid's axes with all their values."""
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
    """A grid point as MMRec writes it: `['seed', 'reg_weight']=(999, 0.1)`."""
    return f"{list(parameters)}={tuple(parameters.values())}"


def _summary(result: RunResult, *, valid: str = "Valid", test: str = "Test") -> str:
    scores = f"{valid}: {metric_line(result.valid)},\n{test}: {metric_line(result.test)}"
    return f"Parameters: {_point(result.parameters)},\n{scores}\n"
