"""Image-text retrieval of held-out items: the ranks of true counterparts, and recall before and after tuning.

Shapes: Q queries, D feature width.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CUTOFFS = (1, 10)  # of the recalls that are reported
RESAMPLES = 10_000  # of the queries, for an interval
_BLOCK = 1024  # queries compared with all candidates at once


@dataclass(frozen=True)
class RecallChange:
    """A recall before and after tuning, and the difference, each with the ends of its 95 % interval."""

    before: tuple[float, float, float]
    after: tuple[float, float, float]
    difference: tuple[float, float, float]


def own_ranks(queries: Tensor, candidates: Tensor, groups: np.ndarray) -> np.ndarray:
    """The rank (Q,), from 0, of the best candidate of each query's own group.

    Queries and candidates are rows (Q, D); similarity is the dot product. An equally similar candidate of another group
    is ranked first, so constant vectors find nothing.
    """
    names = torch.from_numpy(groups)
    ranks = []
    for rows, own in zip(queries.split(_BLOCK), names.split(_BLOCK), strict=True):
        similarities = rows @ candidates.T  # (block, Q)
        mine = own[:, None] == names  # (block, Q)
        best = similarities.masked_fill(~mine, -math.inf).amax(dim=1, keepdim=True)
        ranks.append(((similarities >= best) & ~mine).sum(dim=1))
    return torch.cat(ranks).numpy()


def compared(before: np.ndarray, after: np.ndarray, rng: np.random.Generator) -> RecallChange:
    """The shares of hits before and after among the same queries (Q,) bool, and their difference, each with its 95 %
    interval.

    The intervals are percentiles over bootstrap resamples of the queries. A query is one of four kinds: hit or missed,
    before and after. The numbers of each kind in a resample are multinomial, so queries aren't drawn one by one.
    """
    kinds = np.bincount(2 * before + after, minlength=4) / len(before)  # missed twice, gained, lost, hit twice
    resamples = rng.multinomial(len(before), kinds, size=RESAMPLES) / len(before)  # (RESAMPLES, 4)

    def estimate(*signs: int) -> tuple[float, float, float]:
        low, high = np.percentile(resamples @ np.array(signs), [2.5, 97.5]).tolist()
        return float(kinds @ signs), low, high

    return RecallChange(estimate(0, 0, 1, 1), estimate(0, 1, 0, 1), estimate(0, 1, -1, 0))
