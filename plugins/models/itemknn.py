"""ItemKNN: items that the users of a user's items chose, too (Sarwar et al., WWW 2001; Deshpande & Karypis, TOIS 2004).

s_ij = n_ij / (sqrt(n_i n_j) + shrink),  n_ij the users who have both items, n_i those who have item i
score(u, j) = sum over those of j's knn_k most similar items that u has of s_ij

A control without content and parameters.
Fidelity: as in the framework of Ferrari Dacrema et al. (RecSys 2019, arXiv:1907.06902): cosine of binary columns with
shrinkage, neighbors kept by the scored item, no normalization of the sum. Equal similarities keep the lower item id.
Shapes: B batch, U users, I items, K neighbors, C items of a block.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from mmrec_lmm.api import SIZE, WEIGHT, ItemFeatures, Limit, ParameterFree, Scorer, TrainingData
from mmrec_lmm.graph import BipartiteGraph

BLOCK_ITEMS = 1024  # whose similarities to all items are in memory at once


@dataclass(frozen=True)
class ItemKNNConfig:
    """Data sets differ in their best point: the default is one between those of Baby and MovieLens-100K
    (docs/models.md)."""

    LIMITS: ClassVar[Mapping[str, Limit]] = {"knn_k": SIZE, "shrink": WEIGHT}

    knn_k: int = 100  # neighbors of an item
    shrink: float = 100.0  # lowers similarities that few users support


class ItemKNN(ParameterFree):
    """Uses no features. Both matrices are sparse, as is their product, which is computed on the CPU: a GPU would
    multiply a dense one."""

    def __init__(self, data: TrainingData, features: ItemFeatures, config: ItemKNNConfig) -> None:
        super().__init__(data, features, config)
        graph = BipartiteGraph(data)
        self._has = interactions(graph).astype(np.float32)  # (U, I)
        neighbors, similarities = nearest(graph, min(config.knn_k, data.n_items), config.shrink)
        ends = np.arange(data.n_items + 1) * neighbors.shape[1]
        by_item = csr_array((similarities.ravel(), neighbors.ravel(), ends), shape=(data.n_items, data.n_items))
        self._similar = by_item.T.tocsr()  # (I, I) row i: the items that have i among their neighbors

    def scorer(self) -> Scorer:
        def score(users: Tensor) -> Tensor:
            sums = self._has[users.cpu().numpy()] @ self._similar  # (B, I)
            return torch.from_numpy(sums.toarray()).to(users.device)

        return score


def interactions(graph: BipartiteGraph) -> csr_array:
    """R (U, I): 1 where a user has an item."""
    users, items = graph.users.numpy(), graph.items.numpy()
    return csr_array((np.ones(len(users)), (users, items)), shape=(graph.n_users, graph.n_items))


def nearest(graph: BipartiteGraph, k: int, shrink: float) -> tuple[np.ndarray, np.ndarray]:
    """Each item's `k` most similar others and their similarities, (I, k) int64 and float32; where it has fewer, item 0
    with 0. Items that share no user are never compared."""
    columns = interactions(graph).tocsc()  # (U, I)
    counts = np.bincount(graph.items.numpy(), minlength=graph.n_items)
    neighbors = np.zeros((graph.n_items, k), dtype=np.int64)
    similarities = np.zeros((graph.n_items, k), dtype=np.float32)
    for start in range(0, graph.n_items, BLOCK_ITEMS):
        both = (columns.T @ columns[:, start : start + BLOCK_ITEMS]).tocoo()  # (I, C) n_ij
        other, own = both.coords[0].astype(np.int64), both.coords[1].astype(np.int64) + start
        different = other != own
        other, own, both = other[different], own[different], both.data[different]
        similar = both / (np.sqrt(counts[other] * counts[own]) + shrink)
        order = np.lexsort((other, -similar, own))
        own = own[order]
        rank = np.arange(len(own)) - np.searchsorted(own, own)  # among an item's others
        kept = rank < k
        neighbors[own[kept], rank[kept]] = other[order][kept]
        similarities[own[kept], rank[kept]] = similar[order][kept]
    return neighbors, similarities
