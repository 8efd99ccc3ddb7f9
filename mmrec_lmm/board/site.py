"""Building a board's site from its bundles alone: the page, tables, CSV, JSON, and the difference to the last state.

The folder appears whole, in place of the last one. The same submissions give the same bytes.
"""

import dataclasses
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..disk.folders import new_folder, restore_folder
from ..disk.locks import locked
from ..disk.reading import is_there, read_json
from ..disk.writing import write_bytes, write_json
from ..errors import ConfigError
from ..formatting import first_few
from ..plugin.registry import Registry
from ..report.page import page
from ..report.tables import render
from ..studies.comparison import Entry, Method, compare, smaller_is_better
from ..studies.leaderboard import Leaderboard, Row, from_document
from .bundle import SubmittedRow, opened
from .folder import BUNDLE, SITE, SUBMISSIONS, Board, Entered, check_protocol, check_whole

PAGE, LEADERBOARD, CHANGES = "index.html", "leaderboard.json", "changes.md"
FRESH = ("fresh", "claim", "baseline_fresh", "baseline_here", "chance")  # of what a fresh run gave, for readers
TABLES = {"table.md": "markdown", "table.tex": "latex", "results.csv": "csv"}


@dataclasses.dataclass(frozen=True)
class Built:
    """A board's site: its folder, its rows, and what changed."""

    folder: Path
    board: Leaderboard
    changes: tuple[str, ...]


def build(board: Board, registry: Registry) -> Built:
    """Make the site of a board. DataError names a damaged submission, and leaves the last site as it is."""
    site = board.folder / SITE
    restore_folder(site)
    with locked(site):
        everything, current = board.submissions(), board.current()
        check_protocol(board, everything)
        if not current:
            raise ConfigError(f"{board.folder}: expected a board with submissions, got none; try `board add`")
        made = leaderboard(board, everything, current, registry)
        before = site / LEADERBOARD
        last = from_document(read_json(before), where=str(before)) if is_there(before) else None
        changes = tuple(differences(last, made, everything))
        with new_folder(site) as building:
            write_bytes(building / PAGE, page(made).encode())
            for name, format in TABLES.items():
                write_bytes(building / name, render(made, format=format, published=lambda row: {}).encode())
            write_json(building / LEADERBOARD, made.document())
            lines = "".join(f"- {line}\n" for line in changes)
            write_bytes(building / CHANGES, f"# {made.title}: what changed\n\n{lines}".encode())
    return Built(site, made, changes)


def leaderboard(board: Board, everything: list[Entered], current: list[Entered], registry: Registry) -> Leaderboard:
    """The rows of all current submissions, compared with each other."""
    keys = board.keys
    with ExitStack() as stack:
        entries: list[Entry] = []
        submitted: dict[str, tuple[Entered, SubmittedRow]] = {}
        versions: dict[str, None] = {}
        for one in current:
            check_whole(one)
            bundle = stack.enter_context(opened(one.bundle))
            versions[", ".join(f"{name} {version}" for name, version in bundle.manifest.made_by.items())] = None
            for row in bundle.manifest.rows:
                runs = tuple(
                    dataclasses.replace(result, parameters=dict(row.parameters)) for result in bundle.results(row)
                )
                entry = Entry(row.axes, runs, submission=one.submission.id)
                entries.append(entry)
                submitted[entry.key] = one, row
        has_baseline = any(entry.axes.matches({"model": board.baseline.model}) for entry in entries)
        method = Method(
            metrics=tuple(metric.lower() for metric in keys.metrics),
            baseline={"model": board.baseline.model} if has_baseline else {},
            test=keys.test,
            alpha=keys.alpha,
            smaller=smaller_is_better(registry),
        )
        found = compare(entries, method, study=f"{keys.name}, version {keys.version}", title=keys.title or keys.name)
    rows = [_of_board(row, *submitted[row.key]) for row in found.rows]
    seeds = sorted({seed for row in rows for seed in row.seeds})
    superseded = [one.submission for one in everything if one.submission.supersedes]
    notes = [f"{one.supersedes} is superseded by {one.id}{_because(one.note)}." for one in superseded]
    return dataclasses.replace(
        found,
        rows=rows,
        notes=(*found.notes, *notes),
        head={
            "protocol": f"{keys.name}, version {keys.version} ({board.protocol.hash[:8]})",
            "data": f"{keys.dataset} ({keys.data[:12]})",
            "selected by": f"{keys.valid_metric} on validation",
            "fresh baseline": board.baseline.model,
            "date": max(one.submission.added for one in current)[:10],
            "submissions": f"{len(current)}" + (f", {len(superseded)} superseded" if superseded else ""),
            "seeds": first_few(seeds, 8),
            "versions": "; ".join(versions),
            **{f"encoder {name}, trained on": str(value) for name, value in keys.encoders.items()},
        },
    )


