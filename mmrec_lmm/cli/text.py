"""Formats what the command line prints: plain text from results, specs and data sets. Nothing is computed here."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.yaml_layers import as_yaml
from ..errors import ConfigError, did_you_mean
from ..formatting import aligned, counted
from ..plugin.specs import EncoderSpec, WeightFile

if TYPE_CHECKING:  # these take time to import, which would slow down `list`
    import pandas as pd

    from ..board.verify import Verification
    from ..bridge.checkout import Import
    from ..checking.audit import Audit
    from ..checking.findings import Report
    from ..checking.probes import Estimate, Probed
    from ..config.schema import Key
    from ..plugin.registry import NamedSpecs, Registry
    from ..running.grid import Grid, Point
    from ..running.replay import Replay
    from ..running.storage import Stored
    from ..studies.contrast import Contrast
    from ..studies.estimate import CachedFile, Making, Probe
    from ..studies.executor import Job, Outcome, Plan, Record
    from ..studies.leaderboard import Leaderboard
    from ..types import FeatureTable, RunResult

LEAST = 12  # characters that a column of texts keeps in a table that a screen has no room for
HIDDEN = {"datasets": ("summary", "plugin")}  # columns that only `info` and JSON have


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with equal keys as an aligned table: numbers right-aligned, floats with four decimals; "" without rows."""
    if not rows:
        return ""
    header = list(rows[0])
    cells = [[_cell(row[name]) for name in header] for row in rows]
    right = [all(isinstance(row[name], int | float) or row[name] is None for row in rows) for name in header]
    head, *lines = aligned([header, *cells], right=right)
    rule = ["-" * len(text) for text in head]
    return "\n".join("  ".join(line).rstrip() for line in (head, rule, *lines))


def fitted(rows: Sequence[Mapping[str, Any]], width: int | None) -> list[dict[str, Any]]:
    """Rows whose table has at most `width` columns, where that can be: the widest texts are cut, but for the first
    column, which names the row. None: all as they are."""
    found = [dict(row) for row in rows]
    if width is None or not found:
        return found
    widths = {name: max(len(name), *(len(_cell(row[name])) for row in found)) for name in found[0]}
    texts = [name for name in [*widths][1:] if all(isinstance(row[name], str | None) for row in found)]
    least = {name: max(LEAST, len(name)) for name in texts}
    while (over := sum(widths.values()) + 2 * (len(widths) - 1) - width) > 0:
        widest = max(texts, key=lambda name: widths[name] - least[name], default="")
        if not widest or widths[widest] <= least[widest]:
            break
        others = sorted((widths[name] for name in texts), reverse=True)
        step = max(1, widths[widest] - others[1]) if len(others) > 1 else over
        widths[widest] = max(least[widest], widths[widest] - min(over, step))
    for row in found:
        for name in texts:
            if row[name] is not None and len(row[name]) > widths[name]:
                row[name] = f"{row[name][: widths[name] - 4].rstrip()} ..."
    return found


def run_text(result: RunResult) -> str:
    """A finished run: why it stopped, and its metrics by split, with a line per cutoff and a column per metric."""
    how = {
        "patience": f"stopped early after {result.epochs} epochs",
        "epochs": f"ran all {result.epochs} epochs",
        "diverged": f"diverged in epoch {result.epochs - 1}",
        "untrained": "was not trained",
    }[result.stopped]
    names = list(dict.fromkeys(name.partition("@")[0] for name in result.test))
    cutoffs = list(dict.fromkeys(name.partition("@")[2] for name in result.test))
    rows = [
        {"split": split, "K": int(k), **{name: values[f"{name}@{k}"] for name in names}}
        for split, values in (("valid", result.valid), ("test", result.test))
        for k in cutoffs
    ]
    from ..running.marks import marks

    marked = "".join(f"\nmarked: {reason}" for reason in marks(result))
    return f"{result.run_id}: {how}; best epoch {result.best_epoch}{_sample(result)}{marked}\n\n{table(rows)}"


