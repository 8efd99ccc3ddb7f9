"""Makes a Leaderboard from finished runs: the test scores of a study's rows, and which differences are significant.

Winners have been selected on validation; nothing here selects by test. All rows of a data set must be tested on the
same users, and are compared user by user (statistics.py; docs/statistics.md explains it to readers).

Shapes: S seeds, U users in the test split, R resamples.
"""

import dataclasses
import logging
import reprlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..disk.reading import read_json
from ..errors import ConfigError, DataError, did_you_mean
from ..evaluation.statistics import (
    POWER,
    TESTS,
    Paired,
    bootstrap,
    holm,
    mean_of,
    paired,
    percentile_interval,
    permutation,
    rank_sums,
    seed_variance,
    user_differences,
    wilcoxon,
)
from ..plugin.registry import Registry
from ..running import run_folder
from ..running.marks import marks_of
from ..running.slices import Slicer
from ..types import AXES, PRE_TRAINED, Axes, RunResult
from .claims import Pair, Verdict, claims_of, count
from .costs import cost_of
from .leaderboard import FINISHED, STAR_SEEDS, Claim, Interval, Leaderboard, ReproducibilityRecord, Row, Score

logger = logging.getLogger(__name__)

SPLIT, USERS = "test/", "test/users"  # names in a run's per-user metrics


@dataclass(frozen=True)
class Entry:
    """One combination of a study's axes, and the runs of its winner in the order of the seeds.

    An entry without runs has a `reason`, and may have modalities None: all that the data set has.
    """

    axes: Axes
    runs: Sequence[RunResult] = ()
    state: str = FINISHED
    reason: str = ""
    submission: str = ""  # of a board, whose rows may have the same axes

    @property
    def key(self) -> str:
        """Its name within its study or board."""
        return f"{self.axes.key}/{self.submission}" if self.submission else self.axes.key


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a study compares its rows.

    Baseline: a row is tested against the row that has the values of `baseline` and agrees with it on all other axes.
    If the baseline is a model without item features, that is the model's one row on the data set. Without a `baseline`,
    it is the ID-only model that is best on validation, if there is one. Control runs are not tested; content gain is
    measured over them.

    Significance: p is corrected over all tested rows and metrics that agree on the axes `family`, or over all of them
    if `family` is empty; that of the pairs behind claims likewise, over these pairs. A star also needs STAR_SEEDS on
    both sides. If either side has one seed, there is neither p nor interval. The best is marked among rows that agree
    on `best_within`.

    Rows of different splits are never compared, whatever these axes are.
    """

    metrics: Sequence[str]
    baseline: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    test: str = "t-test"
    alpha: float = 0.05
    best_within: Sequence[str] = ("dataset",)
    family: Sequence[str] = ()
    streams: Mapping[str, str] = dataclasses.field(default_factory=dict)  # encoder -> dual or unified, for claims
    smaller: frozenset[str] = frozenset()  # metrics, in lower case and without cutoff, of which smaller is better

    def sign(self, metric: str) -> int:
        """1 if larger values of a metric ("recall@20") are better, else -1."""
        return -1 if metric.partition("@")[0] in self.smaller else 1

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics in lower case, as results name them."""
        return tuple(metric.lower() for metric in self.metrics)

    def check(self) -> None:
        """Raise ConfigError for an unknown test or axis."""
        if self.test not in TESTS:
            hint = did_you_mean(self.test, TESTS)
            raise ConfigError(f"test: expected one of {', '.join(TESTS)}, got {self.test}{hint}")
        for axis in (*self.baseline, *self.best_within, *self.family):
            if axis not in AXES:
                raise ConfigError(f"axis: expected one of {', '.join(AXES)}, got {axis}{did_you_mean(axis, AXES)}")


def smaller_is_better(registry: Registry) -> frozenset[str]:
    """The metrics, in lower case, of which smaller values are better."""
    return frozenset(metric.name.lower() for metric in registry.metrics if not metric.larger_is_better)


