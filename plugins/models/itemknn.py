"""ItemKNN: items that the users of a user's items chose, too (Sarwar et al., WWW 2001; Deshpande & Karypis, TOIS 2004).

s_ij = n_ij / (sqrt(n_i n_j) + shrink),  n_ij the users who have both items, n_i those who have item i
score(u, j) = sum over those of j's knn_k most similar items that u has of s_ij

A control without content and parameters.
Fidelity: as in the framework of Ferrari Dacrema et al. (RecSys 2019, arXiv:1907.06902): cosine of binary columns with
shrinkage, neighbors kept by the scored item, no normalization of the sum. Equal similarities keep the lower item id.
Shapes: B batch, U users, I items, K neighbors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from mmrec_lmm.api import SIZE, WEIGHT, ItemFeatures, Limit, ParameterFree, Scorer, TrainingData
from mmrec_lmm.graph import BipartiteGraph, interaction_matrix, most_shared


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
        self._has = interaction_matrix(graph).astype(np.float32)  # (U, I)
        k = min(config.knn_k, data.n_items)
        neighbors, similarities = most_shared(graph, k, of="items", shrink=config.shrink)  # (I, K)
        ends = np.arange(data.n_items + 1) * neighbors.shape[1]
        by_item = csr_array((similarities.ravel(), neighbors.ravel(), ends), shape=(data.n_items, data.n_items))
        self._similar = by_item.T.tocsr()  # (I, I) row i: the items that have i among their neighbors

    def scorer(self) -> Scorer:
        def score(users: Tensor) -> Tensor:
            sums = self._has[users.cpu().numpy()] @ self._similar  # (B, I)
            return torch.from_numpy(sums.toarray()).to(users.device)

        return score
