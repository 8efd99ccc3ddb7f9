"""Metrics of the lists themselves: Coverage, Gini, Novelty, ILD; and AUC, of all candidates.

Each is a function of `ranked`, a RankedLists, and a cutoff k <= K. Novelty, ILD and AUC return one value per user, (U,)
float64; Coverage and Gini one for the lists of all users.

Shapes: U users, K ranks, I items, D features of an item, all modalities side by side.
"""

from collections.abc import Mapping

import numpy as np

from ..types import FeatureTable, RankedLists

_BLOCK_USERS = 1024  # whose sums (., D) are in memory at once


def coverage(ranked: RankedLists, k: int) -> float:
    """The share of the items that can be ranked which are among the first k of anybody."""
    return float((_times_listed(ranked, k) > 0).sum() / max(1, ranked.candidates.sum()))


def gini(ranked: RankedLists, k: int) -> float:
    """sum_i (2 i - n - 1) x_i / (n sum_i x_i), with x_1 <= ... <= x_n the number of lists that have each of the n items
    that can be ranked: 0 if all are listed equally often, 1 - 1 / n if one alone is. Smaller is fairer."""
    times = np.sort(_times_listed(ranked, k)[ranked.candidates])  # (n,)
    n, total = len(times), times.sum()
    if not total:
        return 0.0
    return float(((2 * np.arange(1, n + 1) - n - 1) * times).sum() / (n * total))


def novelty(ranked: RankedLists, k: int) -> np.ndarray:
    """The mean over the first k of -log2(n_i / U), the self-information of having item i, which n_i of all U users have
    in training; an item that nobody has counts as one that one user has. 0 for an empty list."""
    information = -np.log2(np.maximum(ranked.popularity, 1) / ranked.n_users)  # (I,)
    items = ranked.items[:, :k]
    listed = items >= 0
    return (information[items] * listed).sum(axis=1) / np.maximum(listed.sum(axis=1), 1)


def intra_list_diversity(ranked: RankedLists, k: int) -> np.ndarray:
    """1 - the mean cosine of two items among the first k; 0 for a list of fewer than two.

    An item is its features at unit length, modality by modality, side by side: where both have all modalities, the
    cosine is the mean over these. An item without features has cosine 0 with all. With v_i at unit length, the sum over
    ordered pairs is |sum_i v_i|^2 - sum_i |v_i|^2: no cosine of two items is computed.
    """
    from scipy.sparse import csr_array

    vectors = _unit_vectors(ranked.features)  # (I, D)
    squares = np.square(vectors, dtype=np.float64).sum(axis=1)  # (I,) 1, or 0 without features
    items = ranked.items[:, :k]
    listed = items >= 0
    counts = listed.sum(axis=1)
    same = np.zeros(len(items))  # (U,) the sum of cosines over ordered pairs of different items
    for start in range(0, len(items), _BLOCK_USERS):
        rows, mask = items[start : start + _BLOCK_USERS], listed[start : start + _BLOCK_USERS]
        ends = np.concatenate([[0], mask.sum(axis=1).cumsum()])
        lists = csr_array((np.ones(mask.sum(), dtype=np.float32), rows[mask], ends), shape=(len(rows), len(vectors)))
        sums = np.square(lists @ vectors, dtype=np.float64).sum(axis=1)
        same[start : start + len(rows)] = sums - (squares[rows] * mask).sum(axis=1)
    pairs = counts * (counts - 1)
    return np.where(pairs > 0, 1 - same / np.maximum(pairs, 1), 0.0)


def auc(ranked: RankedLists, k: int) -> np.ndarray:
    """The chance that a held-out item scores higher than another candidate, ties counting half: over all candidates, so
    the same at every cutoff. 1/2 where a user has no held-out item, or no other, that can be ranked."""
    places = ranked.places
    assert places is not None
    users = len(ranked.users)
    held_out = np.bincount(places.rows, minlength=users)  # (U,)
    above = np.bincount(places.rows, weights=places.above, minlength=users)
    pairs = held_out * places.others
    return np.where(pairs > 0, 1 - above / np.maximum(pairs, 1), 0.5)


def _times_listed(ranked: RankedLists, k: int) -> np.ndarray:
    """How many lists have each item among their first k, (I,)."""
    items = ranked.items[:, :k]
    return np.bincount(items[items >= 0], minlength=len(ranked.candidates))


def _unit_vectors(features: Mapping[str, FeatureTable]) -> np.ndarray:
    """(I, D) float32 of unit length, or zero."""
    parts = [_unit(np.asarray(table.values, dtype=np.float32)) for table in features.values()]
    return _unit(np.concatenate(parts, axis=1))


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows at unit length, or zero; however small or large their numbers, whose squares float32 may not hold."""
    sizes = np.abs(rows).max(axis=1, keepdims=True, initial=0)
    rows = rows / np.where(sizes > 0, sizes, 1)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)