def point_text(point: Point) -> str:
    """A grid point's metrics by split: of its one run, or as mean and standard deviation over its seeds."""
    if len(point.runs) == 1:
        return run_text(point.runs[0])
    rows = []
    for split in ("valid", "test"):
        means, deviations = point.mean(split), point.deviation(split) or {}
        cutoffs = dict.fromkeys(name.partition("@")[2] for name in means)
        for k in cutoffs:
            of_cutoff = [name for name in means if name.partition("@")[2] == k]
            values = {name.partition("@")[0]: f"{means[name]:.4f} ± {deviations[name]:.4f}" for name in of_cutoff}
            rows.append({"split": split, "K": int(k), **values})
    from ..running.marks import marks_of

    runs = ", ".join(f"{run.run_id} (seed {seed})" for run, seed in zip(point.runs, point.seeds, strict=True))
    marked = "".join(f"\nmarked: {reason}" for reason in marks_of(point.runs))
    sample = _sample(point.runs[0])
    return f"mean ± standard deviation over {len(point.runs)} seeds: {runs}{sample}{marked}\n\n{table(rows)}"


def grid_text(grid: Grid, valid_metric: str) -> str:
    """All runs with their validation scores, the winning point's marked, and then the winner's metrics.

    Under MMRec's protocol also the metrics of the point selected on test. If only seeds differ, there is no winner.
    """
    metric = valid_metric.lower()
    won = {run.run_id for run in grid.winner.runs} if len(grid.points) > 1 else set()
    rows = [
        {
            **({"": "*" if result.run_id in won else ""} if won else {}),
            **{name: as_yaml(value) for name, value in result.parameters.items()},  # 1e-05 isn't 0.0000
            f"valid {metric}": result.valid[metric],
            f"test {metric}": result.test[metric],
            "run": result.run_id,
        }
        for result in grid.results
    ]
    over = ", mean over seeds" if grid.is_replicated else ""
    title = f"* best on validation ({metric}{over}):\n" if won else ""
    text = f"{table(rows)}\n\n{title}{point_text(grid.winner)}"
    if grid.best_on_test is not None:
        text += (
            f"\n\nfor comparison with published numbers only, MMRec's protocol, selected on TEST ({metric}):\n"
            f"{point_text(grid.best_on_test)}"
        )
    return text


def replay_text(replay: Replay) -> str:
    """The verdict of a replay, what changed, and where the two runs first differ."""
    lines = [f"{replay.run_id}: {replay.verdict}", *(f"  {line}" for line in replay.changed)]
    if replay.departs:
        lines.append(f"  first divergence: {replay.departs}")
    lines += [
        f"  {name}: {'not comparable' if value is None else f'differs by {value:.3g} at most'}"
        for name, value in replay.differences.items()
    ]
    return "\n".join(lines)


def contrast_text(found: Contrast) -> str:
    """What differs between two runs, and their numbers side by side."""
    lines = [f"one: {', '.join(found.one)}", f"other: {', '.join(found.other)}", ""]
    for kind, differences in found.differences.items():
        lines += [f"{kind}: {line}" if line.partition(": ")[0] != kind else line for line in differences]
    if not found.differences:
        lines.append("nothing that is recorded differs")
    if found.why:
        return "\n".join([*lines, "", f"numbers: {found.why}"])
    rows = [
        {
            "test": one.metric, "one": one.one, "other": one.other, "difference": one.difference, "low": one.low,
            "high": one.high, "p": one.p, "": "more than noise" if one.exceeds else "",
        }
        for one in found.numbers
    ]  # fmt: skip
    over = f"other less one, with its 95 % interval; p is corrected over the metrics. The error counts {found.noise}."
    return "\n".join([*lines, "", table(rows), "", over])