def compare(
    entries: Sequence[Entry],
    method: Method,
    *,
    study: str,
    title: str = "",
    slicers: Mapping[str, Slicer] | None = None,
    load: Callable[[Path], Mapping[str, np.ndarray]] = run_folder.load_per_user,
) -> Leaderboard:
    """The Leaderboard of a study's entries, in their order. Their keys must differ.

    `slicers`, by `Axes.tested_on`, add slices. `load` returns the per-user metrics of a run's folder. Raises
    ConfigError for an unknown test, axis or metric and for a baseline that matches no row or several, DataError if rows
    of a data set were tested on different users.
    """
    method.check()
    ranked_by, notes = _ranked_by(entries, method)
    method, baseline_notes = _with_baseline(method, entries, study)
    boards = _boards(entries, method, load)
    comparisons = [found for board in boards for found in board.comparisons(method.baseline, method.family)]
    families = Counter(found.family for found in comparisons if found.p is not None)
    rows = _rows(entries, boards, _tested_scores(comparisons, method), slicers or {})
    claims, claim_families = _claims(rows, boards, method)
    return Leaderboard(
        study=study,
        title=title or study,
        metrics=method.names,
        rows=_with_best(rows, method),
        test=method.test,
        alpha=method.alpha,
        ranked_by=ranked_by,
        smaller=tuple(metric for metric in method.names if method.sign(metric) < 0) or None,
        baseline=_in_words(method.baseline),
        untested="" if families else f"Nothing was tested: {_why_untested(entries, comparisons, method.baseline)}.",
        comparisons=max(families.values(), default=0),
        detectable=_detectable(comparisons, families, method.alpha),
        users={board.dataset: len(board.users) for board in boards},
        claims=claims,
        claim_comparisons=max(claim_families.values(), default=0),
        notes=(*_notes(rows, boards, comparisons, families, method), *notes, *baseline_notes),
    )


def _with_baseline(method: Method, entries: Sequence[Entry], study: str) -> tuple[Method, list[str]]:
    """The method with a baseline: its own, which is checked, or else one chosen on validation, with a note."""
    if method.baseline:
        _check_baseline(entries, method.baseline, study)
        return method, []
    chosen, notes = _id_only(entries)
    return dataclasses.replace(method, baseline=chosen), notes


def _boards(
    entries: Sequence[Entry], method: Method, load: Callable[[Path], Mapping[str, np.ndarray]]
) -> list["_Board"]:
    """One board for each data set, and each split of it, with finished runs."""
    by_dataset: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.runs:
            by_dataset.setdefault(entry.axes.tested_on, []).append(entry)
    return [_Board(own, method.names, method.test, load) for own in by_dataset.values()]


def _rows(
    entries: Sequence[Entry],
    boards: Sequence["_Board"],
    tested: Mapping[tuple[str, str], Score],
    slicers: Mapping[str, Slicer],
) -> list[Row]:
    """The row of each entry; those with runs have the scores that were `tested`, or else untested ones."""
    measured: dict[str, Row] = {}
    for board in boards:
        slices = board.slices(slicers[board.dataset]) if board.dataset in slicers else {}
        for place, row in enumerate(board.rows):
            measured[board.entries[place].key] = dataclasses.replace(
                row,
                scores={
                    name: tested.get((row.key, name)) or board.score(place, name)
                    for name in (*board.metrics, *board.of_lists)
                },
                content_gain=board.content_gain(place),
                twins={control: board.rows[twin].key for control, twin in board.twins(place).items()},
                slices=slices.get(place, {}),
            )
    return [measured[entry.key] if entry.runs else _row(entry) for entry in entries]


def _in_words(baseline: Mapping[str, str | None]) -> str:
    return ", ".join(f"{axis} {value or '-'}" for axis, value in baseline.items())


