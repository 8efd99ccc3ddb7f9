"""Three measures that judge item features before any recommender is trained on them.

They read the features and the training interactions alone; `Probed` has them all.

neighbor agreement: are an item's neighbors in its features those of its buyers? N_x(i) are the k items of largest
    cosine, N_c(i) up to k items of largest C_ij / sqrt(C_ii C_jj), where C_ij > 0 counts the users who have both i and
    j in train. recall = mean of |N_x & N_c| / min(k, |N_c|). Ties in C and equal rows go to the lower id. An item with
    empty N_c doesn't count. Random neighbors would reach k / (n - 1).
image-text recall: is an item's own text among the K of largest cosine to its image, and back. It needs one space.
linear CKA: do two modalities arrange the items alike (Kornblith et al., ICML 2019), from the unbiased HSIC of Song et
    al. (JMLR 2012), which few items don't bias upwards. 0: not at all; 1: up to rotation and scale.

No matrix of all items by all items is held.

Shapes: I items of the data set, n items that have the modality, p and q feature widths, b rows of a block.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from scipy import sparse, special
from torch import Tensor

from ..evaluation.ranking import Ranker
from ..evaluation.retrieval import own_ranks
from ..evaluation.statistics import LEVEL, bootstrap, percentile_interval
from ..plugin.contracts import DotProduct
from ..types import FeatureTable, Interactions

NEIGHBORS = 10  # of an item
CUTOFFS = (1, 5, 10)  # of image-text recall
PARTS = 3  # of the items by popularity
PAIR = ("image", "text")

_BLOCK_BYTES = 64 << 20  # of float64 at once
_ROUNDING = 12  # decimals of unit rows that are more than rounding errors


@dataclass(frozen=True)
class Estimate:
    """A value, and the ends of its 95 % interval over items."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Skipped:
    """A measure that these features don't have."""

    reason: str


@dataclass(frozen=True)
class Tercile:
    """A third of the items by popularity: the training rows that its items have, and its recall."""

    items: int
    least: int
    most: int
    recall: Estimate


@dataclass(frozen=True)
class Agreement:
    """How many of an item's `k` neighbors by co-purchase are among its `k` neighbors by features.

    `left_out` items have the modality, but share no user with another that has it.
    """

    k: int
    items: int
    left_out: int
    recall: Estimate
    chance: float
    lift: float
    terciles: tuple[Tercile, ...]  # the least popular first; () for fewer items than parts


@dataclass(frozen=True)
class Retrieval:
    """Image-text recall among `items`, by direction and cutoff, and that of random vectors."""

    items: int
    chance: Mapping[str, float]
    recall: Mapping[str, Mapping[str, Estimate]]


@dataclass(frozen=True)
class Similarity:
    """The linear CKA of two modalities over the items that have both."""

    items: int
    cka: Estimate


@dataclass(frozen=True)
class Probed:
    """All measures of a data set's features."""

    neighbors: Mapping[str, Agreement | Skipped]  # by modality
    retrieval: Retrieval | Skipped
    similarity: Mapping[str, Similarity | Skipped]  # by pair of modalities, such as image-text


def probe(tables: Mapping[str, FeatureTable], train: Interactions) -> Probed:
    """Measure features, by modality, against each other and against the training interactions."""
    return Probed(
        neighbors={name: neighbor_agreement(table, train) for name, table in tables.items()},
        retrieval=image_text_recall(tables),
        similarity={f"{one}-{other}": cka(tables[one], tables[other]) for one, other in combinations(tables, 2)},
    )


# Neighbors


def neighbor_agreement(table: FeatureTable, train: Interactions, *, k: int = NEIGHBORS) -> Agreement | Skipped:
    """Neighbor agreement among the items that have the modality."""
    items = np.flatnonzero(table.present)
    n, k = len(items), min(k, len(items) - 1)
    if k < 1:
        return Skipped(f"{n} of {len(table.present):,} items have {table.modality}: there are no neighbors")
    bought = feedback(train, len(table.present))[:, items]  # (users, n)
    theirs = co_purchase_neighbors(bought, k)
    counted = np.flatnonzero(theirs[:, 0] >= 0)
    if not len(counted):
        return Skipped(f"no user has two items with {table.modality} in train")
    ours = feature_neighbors(table.values[items], k)
    common = (ours[:, :, None] == theirs[:, None, :]).any(axis=1).sum(axis=1)  # (n,)
    recall = common[counted] / (theirs[counted] >= 0).sum(axis=1)
    rows = np.asarray(bought.sum(axis=0)).ravel().astype(int)[counted]
    by_popularity = np.argsort(rows, kind="stable")
    parts = np.array_split(by_popularity, PARTS) if len(counted) >= PARTS else []
    mean, chance = mean_over_items(recall), k / (n - 1)
    return Agreement(
        k=k,
        items=len(counted),
        left_out=n - len(counted),
        recall=mean,
        chance=chance,
        lift=mean.value / chance,
        terciles=tuple(
            Tercile(len(part), int(rows[part].min()), int(rows[part].max()), mean_over_items(recall[part]))
            for part in parts
        ),
    )


