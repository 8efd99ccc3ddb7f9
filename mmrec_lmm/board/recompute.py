"""The tier *recomputed*: a bundle's numbers made again from its lists, the public data set and its split.

Nothing is trained and no code of the bundle's plugins runs. What lists can't show is checked for contradictions: the
numbers of validation against what hits allow, the epoch against the history, the grid's point against its attempts.
How many attempts a bundle leaves out can't be seen.

Shapes: U evaluated users, K listed items, I items.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..cache import fingerprint
from ..config.settings import OF_INPUTS, Settings
from ..data.opening import open_dataset
from ..data.sampling import distinct
from ..errors import ConfigError, DataError
from ..evaluation.measures import Measures, means
from ..evaluation.ranking import Evaluator
from ..plugin.registry import Registry
from ..running import run_folder
from ..running.grid import points_of
from ..running.runner import evaluator_of, of_some_users
from ..types import PRE_TRAINED, Dataset, EpochReport, RunResult
from .bundle import LISTS, Bundle, Refusal, SubmittedRow, beside_the_seed, load_lists
from .submit import best_of, with_scores

CLOSE = 1e-9  # of numbers that the same arithmetic makes of the same lists


class Data:
    """The verifier's data sets, each opened once."""

    def __init__(self, registry: Registry, data_path: str | None) -> None:
        self._registry, self._data_path = registry, data_path
        self._known: dict[str, Dataset] = {}

    def here(self, settings: Settings) -> Settings:
        """The settings with the verifier's folder of data sets."""
        return dataclasses.replace(settings, data_path=self._data_path or Settings().data_path)

    def of(self, name: str, settings: Settings) -> Dataset:
        """The data set of that name as a run with these settings reads it. DataError if it isn't here."""
        key = fingerprint([name, {key: getattr(settings, key) for key in OF_INPUTS - {"device"}}])
        if key not in self._known:
            self._known[key] = open_dataset(name, settings, self._registry)
        return self._known[key]


def recompute(bundle: Bundle, data: Data, registry: Registry) -> None:
    """Make all numbers of a bundle again. Refusal names the first check that fails, DataError a data set that isn't
    here."""
    results: dict[str, RunResult] = {}
    for row in bundle.manifest.rows:
        for run in row.runs:
            results[run] = recompute_run(bundle, run, data, registry)
        _check_selection(bundle, row, [results[run] for run in row.runs])
    _check_plugins(bundle, results)
    _check_scores(bundle, results, registry)


def recompute_run(bundle: Bundle, run: str, data: Data, registry: Registry) -> RunResult:
    """Make the numbers of one run again, and return its result."""
    folder, result = bundle.run(run), bundle.result(run)
    settings = data.here(bundle.settings(run))
    if result.record.config != fingerprint(result.record.resolved):
        raise Refusal("configuration", f"{run}: expected the hash of its configuration in its record, got another")
    dataset = data.of(result.record.axes.dataset, settings)
    if dataset.fingerprint != result.record.data:
        raise Refusal(
            "data",
            f"{run}: expected the data set {dataset.name} as it is here ({dataset.fingerprint[:12]}...), got a run on "
            f"{result.record.data[:12]}...; its interactions or its split differ",
        )
    try:
        per_user = run_folder.load_per_user(folder)
        history = run_folder.load_history(folder)
    except DataError as error:
        raise Refusal("record", f"{run}: {str(error).removesuffix(f'; {run_folder.CURE}')}") from None
    _check_test(run, load_lists(folder / LISTS), result, per_user, dataset, settings, registry)
    _check_validation(run, result, per_user, dataset, settings)
    _check_history(run, result, history, settings, len(dataset.train))
    return result