def _ranked_by(entries: Sequence[Entry], method: Method) -> tuple[str, list[str]]:
    """The metric that ranks rows, the largest first: the one that selected their runs, else the first metric of which
    larger is better, and a note that says so."""
    metrics = method.names
    first = next((metric for metric in metrics if method.sign(metric) > 0), metrics[0])
    selected = Counter(metric for entry in entries if entry.runs and (metric := _valid_metric(entry.runs[0])))
    if not selected:
        return first, []
    (most, _), *others = selected.most_common()
    ranked_by = most if most in metrics else first
    if ranked_by == most and not others:
        return ranked_by, []
    total = selected.total()
    counts = ", ".join(f"{metric} ({count} of {total} rows)" for metric, count in selected.most_common())
    lack = "" if ranked_by == most else f"; {most} isn't among the study's metrics"
    return ranked_by, [f"Runs were selected on validation by {counts}{lack}: rows rank by {ranked_by}."]


def _valid_metric(run: RunResult) -> str:
    settings = run_folder.settings_of(run)
    return settings.valid_metric.lower() if settings is not None else ""


def _check_baseline(entries: Sequence[Entry], baseline: Mapping[str, str | None], study: str) -> None:
    """Raise ConfigError if no row of the study, finished or not, is the baseline."""
    own = [entry for entry in entries if entry.axes.control == baseline.get("control")] or entries

    def has(entry: Entry, axis: str) -> bool:
        unknown = axis == "modalities" and entry.axes.modalities is None  # known only from a run
        return unknown or entry.axes.has(axis, baseline[axis])

    if not entries or any(all(has(entry, axis) for axis in baseline) for entry in own):
        return
    absent = [axis for axis in baseline if not any(has(entry, axis) for entry in own)]
    known = [f"{axis} {', '.join(dict.fromkeys(one.axes.value(axis) or '-' for one in own))}" for axis in absent]
    raise ConfigError(
        f"{study}: baseline: expected values that a row of the study has{'' if absent else ' together'}, got "
        f"{_in_words(baseline)}; try {'; '.join(known) or ' or '.join(dict.fromkeys(one.key for one in own))}"
    )


def _id_only(entries: Sequence[Entry]) -> tuple[dict[str, str | None], list[str]]:
    """The baseline of a study that names none, and a note about it; nothing if the study has no ID-only model.

    It is the ID-only model with the best mean on validation, over runs and data sets, among those on the most data
    sets.
    """
    found: dict[str, list[float]] = {}
    for entry in entries:
        if entry.runs and entry.axes.modalities == () and entry.axes.control is None:
            scores = [run.valid.get(_valid_metric(run), -np.inf) for run in entry.runs]
            found.setdefault(entry.axes.model, []).append(float(np.mean(scores)))
    if not found:
        return {}, []
    best = max(found, key=lambda model: (len(found[model]), np.mean(found[model])))
    why = "its only ID-only model"
    if len(found) > 1:
        means = ", ".join(f"{model} {np.mean(values):.4f}" for model, values in found.items())
        why = f"of its ID-only models the best on validation ({means}, by the metric that selects)"
    return {"model": best}, [f"The study names no baseline: rows are tested against {best}, {why}."]


def _why_untested(
    entries: Sequence[Entry], comparisons: Sequence["_Comparison"], baseline: Mapping[str, str | None]
) -> str:
    """The reason why a study has no p at all."""
    finished = [entry for entry in entries if entry.runs]
    if not finished:
        return "no row is finished yet"
    if not baseline:
        waiting = ", ".join(
            dict.fromkeys(one.axes.model for one in entries if one.axes.modalities == () and not one.axes.control)
        )
        if waiting:
            return f"the study names no baseline, and no ID-only model of it is finished ({waiting})"
        return "the study names no baseline and has no ID-only model; `baseline: {axis: value}` in its file names one"
    if comparisons:
        return "every difference has a side with a single seed"
    if any(entry.axes.matches(baseline) for entry in finished):
        return f"no finished row has a finished row of the baseline ({_in_words(baseline)}) to be compared with"
    return f"no row that is the baseline ({_in_words(baseline)}) is finished"


@dataclass(frozen=True)
class _Comparison:
    """A row tested against another on one metric, before p is corrected."""

    dataset: str
    row: str
    metric: str
    against: str
    family: tuple[str, ...]
    score: Score
    paired: Paired
    interval: Interval
    seeds: int  # of the side that has fewer
    p: float | None  # None if that is one
    above: bool  # True if the difference that the test measures is above 0


