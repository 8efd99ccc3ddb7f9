"""Replay: run a finished run again from its `config.json`, and compare the results.

First the run's data, features, configuration, code, versions and machine are compared with the present ones, and the
differences listed in words. If they would change the run's id, nothing is trained. Otherwise the run is trained in a
temporary folder, and its files are compared by hash; if they differ, the history shows the first epoch and term that
does.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..config.yaml_layers import as_yaml
from ..disk.folders import scratch_folder
from ..disk.hashing import read_hash
from ..disk.reading import read_json
from ..errors import DataError
from ..machine import choose_device, cpu_threads
from ..plugin.registry import Registry
from ..training.resume import load_weights
from ..typed_json import plain
from ..types import EpochReport, Inputs, RunRecord, RunResult, RunSpec
from . import run_folder
from .differences import differing
from .inputs import gather
from .provenance import NUMERICS_VERSION, code_hashes, device_name, run_id, versions
from .runner import Interrupted, run

IDENTICAL, WITHIN, DIVERGED, ANOTHER = "identical", "within tolerance", "diverged", "another run"

#: Tolerances of a metric's mean over users on another machine or a GPU, where rounding changes some users' lists.
RELATIVE, ABSOLUTE = 0.01, 0.0005

TENSOR_FILES = (
    run_folder.WEIGHTS, run_folder.ENCODER, run_folder.ADAPTER, run_folder.FEATURES, run_folder.PER_USER,
)  # fmt: skip


@dataclass(frozen=True)
class Replay:
    """The result of a replay. `verdict` is IDENTICAL, WITHIN, DIVERGED or, if nothing was trained, ANOTHER.

    `differences` has an entry for each file whose hash differs: the largest difference of two numbers or, for top-K
    lists, the number of lists that differ (None if a file is missing or shapes differ). Its entry "means" is the
    largest difference of a metric's mean.
    """

    run_id: str
    verdict: str
    changed: Sequence[str]  # what differs, in words: data, features, configuration, code, versions, machine
    differences: Mapping[str, float | None] = field(default_factory=dict)
    departs: str | None = None  # the first epoch and loss term or metric that differs

    @property
    def reproduced(self) -> bool:
        return self.verdict in (IDENTICAL, WITHIN)


def replay(
    name: str,
    registry: Registry,
    *,
    out: Path,
    data_path: str | None = None,
    device: str | None = None,
    progress: bool = False,
) -> Replay:
    """Run a finished run again with its number of threads, and compare. `data_path` and `device` replace its own.

    Raises DataError if the run or its data is missing or damaged.
    """
    folder = run_folder.find_run(out, name)
    stored = run_folder.load_result(folder)
    assert stored is not None
    record = stored.record
    if record.resolved is None:
        raise DataError(
            f"{folder}: expected a run that recorded its configuration, got one of an earlier version; "
            f"{run_folder.CURE}"
        )
    spec = run_folder.load_config(folder, registry)
    wanted = {"data_path": data_path, "device": device, "threads": spec.settings.threads or record.threads}
    spec = _with_settings(spec, **{key: value for key, value in wanted.items() if value is not None})
    inputs = gather(spec, registry, progress=progress)
    before = changes(record, spec, inputs, registry)
    configured = changed_values(record.resolved, read_json(folder / run_folder.CONFIG, cure=run_folder.CURE))
    changed = [*before.data, *before.features, *configured, *before.code, *before.versions, *before.machine]
    if run_id(_with_settings(spec, threads=record.threads), inputs, registry) != stored.run_id:
        return Replay(stored.run_id, ANOTHER, changed)
    with scratch_folder() as scratch:
        try:
            again = run(spec, registry, inputs=inputs, out=scratch, progress=progress)
        except Interrupted:
            raise Interrupted(f"{stored.run_id}: interrupted; nothing of a replay is kept") from None
        excused = bool(before.machine) or choose_device(spec.settings).type != "cpu"
        return _compared(stored, again, changed, excused=excused)


@dataclass(frozen=True)
class Changes:
    """The differences between a run's record and the present, in words. `machine` changes sums only by rounding."""

    data: Sequence[str]
    features: Sequence[str]
    code: Sequence[str]
    versions: Sequence[str]
    machine: Sequence[str]


