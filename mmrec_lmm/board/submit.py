"""Making a bundle of a finished run, or of a study's finished rows.

Where things lay on this machine isn't published: of an absolute path only its last part is kept. The hash of a run's
values is made of what remains.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..cache import fingerprint
from ..disk.folders import scratch_folder
from ..disk.writing import write_bytes, write_json
from ..errors import ConfigError, DataError, did_you_mean
from ..plugin.registry import Registry
from ..running import run_folder
from ..running.grid import Point, points_of
from ..running.provenance import plugin_code_of
from ..studies.comparison import Entry, Method, compare, smaller_is_better
from ..studies.executor import Outcome, Plan
from ..studies.file import winner
from ..studies.leaderboard import FINISHED, PARTIAL
from ..typed_json import plain
from ..types import AXES, Axes, EncoderName, RunRecord, RunResult
from .bundle import (
    LISTS,
    RUNS,
    Attempt,
    FailedPoint,
    Manifest,
    SubmittedData,
    SubmittedMethod,
    SubmittedPlugin,
    SubmittedRow,
    beside_the_seed,
    pack,
    save_lists,
    variant_of,
)


def submit_run(folder: Path, registry: Registry, output: Path, *, note: str = "") -> Path:
    """Pack the finished run in `folder`, with those of its other seeds: nobody picks a seed. What else was tried is
    read from the folder of runs that it is in.

    DataError if its files are damaged or its lists weren't kept. ConfigError if another point of its grid is better on
    validation: a row is its grid's winner.
    """
    result = run_folder.load_result(folder)
    assert result is not None
    others = [one for one in run_folder.list_results(folder.parent) if _alike(one, result)]
    others = [one for one in others if one.run_id != result.run_id] + [result]
    metric = _valid_metric(folder)
    points = points_of([one for one in others if _is_point(one, result)])
    own = next(point for point in points if result.run_id in {run.run_id for run in point.runs})
    better = best_of(points, own, metric)
    if better is not own:
        best = ", ".join(run.run_id for run in better.runs)
        raise ConfigError(
            f"{result.run_id}: expected the point of its grid that is best on validation ({metric} "
            f"{better.mean('valid')[metric]:.4f}), got one with {own.mean('valid')[metric]:.4f}; try {best}"
        )
    runs = sorted(own.runs, key=lambda run: run.record.seed)
    row = _row(_axes(result), runs, points, [one for one in others if not _is_point(one, result)])
    results, method = {run.run_id: run for run in runs}, SubmittedMethod(tuple(result.test))
    return _pack([row], results, method, registry, output, name=result.run_id, title="", note=note)


def submit_study(
    plan: Plan, registry: Registry, output: Path, *, where: Mapping[str, str] | None = None, note: str = ""
) -> Path:
    """Pack the finished rows of a study that have the values `where` on its axes, with all points of their grids.
    ConfigError for an unknown axis, or if no such row is finished."""
    study, where = plan.study, where or {}
    for axis in where:
        if axis not in AXES:
            raise ConfigError(f"--where: expected one of {', '.join(AXES)}, got {axis}{did_you_mean(axis, AXES)}")
    rows: dict[str, tuple[SubmittedRow, tuple[RunResult, ...]]] = {}
    everything = run_folder.list_results(plan.out)
    of_study = {one.run_id for outcome in plan.outcomes() for one in outcome.results if one is not None}
    for outcome in plan.outcomes():
        runs = winner(outcome.cell, outcome.results) if outcome.cell.runs else ()
        if not runs or outcome.state not in (FINISHED, PARTIAL) or not outcome.cell.axes.matches(where):
            continue
        own = runs[0].record.axes  # settings may choose a paradigm's variant
        axes = dataclasses.replace(outcome.cell.axes, modalities=own.modalities or (), paradigm=own.paradigm)
        earlier = [one for one in everything if _alike(one, runs[0]) and one.run_id not in of_study]
        made = _row(axes, runs, points_of([one for one in outcome.results if one]), earlier, _failed(plan, outcome))
        kept = rows.get(made.key)
        if kept is None or len(kept[1]) < len(runs):
            rows[made.key] = made, runs
    if not rows:
        such = "".join(f" of {axis} {value}" for axis, value in where.items())
        raise ConfigError(f"{study.name}: expected a finished row{such}, got none; try `study run` first")
    method = SubmittedMethod(
        tuple(metric.lower() for metric in study.metrics), study.baseline, study.test, study.alpha,
        study.best_within, study.family,
    )  # fmt: skip
    if not any(row.axes.matches(study.baseline) for row, _ in rows.values()):
        method = dataclasses.replace(method, baseline={})
    results = {run.run_id: run for _, runs in rows.values() for run in runs}
    return _pack(
        [row for row, _ in rows.values()], results, method, registry, output,
        name=study.name, title=study.title, note=note,
    )  # fmt: skip


def method_of(method: SubmittedMethod, registry: Registry) -> Method:
    """How `compare` treats a bundle's rows."""
    return Method(
        metrics=method.metrics,
        baseline=method.baseline,
        test=method.test,
        alpha=method.alpha,
        best_within=method.best_within,
        family=method.family,
        smaller=smaller_is_better(registry),
    )