class _Board:
    """The rows of one data set, in one split, with their per-user metrics, and the statistics over these."""

    def __init__(
        self,
        entries: Sequence[Entry],
        metrics: Sequence[str],
        test: str,
        load: Callable[[Path], Mapping[str, np.ndarray]],
    ) -> None:
        self.entries, self.test, self._load = entries, test, load
        self.dataset = entries[0].axes.tested_on
        self.rows = [_row(entry) for entry in entries]
        table, measured = load(entries[0].runs[0].path), entries[0].runs[0].test
        #: of the lists of all users together: without values by user there is neither interval nor test
        self.of_lists = [metric for metric in metrics if metric in measured and SPLIT + metric not in table]
        self.metrics = [metric for metric in metrics if metric not in self.of_lists]
        self.users = table[USERS]
        self.values = [self._values(entry) for entry in entries]  # by row and metric, (S, U)
        self.seeds = {metric: seed_variance([values[metric] for values in self.values]) for metric in self.metrics}

    @cached_property
    def _means(self) -> np.ndarray:
        """The means over resampled users (R, rows, metrics); each resample is the same for all rows."""
        columns = [values[metric].mean(axis=0) for values in self.values for metric in self.metrics]
        means = bootstrap(np.stack(columns, axis=1))  # (R, rows x metrics)
        return means.reshape(len(means), len(self.entries), len(self.metrics))

    def seeds_of(self, *places: int) -> int:
        """The number of seeds of the row that has the fewest."""
        return min(len(self.entries[place].runs) for place in places)

    def score(self, place: int, metric: str) -> Score:
        """The untested score of a row; its interval is over seeds too if the row has several."""
        if metric in self.of_lists:
            values = self._of_lists(place, metric)
            return Score(float(values.mean()), Interval(float(values.mean()), None, None), tuple(values.tolist()))
        by_seed = self.values[place][metric].mean(axis=1)  # (S,)
        mean, seeds = float(by_seed.mean()), self.seeds[metric]
        if seeds is not None and len(by_seed) > 1:
            interval = Interval(mean, *mean_of(self.values[place][metric], seeds).interval())
        else:
            interval = _interval(mean, self._means[:, place, self.metrics.index(metric)])
        return Score(mean, interval, tuple(by_seed.tolist()))

    def _of_lists(self, place: int, metric: str) -> np.ndarray:
        """A row's values (S,) of a metric that has one for all users, by seed."""
        runs = self.entries[place].runs
        for run in runs:
            if metric not in run.test:
                raise ConfigError(
                    f"{run.run_id}: expected a metric that the run measured ({', '.join(sorted(run.test))}), got "
                    f"{metric}{did_you_mean(metric, run.test)}"
                )
        return np.array([run.test[metric] for run in runs])

    def difference(self, ours: int, theirs: int, metric: str) -> tuple[Paired, Interval]:
        """The paired difference of two rows and its interval, over the same as the test: users and seeds, or users.

        If either row has one seed, the interval has no ends.
        """
        seeds = self.seeds[metric] if self.test == "t-test" else None
        found = paired(self.values[ours][metric], self.values[theirs][metric], seeds)
        if self.seeds_of(ours, theirs) < 2:
            return found, Interval(found.mean, None, None)
        if seeds is not None:
            return found, Interval(found.mean, *found.interval())
        means = self._means[:, :, self.metrics.index(metric)]
        return found, _interval(found.mean, means[:, ours] - means[:, theirs])

    def comparisons(self, baseline: Mapping[str, str | None], family: Sequence[str]) -> Iterator[_Comparison]:
        """Compare each row that has a baseline with it, on each metric."""
        pairs = [
            (ours, theirs)
            for ours, row in enumerate(self.rows)
            if row.axes.control is None and (theirs := _baseline_of(row, self.rows, baseline)) is not None
        ]
        yield from self.compared(pairs, family)

    def compared(self, pairs: Sequence[tuple[int, int]], family: Sequence[str]) -> Iterator[_Comparison]:
        """Compare the rows at the places of each pair, on each metric."""
        for metric in self.metrics if pairs else ():
            found = [self.difference(ours, theirs, metric) for ours, theirs in pairs]
            tested = self._tested(pairs, found, metric)
            for (ours, theirs), (one, interval), (p, above) in zip(pairs, found, tested, strict=True):
                row, group = self.rows[ours], tuple(self.rows[ours].axes.value(axis) or "-" for axis in family)
                yield _Comparison(
                    dataset=self.dataset,
                    row=row.key,
                    metric=metric,
                    against=self.rows[theirs].key,
                    family=group,
                    score=self.score(ours, metric),
                    paired=one,
                    interval=interval,
                    seeds=(seeds := self.seeds_of(ours, theirs)),
                    p=p if seeds > 1 else None,
                    above=above,
                )

    def twins(self, place: int) -> dict[str, int]:
        """Control -> the place of a row's control run.

        Without features a model has one row for all encoders and paradigms: it is the control `none` of each row that
        has none of its own.
        """
        row = self.rows[place]
        if row.axes.control is not None:
            return {}
        found: dict[str, int] = {}
        for other, twin in enumerate(self.rows):
            axes = twin.axes
            if twin.submission != row.submission:
                continue
            own = axes.control is not None and dataclasses.replace(axes, control=None).key == row.axes.key
            shared = axes.control == "none" and axes.encoder is None and axes.paradigm == PRE_TRAINED
            alike = (axes.model, axes.modalities) == (row.axes.model, row.axes.modalities)
            if own or (shared and alike and "none" not in found):
                found[str(axes.control)] = other
        return found

    def content_gain(self, place: int) -> dict[str, dict[str, Interval]]:
        """Control -> metric -> gain: the row's score minus that of its control run."""
        return {
            control: {metric: self.difference(place, twin, metric)[1] for metric in self.metrics}
            | {metric: self._gain_of_lists(place, twin, metric) for metric in self.of_lists}
            for control, twin in self.twins(place).items()
        }

    def _gain_of_lists(self, place: int, twin: int, metric: str) -> Interval:
        means = [float(self._of_lists(one, metric).mean()) for one in (place, twin)]
        return Interval(means[0] - means[1], None, None)

    def slices(self, slicer: Slicer) -> dict[int, dict[str, dict[str, Interval]]]:
        """Place of a row -> slice -> metric -> mean over the slice's users, after averaging each over the seeds."""
        metrics = [metric for metric in self.metrics if slicer.measures(metric)]
        if not metrics:
            return {}
        found = [[slicer.values(run, metrics) for run in entry.runs] for entry in self.entries]
        sliced: dict[int, dict[str, dict[str, Interval]]] = {place: {} for place in range(len(found))}
        for name in list(found[0][0])[1:]:  # the first is all of test
            columns = np.stack(
                [np.mean([run[name][metric] for run in runs], axis=0) for runs in found for metric in metrics],
                axis=1,
            )  # (U of the slice, rows x metrics)
            if not len(columns):
                continue
            ends = percentile_interval(bootstrap(columns))
            for column, mean in enumerate(columns.mean(axis=0).tolist()):
                place, metric = divmod(column, len(metrics))
                interval = Interval(mean, *ends[:, column].tolist())
                sliced[place].setdefault(name, {})[metrics[metric]] = interval
        return sliced

    def _tested(
        self, pairs: Sequence[tuple[int, int]], found: Sequence[tuple[Paired, Interval]], metric: str
    ) -> list[tuple[float, bool]]:
        """For each pair the uncorrected p by the study's test, and True if it favors the first row of the pair."""
        if self.test not in ("wilcoxon", "permutation"):
            return [(one.p, one.mean > 0) for one, _ in found]
        rows = [(self.values[ours][metric], self.values[theirs][metric]) for ours, theirs in pairs]
        differences = np.stack([user_differences(*pair) for pair in rows], axis=1)  # (U, pairs)
        if self.test == "wilcoxon":
            return list(zip(wilcoxon(differences).tolist(), (rank_sums(differences) > 0).tolist(), strict=True))
        return list(zip(permutation(differences).tolist(), (differences.sum(axis=0) > 0).tolist(), strict=True))

    def _values(self, entry: Entry) -> dict[str, np.ndarray]:
        """Metric -> an entry's values by seed and user (S, U).

        Raises DataError if its users or data differ from the other entries', ConfigError if it lacks a metric.
        """
        first, tables = self.entries[0].runs[0], []
        for run in entry.runs:
            table = self._load(run.path)
            same_users = np.array_equal(table[USERS], self.users)
            if run.record.data != first.record.data or not same_users:
                what = "other data" if same_users else f"other users ({len(table[USERS]):,}, not {len(self.users):,})"
                raise DataError(
                    f"{run.run_id}: expected the test split of {first.run_id}, got {what}: {self.dataset} or its "
                    "settings changed between them, and they can't be compared; try running the older one again"
                )
            for metric in self.metrics:
                if SPLIT + metric not in table:
                    known = [name.removeprefix(SPLIT) for name in table if name.startswith(SPLIT) and name != USERS]
                    raise ConfigError(
                        f"{run.run_id}: expected a metric that the run measured ({', '.join(sorted(known))}), got "
                        f"{metric}{did_you_mean(metric, known)}"
                    )
            tables.append(table)
        return {metric: np.stack([table[SPLIT + metric] for table in tables]) for metric in self.metrics}


