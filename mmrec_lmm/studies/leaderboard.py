"""What a study found: one row for each combination that it compares, with intervals and corrected tests.

`comparison.py` makes a Leaderboard from finished runs; tables, the HTML page and plots are made from it alone. It is
plain data: `document` and `from_document` are its form as JSON, one file that can be mailed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..cache import plain, read_json
from ..errors import DataError

FINISHED, PARTIAL, FAILED, NOT_APPLICABLE, PENDING = "finished", "partial", "failed", "not applicable", "pending"


STAR_SEEDS = 3  # that both rows of a starred difference have
AXES = ("model", "dataset", "encoder", "paradigm", "modalities", "control")  # of a study


class Combination(Protocol):
    """One value on each of AXES: a study's cell, or a leaderboard's row."""

    @property
    def model(self) -> str: ...
    @property
    def dataset(self) -> str: ...
    @property
    def encoder(self) -> str | None: ...
    @property
    def paradigm(self) -> str: ...
    @property
    def modalities(self) -> tuple[str, ...] | None: ...
    @property
    def control(self) -> str | None: ...


def key_of(one: Combination) -> str:
    """Its name within its study: VBPR/demo/clip:tiny/ft/image+text, and its control."""
    return "/".join([*(value_on(one, axis) or "-" for axis in AXES[:-1]), *([one.control] if one.control else [])])


def value_on(one: Combination, axis: str) -> str | None:
    """Its value on an axis, as a study's file spells it."""
    value = getattr(one, axis)
    return "+".join(value or ()) or None if axis == "modalities" else value


def has_value(one: Combination, axis: str, wanted: Any) -> bool:
    """Whether it has a value, in any case; an encoder's name stands for all of its variants."""
    own = value_on(one, axis)
    if own is None or wanted is None:
        return own is wanted
    names = {own.lower()} | ({own.lower().partition(":")[0]} if axis == "encoder" else set())
    return str(wanted).lower() in names


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its 95 % interval; None where a single seed can't tell them."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Score:
    """One metric of one row, on test. `mean` is over users, each of whom is first averaged over the seeds."""

    mean: float
    interval: Interval  # of users and seeds; of users alone (bootstrap) where the row has one seed
    seeds: tuple[float, ...]  # the mean over users, seed by seed
    best: bool = False  # the highest of its data set, as the study's `best_within` groups rows
    against: str | None = None  # the `key` of the row that it was tested against: the declared baseline
    difference: Interval | None = None  # to that row, same users; it counts what the test counts
    effect: float | None = None  # difference / standard deviation of the users' differences (Cohen's d_z)
    #: of the paired test, corrected over the declared family (Holm-Bonferroni); None where either has a single seed
    p: float | None = None
    star: bool = False  # p below the study's alpha, the difference above 0, and three seeds on both sides


@dataclass(frozen=True)
class Row:
    """One combination of the study's axes: its winner on validation, over all seeds."""

    model: str
    dataset: str
    encoder: str | None  # with its variant: "clip:tiny"; None: the data set's own files, or ids alone
    paradigm: str
    modalities: tuple[str, ...]
    control: str | None = None  # shuffled, random, constant, none: a twin whose features carry no content
    state: str = FINISHED
    reason: str = ""  # why it failed or isn't applicable
    parameters: Mapping[str, Any] = field(default_factory=dict)  # the winning point of the grid
    scores: Mapping[str, Score] = field(default_factory=dict)  # "recall@20" -> Score
    slices: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)  # "cold items" -> "recall@20" -> mean
    content_gain: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)  # control -> metric -> gain
    twins: Mapping[str, str] = field(default_factory=dict)  # control -> `key` of the row that its gain is over
    marks: tuple[str, ...] = ()  # why its numbers may say more of its budget than of its model (marks.py)
    runs: tuple[str, ...] = ()  # ids of the winner's runs, in order of the seeds
    seeds: tuple[int, ...] = ()
    seconds: float | None = None  # of training, mean over seeds
    encoder_seconds: float | None = None  # of encoding and tuning, shared by rows
    memory: int | None = None  # peak bytes
    parameters_trained: int | None = None
    ticket: Mapping[str, Any] = field(default_factory=dict)  # configuration, hashes, versions, replay command

    @property
    def key(self) -> str:
        """The row's name within its study."""
        return key_of(self)


@dataclass(frozen=True)
class Leaderboard:
    """A study's rows and how they were compared."""

    study: str
    title: str
    metrics: tuple[str, ...]  # in order
    rows: Sequence[Row]
    test: str = "t-test"  # one of statistics.TESTS
    alpha: float = 0.05
    ranked_by: str = ""  # the metric by which runs were selected on validation, and rows rank; "": the first
    baseline: str = ""  # in words: what each row was tested against
    untested: str = ""  # why no row was tested, where none was: the first thing that a reader must know
    comparisons: int = 0  # of the family over which p was corrected; of several the largest
    #: data set -> metric -> the smallest true difference that the test finds four times in five, p corrected
    detectable: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    users: Mapping[str, int] = field(default_factory=dict)  # data set -> users that test evaluates
    notes: tuple[str, ...] = ()  # what a reader must know: what failed, what differs from the paper

    @property
    def main_metric(self) -> str:
        """The metric by which rows rank."""
        return self.ranked_by or self.metrics[0]

    def marked(self) -> dict[str, tuple[str, ...]]:
        """Key of each marked row -> its marks."""
        return {row.key: row.marks for row in self.rows if row.marks}

    def document(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dict(plain(self))


def from_document(document: Mapping[str, Any]) -> Leaderboard:
    """The Leaderboard whose `document` this is."""
    return Leaderboard(
        **{
            **document,
            "metrics": tuple(document["metrics"]),
            "notes": tuple(document["notes"]),
            "rows": [_row(row) for row in document["rows"]],
        }
    )


def read_leaderboard(path: Path) -> Leaderboard:
    """The Leaderboard in a JSON file; DataError where there is none."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; a study writes its leaderboard as JSON")
    try:
        return from_document(read_json(path))
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not a leaderboard of this version ({type(error).__name__} {error}); have the study write it again"
        ) from None


def _row(document: Mapping[str, Any]) -> Row:
    nested = {
        name: {key: {metric: Interval(**value) for metric, value in values.items()} for key, values in found.items()}
        for name, found in ((name, document[name]) for name in ("slices", "content_gain"))
    }
    tuples = {name: tuple(document[name]) for name in _TUPLES if name in document}
    scores = {metric: _score(value) for metric, value in document["scores"].items()}
    return Row(**{**document, **nested, **tuples, "scores": scores})


_TUPLES = ("modalities", "runs", "seeds", "marks")  # an earlier file has no marks


def _score(document: Mapping[str, Any]) -> Score:
    difference = document["difference"]
    return Score(
        **{
            **document,
            "seeds": tuple(document["seeds"]),
            "interval": Interval(**document["interval"]),
            "difference": Interval(**difference) if difference else None,
        }
    )
