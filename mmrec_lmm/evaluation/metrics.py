"""The ranking metrics: Recall, NDCG, Precision, MAP, Hit, MRR; and those of `list_metrics`, which see more than hits.

Each here is a function of `hits` (U, K) bool, whether the item at each rank is one of the user's held-out items,
`n_positives` (U,) the number m >= 1 of the user's held-out rows (a pair that occurs twice counts twice, as in MMRec),
and a cutoff k <= K. Each returns one value per user, (U,) float64 in [0, 1]; what is reported is the mean over users.

The host registers them by the same hook as a plugin's metrics; their entry point is `metrics`.

MMRec's `Recall2`, the sum of hits over the sum of m, isn't a mean over users: no per-user value gives it, so a paired
test can't use it. It is left out.

Shapes: U users, K ranks. Below, h_j is 1 where rank j is a hit, else 0.
"""

from collections.abc import Iterable

import numpy as np

from ..api import MetricSpec, hookimpl
from .list_metrics import auc, coverage, gini, intra_list_diversity, novelty


def recall(hits: np.ndarray, n_positives: np.ndarray, k: int) -> np.ndarray:
    """sum_{j<=k} h_j / m"""
    return hits[:, :k].sum(axis=1) / n_positives


def precision(hits: np.ndarray, n_positives: np.ndarray, k: int) -> np.ndarray:
    """sum_{j<=k} h_j / k"""
    return hits[:, :k].sum(axis=1) / k


def ndcg(hits: np.ndarray, n_positives: np.ndarray, k: int) -> np.ndarray:
    """sum_{j<=k} h_j / log2(j + 1), divided by its greatest value, sum_{j<=min(k, m)} 1 / log2(j + 1)"""
    discounts = 1 / np.log2(np.arange(2, k + 2))  # (k,)
    gained = (hits[:, :k] * discounts).sum(axis=1)  # (U,)
    # Row n - 1 is a user with hits at the first n ranks, added up as the users are: a perfect ranking gives exactly 1.
    ideal = (np.tri(k) * discounts).sum(axis=1)  # (k,)
    return gained / ideal[np.minimum(k, n_positives) - 1]


def average_precision(hits: np.ndarray, n_positives: np.ndarray, k: int) -> np.ndarray:
    """sum_{j<=k} (precision at j) h_j / min(k, m); its mean over users is MAP"""
    hits = hits[:, :k]
    precisions = hits.cumsum(axis=1) / np.arange(1, k + 1)  # (U, k)
    return (precisions * hits).sum(axis=1) / np.minimum(k, n_positives)


def hit(hits: np.ndarray, n_positives: np.ndarray, k: int) -> np.ndarray:
    """1 where any of the first k is a hit, else 0"""
    return np.asarray(hits[:, :k].any(axis=1), dtype=np.float64)


def reciprocal_rank(hits: np.ndarray, n_positives: np.ndarray, k: int) -> np.ndarray:
    """1 / (rank of the first hit), 0 where none of the first k is one; its mean over users is MRR"""
    hits = hits[:, :k]
    return hits.any(axis=1) / (hits.argmax(axis=1) + 1)


METRICS = (
    MetricSpec("Recall", recall, "share of a user's held-out items among the first k"),
    MetricSpec("NDCG", ndcg, "discounted gain of the first k, relative to the best possible"),
    MetricSpec("Precision", precision, "share of held-out items in the first k"),
    MetricSpec("MAP", average_precision, "mean of the precisions at the hits"),
    MetricSpec("Hit", hit, "share of users with a hit among the first k"),
    MetricSpec("MRR", reciprocal_rank, "one over the rank of the first hit"),
    MetricSpec("Coverage", coverage, "share of all items among anybody's first k", context=True, per_user=False),
    MetricSpec(
        "Gini", gini, "inequality of how often items are listed; smaller is fairer",
        context=True, per_user=False, larger_is_better=False,
    ),
    MetricSpec("Novelty", novelty, "mean self-information of the first k, in bits", context=True),
    MetricSpec(
        "ILD", intra_list_diversity, "1 - mean cosine of the first k, by item features", context=True,
        needs=("features",),
    ),
    MetricSpec("AUC", auc, "chance that a held-out item is above another one", context=True, needs=("places",)),
)  # fmt: skip


@hookimpl
def mmrec_register_metrics() -> Iterable[MetricSpec]:
    return METRICS