def _row(entry: Entry) -> Row:
    """The row of an entry, with its axes, cost and reproducibility record but no scores."""
    runs = entry.runs
    row = Row(
        dataclasses.replace(entry.axes, modalities=entry.axes.modalities or ()),
        state=entry.state,
        reason=entry.reason,
        marks=marks_of(runs),
        submission=entry.submission or None,
    )
    if not runs:
        return row
    records = [run.record for run in runs]
    first = records[0]
    return dataclasses.replace(
        row,
        parameters={name: value for name, value in runs[0].parameters.items() if name != "seed"},
        runs=tuple(run.run_id for run in runs),
        seeds=tuple(record.seed for record in records),
        seconds=float(np.mean([record.seconds.train for record in records])),
        encoder_seconds=max(record.seconds.encoder or 0.0 for record in records),
        memory=max(record.peak_memory_bytes for record in records),
        parameters_trained=first.parameters_trained,
        cost=cost_of(runs),
        reproducibility=ReproducibilityRecord(
            replay=tuple(f"mmrec-lmm replay {run.run_id}" for run in runs),
            config=_config(runs[0]),
            data=first.data,
            features=first.features,
            code=first.code,
            versions=first.versions,
            device=first.device,
            threads=first.threads,
            plugins=first.plugins,
            finished=max(record.finished for record in records) or None,
        ),
    )


