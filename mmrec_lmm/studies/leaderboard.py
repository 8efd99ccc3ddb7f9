"""The results of a study: one row for each combination that it compares, with intervals and corrected tests.

`comparison.py` makes a Leaderboard from finished runs; tables, the HTML page and plots need nothing else. It is plain
data: `document` and `from_document` convert it to and from one JSON file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..disk.reading import is_there, read_json
from ..errors import DataError
from ..typed_json import FLAT, OPTIONAL, check_finite, decode, plain
from ..types import Axes

FINISHED, PARTIAL, FAILED, NOT_APPLICABLE, PENDING = "finished", "partial", "failed", "not applicable", "pending"


CURE = "try `study table`, which writes it again"
STAR_SEEDS = 3  # seeds that each side of a starred difference needs


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its 95 % interval; None where a single seed gives none."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Score:
    """One metric of one row, on test. `mean` is over users, after averaging each user over the seeds."""

    mean: float
    interval: Interval  # over users and seeds; over users alone (bootstrap) if the row has one seed
    seeds: tuple[float, ...]  # the mean over users, seed by seed
    best: bool = False  # the highest in its group of rows, by the study's `best_within`
    against: str | None = None  # the `key` of the row that it was tested against: its baseline
    difference: Interval | None = None  # to that row on the same users; over users, and over seeds if the test is
    effect: float | None = None  # difference / standard deviation of the users' differences (Cohen's d_z)
    #: of the paired test, corrected over the family (Holm-Bonferroni); None if either row has a single seed
    p: float | None = None
    star: bool = False  # p below the study's alpha, the difference above 0, and STAR_SEEDS on both sides


@dataclass(frozen=True)
class Measured:
    """A cost, the median over a row's seeds; None where it isn't known. `note` says why, or where it was measured."""

    value: float | None
    note: str = ""


@dataclass(frozen=True)
class Claim:
    """How often one value of an axis is better than another, all else equal. A cell is a pair of finished rows on one
    metric; starred is one that is significant by the study's test, with STAR_SEEDS on both sides."""

    axis: str
    better: str  # the value claimed to be better, or what several have in common
    than: str
    pairs: int
    cells: int
    won: int  # cells in which it is better
    won_starred: int
    lost: int  # cells in which it is worse
    lost_starred: int
    testable: int  # cells with the seeds that a star needs
    marked: int = 0  # cells with a marked row
    encoder: str = ""  # the one within which it is counted; "": all


@dataclass(frozen=True)
class ReproducibilityRecord:
    """How to reproduce a row's numbers: the commands, and everything its first run depended on."""

    replay: tuple[str, ...]  # commands, in the order of the seeds
    config: Mapping[str, Any]  # every value, as in `config.json`
    data: str  # fingerprint of the interactions
    features: Mapping[str, str]  # modality -> fingerprint
    code: Mapping[str, str]  # part -> hash of its files
    versions: Mapping[str, str]  # library -> version
    device: str
    threads: int
    plugins: Mapping[str, str] | None = field(default=None, metadata=OPTIONAL)  # of -p: file or module -> hash of code
    finished: str | None = field(default=None, metadata=OPTIONAL)  # the end of the last run: ISO 8601, UTC


@dataclass(frozen=True)
class Row:
    """One combination of the study's axes: its winner on validation, over all seeds."""

    axes: Axes = field(metadata=FLAT)  # with the modalities of the runs
    state: str = FINISHED
    reason: str = ""  # why it failed or isn't applicable
    parameters: Mapping[str, Any] = field(default_factory=dict)  # the winning point of the grid
    scores: Mapping[str, Score] = field(default_factory=dict)  # "recall@20" -> Score
    slices: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)  # "cold items" -> "recall@20" -> mean
    content_gain: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)  # control -> metric -> gain
    twins: Mapping[str, str] = field(default_factory=dict)  # control -> `key` of the control run's row
    marks: tuple[str, ...] = ()  # why its numbers may reflect the training budget more than the model (marks.py)
    runs: tuple[str, ...] = ()  # ids of the winner's runs, in the order of the seeds
    seeds: tuple[int, ...] = ()
    seconds: float | None = None  # of training, mean over seeds
    encoder_seconds: float | None = None  # of encoding and tuning, which rows share
    memory: int | None = None  # peak bytes
    parameters_trained: int | None = None
    cost: Mapping[str, Measured] = field(default_factory=dict)  # by what it is of (costs.py); earlier files have none
    reproducibility: ReproducibilityRecord | None = None  # "ticket" in JSON
    submission: str | None = field(default=None, metadata=OPTIONAL)  # of a board: which one brought it
    tier: str | None = field(default=None, metadata=OPTIONAL)  # that its submission was verified to
    attempts: Mapping[str, int] | None = field(default=None, metadata=OPTIONAL)  # runs that were tried for it, by kind
    fresh: Mapping[str, float] | None = field(default=None, metadata=OPTIONAL)  # its score in a fresh world, and others

    @property
    def key(self) -> str:
        """The row's name within its study or board."""
        return f"{self.axes.key}/{self.submission}" if self.submission else self.axes.key