def verification_text(found: Verification) -> str:
    """The tier that a bundle reached, what each tier found, and what stopped it."""
    counts = f"{counted(found.rows, 'row')} and {counted(found.runs, 'run')}"
    lines = [f"{found.name}: {found.tier}" + (f", of {counts}" if found.rows else "")]
    if found.replayed:
        same = sum(one.identical for one in found.replayed.values())
        largest = max(one.largest for one in found.replayed.values())
        lines.append(
            f"  replayed: {same} of {len(found.replayed)} runs identical; means differ by {largest:.2g} at most"
        )
    if found.fresh:
        rows = [
            {
                "row": key, "metric": one.metric, "claim": one.claim, "fresh": one.fresh,
                f"{found.baseline} here": one.baseline_here, f"{found.baseline} fresh": one.baseline_fresh,
                "chance": one.chance,
            }
            for key, one in found.fresh.items()
        ]  # fmt: skip
        lines.append(textwrap.indent(f"fresh, seed {found.seed}:\n{table(rows)}", "  "))
    lines += [f"  note: {note}" for note in found.notes]
    if found.stopped is not None:
        lines.append(f"  stopped at {found.stopped.tier} by the check {found.stopped.check}: {found.stopped.reason}")
    return "\n".join(lines)


def study_text(outcomes: Sequence[Outcome], width: int | None = None) -> str:
    """All cells with their states, and the counts; texts are cut to a screen of that `width`, if any."""
    from ..library.studies import outcome_rows

    rows = outcome_rows(outcomes)
    states = [row["state"] for row in rows]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    done, runs = sum(row["done"] for row in rows), sum(row["runs"] for row in rows)
    of_runs = f"{done} of {counted(runs, 'run')} {'is' if 1 in (done, runs) else 'are'} done"
    return f"{table(fitted(rows, width))}\n\n{counted(len(rows), 'cell')}: {counts}; {of_runs}"


def imported_text(found: Import) -> str:
    """`import-mmrec`: each model file with its class, the features that it reads, and what is wrong with it; then the
    data sets."""
    rows = [
        {
            "model": one.path,
            "class": one.cls,
            "features": "+".join(one.features) or "none",
            "keys without a value": ", ".join(one.keys_without_value),
        }
        for one in found.models
        if not one.error
    ]
    errors = [one.error for one in found.models if one.error]
    parts = [table(rows), *errors]
    if found.configs:
        parts.append(f"configuration: {found.configs}")
    parts.append(f"data sets: {', '.join(found.datasets) or 'none'}")
    return "\n".join(part for part in parts if part)


def plan_text(plan: Plan, width: int | None = None) -> str:
    """`study_text`, and of a random search the budget of each model, by its records."""
    text = study_text(plan.outcomes(), width)
    if plan.study.search != "random":
        return text
    from ..studies.budgets import budgets, verdict

    found = budgets(plan)
    rows = [
        {
            "model": one.model,
            "cells": one.cells,
            "trials": one.most if one.fewest == one.most else f"{one.fewest} to {one.most}",
            "of": one.asked,
            "failed": one.failed,
            "earlier": one.earlier,
        }
        for one in found
    ]
    return f"{text}\n\n{table(rows)}\n\n{verdict(plan, found)}"


def shard_text(plan: Plan) -> str:
    """How many of the study's runs a shard has, and what waits for other shards."""
    own = len(plan.own)
    text = f"shard {plan.shard}: {own} of {len(plan.jobs)} runs"
    if plan.waiting:
        text += f"; {len(plan.waiting)} wait for winners: once all shards are done, run them again"
    return text


def content_text(board: Leaderboard, out: Path) -> str:
    """`demo`: the row of a study's one model beside its control runs, on the first metric, with all marks.

    `out` is the folder of runs.
    """
    from ..running.run_folder import load_result

    by_key = {row.key: row for row in board.rows}
    metric, own = board.metrics[0], next(row for row in board.rows if row.axes.control is None)
    twins = [by_key[key] for key in own.twins.values()]
    epochs = {
        row.key: ", ".join(str(result.best_epoch) for run in row.runs if (result := load_result(out / run)))
        for row in (own, *twins)
    }
    rows = []
    for twin in twins:
        gain = own.content_gain[str(twin.axes.control)][metric]
        mean, of_twin = own.scores[metric].mean, twin.scores[metric].mean
        known = gain.low is not None and gain.high is not None
        rows.append(
            {
                "twin": twin.axes.control,
                "own features": mean,
                "of twin": of_twin,
                "gain": f"{100 * (mean / of_twin - 1):+.0f} %",
                "difference": gain.mean,
                "95 % interval": f"{gain.low:.4f} ... {gain.high:.4f}" if known else "needs two seeds",
                "best epochs": epochs[twin.key],
            }
        )
    marked = [
        f"marked: {row.axes.control or 'own features'}: {reason}" for row in (own, *twins) for reason in row.marks
    ]
    title = (
        f"{own.axes.model} on the {own.axes.dataset} data: {metric} on test with the items' own features, and of twins "
        f"without content; mean of\nseeds {', '.join(map(str, own.seeds))}. Own features: best epochs {epochs[own.key]}"
    )
    return "\n".join([title, "", table(rows), *marked])