def feedback(train: Interactions, n_items: int) -> sparse.csc_array:
    """Who has what, (users, I) of 0 and 1; a repeated row counts once."""
    n_users = int(train.users.max(initial=-1)) + 1
    ones = np.ones(len(train))
    matrix = sparse.csc_array((ones, (train.users, train.items)), shape=(n_users, n_items))
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def co_purchase_neighbors(bought: sparse.csc_array, k: int) -> np.ndarray:
    """The up to `k` items (n, k) that share most users with each, best first, then -1; `bought` is (users, n)."""
    n = bought.shape[1]
    degrees = np.asarray(bought.sum(axis=0)).ravel()  # (n,)
    neighbors = np.full((n, k), -1, dtype=np.int64)
    for start, stop in _blocks(n, n):
        shared = (bought[:, start:stop].T @ bought).tocoo()  # (b, n)
        rows, columns, counts = shared.row, shared.col, shared.data
        other = rows + start != columns
        rows, columns, counts = rows[other], columns[other], counts[other]
        scores = counts**2 / degrees[columns]  # orders a row as its cosine does, and equal ones are equal to the bit
        order = np.lexsort((columns, -scores, rows))
        rows, columns = rows[order], columns[order]
        place = np.arange(len(rows)) - np.searchsorted(rows, rows)  # in its row
        best = place < k
        neighbors[start + rows[best], place[best]] = columns[best]
    return neighbors


class _Cosines(DotProduct):
    """Scores that order the other rows of (n, p) by their cosine to each row, for a Ranker.

    With d = x / |x| - m, where m is the mean of x / |x|, cos(i, j) = d_i . d_j + m . d_j + a number that depends on i
    alone. Where rows hardly differ, as those of an untrained network, float32 would lose the cosines' differences.
    """

    def __init__(self, values: np.ndarray) -> None:
        torch.nn.Module.__init__(self)
        rows = unit_rows(values)
        mean = rows.mean(axis=0)
        rows -= mean
        np.round(rows, _ROUNDING, out=rows)
        self._queries, self._candidates = (torch.empty(len(rows), rows.shape[1] + 1) for _ in range(2))
        self._queries[:, :-1] = self._candidates[:, :-1] = torch.from_numpy(rows)
        self._queries[:, -1] = 1
        self._candidates[:, -1] = torch.from_numpy(rows @ mean)

    def training_loss(self, batch: object) -> dict[str, Tensor]:
        return {}

    def vectors(self) -> tuple[Tensor, Tensor]:
        return self._queries, self._candidates


def feature_neighbors(values: np.ndarray, k: int) -> np.ndarray:
    """The `k` other rows (n, k) of largest cosine to each row of (n, p), best first; k < n. A zero row has cosine 0 to
    all."""
    every = np.arange(len(values))
    itself = Interactions(every, every)
    return Ranker(every, [itself], len(values)).top(_Cosines(values), k).numpy()


def unit_rows(values: np.ndarray) -> np.ndarray:
    """Rows of length 1, float64; zero rows stay zero."""
    rows = values.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)


# Image and text


def image_text_recall(tables: Mapping[str, FeatureTable]) -> Retrieval | Skipped:
    """Image-text recall among the items that have both, where both have one width: another item's row that is equally
    similar ranks first, so rows that are all alike find nothing."""
    if absent := [modality for modality in PAIR if modality not in tables]:
        return Skipped(f"there are no {' and no '.join(absent)} features")
    image, text = (tables[modality] for modality in PAIR)
    if image.dim != text.dim:
        return Skipped(f"image has {image.dim:,} numbers and text {text.dim:,}: they share no space")
    both = image.present & text.present
    n = int(both.sum())
    if n < 2:
        return Skipped(f"{n} of {len(both):,} items have image and text")
    every = np.arange(n)
    images, texts = (torch.from_numpy(unit_rows(table.values[both]).astype(np.float32)) for table in (image, text))
    ranks = {"image to text": own_ranks(images, texts, every), "text to image": own_ranks(texts, images, every)}
    recall = {
        way: {f"recall@{cutoff}": mean_over_items(found < cutoff) for cutoff in CUTOFFS} for way, found in ranks.items()
    }
    return Retrieval(n, {f"recall@{cutoff}": min(1.0, cutoff / n) for cutoff in CUTOFFS}, recall)


# Similarity of modalities


