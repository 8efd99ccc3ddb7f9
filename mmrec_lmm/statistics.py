"""Whether one row of numbers is better than another, and by how much: pure functions of arrays.

A row of a study is a table (S, U): one metric, by seed and by user. Users are averaged over seeds, and two rows are
compared user by user. That alone would take the seeds at hand for all there are, while another seed moves every user's
number at once and no number of users averages that away. So the default test counts both (docs/statistics.md has the
simulation): with d_u the difference of user u, averaged over seeds,

    variance of the difference = var(d_u) / U + v(ours) + v(theirs)
    v(row) = max(0, var of the seeds' means - what the noise of single users explains of it) / S

and Welch-Satterthwaite degrees of freedom. v is the two-way random-effects estimate (Cornfield & Tukey, 1956).

Nothing is drawn from a global generator: the same arrays give the same numbers.

Shapes: S seeds, U users, M columns (rows of a study times metrics), R resamples, F comparisons of a family.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats

#: Of users and seeds (as above); of users alone: paired t, signed ranks, random signs.
TESTS = ("t-test", "t-test-users", "wilcoxon", "permutation")

LEVEL = 0.95  # of every interval
RESAMPLES = 10_000
FLIPS = 99_999  # the smallest p is 1 / (FLIPS + 1): enough for a family of thousands
BLOCK_BYTES = 32 << 20  # of resampled weights at once


@dataclass(frozen=True)
class Paired:
    """A mean difference over the same users, and how sure it is."""

    mean: float
    error: float  # its standard error
    degrees: float  # of freedom of that
    deviation: float  # the standard deviation of the users' differences
    with_seeds: bool  # whether `error` counts the seeds

    @property
    def p(self) -> float:
        """Two-sided, of Student's t; 1 where nothing differs, or a single user leaves nothing to judge by."""
        if self.mean == 0 or np.isnan(self.error):
            return 1.0
        return float(2 * stats.t.sf(abs(self.mean) / self.error, self.degrees)) if self.error else 0.0

    @property
    def effect(self) -> float | None:
        """Cohen's d_z: the difference in standard deviations of the users' differences; None where these are equal."""
        return self.mean / self.deviation if self.deviation > 0 else None

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """The ends of the t interval of the mean; both are the mean itself where a single user has no deviation."""
        half = self.error * stats.t.ppf((1 + level) / 2, self.degrees) if self.error > 0 else 0.0
        return float(self.mean - half), float(self.mean + half)

    def detectable(self, *, alpha: float, power: float = 0.8) -> float:
        """The smallest true difference that the test, two-sided at `alpha`, finds with probability `power`."""
        if np.isnan(self.error):
            return float("nan")
        return float(self.error * (stats.t.ppf(1 - alpha / 2, self.degrees) + stats.t.ppf(power, self.degrees)))


def paired(ours: np.ndarray, theirs: np.ndarray, *, seeds: bool = True) -> Paired:
    """The difference between the means of two rows, (S, U) and (T, U), over the same users in the same order.

    With `seeds`, its error counts that other seeds would have given other numbers; that takes two seeds of each row.
    Without, or with fewer, it is the paired t-test of users, each averaged over the seeds at hand.
    """
    differences = ours.mean(axis=0) - theirs.mean(axis=0)  # (U,)
    users = len(differences)
    deviation = float(differences.std(ddof=1)) if users > 1 else float("nan")
    if users > 1 and (differences == differences[0]).all():
        deviation = 0.0  # and not what rounding leaves
    of_users = deviation**2 / users
    with_seeds = seeds and len(ours) > 1 and len(theirs) > 1 and users > 1
    parts = [_of_seeds(row) for row in (ours, theirs)] if with_seeds else []
    variance = of_users + sum(max(0.0, total - noise) for total, noise, _ in parts)
    spread = of_users**2 / max(1, users - 1) + sum(total**2 / degrees for total, _, degrees in parts)
    return Paired(
        mean=float(differences.mean()),
        error=float(np.sqrt(variance)),
        degrees=variance**2 / spread if spread > 0 else float(max(1, users - 1)),
        deviation=deviation,
        with_seeds=with_seeds,
    )


def _of_seeds(row: np.ndarray) -> tuple[float, float, int]:
    """Of a row's mean (S, U): the variance that its seeds show, the part of it that is noise of single users, and the
    degrees of freedom."""
    seeds, users = row.shape
    means = row.mean(axis=1, keepdims=True)  # (S, 1)
    noise = row - means - row.mean(axis=0) + row.mean()  # (S, U), what neither the user nor the seed explains
    per_cell = float((noise**2).sum()) / ((seeds - 1) * (users - 1))
    return float(means.var(ddof=1)) / seeds, per_cell / (seeds * users), seeds - 1


def p_values(pairs: list[tuple[np.ndarray, np.ndarray]], test: str) -> np.ndarray:
    """The two-sided p (M,) of each pair of rows, (S, U) and (T, U), by one of TESTS; all over the same U users."""
    if test in ("t-test", "t-test-users"):
        return np.array([paired(*pair, seeds=test == "t-test").p for pair in pairs])
    differences = np.stack([ours.mean(axis=0) - theirs.mean(axis=0) for ours, theirs in pairs], axis=1)  # (U, M)
    return wilcoxon(differences) if test == "wilcoxon" else permutation(differences)


def wilcoxon(differences: np.ndarray) -> np.ndarray:
    """The p (M,) of Wilcoxon's signed-rank test on each column of (U, M); users without a difference are left out."""
    return np.array([float(stats.wilcoxon(column).pvalue) if column.any() else 1.0 for column in differences.T])


def permutation(differences: np.ndarray, *, flips: int = FLIPS, seed: int = 0) -> np.ndarray:
    """The p (M,) of the sign-flip test on each column of (U, M): how often random signs give as large a mean.

    With few users all signs are tried; else the given ones count as one of `flips` + 1, so that p is never 0.
    """
    differences = differences[differences.any(axis=1)]  # the sign of zero is no matter
    observed = np.abs(differences.sum(axis=0))  # (M,)
    least = observed - 1e-12 * np.abs(differences).sum(axis=0)  # equal sums may differ in their last digits
    users = len(differences)
    if users < 63 and 2**users <= flips:
        signs = 1 - 2.0 * (np.arange(2**users)[:, None] >> np.arange(users) & 1)  # (R, U)
        return np.asarray((np.abs(signs @ differences) >= least).mean(axis=0))
    rng = np.random.default_rng(seed)
    reached = np.zeros(len(observed), np.int64)
    for count in _blocks(flips, users):
        bits = np.unpackbits(np.frombuffer(rng.bytes(count * (-(-users // 8))), np.uint8).reshape(count, -1), axis=1)
        signs = 1 - 2.0 * bits[:, :users]  # (R, U)
        reached += (np.abs(signs @ differences) >= least).sum(axis=0)
    return np.asarray((reached + 1) / (flips + 1))


def holm(p: np.ndarray) -> np.ndarray:
    """Holm-Bonferroni's corrected p (F,): below alpha for those of a family that may be called different, with at most
    the chance alpha that any of them is not, whatever their dependence (Holm, 1979)."""
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(stepped, 1)
    return corrected


def bootstrap(columns: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """The means (R, M) of columns (U, M), each over U users drawn with replacement, the same ones for all columns.

    So the difference of two columns' means is that of the paired difference. U x R numbers never stand in memory.
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