def best_of(points: Sequence[Point], own: Point, metric: str) -> Point:
    """The point that is best on validation, and `own` unless another is truly better.

    Points are compared over the same seeds. Where only the winner has all seeds (`seeds_at: winner`), that is over
    those that all have; else points with failed runs don't compete, as in `winner`.
    """
    others = [point for point in points if point is not own]
    seeds = {tuple(sorted(point.seeds)) for point in others}
    common = set(own.seeds).intersection(*map(set, seeds)) if len(seeds) == 1 else set(own.seeds)

    def score(point: Point) -> float:
        values = [run.valid[metric] for run in point.runs if run.record.seed in common]
        return sum(values) / len(values) if len(values) == len(common) and values else float("-inf")

    best = max(points, key=score, default=own)
    return best if score(best) > score(own) else own


def portable(value: Any) -> Any:
    """A plain value in which each absolute path has only its last part."""
    if isinstance(value, str):
        return os.path.basename(value.rstrip("/")) or value if os.path.isabs(value) else value
    if isinstance(value, Mapping):
        return {portable(key): portable(item) for key, item in value.items()}
    return [portable(item) for item in value] if isinstance(value, list | tuple) else value


def _pack(
    rows: Sequence[SubmittedRow],
    results: Mapping[str, RunResult],
    method: SubmittedMethod,
    registry: Registry,
    output: Path,
    *,
    name: str,
    title: str,
    note: str,
) -> Path:
    with scratch_folder() as scratch:
        for result in results.values():
            _copy_run(result, scratch / RUNS / result.run_id)
        copies = {run: _copied(scratch / RUNS / run) for run in results}
        rows = with_scores(rows, copies, method, registry)
        last = max(results.values(), key=lambda result: (result.record.finished, result.run_id))
        manifest = Manifest(
            name=name,
            title=title or name,
            finished=last.record.finished,
            made_by=last.record.versions,
            data={row.axes.tested_on: _data(results[row.runs[0]].record) for row in rows},
            method=method,
            rows=tuple(rows),
            plugins=_plugins([*results.values()], registry),
            files={},
            note=note or None,
        )
        return pack(scratch, manifest, output)


def with_scores(
    rows: Sequence[SubmittedRow], results: Mapping[str, RunResult], method: SubmittedMethod, registry: Registry
) -> list[SubmittedRow]:
    """The rows with the scores that `compare` gives them."""
    entries = [
        Entry(row.axes, tuple(dataclasses.replace(results[run], parameters=dict(row.parameters)) for run in row.runs))
        for row in rows
    ]
    board = compare(entries, method_of(method, registry), study="bundle")
    found = {row.key: row.scores for row in board.rows}
    return [dataclasses.replace(row, scores=found[row.key]) for row in rows]


def _copied(folder: Path) -> RunResult:
    result = run_folder.load_result(folder)
    assert result is not None
    return result


def _copy_run(result: RunResult, target: Path) -> None:
    """Copy the evidence of a run to the folder `target`."""
    folder, record = result.path, result.record
    if record.resolved is None:
        raise DataError(
            f"{folder}: expected a run that recorded its configuration, got one of an earlier version; "
            f"{run_folder.CURE}"
        )
    run_folder.check_config(result)
    if record.topk is None:
        raise DataError(
            f"{folder}: expected a run that kept its lists, and their hash, got none; try running it again with "
            "--force --save_recommended_topk=true"
        )
    users, items = run_folder.load_topk(folder, n_users=2**31, n_items=2**31, sha256=record.topk)
    run_folder.load_per_user(folder)
    target.mkdir(parents=True)
    resolved = portable(plain(record.resolved))
    document = portable({name: value for name, value in plain(result).items() if name != "path"})
    document["record"]["config"] = fingerprint(resolved)
    write_json(target / run_folder.CONFIG, resolved)
    write_json(target / run_folder.RESULT, document)
    for name in (run_folder.HISTORY, run_folder.PER_USER):
        write_bytes(target / name, (folder / name).read_bytes())
    save_lists(target / LISTS, users, items)


