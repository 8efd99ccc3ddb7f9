"""What each model of a study was allowed to try, counted from the records of its runs.

A trial is a point of a model's grid, whatever its seeds. Control runs don't count: nothing is selected by them. Records
stay when the study's file changes, and so tries that it no longer asks for are counted, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..cache import fingerprint
from ..disk.reading import read_json
from ..errors import DataError, NoAccess
from ..features.controls import CONTROLS
from ..typed_json import decode, plain
from .executor import Plan, Record
from .leaderboard import FAILED, NOT_APPLICABLE

EARLIER = "of an earlier file, data or code"


@dataclass(frozen=True)
class Budget:
    """A model's trials in each of its cells: the fewest and the most. `asked` are those of the study's file, `earlier`
    those that it no longer asks for, in all cells."""

    model: str
    cells: int
    asked: int
    fewest: int
    most: int
    failed: int = 0  # of them, in all cells
    earlier: int = 0

    @property
    def is_complete(self) -> bool:
        return self.fewest == self.most == self.asked


def budgets(plan: Plan) -> list[Budget]:
    """The budget of each model, in the order of the study."""
    found: dict[str, list[tuple[int, int, int]]] = {}  # model -> of each cell: points, tried, failed
    for cell, keys in zip(plan.cells, plan.keys, strict=True):
        if cell.axes.control is not None or not keys:
            continue
        tried: dict[str, set[str]] = {}  # point -> states of its seeds
        points = set()
        for key in keys:
            job = plan.expected[key]
            points.add(_point(job.spec.point))
            if record := plan.record(job):
                tried.setdefault(_point(job.spec.point), set()).add(record.state)
        states = [states for states in tried.values() if states != {NOT_APPLICABLE}]
        found.setdefault(cell.axes.model, []).append(
            (len(points), len(states), sum(states == {FAILED} for states in states))
        )
    earlier = _earlier(plan)
    return [
        Budget(
            model=model,
            cells=len(cells),
            asked=max(points for points, _, _ in cells),
            fewest=min(tried for _, tried, _ in cells),
            most=max(tried for _, tried, _ in cells),
            failed=sum(failed for _, _, failed in cells),
            earlier=earlier.get(model, 0),
        )
        for model, cells in found.items()
    ]


def verdict(plan: Plan, found: list[Budget]) -> str:
    """Whether the models of a random search have equal budgets, in a sentence."""
    trials = plan.study.trials
    searched = [one for one in found if one.asked > 1 or trials == 1]
    fixed = [one.model for one in found if one not in searched]
    but = f"; {', '.join(fixed)}: nothing to search" if fixed else ""
    faults = [f"{one.model} has {_count(one)} of {trials} trials" for one in searched if not _has(one, trials)]
    if len({one.earlier for one in searched}) > 1:
        faults += [f"{one.model} has {one.earlier} more, {EARLIER}" for one in searched if one.earlier]
    failed = [f"{one.failed} of {one.model} failed" for one in found if one.failed]
    if faults:
        return f"budgets aren't equal: {'; '.join([*faults, *failed])}{but}"
    again = [f"each has {one.earlier} more, {EARLIER}" for one in searched[:1] if one.earlier]
    lost = f" ({'; '.join([*failed, *again])})" if failed or again else ""
    each = f"{len(searched)} models" if len(searched) != 1 else "its one model"
    return f"equal budgets: {trials} trials of each of {each}{lost}, selected on validation{but}"


def _has(budget: Budget, trials: int | None) -> bool:
    return budget.is_complete and budget.asked == trials


def _count(budget: Budget) -> str:
    return str(budget.most) if budget.fewest == budget.most else f"{budget.fewest} to {budget.most}"


def _earlier(plan: Plan) -> dict[str, int]:
    """Points that were tried under the study's name and aren't in the plan, by model."""
    known = plan.places.keys() | plan.expected.keys()
    points: dict[str, set[str]] = {}
    for path in sorted(plan.folder.glob("*.json")):
        if len(path.stem) != 16 or path.stem in known:
            continue
        try:
            record = decode(Record, read_json(path, cure=""), where=str(path), cure="")
        except NoAccess:
            raise
        except DataError:  # a damaged one counts as missing, as in the plan
            continue
        cell = record.cell.split("/")
        if record.point is not None and cell[-1] not in CONTROLS:
            points.setdefault(cell[0], set()).add(f"{record.cell} {_point(record.point)}")
    return {model: len(tried) for model, tried in points.items()}


def _point(point: Mapping[str, Any]) -> str:
    return fingerprint([plain({name: value for name, value in point.items() if name != "seed"})])
