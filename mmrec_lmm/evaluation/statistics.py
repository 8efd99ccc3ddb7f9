"""Comparisons of rows of results, with their uncertainty: pure functions of arrays.

A row of a study is a table (S, U): one metric, by seed and by user. Users are averaged over seeds, and two rows are
compared user by user. That alone treats these seeds as the only ones. But another seed moves every user's number at
once, and no number of users averages that out. So the default test counts both:

    variance of the difference = var(d_u) / U + g(ours) / S + g(theirs) / S

d_u is the difference of user u, averaged over seeds; g is the variance that seeds give to a row's mean beyond the noise
of its single users (the two-way random-effects estimate; Cornfield & Tukey 1956). Two to five seeds say little about a
variance, so a row's g is its own or the mean over all rows of its data set, whichever is larger. The degrees of freedom
are Satterthwaite's (1946): the part of a row's g above that mean comes from its own S seeds alone, so it has S - 1.
Otherwise a baseline whose seeds vary more than the rows' would give false stars. The interval of a single row's mean
has the same variance without the other row. docs/statistics.md has the simulation behind this choice.

Nothing is drawn from a global generator: the same arrays give the same numbers.

Shapes: S seeds, U users, M columns (rows of a study times metrics), R resamples, F comparisons of a family.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

#: Of users and seeds (as above); of users alone: Student's paired t, signed ranks, random signs.
TESTS = ("t-test", "t-test-users", "wilcoxon", "permutation")

LEVEL = 0.95  # of every interval
POWER = 0.8  # the chance at which a difference counts as detectable
RESAMPLES = 2_000  # an end of an interval then varies by some 3 % of its distance from the mean
FLIPS = 99_999  # the smallest p is 1 / (FLIPS + 1), which a family of some thousands can still correct
BLOCK_BYTES = 32 << 20  # of resampled weights at once


def user_differences(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """The differences (U,) of rows (S, U) and (T, U), users averaged over seeds.

    Rounded to 12 decimals: equal values must not differ in their last digits, which ranks and signs would count.
    """
    return np.asarray(np.round(ours.mean(axis=0) - theirs.mean(axis=0), 12))


@dataclass(frozen=True)
class SeedVariance:
    """How much another seed moves the mean of a row, learned from all rows of one data set and metric."""

    own: float  # the mean over rows of g
    seen: float  # the same with the noise of single users in it
    degrees: float  # of freedom of `seen`: fewer where rows disagree


def seed_variance(rows: Sequence[np.ndarray]) -> SeedVariance | None:
    """Of rows (S, U), each with its own S; None where none has two seeds, or there is one user."""
    several = [row for row in rows if len(row) > 1 and row.shape[1] > 1]
    if not several:
        return None
    own, seen = np.array([_seed_variances(row) for row in several]).T  # both (rows,)
    degrees = np.array([len(row) - 1 for row in several])
    spread = float((seen**2 / degrees).sum())
    return SeedVariance(
        own=max(0.0, float(own.mean())),
        seen=float(seen.mean()),
        degrees=float(seen.sum() ** 2 / spread) if spread > 0 else float(degrees.sum()),
    )


def _seed_variances(row: np.ndarray) -> tuple[float, float]:
    """Of a row (S, U): g, which chance can make negative, and the variance of its seeds' means, from which g comes by
    taking off what the noise of single users gives it. That noise is what neither user nor seed explains of a cell."""
    seeds, users = row.shape
    if seeds == 1:
        return 0.0, 0.0  # unknown: the mean over the other rows is used
    means = row.mean(axis=1, keepdims=True)  # (S, 1)
    noise = row - means - row.mean(axis=0) + row.mean()  # (S, U)
    seen = float(means.var(ddof=1))
    return seen - float((noise**2).sum()) / ((seeds - 1) * (users - 1)) / users, seen


@dataclass(frozen=True)
class Paired:
    """A mean over users, of differences or of one row, and how sure it is."""

    mean: float
    error: float  # its standard error; NaN for a single user
    degrees: float  # of freedom of that
    deviation: float  # the standard deviation of the users' values

    @property
    def p(self) -> float:
        """Two-sided, of Student's t; 1 where nothing differs, or there is a single user."""
        if self.mean == 0 or np.isnan(self.error):
            return 1.0
        return float(2 * special.stdtr(self.degrees, -abs(self.mean) / self.error)) if self.error else 0.0

    @property
    def effect(self) -> float | None:
        """Cohen's d_z: the difference in standard deviations of the users' differences; None where these are equal."""
        return self.mean / self.deviation if self.deviation > 0 else None

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """The ends of the t interval of the mean; both are the mean itself where nothing varies."""
        half = self.error * special.stdtrit(self.degrees, (1 + level) / 2) if self.error > 0 else 0.0
        return float(self.mean - half), float(self.mean + half)

    def detectable(self, alpha: float, *, power: float = POWER) -> float:
        """The smallest true difference that the test, two-sided at `alpha`, finds with the chance `power`."""
        return float(self.error * special.stdtrit(self.degrees, [1 - alpha / 2, power]).sum())


