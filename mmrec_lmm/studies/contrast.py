"""Two runs side by side: what differs between them, and whether their numbers differ by more than noise.

A run stands for its configuration and code: runs in the same folder that differ from it in the seed alone count as its
other seeds. Users are compared one by one, as in a study's table (statistics.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config.settings import OF_NO_NUMBER
from ..config.yaml_layers import as_yaml
from ..errors import DataError
from ..evaluation.statistics import holm, paired, seed_variance
from ..running import run_folder
from ..running.differences import differing
from ..running.provenance import plugin_code_of
from ..typed_json import plain
from ..types import RunRecord, RunResult

ALPHA = 0.05


@dataclass(frozen=True)
class MetricDifference:
    """One metric of test: both means over users and seeds, and the second less the first."""

    metric: str
    one: float
    other: float
    difference: float
    low: float  # of the 95 % interval
    high: float
    p: float  # corrected over the metrics (Holm-Bonferroni)
    exceeds: bool  # noise: p is below ALPHA


@dataclass(frozen=True)
class Contrast:
    """What differs between two runs, in words by kind, and by how much their numbers do.

    `numbers` are empty where the runs weren't tested on the same users and items: `why` then says so.
    """

    one: tuple[str, ...]  # runs, in the order of the seeds
    other: tuple[str, ...]
    differences: Mapping[str, Sequence[str]]  # split, features, code, configuration, seed, library, machine
    numbers: tuple[MetricDifference, ...]
    noise: str  # what the test's error counts
    why: str = ""


def contrast(one: RunResult, other: RunResult) -> Contrast:
    """Compare two finished runs. DataError names one whose files are missing or damaged."""
    sides = [with_other_seeds(result) for result in (one, other)]
    differences = {kind: lines for kind, lines in _differences(one, other).items() if lines}
    names, others = (tuple(run.run_id for run in side) for side in sides)
    tables = [[run_folder.load_per_user(run.path) for run in side] for side in sides]
    users = [table["test/users"] for side in tables for table in side]
    if one.record.data != other.record.data or any(not np.array_equal(found, users[0]) for found in users):
        why = "they were tested on different splits, so users can't be compared one by one"
        return Contrast(names, others, differences, (), "", why)
    shared = [name for name in one.test if f"test/{name}" in tables[0][0] and f"test/{name}" in tables[1][0]]
    several = min(map(len, sides)) > 1
    found = []
    for name in shared:
        rows = [np.stack([table[f"test/{name}"] for table in side]) for side in tables]  # (S, U) each
        found.append((rows, paired(rows[1], rows[0], seed_variance(rows) if several else None)))
    corrected = holm(np.array([difference.p for _, difference in found]))  # (metrics,)
    numbers = tuple(
        MetricDifference(
            name, float(rows[0].mean()), float(rows[1].mean()), difference.mean, *difference.interval(),
            p=float(p), exceeds=bool(p < ALPHA),
        )
        for name, (rows, difference), p in zip(shared, found, corrected, strict=True)
    )  # fmt: skip
    noise = "users and seeds" if several else "users alone: one side has a single seed, and another may move it as much"
    return Contrast(
        names, others, differences, numbers, noise, "" if numbers else "they have no metric of users in common"
    )


def with_other_seeds(result: RunResult) -> list[RunResult]:
    """The runs of one configuration and code, by seed: a run, and those beside it that differ in the seed alone."""
    record = result.record
    resolved = record.resolved
    if resolved is None:
        raise DataError(
            f"{result.path}: expected a run that recorded its configuration, got one of an earlier version; "
            f"{run_folder.CURE}"
        )
    found = {record.seed: result}
    for run in run_folder.list_results(result.path.parent):
        same = run.record.resolved is not None and not _configured(resolved, run.record.resolved)
        if same and _made_of(run.record) == _made_of(record):
            found.setdefault(run.record.seed, run)
    return [found[seed] for seed in sorted(found)]


def _made_of(record: RunRecord) -> tuple[Any, ...]:
    """All that decides a run's numbers, beside its configuration."""
    return record.data, record.features, record.numerics_version, plugin_code_of(record)


def _differences(one: RunResult, other: RunResult) -> dict[str, list[str]]:
    """What differs, in words, by kind."""
    then, now = one.record, other.record

    def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
        names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
        return [_shown(name, before.get(name), after.get(name)) for name in names]

    assert then.resolved is not None
    assert now.resolved is not None
    split = {"data": then.data, "rule": then.axes.split}, {"data": now.data, "rule": now.axes.split}
    machine = {"device": then.device, "threads": then.threads}, {"device": now.device, "threads": now.threads}
    numerics = {"numerics version": then.numerics_version}, {"numerics version": now.numerics_version}
    return {
        "split": changes(*split),
        "features": changes(then.features, now.features),
        "code": changes({**then.code, **numerics[0]}, {**now.code, **numerics[1]}),
        "configuration": _configured(then.resolved, now.resolved),
        "seed": changes({"seed": then.seed}, {"seed": now.seed}),
        "library": changes(then.versions, now.versions),
        "machine": changes(*machine),
    }


def _configured(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys whose values differ, but for the seed, places, and what changes no number."""
    found = differing(then, now).items()
    return [_shown(name, *values) for name, values in found if name not in {"seed", "point", *OF_NO_NUMBER}]


def _shown(name: str, one: Any, other: Any) -> str:
    """Two values of a name."""
    return f"{name}: {_value(one)} | {_value(other)}"


def _value(value: Any) -> str:
    """A value in YAML; of a hash its first digits."""
    if isinstance(value, str) and len(value) in (32, 64) and not set(value) - set("0123456789abcdef"):
        return f"{value[:12]}..."
    return "nothing" if value is None else as_yaml(plain(value))