def cka(one: FeatureTable, other: FeatureTable) -> Similarity | Skipped:
    """The debiased linear CKA of two tables, over the items that have both."""
    both = one.present & other.present
    n = int(both.sum())
    if n < 5:
        return Skipped(f"{n} of {len(both):,} items have {one.modality} and {other.modality}: CKA needs 5")
    constant = [table.modality for table in (one, other) if (table.values[both] == table.values[both][0]).all()]
    if constant:
        return Skipped(f"all items have the same {constant[0]} features")
    found = linear_cka(one.values[both], other.values[both])
    if not np.isfinite([found.value, found.low, found.high]).all():
        return Skipped("rows that are all equally far apart, or all but one alike, make CKA or its interval 0 / 0")
    return Similarity(n, found)


def linear_cka(x: np.ndarray, y: np.ndarray) -> Estimate:
    """The debiased linear CKA of rows (n, p) and (n, q), n > 4, not all equal; its interval is the jackknife's. NaN
    where a HSIC of either with itself isn't above 0.

    HSIC(K, L) = [tr(KL) + (1'K1)(1'L1) / ((n-1)(n-2)) - 2/(n-2) 1'KL1] / (n(n-3)) of K = XX' and L = YY' without their
    diagonals, and CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)). Moving or scaling all rows changes nothing.
    """
    x, y = _centered(x), _centered(y)
    cross, own_x, own_y = _hsic(x, y), _hsic(x, x), _hsic(y, y)
    is_defined = np.minimum(own_x, own_y) > 1e-12  # of rows of length about 1; less is rounding
    length = np.sqrt(np.abs(own_x * own_y))
    values = np.divide(cross, length, out=np.full(len(cross), np.nan), where=is_defined)  # (n + 1,)
    value, without = float(values[0]), values[1:]
    n = len(x)
    error = np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
    half = float(error * special.stdtrit(n - 1, (1 + LEVEL) / 2))
    return Estimate(value, max(-1.0, value - half), min(1.0, value + half))


def _centered(values: np.ndarray) -> np.ndarray:
    """Rows less their mean, of length about 1, float64."""
    rows = values.astype(np.float64)
    rows -= rows.mean(axis=0)
    rows /= np.abs(rows).max()
    rows /= np.sqrt(np.einsum("ij,ij->", rows, rows) / len(rows))
    return rows


def _hsic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """HSIC (n + 1,) of centered rows (n, p) and (n, q): of all items, and without each of them."""
    n = len(x)
    square_x, square_y = np.einsum("ij,ij->i", x, x), np.einsum("ij,ij->i", y, y)  # the diagonals (n,)
    sum_x, sum_y = -square_x, -square_y  # K1 and L1: centered rows add up to zero
    products = _row_products(x, y) - square_x * square_y  # the diagonal of KL
    crossed = (x @ (x.T @ sum_y) - square_x * sum_y) + (y @ (y.T @ sum_x) - square_y * sum_x)  # KL1 + LK1

    def value(n: int, trace: np.ndarray, all_x: np.ndarray, all_y: np.ndarray, both: np.ndarray) -> np.ndarray:
        found = trace + all_x * all_y / ((n - 1) * (n - 2)) - 2 / (n - 2) * both
        return np.asarray(found / (n * (n - 3)))

    trace, all_x, all_y, both = products.sum(), sum_x.sum(), sum_y.sum(), sum_x @ sum_y
    of_all = value(n, trace, all_x, all_y, both)
    without = value(
        n - 1,
        trace - 2 * products,
        all_x - 2 * sum_x,
        all_y - 2 * sum_y,
        both - sum_x * sum_y - crossed + products,
    )
    return np.concatenate([[of_all], without])


def _row_products(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The sums (n,) over j of (x_i . x_j)(y_i . y_j), by whichever matrix is smaller."""
    n, p, q = len(x), x.shape[1], y.shape[1]
    found = np.empty(n)
    if n * (p + q) > 2 * p * q:
        moments = x.T @ y  # (p, q)
        for start, stop in _blocks(n, q):
            found[start:stop] = np.einsum("ij,ij->i", x[start:stop] @ moments, y[start:stop])
    else:
        for start, stop in _blocks(n, 2 * n):
            found[start:stop] = np.einsum("ij,ij->i", x[start:stop] @ x.T, y[start:stop] @ y.T)
    return found


# Both


def mean_over_items(values: np.ndarray) -> Estimate:
    """The mean of values (n,), with the percentile interval of the bootstrap over them."""
    column = values.astype(np.float64)[:, None]
    low, high = percentile_interval(bootstrap(column))[:, 0].tolist()
    return Estimate(float(column.mean()), low, high)


def _blocks(rows: int, width: int) -> Iterator[tuple[int, int]]:
    """First and last + 1 of blocks of rows, each of which has _BLOCK_BYTES of float64 at most."""
    size = max(1, _BLOCK_BYTES // (8 * max(1, width)))
    for start in range(0, rows, size):
        yield start, min(rows, start + size)