def _config(run: RunResult) -> Mapping[str, Any]:
    """Every value of a run: of its `config.json`, or of its record where that is missing or damaged."""
    path = run.path / run_folder.CONFIG
    try:
        config = read_json(path, cure=run_folder.CURE)
        if not isinstance(config, dict):
            raise DataError(f"{path}: expected an object, got {reprlib.repr(config)}; {run_folder.CURE}")
    except DataError as error:
        if run.record.resolved is None:
            raise
        logger.warning("%s", error)
        return run.record.resolved
    return config


def _baseline_of(row: Row, rows: Sequence[Row], baseline: Mapping[str, str | None]) -> int | None:
    """The place in `rows` of the row's baseline; None if it is a baseline itself or has none."""
    control = baseline.get("control")
    candidates = [
        place for place, other in enumerate(rows) if other.axes.control == control and other.axes.matches(baseline)
    ]
    if not baseline or row.axes.matches(baseline):
        return None
    free = [axis for axis in AXES if axis not in baseline and axis != "control"]
    alike = [
        place for place in candidates if all(rows[place].axes.value(axis) == row.axes.value(axis) for axis in free)
    ]
    if len({rows[place].axes for place in alike}) == 1:
        return alike[0]  # of several submissions of one row, the first
    if len(alike) > 1:
        named = ", ".join(f"{axis} {value}" for axis, value in baseline.items())
        raise ConfigError(
            f"baseline: expected values of one row, got {named}, which {len(alike)} rows have; try naming one of them: "
            f"{', '.join(rows[place].key for place in alike)}"
        )
    if alike or not {"model", "encoder"} & baseline.keys():
        return next(iter(alike), None)
    without_features = [place for place in candidates if not rows[place].axes.modalities]
    return without_features[0] if len({rows[place].axes for place in without_features}) == 1 else None


