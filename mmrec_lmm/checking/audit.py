"""Whether a file of item features, a graph or user profiles knows validation or test: exact permutation tests.

Content that is worth anything fits the pairs of test, so a good fit proves nothing. But where the split was drawn at
random, a user's pair is in training, validation or test by lot, and an honest file can't know which. Each pair (u, i)
gets a score from the file and all pairs, without their labels: how close i is to the other items of u (features, item
graphs), u to the other users of i (profiles, user graphs), or the weight of u-i (graphs of both). Then labels are drawn
again within each user, many times:

test closer than training         the mean score of test pairs, less that of the user's training pairs; and likewise of
    (and validation ...)          validation. A file made from training rows fits those better, which is fair.
test unlike validation            the same between the two, in both directions. Also exact for files made from
                                  training rows: these know neither.
columns follow test counts        the squared covariance of each column with the items' rows in test, less those
    (sum, and largest)            expected among test and validation: of all columns, and the largest.

To draw quickly, a user's pairs are laid in a circle, those of the first label side by side, all else at random; a draw
turns each circle. Where labels were drawn by lot, every turn is as likely as the true one, so the test stays exact.

p is the share of drawn labels that are at least as extreme, the true ones included. A file is flagged if its least p,
times the number of its tests (Bonferroni), is at most ALPHA.

Not seen: a file made from all rows alike, as its pairs of test are like those of training; what a file knows of other
data; and any leak where the split isn't drawn at random within users. That is tested first, with the items' popularity
and the times as scores.

Shapes: N pairs, n of them in a comparison, D width, I items, U users, V users with pairs of both labels, K scores,
P permutations.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from scipy import sparse

from ..config.settings import Settings
from ..data.loading import time_column
from ..data.splitting import TEST, TRAIN, VALID
from ..data.tables import first_cells, read_integers
from ..errors import DataError
from ..typed_json import plain
from ..types import Dataset
from .probes import unit_rows

ALPHA = 0.01  # the chance that an honest file is flagged, at most
PERMUTATIONS = 1999
LEAST = 999  # permutations with which each test can flag a file: 5 tests x 2 sides / 1000 is ALPHA
UNFAIR = 0.002  # p of the popularity or times of pairs at which a split counts as not drawn at random
NAMES = {TRAIN: "training", VALID: "validation", TEST: "test"}

_BLOCK_BYTES = 64 << 20  # of float64 at once

Matrix: TypeAlias = np.ndarray | sparse.csr_array
Side = Literal["item", "user", "both"]


@dataclass(frozen=True)
class PermutationTest:
    """A permutation test. `excess` is the difference of mean scores within users, in their standard deviations; of
    columns, how many times its expectation the statistic is."""

    name: str
    knows: str  # the part of the data that the file knows, if p is small
    excess: float
    p: float


@dataclass(frozen=True)
class FileAudit:
    """What was found of one file; `reason` says why it wasn't tested."""

    name: str
    side: Side
    tests: tuple[PermutationTest, ...] = ()
    reason: str = ""

    @property
    def p(self) -> float:
        """The least p, corrected for the number of tests; 1 without one."""
        return min(1.0, len(self.tests) * min((test.p for test in self.tests), default=1.0))

    @property
    def leak(self) -> str:
        """The part of the data that the file knows; "" if none shows."""
        return min(self.tests, key=lambda test: test.p).knows if self.p <= ALPHA else ""


@dataclass(frozen=True)
class Audit:
    """The audit of a data set's files; `unfair` says why its split tells nothing."""

    dataset: str
    pairs: Mapping[str, int]
    files: tuple[FileAudit, ...] = ()
    unfair: str = ""
    permutations: int = PERMUTATIONS
    seed: int = 0