def changes(record: RunRecord, spec: RunSpec, inputs: Inputs, registry: Registry) -> Changes:
    """Compare all that a run's `record` says, except for its configuration, with the present."""
    data, features = [], []
    if inputs.dataset.fingerprint != record.data:
        data.append(f"data: the interactions changed{_changed_files(record, inputs, 'data')}")
    now = {modality: table.fingerprint for modality, table in inputs.tables.items()}
    for modality in sorted({*now, *record.features}):
        if modality not in now or modality not in record.features:
            features.append(f"features: {modality} is {'gone' if modality not in now else 'new'}")
        elif now[modality] != record.features[modality]:
            features.append(f"features: {modality} changed{_changed_files(record, inputs, modality)}")
    code = [
        f"code: that of the {part} changed"
        for part, digest in code_hashes(spec, registry).items()
        if digest != record.code.get(part)
    ]
    if record.numerics_version != NUMERICS_VERSION:
        code.append(_was("code: numerics version", record.numerics_version, NUMERICS_VERSION))
    others = [
        _was(f"versions: {library}", record.versions.get(library), version)
        for library, version in versions().items()
        if version != record.versions.get(library)
    ]
    of_torch = [line for line in others if line.startswith("versions: torch ")]
    machine = [
        _was(f"machine: {name}", then, now)
        for name, then, now in (
            ("device", record.device, device_name(choose_device(spec.settings))),
            ("threads", record.threads, cpu_threads(spec.settings)),
        )
        if then != now
    ]
    return Changes(data, features, code, [line for line in others if line not in of_torch], [*of_torch, *machine])


def changed_values(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys of two resolved runs (`config.json`) whose values differ, in the user's spelling, with both values."""
    return [_was(f"configuration: {key}", *values) for key, values in differing(then, now).items()]


def departure(then: Sequence[EpochReport], now: Sequence[EpochReport]) -> str | None:
    """The first epoch and loss term or metric that differs between two histories; None if none does."""
    for one, other in zip(then, now, strict=False):
        for kind, before, after in (
            ("loss term", one.losses, other.losses),
            ("valid", one.valid or {}, other.valid or {}),
        ):
            for name in {**before, **after}:
                if before.get(name) != after.get(name):
                    return _was(f"epoch {one.epoch}: {kind} {name}", before.get(name), after.get(name))
    if len(then) != len(now):
        return f"epoch {min(len(then), len(now))}: the run had {len(then)} epochs, its replay {len(now)}"
    return None


def _compared(stored: RunResult, again: RunResult, changed: Sequence[str], *, excused: bool) -> Replay:
    """The verdict on a replay that was trained; `excused` is True if rounding may differ here."""
    differences: dict[str, float | None] = dict(_differences(stored.path, again.path))
    departs = departure(run_folder.load_history(stored.path), run_folder.load_history(again.path))
    means = [
        (then[name], now.get(name, math.inf))
        for then, now in ((stored.valid, again.valid), (stored.test, again.test))
        for name in then
    ]
    if not differences and departs is None:
        return Replay(stored.run_id, IDENTICAL, changed)
    differences["means"] = max(abs(then - now) for then, now in means)
    close = all(math.isclose(then, now, rel_tol=RELATIVE, abs_tol=ABSOLUTE) for then, now in means)
    departs = departs or f"after training: the history is the same, and {next(iter(differences))} differs"
    return Replay(stored.run_id, WITHIN if excused and close else DIVERGED, changed, differences, departs)


def _differences(stored: Path, again: Path) -> Iterator[tuple[str, float | None]]:
    """The files of two runs whose hashes differ, each with the size of its difference."""
    for name in (*TENSOR_FILES, run_folder.TOPK):
        paths = [folder / name for folder in (stored, again)]
        present = [path.is_file() for path in paths]
        if not any(present) or (all(present) and read_hash(paths[0]) == read_hash(paths[1])):
            continue
        if not all(present):
            yield name, None
        elif name == run_folder.TOPK:
            then, now = (path.read_bytes().splitlines() for path in paths)
            yield name, sum(one != other for one, other in zip(then, now, strict=False)) + abs(len(then) - len(now))
        elif (
            largest := _largest(*map(load_weights, paths))
        ) != 0:  # of earlier versions, equal numbers differ in bytes
            yield name, largest


def _largest(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float | None:
    """The largest difference between equally named tensors; None if names or shapes differ."""
    if {name: value.shape for name, value in one.items()} != {name: value.shape for name, value in other.items()}:
        return None
    filled = [name for name, value in one.items() if value.numel()]
    return max(((one[name].double() - other[name].double()).abs().max().item() for name in filled), default=0.0)


def _changed_files(record: RunRecord, inputs: Inputs, part: str) -> str:
    """The end of a message: the changed files that a part of the inputs comes from."""
    then, now = record.files.get(part, {}), inputs.files.get(part, {})
    files = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if files:
        return f" ({', '.join(files)})"
    return " (its files are the same: the encoder, its weights or its settings differ)" if now else ""


def _was(what: str, then: Any, now: Any) -> str:
    return f"{what} was {_shown(then)}, is {_shown(now)}"


def _shown(value: Any) -> str:
    return "nothing" if value is None else as_yaml(plain(value))


def _with_settings(spec: RunSpec, **values: Any) -> RunSpec:
    return dataclasses.replace(spec, settings=dataclasses.replace(spec.settings, **values))