def _interval(mean: float, means: np.ndarray) -> Interval:
    """The interval around `mean` by the percentiles of resampled means (R,)."""
    low, high = percentile_interval(means[:, None])[:, 0].tolist()
    return Interval(mean, low, high)


def _tested_scores(comparisons: Sequence[_Comparison], method: Method) -> dict[tuple[str, str], Score]:
    """The score of each comparison by its key, with p corrected within its family."""
    corrected = zip(comparisons, _corrected(comparisons), strict=True)
    return {(found.row, found.metric): _starred(found, p, method) for found, p in corrected}


def _corrected(comparisons: Sequence[_Comparison]) -> list[float | None]:
    """The corrected p of each comparison; None where it has none. Those don't count in a family."""
    corrected: list[float | None] = [None] * len(comparisons)
    for family in dict.fromkeys(found.family for found in comparisons):
        members = [place for place, found in enumerate(comparisons) if found.family == family and found.p is not None]
        values = holm(np.array([comparisons[place].p for place in members])).tolist()
        for place, value in zip(members, values, strict=True):
            corrected[place] = value
    return corrected


def _claims(
    rows: Sequence[Row], boards: Sequence[_Board], method: Method
) -> tuple[tuple[Claim, ...], Counter[tuple[str, ...]]]:
    """The claims of the rows, counted, and the number of comparisons in each family."""
    asked = claims_of(rows, baseline=method.baseline, streams=method.streams)
    pairs: dict[frozenset[str], Pair] = {}  # each two rows are compared once, whatever claims compare them
    for pair in (pair for one in asked for pair in one.pairs):
        pairs.setdefault(frozenset(pair), pair)
    comparisons: list[_Comparison] = []
    for board in boards:
        places = {row.key: place for place, row in enumerate(board.rows)}
        own = [(places[ours], places[theirs]) for ours, theirs in pairs.values() if {ours, theirs} <= {*places}]
        comparisons += board.compared(own, method.family)
    marked = {row.key for row in rows if row.marks}
    verdicts: dict[Pair, dict[str, Verdict]] = {}
    for found, p in zip(comparisons, _corrected(comparisons), strict=True):
        pair, difference = (found.row, found.against), found.paired.mean
        verdicts.setdefault(pair, {})[found.metric] = Verdict(
            sign=int(np.sign(difference)) * method.sign(found.metric),
            testable=found.seeds >= STAR_SEEDS,
            starred=_is_starred(found, p, method.alpha) and found.above == (difference > 0),
            marked=not marked.isdisjoint(pair),
        )
    families = Counter(found.family for found in comparisons if found.p is not None)
    return tuple(count(one, verdicts) for one in asked), families


def _is_starred(found: _Comparison, p: float | None, alpha: float) -> bool:
    """True if the difference is significant, in whichever direction, with the seeds that a star needs."""
    return p is not None and p < alpha and found.seeds >= STAR_SEEDS


def _starred(found: _Comparison, p: float | None, method: Method) -> Score:
    """The score of a comparison with its corrected p, starred if it is significantly better than the baseline."""
    better = found.above == (found.paired.mean > 0) and method.sign(found.metric) * found.paired.mean > 0
    return dataclasses.replace(
        found.score,
        against=found.against,
        difference=found.interval,
        effect=found.paired.effect,
        p=p,
        star=_is_starred(found, p, method.alpha) and better,
    )