def job_line(job: Job, record: Record) -> str:
    """The outcome of one run of a study, as a line."""
    return f"{job.title}: {record.state}" + (f": {record.reason}" if record.reason else f" in {record.seconds:.1f} s")


def shared_text(files: Sequence[CachedFile]) -> str:
    """The cached files that a study's runs share, and which of them exist."""
    rows = [{"shared": one.what, "": "there" if one.there else one.reason or "to be made"} for one in files]
    return table(rows) or "nothing is shared: the study has no encoder"


def probe_line(probe: Probe) -> str:
    """The result of one probe, as a line."""
    return f"probe of {probe.title}: {probe.reason or f'{probe.cost.seconds_per_epoch:.2f} s an epoch'}"


def making_line(making: Making) -> str:
    """The measured speed of making one cached file, as a line."""
    return f"probe of {making.what}: {making.reason or f'{1000 * making.pace.seconds_per_item:.1f} ms an item'}"


def making_text(makings: Sequence[Making], *, jobs: int) -> str:
    """The estimated time to make all files that runs share."""
    known = [making for making in makings if not making.reason]
    rows = [
        {
            "to be made": making.what,
            "items": making.pace.items,
            "ms/item": f"{1000 * making.pace.seconds_per_item:.1f}",
            "passes": f"at most {making.pace.passes}" if making.pace.passes > 1 else "1",
            "minutes": f"{making.minutes:.1f}",
        }
        for making in known
    ]
    unknown = [f"{making.what}: no estimate: {making.reason}" for making in makings if making.reason]
    at_most = "at most " if any(making.pace.passes > 1 for making in known) else ""
    of_one: dict[str, float] = {}
    for making in known:
        of_one[making.together] = of_one.get(making.together, 0.0) + making.minutes
    minutes = max([sum(of_one.values()) / jobs, *of_one.values()])
    total = f"encoding and tuning: {at_most}{minutes:.0f} minutes with --jobs {jobs}" if known else ""
    return "\n\n".join(filter(None, [table(rows), "\n".join(unknown), total]))


def estimate_text(probes: Sequence[Probe], *, jobs: int) -> str:
    """The estimated cost of the unfinished runs, by their probes."""
    rows = [
        {
            "like": probe.title,
            "runs": probe.runs,
            "s/epoch": probe.cost.seconds_per_epoch,
            "epochs": f"{'at most ' if probe.at_most else ''}{probe.epochs:.0f}",
            "minutes": f"{'at most ' if probe.at_most else ''}{_minutes(probe):.1f}",
            "memory": f"{probe.cost.memory / 2**30:.1f} GiB",
            "disk": f"{probe.runs * probe.cost.disk / 2**20:.1f} MiB",
        }
        for probe in probes
        if not probe.reason
    ]
    unknown = [
        f"{probe.title} and {probe.runs - 1} more: no estimate: {probe.reason}" for probe in probes if probe.reason
    ]
    known = [probe for probe in probes if not probe.reason]
    at_most = "at most " if any(probe.at_most for probe in known) else ""
    minutes, disk = sum(map(_minutes, known)) / jobs, sum(probe.runs * probe.cost.disk for probe in known)
    memory = max((probe.cost.memory for probe in known), default=0)
    total = (
        f"training: {at_most}{minutes:.0f} minutes with --jobs {jobs}; memory: {memory / 2**30:.1f} GiB a process; "
        f"disk: {disk / 2**20:.0f} MiB. Measured by probes of a few epochs on this machine under its present load"
    )
    return "\n\n".join(filter(None, [table(rows), "\n".join(unknown), total]))