@dataclass(frozen=True)
class Pairs:
    """Distinct pairs of a user and an item with their labels, sorted by user; those in two splits are left out."""

    users: np.ndarray  # (N,)
    items: np.ndarray  # (N,)
    labels: np.ndarray  # (N,)
    n_users: int
    n_items: int

    @classmethod
    def of(cls, dataset: Dataset) -> "Pairs":
        splits = (dataset.train, dataset.valid, dataset.test)
        return cls.from_rows(
            np.concatenate([rows.users for rows in splits]),
            np.concatenate([rows.items for rows in splits]),
            np.repeat([TRAIN, VALID, TEST], [len(rows) for rows in splits]),
            dataset.n_users,
            dataset.n_items,
        )

    @classmethod
    def from_rows(cls, users: np.ndarray, items: np.ndarray, labels: np.ndarray, n_users: int, n_items: int) -> "Pairs":
        codes = users.astype(np.int64) * n_items + items
        labeled = np.unique(codes * 3 + labels)  # by user, each pair and label once
        pair, label = labeled // 3, labeled % 3
        once = np.ones(len(pair), bool)
        repeated = np.asarray(pair[1:] == pair[:-1])
        once[1:] &= ~repeated
        once[:-1] &= ~repeated
        pair, label = pair[once], label[once]
        return cls(pair // n_items, pair % n_items, label, n_users, n_items)

    def matrix(self) -> sparse.csr_array:
        """Who has what, (U, I)."""
        ones = np.ones(len(self.users))
        return sparse.csr_array((ones, (self.users, self.items)), shape=(self.n_users, self.n_items))


def audit(
    dataset: Dataset,
    files: Mapping[str, tuple[Side, Matrix]],
    *,
    times: np.ndarray | None = None,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Audit:
    """Test each file, by name: item features (I, D), user profiles (U, D), or a sparse graph (I, I), (U, U) or (U, I).

    `times` (N,) are those of the data set's pairs, in the order of `Pairs.of`, where they are known.
    """
    pairs = Pairs.of(dataset)
    counts = {name: int((pairs.labels == label).sum()) for label, name in NAMES.items()}
    unfair = _unfair(dataset, pairs, times, permutations, seed)
    found = () if unfair else tuple(
        audit_file(name, side, matrix, pairs, permutations=permutations, seed=seed)
        for name, (side, matrix) in files.items()
    )  # fmt: skip
    return Audit(dataset.name, counts, found, unfair, permutations, seed)


def audit_file(
    name: str, side: Side, matrix: Matrix, pairs: Pairs, *, permutations: int = PERMUTATIONS, seed: int = 0
) -> FileAudit:
    """The tests of one file on pairs whose labels were drawn at random within users."""
    scores = pair_scores(side, matrix, pairs)
    known = np.isfinite(scores)
    if not known.any():
        return FileAudit(name, side, reason="no pair of the data has a score: its rows are zero or its graph is empty")
    tests = list(_closer(scores, pairs, permutations, seed))
    if side == "item":
        tests += _columns(_item_columns(matrix), pairs, permutations, seed)
    if not tests:
        return FileAudit(name, side, reason="no user has pairs in two parts of the data")
    return FileAudit(name, side, tuple(tests))


# Scores, which see no labels


def pair_scores(side: Side, matrix: Matrix, pairs: Pairs) -> np.ndarray:
    """The score (N,) of each pair; NaN where the file says nothing of it."""
    if side == "both":
        assert sparse.issparse(matrix)
        return _entries(matrix, pairs.users, pairs.items)
    own, other = (pairs.items, pairs.users) if side == "item" else (pairs.users, pairs.items)
    return _linked(matrix, own, other) if sparse.issparse(matrix) else _close(np.asarray(matrix), own, other)


def _close(values: np.ndarray, own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """x_a . (sum of x over the others that b has) / their number, of centered rows of length 1."""
    present = np.asarray(values.any(axis=1))
    rows = unit_rows(values - values[present].mean(axis=0)) if present.any() else values
    rows[~present] = 0
    scores = np.full(len(own), np.nan)
    order = np.argsort(other, kind="stable")
    order = order[present[own[order]]]
    starts = np.flatnonzero(np.diff(other[order], prepend=-1))  # of each b
    sizes = np.diff(starts, append=len(order))
    for some in _blocks(starts, sizes, rows.shape[1]):
        chosen, size = order[starts[some][0] : starts[some][-1] + sizes[some][-1]], sizes[some]
        of_block = rows[own[chosen]]  # (n, D)
        sums = np.add.reduceat(of_block, starts[some] - starts[some][0], axis=0)
        others = np.repeat(sums, size, axis=0) - of_block
        count = np.repeat(size, size) - 1
        found = np.einsum("nd,nd->n", of_block, others)
        scores[chosen[count > 0]] = found[count > 0] / count[count > 0]
    return scores


def _linked(graph: sparse.csr_array, own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The mean weight between a and the others that b has."""
    links = sparse.csr_array(graph + graph.T)
    links.setdiag(0)
    has = sparse.csr_array((np.ones(len(own)), (other, own)), shape=(int(other.max(initial=0)) + 1, graph.shape[0]))
    sizes = np.bincount(other, minlength=has.shape[0])
    scores = np.full(len(own), np.nan)
    order = np.argsort(other, kind="stable")
    step = max(1, _BLOCK_BYTES // (16 * graph.shape[0]))  # rows of the product may be full
    for start in range(0, has.shape[0], step):
        chosen = order[slice(*np.searchsorted(other[order], [start, start + step]))]
        if len(chosen):
            sums = sparse.csr_array(has[start : start + step] @ links)
            weights = _entries(sums, other[chosen] - start, own[chosen])
            count = sizes[other[chosen]] - 1
            scores[chosen[count > 0]] = weights[count > 0] / count[count > 0]
    return scores


def _entries(matrix: sparse.csr_array, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The entries (n,) at rows and columns."""
    found = matrix[rows, columns]
    return np.asarray(found.toarray() if sparse.issparse(found) else found, dtype=np.float64).ravel()


def _blocks(starts: np.ndarray, sizes: np.ndarray, width: int) -> Iterator[slice]:
    """Slices of groups whose rows fit in _BLOCK_BYTES, or of one group."""
    most = max(1, _BLOCK_BYTES // (32 * max(1, width)))
    block = (np.cumsum(sizes) - 1) // most
    first = np.flatnonzero(np.diff(block, prepend=-1))
    for begin, end in zip(first, [*first[1:], len(starts)], strict=True):
        yield slice(int(begin), int(end))


def _item_columns(matrix: Matrix) -> np.ndarray:
    """The columns (I, D) to compare with counts: those of features, or a graph's degrees."""
    if not sparse.issparse(matrix):
        return np.asarray(matrix, dtype=np.float64)
    degrees = np.asarray(abs(matrix).sum(axis=0) + abs(matrix).sum(axis=1), dtype=np.float64).ravel()
    return np.log1p(degrees)[:, None]


# Tests


@dataclass(frozen=True)
class _Circles:
    """The pairs of two labels, user by user: first those with the first label, then the others. Users whose pairs all
    have one label are left out: nothing is drawn."""

    pairs: np.ndarray  # (n,) places in Pairs
    starts: np.ndarray  # (V,)
    sizes: np.ndarray  # (V,)
    counts: np.ndarray  # (V,) of the first label

    @classmethod
    def between(
        cls, label: int, reference: int, pairs: Pairs, known: np.ndarray, rng: np.random.Generator
    ) -> "_Circles":
        chosen = np.flatnonzero(known & np.isin(pairs.labels, (label, reference)))
        is_first = pairs.labels[chosen] == label
        size = np.bincount(pairs.users[chosen], minlength=pairs.n_users)
        first = np.bincount(pairs.users[chosen[is_first]], minlength=pairs.n_users)
        mixed = (first > 0) & (first < size)
        kept = mixed[pairs.users[chosen]]
        chosen, is_first = chosen[kept], is_first[kept]
        order = np.lexsort((rng.random(len(chosen)), ~is_first, pairs.users[chosen]))
        size, first = size[mixed], first[mixed]
        return cls(chosen[order], np.cumsum(size) - size, size, first)

    def turns(self, permutations: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Blocks (b, V) of where each user's pairs of the first label begin, as places among `pairs`."""
        step = max(1, _BLOCK_BYTES // (16 * len(self.starts)))
        for start in range(0, permutations, step):
            shares = rng.random((min(step, permutations - start), len(self.starts)))
            yield self.starts + (shares * self.sizes).astype(np.int64)

    def centered(self, scores: np.ndarray) -> np.ndarray:
        """The scores (n, K) of the pairs less the mean of their user's."""
        own = scores[self.pairs]
        means = np.add.reduceat(own, self.starts, axis=0) / self.sizes[:, None]
        return np.asarray(own - np.repeat(means, self.sizes, axis=0))

    def sums(self, values: np.ndarray) -> np.ndarray:
        """The sums (n, K) of as many values (n, K) as the user has of the first label, from each place on."""
        before = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
        start, size, count = (np.repeat(one, self.sizes) for one in (self.starts, self.sizes, self.counts))
        begin, stop = np.arange(len(values)), start + size
        end = begin + count
        over = np.maximum(end - stop, 0)  # of the circle's end
        return np.asarray(before[np.minimum(end, stop)] - before[begin] + before[start + over] - before[start])

    def members(self, begins: np.ndarray) -> np.ndarray:
        """The places among `pairs` with the first label, where each user's begin at `begins` (V,)."""
        nth = np.arange(self.counts.sum()) - np.repeat(np.cumsum(self.counts) - self.counts, self.counts)
        start, size, begin = (np.repeat(one, self.counts) for one in (self.starts, self.sizes, begins))
        return np.asarray(start + (begin - start + nth) % size)


@dataclass(frozen=True)
class _Compared:
    """The mean scores of two labels, compared: the shares of drawn labels that are as high, and as low."""

    label: int
    reference: int
    excess: float
    as_high: float
    as_low: float

    @property
    def two_sided(self) -> float:
        return min(1.0, 2 * min(self.as_high, self.as_low))


def _compare(
    scores: np.ndarray, pairs: Pairs, permutations: int, seed: int, *, known: np.ndarray | None = None
) -> Iterator[list[_Compared]]:
    """Each two labels compared, for each of K scores (N, K), on the pairs whose scores are `known` (N,), or all."""
    known = np.ones(len(scores), bool) if known is None else known
    for label, reference in ((TEST, TRAIN), (VALID, TRAIN), (TEST, VALID)):
        rng = np.random.default_rng([seed, label, reference])
        circles = _Circles.between(label, reference, pairs, known, rng)
        if not len(circles.pairs):
            continue
        centered = circles.centered(scores)  # (n, K)
        sums = circles.sums(centered)
        true = sums[circles.starts].sum(axis=0)
        drawn = np.concatenate([sums[begins].sum(axis=1) for begins in circles.turns(permutations, rng)])  # (P, K)
        rounding = 1e-9 * np.abs(centered).sum(axis=0)
        high, low = (((sign * (drawn - true) >= -rounding).sum(axis=0) + 1) / (permutations + 1) for sign in (1, -1))
        spread = centered.std(axis=0)
        excess = true / circles.counts.sum() / np.where(spread > 0, spread, 1)
        yield [_Compared(label, reference, *map(float, one)) for one in zip(excess, high, low, strict=True)]


def _closer(scores: np.ndarray, pairs: Pairs, permutations: int, seed: int) -> Iterator[PermutationTest]:
    for [one] in _compare(scores[:, None], pairs, permutations, seed, known=np.isfinite(scores)):
        if one.reference == TRAIN:
            name = f"{NAMES[one.label]} closer than training"
            yield PermutationTest(name, NAMES[one.label], one.excess, one.as_high)
        else:
            knows = NAMES[TEST if one.excess > 0 else VALID]
            yield PermutationTest("test unlike validation", knows, one.excess, one.two_sided)


def _columns(columns: np.ndarray, pairs: Pairs, permutations: int, seed: int) -> Iterator[PermutationTest]:
    """The tests of an item's columns against its rows in test, drawn among those in test and validation."""
    rng = np.random.default_rng([seed, TEST, VALID, 1])
    circles = _Circles.between(TEST, VALID, pairs, np.ones(len(pairs.users), bool), rng)
    spread = columns.std(axis=0)
    columns = (columns[:, spread > 0] - columns[:, spread > 0].mean(axis=0)) / spread[spread > 0]
    if not len(circles.pairs) or not columns.shape[1]:
        return
    items = pairs.items[circles.pairs]
    shares = np.repeat(circles.counts / circles.sizes, circles.sizes)
    expected = np.bincount(items, weights=shares, minlength=pairs.n_items)

    def statistics(turns: np.ndarray) -> np.ndarray:
        """The sum and the largest of the squared covariances, (b, 2)."""
        counts = [np.bincount(items[circles.members(begins)], minlength=pairs.n_items) for begins in turns]
        squares = ((np.stack(counts) - expected) @ columns) ** 2  # (b, D)
        return np.stack([squares.sum(axis=1), squares.max(axis=1)], axis=1)

    [true] = statistics(circles.starts[None])
    step = max(1, _BLOCK_BYTES // (8 * (pairs.n_items + columns.shape[1])))
    drawn = [
        statistics(begins[start : start + step])
        for begins in circles.turns(permutations, rng)
        for start in range(0, len(begins), step)
    ]
    found = np.concatenate(drawn)  # (P, 2)
    p = ((found >= true * (1 - 1e-9)).sum(axis=0) + 1) / (permutations + 1)
    excess = true / np.maximum(found.mean(axis=0), 1e-300)
    for name, value, ratio in zip(("sum", "largest"), p, excess, strict=True):
        yield PermutationTest(f"columns follow test counts ({name})", "test or validation", float(ratio), float(value))


# The split


def _unfair(dataset: Dataset, pairs: Pairs, times: np.ndarray | None, permutations: int, seed: int) -> str:
    """Why the labels aren't drawn at random within users, as far as it shows; "" if it doesn't."""
    if dataset.split is not None and dataset.split.rule != "ratio":
        return f"the split is drawn by the rule {dataset.split.rule}, so parts differ without any leak"
    popularity = np.log1p(np.bincount(pairs.items, minlength=pairs.n_items).astype(float))[pairs.items]
    named = {"popular": popularity} | ({} if times is None else {"recent": times})
    for compared in _compare(np.stack([*named.values()], axis=1), pairs, permutations, seed):
        for what, one in zip(named, compared, strict=True):
            if one.two_sided <= UNFAIR:
                more, part, other = ("more" if one.excess > 0 else "less"), NAMES[one.label], NAMES[one.reference]
                return f"items of {part} are {more} {what} than the same users' of {other} (p = {one.two_sided:.2g})"
    return ""


def pair_times(dataset: Dataset, settings: Settings) -> np.ndarray | None:
    """The times (N,) of the pairs of `Pairs.of`, from the data set's file; None where it has none."""
    path = Path(settings.data_path) / dataset.name / (settings.inter_file_name or f"{dataset.name}.inter")
    pairs = Pairs.of(dataset)
    try:
        header = first_cells(path, separator=settings.field_separator)
        named = [settings.USER_ID_FIELD, settings.ITEM_ID_FIELD, time_column(path, header, settings, "audit")]
        table = read_integers(path, named, separator=settings.field_separator, times=named[2:])
    except (DataError, OSError):
        return None
    users, items, times = (table.columns[name] for name in named)
    codes, wanted = users * dataset.n_items + items, pairs.users * dataset.n_items + pairs.items
    order = np.argsort(codes, kind="stable")
    place = np.minimum(np.searchsorted(codes[order], wanted), len(codes) - 1)
    if not (codes[order][place] == wanted).all():
        return None
    return np.argsort(np.argsort(times[order][place], kind="stable")).astype(float)


def document(found: Audit) -> dict[str, Any]:
    """The audit as JSON can hold it, with the p and the leak of each file."""
    files = [{**plain(one), "p": one.p, "leak": one.leak} for one in found.files]
    return {**plain(found), "files": files}