def check_lists(run: str, users: np.ndarray, items: np.ndarray, dataset: Dataset, settings: Settings) -> Evaluator:
    """Refuse lists of other users than those of test, or with items that don't exist, repeat, or aren't candidates.
    Returns the evaluator of test."""
    evaluator = evaluator_of("test", dataset, settings)
    tested = np.unique(dataset.test.users)
    if not np.array_equal(users, tested):
        strangers = np.setdiff1d(users, np.arange(dataset.n_users))
        if len(strangers):
            got = f"user {strangers[0]}, who doesn't exist ({len(strangers):,} such lists)"
        else:
            missing, more = len(np.setdiff1d(tested, users)), len(np.setdiff1d(users, tested))
            got = f"{missing:,} of them missing, {more:,} others and {len(users) - len(np.unique(users)):,} twice"
        raise Refusal(
            "users", f"{run}: expected a list of each of the {len(tested):,} users of test, in order, got {got}"
        )
    if items.shape[1] != max(settings.topk):
        raise Refusal("lists", f"{run}: expected {max(settings.topk)} items a list, got {items.shape[1]}")
    if ((items < -1) | (items >= dataset.n_items)).any():
        wrong = items[(items < -1) | (items >= dataset.n_items)][0]
        raise Refusal("items", f"{run}: expected items from 0 to {dataset.n_items - 1}, got {wrong}")
    ordered = np.sort(items, axis=1)
    twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)
    if twice.any():
        raise Refusal(
            "duplicates",
            f"{run}: expected each item once in a list, got some twice in that of user {users[int(np.argmax(twice))]} "
            f"({int(twice.sum()):,} such lists)",
        )
    masked = [dataset.train, dataset.valid] if settings.mask_valid_in_test else [dataset.train]
    seen = distinct(np.concatenate([rows.users * dataset.n_items + rows.items for rows in masked]))
    keys = users[:, None] * dataset.n_items + items  # (U, K)
    known = np.isin(keys, seen) & (items >= 0)
    if known.any():
        row, place = (int(one[0]) for one in np.nonzero(known))
        raise Refusal(
            "mask",
            f"{run}: expected no item that its user has in training, got item {items[row, place]} in the list of user "
            f"{users[row]} ({int(known.any(axis=1).sum()):,} such lists)",
        )
    candidates = dataset.n_items - np.bincount(seen // dataset.n_items, minlength=dataset.n_users)[users]
    listed = items >= 0
    full = listed.sum(axis=1) == np.minimum(items.shape[1], candidates)
    if not full.all() or (listed[:, 1:] & ~listed[:, :-1]).any():
        short = int(np.argmin(full))
        raise Refusal("lists", f"{run}: expected lists without gaps, got one of user {users[short]} that ends early")
    return evaluator


def _check_test(
    run: str,
    lists: tuple[np.ndarray, np.ndarray],
    result: RunResult,
    per_user: Mapping[str, np.ndarray],
    dataset: Dataset,
    settings: Settings,
    registry: Registry,
) -> None:
    """Make the metrics of test again from users (U,) and their lists (U, K), by user and as means."""
    users, items = lists
    evaluator = check_lists(run, users, items, dataset, settings)
    ranking = evaluator.ranking(torch.from_numpy(items))
    measures = Measures(
        registry.metrics, recomputable(settings, registry), dataset.train, dataset.n_users, dataset.n_items
    )
    found = measures.values(ranking, settings.topk)
    if not np.array_equal(per_user["test/users"], users):
        raise Refusal("metrics", f"{run}: expected metrics of the users of its lists, got other users")
    expected = {f"{name.lower()}@{k}" for name in settings.metrics for k in settings.topk}
    if expected != {*result.test} or expected != {*result.valid}:
        odd = min(expected ^ {*result.test} or expected ^ {*result.valid})
        raise Refusal("metrics", f"{run}: expected the metrics of its configuration, got a difference in {odd}")
    for name, values in found.items():
        if values.ndim:
            claimed = per_user.get(f"test/{name}")
            if claimed is None or not np.allclose(claimed, values, rtol=0, atol=CLOSE):
                wrong = int(np.argmax(np.abs(claimed - values))) if claimed is not None else 0
                got = "none" if claimed is None else f"{claimed[wrong]:.6g}"
                raise Refusal(
                    "metrics",
                    f"{run}: test {name} of user {users[wrong]}: expected {values[wrong]:.6g} by the list, got {got}",
                )
    for name, mean in means(found).items():
        if not math.isclose(result.test[name], mean, rel_tol=0, abs_tol=CLOSE):
            raise Refusal(
                "metrics", f"{run}: test {name}: expected {mean:.6f} by the lists, got {result.test[name]:.6f}"
            )
    for name in sorted(expected - found.keys()):
        _check_mean(run, "test", name, result.test, per_user)
    k = int(settings.valid_metric.partition("@")[2])
    claimed_chance, chance = result.record.chance, evaluator.chance(ranking, k)
    if claimed_chance is not None and not _close(chance, claimed_chance.test):
        raise Refusal(
            "chance", f"{run}: expected random lists to give {chance.mean:.6f}, got {claimed_chance.test.mean:.6f}"
        )


def recomputable(settings: Settings, registry: Registry) -> list[str]:
    """The metrics of a run that its lists alone give. Refusal for one that isn't known here."""
    try:
        return [name for name in settings.metrics if not registry.metrics.get(name).needs]
    except ConfigError as error:
        raise Refusal("metrics", f"{error}") from None


def _check_mean(
    run: str, split: str, name: str, claimed: Mapping[str, float], per_user: Mapping[str, np.ndarray]
) -> None:
    values = per_user.get(f"{split}/{name}")
    if values is not None and not math.isclose(claimed[name], float(values.mean()), rel_tol=0, abs_tol=CLOSE):
        raise Refusal(
            "metrics",
            f"{run}: {split} {name}: expected {values.mean():.6f}, the mean over users, got {claimed[name]:.6f}",
        )


def _check_validation(
    run: str, result: RunResult, per_user: Mapping[str, np.ndarray], dataset: Dataset, settings: Settings
) -> None:
    """Check that numbers of validation are means of numbers by user that some lists could give."""
    users, positives = np.unique(of_some_users(dataset.valid, settings.valid_users).users, return_counts=True)
    if not np.array_equal(per_user.get("valid/users", np.empty(0, np.int64)), users):
        raise Refusal("validation", f"{run}: expected the {len(users):,} users of validation, got others")
    for name in result.valid:
        _check_mean(run, "valid", name, result.valid, per_user)
    before: np.ndarray = np.zeros(len(users))
    for k in sorted(settings.topk):
        recall = per_user.get(f"valid/recall@{k}")
        if recall is None:
            continue
        hits = recall * positives
        whole = np.round(hits)
        if (np.abs(hits - whole) > 1e-6).any() or (whole > np.minimum(k, positives)).any() or (whole < before).any():
            wrong = int(
                np.argmax((np.abs(hits - whole) > 1e-6) | (whole > np.minimum(k, positives)) | (whole < before))
            )
            raise Refusal(
                "validation",
                f"{run}: valid recall@{k} of user {users[wrong]}: expected a number of hits over {positives[wrong]} "
                f"held-out items, got {recall[wrong]:.6g}",
            )
        precision = per_user.get(f"valid/precision@{k}")
        if precision is not None and not np.allclose(precision * k, whole, rtol=0, atol=1e-6):
            wrong = int(np.argmax(np.abs(precision * k - whole)))
            raise Refusal(
                "validation",
                f"{run}: valid precision@{k} of user {users[wrong]}: expected that of {whole[wrong]:.0f} hits, as "
                f"recall says, got {precision[wrong]:.6g}",
            )
        before = whole


def _check_history(
    run: str, result: RunResult, history: Sequence[EpochReport], settings: Settings, train_rows: int
) -> None:
    """Check that the epoch is the best of its history on validation, and that the history is whole."""

    def refuse(expected: str, got: object) -> None:
        raise Refusal("history", f"{run}: expected {expected}, got {got}")

    metric = settings.valid_metric.lower()
    if metric not in result.valid:
        refuse(f"the metric {metric}, which selects epochs, among its own", ", ".join(result.valid))
    last = result.epochs - (result.stopped == "diverged")  # the epoch that diverged has no report
    if len(history) != last or any(report.epoch != at for at, report in enumerate(history)):
        refuse(f"{last} epochs in its history, from 0", f"{len(history)}, or others")
    if result.stopped == "untrained":
        if history:
            refuse("no epochs of a model that isn't trained", len(history))
        return
    due = [epoch for epoch in range(last) if (epoch + 1) % settings.eval_step == 0 or epoch + 1 == settings.epochs]
    evaluated = {report.epoch: report.valid for report in history if report.valid is not None}
    if sorted(evaluated) != due or not due:
        refuse(f"an evaluation after every {settings.eval_step} epochs", f"{len(evaluated)} of {len(due)}")
    best, score = -1, -math.inf
    for epoch, values in evaluated.items():
        if {*values} != {*result.valid} or not all(map(math.isfinite, values.values())):
            refuse(f"all metrics of validation after epoch {epoch}", ", ".join(values))
        if values[metric] > score:
            best, score = epoch, values[metric]
    if best != result.best_epoch:
        at = evaluated.get(result.best_epoch, {}).get(metric)
        refuse(
            f"the epoch that is best on validation, {best} ({metric} {score:.4f})",
            f"{result.best_epoch}" + (f" ({at:.4f})" if at is not None else ", which wasn't evaluated"),
        )
    claimed = evaluated[best]
    for name, value in result.valid.items():
        if not math.isclose(value, claimed[name], rel_tol=0, abs_tol=1e-6):
            refuse(f"the numbers of validation of epoch {best} ({name} {claimed[name]:.6f})", f"{value:.6f}")
    if any(report.improved != (report.epoch in _records(evaluated, metric)) for report in history):
        refuse("each epoch that was the best so far marked as such", "other marks")
    _check_end(run, result, evaluated, settings, train_rows)


def _records(evaluated: Mapping[int, Mapping[str, float]], metric: str) -> set[int]:
    """The epochs that were better than all before."""
    found, score = set(), -math.inf
    for epoch, values in evaluated.items():
        if values[metric] > score:
            found.add(epoch)
            score = values[metric]
    return found


def _check_end(run: str, result: RunResult, evaluated: Mapping[int, Any], settings: Settings, train_rows: int) -> None:
    """Check that training ended where its configuration ends it; paradigms that train in phases end otherwise."""
    if result.stopped == "epochs" and result.epochs != settings.epochs:
        raise Refusal(
            "history", f"{run}: expected all {settings.epochs} epochs, as it says, got a history of {result.epochs}"
        )
    if result.stopped != "patience" or result.record.axes.paradigm.partition(":")[0] not in (PRE_TRAINED, "ft"):
        return
    steps = -(-train_rows // settings.train_batch_size)
    misses = sum(epoch > result.best_epoch and (epoch + 1) * steps >= settings.min_steps for epoch in evaluated)
    if misses != settings.stopping_step + 1:
        raise Refusal(
            "history",
            f"{run}: expected {settings.stopping_step + 1} evaluations without improvement before patience ran out, "
            f"got {misses}: epochs are cut off or added",
        )


def _check_selection(bundle: Bundle, row: SubmittedRow, results: Sequence[RunResult]) -> None:
    """Check that the row's runs differ in the seed alone, and that it is the point of its grid that is best on
    validation, by its attempts."""
    key = row.key
    if any("seed" in parameters for parameters in (row.parameters, *(one.parameters for one in row.attempts))):
        raise Refusal("attempts", f"{key}: expected points of a grid without their seed, got one with it")
    for result in results:
        if odd := beside_the_seed(results[0], result):
            raise Refusal(
                "rows",
                f"{key}: expected runs that differ in the seed alone, got {result.run_id} with another {odd} than "
                f"{results[0].run_id}",
            )
    by_run = {one.run: one for one in row.attempts}
    if len(by_run) < len(row.attempts):
        raise Refusal("attempts", f"{key}: expected each attempt once, got some twice")
    for result in results:
        own = by_run.get(result.run_id)
        claimed = None if own is None else (own.kind, own.seed, own.config, dict(own.valid), own.best_epoch, own.epochs)
        record = result.record
        if claimed != ("grid", record.seed, record.config, dict(result.valid), result.best_epoch, result.epochs):
            raise Refusal(
                "attempts", f"{key}: expected {result.run_id} among its attempts with its own numbers, got others"
            )
        assert own is not None
        if own.parameters != row.parameters:
            raise Refusal("attempts", f"{key}: expected runs of the point {dict(row.parameters)}, got {own.parameters}")
        _check_point(key, result, row.parameters)
    metric = bundle.settings(results[0].run_id).valid_metric.lower()
    grid = [
        dataclasses.replace(
            results[0],
            run_id=one.run,
            parameters=one.parameters,
            valid=one.valid,
            record=dataclasses.replace(results[0].record, seed=one.seed),
        )
        for one in row.attempts
        if one.kind == "grid"
    ]
    if any(metric not in one.valid for one in grid):
        raise Refusal("attempts", f"{key}: expected {metric} of each attempt, got one without it")
    points = points_of(grid)
    own_point = next(point for point in points if point.parameters == row.parameters)
    if {run.run_id for run in own_point.runs} != {*row.runs}:
        raise Refusal(
            "seeds", f"{key}: expected all seeds of its point ({own_point.seeds}), got {len(row.runs)} of them"
        )
    best = best_of(points, own_point, metric)
    if best is not own_point:
        raise Refusal(
            "selection",
            f"{key}: expected the point that is best on validation, {dict(best.parameters)} ({metric} "
            f"{best.mean('valid')[metric]:.4f}), got {dict(row.parameters)} ({own_point.mean('valid')[metric]:.4f})",
        )


def _check_point(key: str, result: RunResult, parameters: Mapping[str, Any]) -> None:
    """Check that a run has the values of its point."""
    resolved = result.record.resolved or {}
    own: dict[str, Any] = {}
    for section, prefix in (
        ("settings", ""),
        ("model_config", ""),
        ("encoder_config", "encoder."),
        ("paradigm_config", f"{resolved.get('paradigm')}."),
        ("sampler_config", f"{own.get('sampler')}."),
    ):
        values = resolved.get(section)
        own |= {f"{prefix}{name}": value for name, value in values.items()} if isinstance(values, dict) else {}
    for name, value in parameters.items():
        if name not in own or own[name] != value:
            raise Refusal("attempts", f"{key}: {result.run_id}: expected {name} {value}, got {own.get(name)}")


def _check_plugins(bundle: Bundle, results: Mapping[str, RunResult]) -> None:
    """Check that the plugins' hashes are those of the runs."""
    named = {(plugin.part, plugin.code) for plugin in bundle.manifest.plugins}
    used = {(part, code) for result in results.values() for part, code in result.record.code.items()}
    if named != used:
        part, code = min(named ^ used)
        raise Refusal(
            "plugins", f"{part}: expected the hashes of code that the runs recorded, got {code[:12]}... alone"
        )


def _check_scores(bundle: Bundle, results: Mapping[str, RunResult], registry: Registry) -> None:
    """Check intervals, differences, p and stars: those that `compare` gives."""
    manifest = bundle.manifest
    try:
        again = with_scores(manifest.rows, results, manifest.method, registry)
    except (ConfigError, DataError) as error:
        raise Refusal("statistics", f"{manifest.name}: expected rows that can be compared: {error}") from None
    for row, found in zip(manifest.rows, again, strict=True):
        if row.scores.keys() != found.scores.keys():
            raise Refusal("statistics", f"{row.key}: expected scores of {', '.join(found.scores)}, got others")
        for metric, score in found.scores.items():
            for field in dataclasses.fields(score):
                now, then = getattr(score, field.name), getattr(row.scores[metric], field.name)
                if not _close(now, then):
                    raise Refusal("statistics", f"{row.key}: {metric}: {field.name}: expected {now}, got {then}")


def _close(one: Any, other: Any) -> bool:
    """True if two parts of a score agree, numbers up to rounding."""
    if dataclasses.is_dataclass(one) and type(one) is type(other):
        return all(_close(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one))
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_close, one, other))
    if isinstance(one, float) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)
    return bool(one == other)
