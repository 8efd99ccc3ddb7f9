"""Many runs from one request: a grid in MMRec's order, its inputs made once, its winner picked on validation."""

import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .artifacts import fingerprint, plain
from .errors import RunError
from .inputs import Inputs, gather
from .logs import log_statistics, metric_line
from .registry import Registry
from .runner import Interrupted, run
from .types import RunResult, RunSpec

logger = logging.getLogger(__name__)

#: Settings that decide what `gather` returns; runs that agree on them share their inputs.
INPUT_SETTINGS = (
    "data_path", "inter_file_name", "vision_feature_file", "text_feature_file", "USER_ID_FIELD", "ITEM_ID_FIELD",
    "inter_splitting_label", "field_separator", "filter_out_cod_start_users", "text_fields", "missing", "device",
)  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """Finished points in order, those that failed with the reason, and the winner on validation."""

    results: Sequence[RunResult]
    failures: Sequence[tuple[Mapping[str, Any], str]]
    best: RunResult


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
    gathered: dict[str, Inputs] = {}
    results: list[RunResult] = []
    failures: list[tuple[Mapping[str, Any], str]] = []
    logger.info("██Server: \t%s", platform.node())
    logger.info("██Dir: \t%s\n", Path.cwd())
    logger.info("\n%s", "\n".join(f"{key}={value}" for key, value in plain(specs[0].settings).items()))
    for number, spec in enumerate(specs, start=1):
        key = _input_key(spec)
        if key not in gathered:
            gathered = {key: gather(spec, registry, progress=progress)}  # the last one only: tables are large
            log_statistics(gathered[key].dataset)
        point = f"Parameters: {list(spec.point)}=({', '.join(map(str, spec.point.values()))})"
        logger.info("=========%d/%d: %s=======", number, len(specs), point)
        try:
            results.append(run(spec, gathered[key], registry, out=out, resume=resume, force=force, progress=progress))
        except Interrupted:
            raise
        except RunError as error:
            if len(specs) == 1:
                raise
            logger.error("%s failed: %s", point, error)
            failures.append((spec.point, str(error)))
            continue
        logger.info("████Current BEST████:\n%s", _summary(best_result(results, specs[0])))
    if not results:
        raise RunError(f"all {len(specs)} points of the grid failed; the last one: {failures[-1][1]}")
    best = best_result(results, specs[0])
    logger.info("\n============All Over=====================")
    for result in results:
        logger.info("%s", _summary(result))
    logger.info("\n\n█████████████ BEST ████████████████\n%s", _summary(best))
    return Grid(results, failures, best)


def best_result(results: Sequence[RunResult], spec: RunSpec) -> RunResult:
    """The run with the highest `valid_metric` on validation; of equals the first."""
    return max(results, key=lambda result: result.valid[spec.settings.valid_metric.lower()])


def _input_key(spec: RunSpec) -> str:
    """Equal for runs that train on the same inputs."""
    settings = {name: getattr(spec.settings, name) for name in INPUT_SETTINGS}
    seed = spec.settings.seed if spec.control else None  # only a control's shuffling depends on it
    about = (spec.dataset, spec.encoder, spec.encoder_config, spec.modalities, spec.features, spec.control, spec.model)
    return fingerprint([settings, seed, about])


def _summary(result: RunResult) -> str:
    parameters = ", ".join(f"{key}={value}" for key, value in result.parameters.items())
    return f"Parameters: {parameters},\nValid: {metric_line(result.valid)},\nTest: {metric_line(result.test)}\n"