def _of_board(row: Row, one: Entered, submitted: SubmittedRow) -> Row:
    """A row with its submission, tier and attempts; what stopped its verification marks it."""
    found, marks = one.verification, list(row.marks)
    if found.stopped is not None:
        marks.append(f"stopped at {found.stopped.tier} ({found.stopped.check}): {found.stopped.reason}")
    place = f"{SUBMISSIONS}/{one.submission.id}/{BUNDLE}"
    if row.reproducibility is not None:
        replay = (f"mmrec-lmm verify {place} --tier replayed",)
        row = dataclasses.replace(row, reproducibility=dataclasses.replace(row.reproducibility, replay=replay))
    fresh = found.fresh.get(submitted.key)
    return dataclasses.replace(
        row,
        marks=tuple(marks),
        tier=found.tier,
        attempts=submitted.counts(),
        fresh=None if fresh is None else {name: getattr(fresh, name) for name in FRESH},
    )


def _because(note: str | None) -> str:
    return f": {note}" if note else ""


def differences(last: Leaderboard | None, now: Leaderboard, everything: list[Entered]) -> list[str]:
    """What a reader of the last state should know of this one: rows that came and went, and ranks that moved."""
    if last is None:
        return [f"the first state: {len(now.rows)} rows"]
    before, after = _ranks(last), _ranks(now)
    by = {one.submission.supersedes: one.submission.id for one in everything if one.submission.supersedes}
    old = {row.key: row for row in last.rows}
    lines = [f"new: {key}, {_at(rank)}" for key, rank in after.items() if key not in before]
    for key in [key for key in before if key not in after]:
        submission = old[key].submission or ""
        lines.append(f"gone: {key}" + (f", superseded by {by[submission]}" if submission in by else ""))
    lines += [
        f"moved: {key}, from rank {before[key]} to {rank}"
        for key, rank in after.items()
        if key in before and before[key] != rank and rank is not None and before[key] is not None
    ]
    for row in now.rows:
        then = old.get(row.key)
        if then is not None and then.tier != row.tier:
            lines.append(f"tier: {row.key}, from {then.tier} to {row.tier}")
        if then is not None and _means(then) != _means(row):
            lines.append(f"numbers: {row.key} changed, though its submission didn't")
    return lines or ["nothing"]


def _at(rank: int | None) -> str:
    return "a control" if rank is None else f"rank {rank}"


def _ranks(board: Leaderboard) -> dict[str, int | None]:
    """The rank of each row by the main metric; None of a control run."""
    metric = board.main_metric
    own = [row for row in board.rows if row.axes.control is None and metric in row.scores]
    ordered = sorted(own, key=lambda row: -board.sign(metric) * row.scores[metric].mean)
    ranks: dict[str, int | None] = {row.key: None for row in board.rows}
    return ranks | {row.key: place for place, row in enumerate(ordered, start=1)}


def _means(row: Row) -> Mapping[str, Any]:
    return {metric: score.mean for metric, score in row.scores.items()}