def _minutes(probe: Probe) -> float:
    return probe.runs * probe.epochs * probe.cost.seconds_per_epoch / 60


def run_rows(results: Sequence[RunResult]) -> list[dict[str, Any]]:
    """`list runs`: one row per finished run."""
    from ..running.differences import set_apart

    return [
        {
            "run": result.run_id,
            "parameters": _point(result.parameters),
            "encoder": result.record.axes.value("encoder"),
            "seed": result.record.seed,
            "control": result.record.axes.control,
            "split": result.record.axes.split,
            "epochs": result.epochs,
            **{
                f"{split} {name}": values.get(name)
                for name in ("recall@20", "ndcg@20")
                for split, values in _splits(result)
            },
            "finished": result.record.finished,
            "differs": _point(apart),
        }
        for result, apart in zip(results, set_apart(results), strict=True)
    ]


def recommendations_text(rows: pd.DataFrame, how: str) -> str:
    """`recommend`: rows of user, rank, item and title, as text or json."""
    if not rows["title"].any() and how == "text":
        rows = rows.drop(columns="title")
    records = [dict(zip(rows.columns, row, strict=True)) for row in rows.itertuples(index=False, name=None)]
    if how == "json":
        return f"{json.dumps(records, indent=2)}\n"
    return f"{table(records) or 'no item is left to recommend'}\n"


def slices_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """`slices`: each slice with its means, at cutoff 20 if measured; then a description of each slice."""
    metrics = list(rows[0]["metrics"])
    shown = [metric for metric in metrics if metric.endswith("@20")] or metrics
    lines = table(
        [
            {
                **{name: row[name] for name in ("slice", "items", "users")},
                **{metric: row["metrics"][metric]["mean"] if row["users"] else None for metric in shown},
            }
            for row in rows
        ]
    )
    return "\n".join([lines, "", *(f"{row['slice']}: {row['about']}" for row in rows[1:])])


def storage_text(entries: Sequence[Stored]) -> str:
    """How much there is of each kind, and how to remove it."""
    from ..config.choices import REMOVABLE
    from ..running.storage import KEPT

    rows = []
    for kind, about in (REMOVABLE | KEPT).items():
        of_kind = [one for one in entries if one.kind == kind]
        size = _bytes(sum(one.bytes for one in of_kind))
        note = "" if kind in REMOVABLE else "; never removed"
        rows.append({"kind": kind, "count": len(of_kind), "size": size, "what": f"{about}{note}"})
    return (
        f"{table(rows)}\n\n"
        "Nothing was removed. `mmrec-lmm clean KIND ...` removes kinds; add --dry-run to see what, --older 30d to keep "
        "what is younger."
    )


def removal_lines(
    kinds: Sequence[str], removed: Sequence[Stored], in_use: Sequence[Stored], *, dry_run: bool
) -> Iterator[str]:
    """What was removed, or would be, of each kind, and what was kept."""
    for kind in dict.fromkeys(kinds):
        of_kind = [one for one in removed if one.kind == kind]
        verb = "would remove" if dry_run else "removed"
        yield f"{kind}: {verb} {len(of_kind):,}, {_bytes(sum(one.bytes for one in of_kind))}"
        if dry_run:
            yield from (f"  {one.path}  {_bytes(one.bytes)}" for one in of_kind)
    for one in in_use:
        yield f"kept, in use by a living process: {one.path}"