@dataclass(frozen=True)
class Leaderboard:
    """The rows of a study, and how they were compared."""

    study: str
    title: str
    metrics: tuple[str, ...]  # in order
    rows: Sequence[Row]
    test: str = "t-test"  # one of statistics.TESTS
    alpha: float = 0.05
    ranked_by: str = ""  # the metric that selected runs on validation and ranks rows; "": the first
    baseline: str = ""  # in words: the baseline of the tests
    untested: str = ""  # why no row was tested; "" if some were. Readers must see this first
    comparisons: int = 0  # in the family over which p was corrected; in the largest of several
    #: data set (and split) -> metric -> the smallest true difference that the test detects with a chance of 80 %,
    #: p corrected
    detectable: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    users: Mapping[str, int] = field(default_factory=dict)  # data set (and split) -> users in test
    claims: tuple[Claim, ...] = ()  # of finished rows (claims.py)
    claim_comparisons: int = 0  # in the family over which their p was corrected; in the largest of several
    notes: tuple[str, ...] = ()  # for readers: what failed, what differs from the paper
    head: Mapping[str, str] | None = field(default=None, metadata=OPTIONAL)  # of a board: protocol, date, versions
    smaller: tuple[str, ...] | None = field(default=None, metadata=OPTIONAL)  # metrics of which smaller is better

    def sign(self, metric: str) -> int:
        """1 if larger values of the metric are better, -1 if smaller ones are."""
        return -1 if metric in (self.smaller or ()) else 1

    @property
    def main_metric(self) -> str:
        """The metric that ranks rows."""
        return self.ranked_by or self.metrics[0]

    def marked(self) -> dict[str, tuple[str, ...]]:
        """Key of each marked row -> its marks."""
        return {row.key: row.marks for row in self.rows if row.marks}

    def document(self) -> dict[str, Any]:
        """The leaderboard as JSON values."""
        return {**plain(self), "rows": [_row_document(row) for row in self.rows]}


def from_document(document: Mapping[str, Any], *, where: str = "leaderboard") -> Leaderboard:
    """The Leaderboard of a `document`. DataError names `where` it is from, the key, and what was expected."""
    rows = document.get("rows") if isinstance(document, dict) else None
    if isinstance(rows, list):
        document = {**document, "rows": [_renamed(row) for row in rows]}
    board = decode(Leaderboard, document, where=where, cure=CURE)
    for place, row in enumerate(board.rows):
        for name in ("scores", "slices", "content_gain", "seconds", "cost"):
            check_finite(plain(getattr(row, name)), where=f"{where}: rows.{place}.{name}", cure=CURE)
    check_finite(plain(board.detectable), where=f"{where}: detectable", cure=CURE)
    return board


def read_leaderboard(path: Path) -> Leaderboard:
    """The Leaderboard in a JSON file. DataError if there is no such file."""
    if not is_there(path, CURE):
        raise DataError(f"{path}: no such file; try `study table`, which writes a leaderboard as JSON")
    return from_document(read_json(path, cure=CURE), where=str(path))


def _row_document(row: Row) -> dict[str, Any]:
    """A row as JSON values. Its reproducibility record is called ticket there; {} where there is none."""
    document: dict[str, Any] = plain(row)
    record = document.pop("reproducibility")
    return {**document, "ticket": record or {}}


def _renamed(document: Any) -> Any:
    """A row's document with the key ticket renamed to the field's name, reproducibility."""
    return (
        document if not isinstance(document, dict) else {**document, "reproducibility": document.get("ticket") or None}
    )