def paired(ours: np.ndarray, theirs: np.ndarray, seeds: SeedVariance | None = None) -> Paired:
    """The difference between the means of two rows, (S, U) and (T, U), over the same users in the same order.

    Without `seeds`, its error is that of users alone, and p is that of Student's paired t-test.
    """
    return _estimate(user_differences(ours, theirs), (ours, theirs), seeds)


def mean_of(row: np.ndarray, seeds: SeedVariance) -> Paired:
    """The mean of one row (S, U), with an error that counts its users and its seeds."""
    return _estimate(row.mean(axis=0), (row,), seeds)


def _estimate(values: np.ndarray, rows: Sequence[np.ndarray], seeds: SeedVariance | None) -> Paired:
    """The mean of users' values (U,), which the seeds of each of `rows` (S, U) move too."""
    users = len(values)
    deviation = float(values.std(ddof=1)) if users > 1 else float("nan")
    if users > 1 and (values == values[0]).all():
        deviation = 0.0  # exactly, without the rounding error
    variance = deviation**2 / users
    spread = variance**2 / max(1, users - 1)
    if seeds is not None:
        common = 0.0
        for row in rows:
            count = len(row)
            own, seen = _seed_variances(row)
            variance += max(seeds.own, own) / count
            common += seeds.seen / count
            excess = max(0.0, own - seeds.own, seen - seeds.seen) / count  # known from this row's seeds alone
            spread += excess**2 / max(1, count - 1)
        spread += common**2 / seeds.degrees
    return Paired(
        mean=float(values.mean()),
        error=float(np.sqrt(variance)),
        degrees=max(1.0, float(variance**2 / spread)) if spread > 0 else float(max(1, users - 1)),
        deviation=deviation,
    )


def wilcoxon(differences: np.ndarray) -> np.ndarray:
    """The p (M,) of Wilcoxon's signed-rank test on each column of (U, M); users without a difference are left out."""
    return np.array([float(stats.wilcoxon(column).pvalue) if column.any() else 1.0 for column in differences.T])


def rank_sums(differences: np.ndarray) -> np.ndarray:
    """The signed-rank sum (M,) of each column of (U, M): the direction of `wilcoxon`, which the mean may contradict."""
    ranks = [stats.rankdata(np.abs(column[column != 0])) @ np.sign(column[column != 0]) for column in differences.T]
    return np.array(ranks)


def permutation(differences: np.ndarray, *, flips: int = FLIPS, seed: int = 0) -> np.ndarray:
    """The p (M,) of the sign-flip test on each column of (U, M): how often random signs give as large a mean.

    With few users all signs are tried; else the given ones count as one of `flips` + 1, so p is never 0.
    """
    differences = differences[differences.any(axis=1)]  # the sign of zero doesn't matter
    observed = np.abs(differences.sum(axis=0))  # (M,)
    least = observed - 1e-12 * np.abs(differences).sum(axis=0)  # equal sums may differ in their last digits
    users = len(differences)
    if users < 63 and 2**users <= flips:
        signs = 1 - 2.0 * (np.arange(2**users)[:, None] >> np.arange(users) & 1)  # (R, U)
        return np.asarray((np.abs(signs @ differences) >= least).mean(axis=0))
    rng = np.random.default_rng(seed)
    reached = np.zeros(len(observed), np.int64)
    for count in _blocks(flips, users):
        words = rng.integers(2**64, size=(count, -(-users // 64)), dtype=np.uint64)
        bits = np.unpackbits(words.view(np.uint8), axis=1)[:, :users]
        signs = 1 - 2.0 * bits  # (R, U)
        reached += (np.abs(signs @ differences) >= least).sum(axis=0)
    return np.asarray((reached + 1) / (flips + 1))


def holm(p: np.ndarray) -> np.ndarray:
    """Holm-Bonferroni's corrected p (F,). Those of a family below alpha may be called different; the chance that any of
    them isn't is at most alpha, whatever their dependence (Holm, 1979)."""
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(stepped, 1)
    return corrected


def bootstrap(columns: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """The means (R, M) of columns (U, M), each over U users drawn with replacement, the same ones for all columns.

    So the difference of two columns' means is that of the paired difference. U x R numbers are never in memory at once.
    """
    users = len(columns)
    rng = np.random.default_rng(seed)
    means = [
        np.stack([np.bincount(rng.integers(0, users, users), minlength=users) for _ in range(count)]) @ columns / users
        for count in _blocks(resamples, users)
    ]
    return np.concatenate(means)


def percentile_interval(means: np.ndarray, *, level: float = LEVEL) -> np.ndarray:
    """The ends (2, M) of the percentile bootstrap interval, from resampled means (R, M)."""
    return np.asarray(np.percentile(means, [50 * (1 - level), 50 * (1 + level)], axis=0))


def _blocks(total: int, users: int) -> Iterator[int]:
    """Counts that add up to `total`, each small enough that count x U float64 keep within BLOCK_BYTES."""
    size = max(1, BLOCK_BYTES // (8 * max(1, users)))
    for start in range(0, total, size):
        yield min(size, total - start)