def _bytes(count: int) -> str:
    """A size as people read it: 1.5 GB."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def spec_rows(registry: Registry, kind: str) -> list[dict[str, Any]]:
    """`list models` and the like: name, summary, plugin."""
    if kind == "plugins":
        return [
            {
                "plugin": plugin.name,
                "version": plugin.version,
                "status": plugin.status,
                "gives": ", ".join(name for names in plugin.gives.values() for name in names),
                "reason": plugin.reason,
            }
            for plugin in registry.plugins
        ]
    specs: NamedSpecs[Any] = getattr(registry, kind)
    rows = []
    for spec in specs:
        row = {"name": spec.name, "summary": spec.summary}
        if kind == "encoders":
            dims = spec.dims or {}
            row["encodes"] = ", ".join(f"{name} {dims[name]}" if name in dims else name for name in spec.modalities)
            row["parameters"] = f"{spec.parameters / 1e6:.1f} M" if spec.parameters else "none"
            row["weights"] = weights_state(registry, spec)
            row["license"] = spec.license
        rows.append({**row, "plugin": specs.provider(spec.name)})
    return rows


def weights_state(registry: Registry, spec: EncoderSpec) -> str:
    """The state of the files of an encoder's default configuration: here, missing or not needed.

    Uses no network and opens no file.
    """
    if spec.files is None:
        return "needs none"
    files = _files(registry, spec)
    absent = [path for path in files.values() if path is None]
    return f"{len(absent)} of {len(files)} missing" if absent else "here"


def _files(registry: Registry, spec: EncoderSpec) -> dict[WeightFile, Path | None]:
    """The files of an encoder's default configuration, with their paths; None for a missing one."""
    from ..weights.download import present

    if spec.files is None:
        return {}
    config = registry.encoders.load(spec.name, "config")()
    needed = registry.encoders.load(spec.name, "files")
    files = {file: None for modality in spec.modalities for file in needed(config, modality)}
    return {file: present(file, encoder=spec.name) for file in files}


def weights_text(rows: Sequence[Mapping[str, Any]], width: int | None = None) -> str:
    """`weights`: a row per file with its size, the start of its hash, and where it is, or where it belongs; texts are
    cut to a screen of that `width`, if any."""
    shown = [
        {
            "encoder": row["encoder"],
            "state": row["state"] or "",
            "file": row["file"] or "(none, or its library keeps them)",
            "for": row["for"] or "",
            "MB": "" if row["bytes"] is None else f"{row['bytes'] / 1e6:,.1f}",
            "sha256": (row["sha256"] or "")[:12],
            "license": row["license"] or "",
            "where": row["path"] or "",
        }
        for row in rows
    ]
    return table(fitted(shown, width))


def listing_text(rows: Sequence[Mapping[str, Any]], kind: str, width: int | None = None) -> str:
    """`list`: the rows as a table, with texts cut to a screen of that `width`, if any."""
    hidden = HIDDEN.get(kind, ())
    if not any(row.get("differs") for row in rows):
        hidden = (*hidden, "differs")
    return table(fitted([{name: row[name] for name in row if name not in hidden} for row in rows], width))


def info_text(registry: Registry, name: str) -> str:
    """All specs with a name, and their configuration keys with types and defaults."""
    kinds: dict[str, NamedSpecs[Any]] = {
        "model": registry.models,
        "sampler": registry.samplers,
        "encoder": registry.encoders,
        "paradigm": registry.paradigms,
        "data set": registry.datasets,
        "split": registry.splits,
        "metric": registry.metrics,
    }
    parts = [_info(registry, kind, specs, name) for kind, specs in kinds.items() if name in specs]
    if not parts:
        known = [known for specs in kinds.values() for known in specs.names()]
        if name.endswith(".py"):
            file = name.rpartition("/")[2]
            raise ConfigError(
                f"info: expected the name of a model, got the file {name}; "
                f"try `info -p mmrec_lmm.bridge:{name} {file}` for a model file of MMRec's, which executes it"
            )
        raise ConfigError(
            f"info: expected the name of a model, sampler, encoder, paradigm, data set, split or metric, got {name}"
            f"{did_you_mean(name, known) or '; try `list models` and the like'}"
        )
    return "\n\n".join(parts)


def encoded_rows(tables: Mapping[str, FeatureTable]) -> list[dict[str, Any]]:
    """`encode`: one row per modality."""
    return [
        {
            "modality": modality,
            "items": len(encoded.values),
            "present": int(encoded.present.sum()),
            "width": encoded.dim,
            "features": encoded.fingerprint,
        }
        for modality, encoded in tables.items()
    ]