def _row(
    axes: Axes,
    runs: Sequence[RunResult],
    points: Sequence[Point],
    earlier: Sequence[RunResult],
    failed: tuple[FailedPoint, ...] = (),
) -> SubmittedRow:
    of_grid = [_attempt(run, "grid", point.parameters) for point in points for run in point.runs]
    known = {one.run for one in of_grid}
    before = [_attempt(run, "earlier", _without_seed(run.parameters)) for run in earlier if run.run_id not in known]
    attempts = tuple(sorted([*of_grid, *before], key=lambda one: (one.kind != "grid", one.finished, one.run)))
    parameters = portable(plain(_without_seed(runs[0].parameters)))
    return SubmittedRow(axes, tuple(run.run_id for run in runs), parameters, {}, attempts, failed)


def _attempt(run: RunResult, kind: Any, parameters: Mapping[str, Any]) -> Attempt:
    record = run.record
    return Attempt(
        run=run.run_id,
        seed=record.seed,
        kind=kind,
        parameters=portable(plain(parameters)),
        valid=run.valid,
        best_epoch=run.best_epoch,
        epochs=run.epochs,
        seconds=record.seconds.train,
        finished=record.finished,
        config=fingerprint(portable(plain(record.resolved))) if record.resolved is not None else record.config,
    )


def _failed(plan: Plan, outcome: Outcome) -> tuple[FailedPoint, ...]:
    """The points of a cell that failed or aren't finished, with the reason."""
    keys = next(keys for cell, keys in zip(plan.cells, plan.keys, strict=True) if cell is outcome.cell)
    found = []
    for spec, key, result in zip(outcome.cell.runs, keys, outcome.results, strict=True):
        if result is None:
            record = plan.record(plan.expected[key])
            reason = record.reason if record and record.reason else "not finished"
            found.append(FailedPoint(portable(plain(spec.point)), reason))
    return tuple(found)


def _axes(result: RunResult) -> Axes:
    """The axes of a run, with the variant of its encoder."""
    axes = result.record.axes
    encoder = axes.encoder and EncoderName(axes.encoder.name, variant_of(result))
    return dataclasses.replace(axes, encoder=encoder, modalities=axes.modalities or ())


def _alike(one: RunResult, other: RunResult) -> bool:
    """True if two runs have the same axes and data."""
    return one.record.data == other.record.data and _axes(one).key == _axes(other).key


def _is_point(one: RunResult, result: RunResult) -> bool:
    """True if a run is a point of another's grid, or that run: it differs in the grid's axes and the seed alone.
    Runs of other features, or of other code, are other methods."""
    then, now = result.record, one.record
    if now.resolved is None or then.resolved is None:
        return one.run_id == result.run_id
    same_code = (then.numerics_version, plugin_code_of(then)) == (now.numerics_version, plugin_code_of(now))
    same_grid = one.parameters.keys() - {"seed"} == result.parameters.keys() - {"seed"}
    return same_code and same_grid and not beside_the_seed(result, one, but=result.parameters)


def _without_seed(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if name != "seed"}


def _valid_metric(folder: Path) -> str:
    settings = run_folder.load_settings(folder)
    if settings is None:
        raise DataError(f"{folder / run_folder.CONFIG}: no such file; {run_folder.CURE}")
    return settings.valid_metric.lower()


def _data(record: RunRecord) -> SubmittedData:
    return SubmittedData(record.axes.dataset, record.data, record.drawn, portable(record.files.get("data", {})))


def _plugins(results: Sequence[RunResult], registry: Registry) -> tuple[SubmittedPlugin, ...]:
    """The plugins of all runs, each part once, with the version that is installed and the code that the run had."""
    versions = {info.name: info.version for info in registry.plugins}
    found: dict[tuple[str, str], SubmittedPlugin] = {}
    for result in results:
        record = result.record
        for part, code in record.code.items():
            name = portable(_provider(part, record, registry))
            version = record.versions.get("mmrec_lmm") if part == "host" else versions.get(name)
            found.setdefault((part, code), SubmittedPlugin(name, version, part, code))
    return tuple(found[key] for key in sorted(found))


def _provider(part: str, record: RunRecord, registry: Registry) -> str:
    """The plugin that brought a part of a run."""
    if part in ("host", "model"):
        return "mmrec-lmm" if part == "host" else record.plugin.partition(" ")[0]
    if part == "encoder":
        assert record.axes.encoder is not None
        return registry.encoders.provider(record.axes.encoder.name)
    if part == "paradigm":
        return registry.paradigms.provider(record.axes.paradigm.partition(":")[0])
    if part == "sampler":
        assert record.resolved is not None
        return registry.samplers.provider(record.resolved["settings"]["sampler"])
    return registry.metrics.provider(part.partition(" ")[2])
