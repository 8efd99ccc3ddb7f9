"""What a study found: one row for each combination that it compares, with intervals and corrected tests.

`comparison.py` makes a Leaderboard from finished runs; tables, the HTML page and plots are made from it alone. It is
plain data: `document` and `from_document` are its form as JSON, one file that can be mailed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..cache import plain, read_json
from ..errors import DataError
from ..typed_json import FLAT, decode
from ..types import Axes

FINISHED, PARTIAL, FAILED, NOT_APPLICABLE, PENDING = "finished", "partial", "failed", "not applicable", "pending"


STAR_SEEDS = 3  # that both rows of a starred difference have


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
class ReproducibilityRecord:
    """What one needs to make a row's numbers again: commands, and what its first run depended on."""

    replay: tuple[str, ...]  # commands, in order of the seeds
    config: Mapping[str, Any]  # every value, as in `config.json`
    data: str  # fingerprint of the interactions
    features: Mapping[str, str]  # modality -> fingerprint
    code: Mapping[str, str]  # part -> hash of its files
    versions: Mapping[str, str]  # library -> version
    device: str
    threads: int


@dataclass(frozen=True)
class Row:
    """One combination of the study's axes: its winner on validation, over all seeds."""

    axes: Axes = field(metadata=FLAT)  # with the modalities that the runs have
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
    reproducibility: ReproducibilityRecord | None = None  # "ticket" in JSON

    @property
    def key(self) -> str:
        """The row's name within its study."""
        return self.axes.key


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
        return {**plain(self), "rows": [_row_document(row) for row in self.rows]}


def from_document(document: Mapping[str, Any], *, where: str = "leaderboard") -> Leaderboard:
    """The Leaderboard whose `document` this is; DataError says what in it isn't right, and `where` it is from."""
    rows = document.get("rows") if isinstance(document, dict) else None
    if isinstance(rows, list):
        document = {**document, "rows": [_renamed(row) for row in rows]}
    return decode(Leaderboard, document, where=where, cure="try having the study write it again")


def read_leaderboard(path: Path) -> Leaderboard:
    """The Leaderboard in a JSON file; DataError where there is none."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; a study writes its leaderboard as JSON")
    return from_document(read_json(path), where=str(path))


def _row_document(row: Row) -> dict[str, Any]:
    """A row's document: its reproducibility record is called ticket, and is empty where there is none."""
    document: dict[str, Any] = plain(row)
    record = document.pop("reproducibility")
    return {**document, "ticket": record or {}}


def _renamed(document: Any) -> Any:
    """A row's document with its reproducibility record, if it has one, under the name of the field."""
    return (
        document if not isinstance(document, dict) else {**document, "reproducibility": document.get("ticket") or None}
    )