def encoded_text(tables: Mapping[str, FeatureTable]) -> str:
    """The rows, and a warning of each modality that most items lack."""
    from ..features.files import scarcity

    rows = table(encoded_rows(tables))
    scarce = (scarcity(name, int(encoded.present.sum()), len(encoded.values)) for name, encoded in tables.items())
    return "\n".join([rows, *(f"warning: {reason}" for reason in scarce if reason)])


def probed_text(probed: Probed) -> str:
    """`encode --probe`: a table for each measure, and the reason where the features don't have one."""
    from ..checking.probes import Skipped

    similar = probed.similarity
    measures = {
        **{f"neighbor agreement, {modality}": found for modality, found in probed.neighbors.items()},
        "image-text recall": probed.retrieval,
        **{f"linear CKA, {pair}": found for pair, found in similar.items()},
    }
    tables = [
        _agreement_rows(probed),
        _retrieval_rows(probed),
        [
            {"linear CKA": pair, "items": found.items, **_estimated("debiased", found.cka)}
            for pair, found in similar.items()
            if not isinstance(found, Skipped)
        ],
    ]
    reasons = [
        f"{name}: not measured: {found.reason}" for name, found in measures.items() if isinstance(found, Skipped)
    ]
    return "\n\n".join(filter(None, [*map(table, tables), "\n".join(reasons)]))


def _agreement_rows(probed: Probed) -> list[dict[str, Any]]:
    from ..checking.probes import Skipped

    return [
        {
            "neighbors": modality,
            "items": items,
            "training rows": rows,
            **_estimated(f"recall@{found.k}", recall),
            "chance": found.chance,
            "lift": f"{recall.value / found.chance:.1f}",
        }
        for modality, found in probed.neighbors.items()
        if not isinstance(found, Skipped)
        for items, rows, recall in [
            (found.items, "all", found.recall),
            *((part.items, f"{part.least} to {part.most}", part.recall) for part in found.terciles),
        ]
    ]


def _retrieval_rows(probed: Probed) -> list[dict[str, Any]]:
    from ..checking.probes import Skipped

    found = probed.retrieval
    if isinstance(found, Skipped):
        return []
    return [
        {
            "retrieval": way,
            "items": found.items,
            "metric": metric,
            **_estimated("recall", recall),
            "chance": found.chance[metric],
        }
        for way, recalls in found.recall.items()
        for metric, recall in recalls.items()
    ]


def _estimated(name: str, estimate: Estimate) -> dict[str, Any]:
    return {name: estimate.value, "95 % interval": f"{estimate.low:.4f} to {estimate.high:.4f}"}


def check_text(report: Report) -> str:
    """`data check`: the verdict, counts by split, degrees, content, and the findings, errors first."""
    from ..checking.findings import SEVERITIES, in_splits

    counts = report.counts
    lines = [f"{report.name}: {report.verdict}"]
    if report.split is not None:
        lines.append(f"split: {report.split}")
    if counts is not None:
        lines += [
            f"{counts.users:,} users, {counts.items:,} items, {counts.interactions:,} interactions, density "
            f"{counts.density:.3g}",
            f"without a training row: items {counts.cold_items:,}, users {counts.cold_users:,}",
            "",
            table([{"split": split, **vars(of_split)} for split, of_split in in_splits(counts)]),
            "",
            table([{"training rows of": who, **_whole(one.quantiles)} for who, one in counts.degrees.items()]),
            "",
        ]
    if report.times is not None:
        lines.append(f"times: {report.times.first} to {report.times.last} ({report.times.unit or 'unknown unit'})")
    for column, content in report.content.items():
        reasons = "; ".join(f"{reason}: {count:,}" for reason, count in content.missing.items())
        total = content.items + sum(content.missing.values())
        decoded = "" if content.examined is None else f", {content.examined:,} decoded"
        named = "images" if column == "image" else column
        lines.append(f"{named}: {content.items:,} of {total:,} items{decoded}{f' ({reasons})' if reasons else ''}")
    for modality, features in report.features.items():
        lines.append(
            f"features of {modality}: {features.items:,} items, width {features.width} ({features.file})",
        )
    for severity in SEVERITIES:
        found = report.of(severity)
        for finding in found:
            lines += ["", f"{severity} {finding.name}: {finding.counted}"]
            lines += [f"    where: {finding.where}"] if str(finding.where) else []
            lines += [f"    what to do: {finding.cure}"] if finding.cure else []
    return "\n".join(lines)