def _with_best(rows: Sequence[Row], method: Method) -> list[Row]:
    """The rows, with the best score of each group and metric marked; control runs don't compete."""
    best: dict[tuple[str, ...], float] = {}
    groups = [tuple(row.axes.value(axis) or "-" for axis in (*method.best_within, "split")) for row in rows]
    for row, group in zip(rows, groups, strict=True):
        for metric, score in row.scores.items() if row.axes.control is None else ():
            best[*group, metric] = max(method.sign(metric) * score.mean, best.get((*group, metric), -np.inf))
    return [
        dataclasses.replace(
            row,
            scores={
                metric: dataclasses.replace(
                    score,
                    best=row.axes.control is None and method.sign(metric) * score.mean == best[*group, metric],
                )
                for metric, score in row.scores.items()
            },
        )
        for row, group in zip(rows, groups, strict=True)
    ]


def _detectable(
    comparisons: Sequence[_Comparison], families: Mapping[tuple[str, ...], int], alpha: float
) -> dict[str, dict[str, float]]:
    """Data set -> metric -> the smallest true difference that the test detects with probability POWER.

    At the level of Holm's first step (alpha / comparisons); the median over the data set's comparisons.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for one in comparisons:
        if one.p is None:
            continue
        least = one.paired.detectable(alpha / families[one.family])
        if np.isfinite(least):
            found.setdefault(one.dataset, {}).setdefault(one.metric, []).append(least)
    return {
        dataset: {metric: float(np.median(values)) for metric, values in by_metric.items()}
        for dataset, by_metric in found.items()
    }


def _of_few_seeds(board: _Board) -> str:
    """A note on what rows with fewer than STAR_SEEDS seeds lack; empty if there are none."""
    counts = Counter(len(entry.runs) for entry in board.entries)
    total = len(board.entries)

    def rows(seeds: str) -> str:
        count = counts[1 if seeds == "one seed" else 2]
        if count < total:
            return f"{count} of {total} rows have {seeds}"
        return f"all {total} rows have {seeds}" if total > 1 else f"its only row has {seeds}"

    parts = []
    if counts[1]:
        parts.append(
            f"{rows('one seed')}: intervals are over users only, and a difference to such a row or of it "
            "has neither interval nor p"
        )
    if counts[2]:
        parts.append(f"{rows('two seeds')}: a difference to such a row or of it has p and interval, but no star")
    return f"{board.dataset}: {'; '.join(parts)}. A star needs three seeds on both sides." if parts else ""


def _notes(
    rows: Sequence[Row],
    boards: Sequence[_Board],
    comparisons: Sequence[_Comparison],
    families: Mapping[tuple[str, ...], int],
    method: Method,
) -> Iterator[str]:
    """The notes for readers of the table."""
    states = Counter(row.state for row in rows if row.state != FINISHED)
    if states:
        counts = ", ".join(f"{count} {state}" for state, count in states.items())
        yield f"Of {len(rows)} rows, {counts}; each says why."
    yield from filter(None, map(_of_few_seeds, boards))
    if method.test != "t-test" and families:
        yield (
            "p, stars and intervals of differences are over users only, for the seeds at hand; the test `t-test` "
            "counts seeds too."
        )
    if method.baseline:
        done = {found.row for found in comparisons} | {found.against for found in comparisons}
        own = [row for board in boards for row in board.rows if row.axes.control is None and row.key not in done]
        left = [row.key for row in own if not row.axes.matches(method.baseline)]
        if left:
            yield f"Not tested, as no row of their data set is their baseline: {', '.join(left)}."
    if together := dict.fromkeys(metric for board in boards for metric in board.of_lists):
        yield f"Of all users' lists together, so without intervals and tests: {', '.join(together)}."
    if smaller := [metric for metric in method.names if method.sign(metric) < 0]:
        yield f"Smaller is better: {', '.join(smaller)}."
    if len(families) > 1:
        yield f"p is corrected within {len(families)} families of up to {max(families.values())} comparisons."
    if comparisons:
        yield (
            f"Detectable is the smallest true difference found with a chance of {POWER:.0%} at alpha / comparisons, "
            "the median over a data set's rows."
        )