def audit_text(found: Audit) -> str:
    """`data audit`: the tests of each file, and what they say."""
    from ..checking.audit import ALPHA

    pairs = ", ".join(f"{count:,} of {part}" for part, count in found.pairs.items())
    lines = [f"{found.dataset}: {pairs}; {found.permutations:,} permutations"]
    if found.unfair:
        return "\n".join([*lines, f"not judged: {found.unfair}"])
    for file in found.files:
        lines += ["", file.name]
        if file.tests:
            lines.append(table([{"test": one.name, "excess": one.excess, "p": one.p} for one in file.tests]))
        verdict = (
            f"knows {file.leak}" if file.leak else f"not tested: {file.reason}" if file.reason else "nothing shows"
        )
        corrected = f": p = {file.p:.3g}, corrected for {len(file.tests)} tests" if file.tests else ""
        lines.append(f"{verdict}{corrected}")
    lines += [
        "",
        f"An honest file is flagged with a chance of {100 * ALPHA:.0f} %; one made from all rows alike isn't seen.",
    ]
    return "\n".join(lines)


def _whole(numbers: Mapping[str, float]) -> dict[str, int]:
    return {name: int(number) for name, number in numbers.items()}


def _info(registry: Registry, kind: str, specs: NamedSpecs[Any], name: str) -> str:
    from ..config.schema import schema_of
    from ..weights.download import place_of

    spec = specs.get(name)
    lines = [f"{kind} {spec.name}: {spec.summary}"]
    lines += [
        f"{label}: {getattr(spec, attribute)}"
        for label, attribute in (
            ("paper", "paper"),
            ("license", "license"),
            ("default encoder", "default_encoder"),
            ("get it", "get"),
        )
        if getattr(spec, attribute, None)
    ]
    if kind == "encoder":
        widths = spec.dims or {}
        lines.append(f"encodes: {', '.join(f'{name} {widths.get(name, str())}'.strip() for name in spec.modalities)}")
        lines += [f"parameters: {spec.parameters:,}"] if spec.parameters else []
        lines += [f"variant {spec.name}:{variant}: {summary}" for variant, summary in spec.variants.items()]
        for file, path in _files(registry, spec).items():
            missing = f"missing; {file.url or file.package} belongs at {place_of(file, spec.name)}"
            lines.append(f"file {file.name}: {path or missing}")
    lines.append(f"plugin: {specs.provider(name)}")
    if hasattr(spec, "config"):
        section = f"{spec.name}."
        prefix = {"encoder": "encoder.", "paradigm": section, "sampler": section}.get(kind, "")
        config = specs.load(name, "config")
        keys = schema_of(config, f"{kind} {spec.name}", prefix=prefix).keys if config else {}
        lines += ["keys:" if keys else "keys: none", *map(_key_line, keys.values())]
    return "\n".join(lines)


def _key_line(key: Key) -> str:
    from ..config.schema import describe_type

    default = "" if key.default is MISSING else as_yaml(key.default)
    return f"  --{key.name}={default:<{max(0, 30 - len(key.name))}}  {describe_type(key.hint)}"


def _point(parameters: Mapping[str, Any]) -> str:
    """A grid point as it is typed, without the seed, which has a column of its own."""
    return ", ".join(f"{key}={as_yaml(value)}" for key, value in parameters.items() if key != "seed")


def _sample(result: RunResult) -> str:
    """A remark on numbers of validation that are of a sample of its users; empty if they are of all."""
    resolved = result.record.resolved or {}  # None in earlier runs
    users = resolved.get("settings", {}).get("valid_users", 0)
    return f"; valid is of a sample, at most {users:,} users" if users else ""


def _splits(result: RunResult) -> tuple[tuple[str, Mapping[str, float]], ...]:
    return (("valid", result.valid), ("test", result.test))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) and abs(value) < 1000 else str(value)
