"""UserKNN: items of the users with whom a user shares most (Resnick et al., CSCW 1994; Herlocker et al., SIGIR 1999).

s_uv = n_uv / (sqrt(n_u n_v) + shrink),  n_uv the items that both users have, n_u those of user u
score(u, j) = sum over those of u's knn_k most similar users who have j of s_uv

A control without content and parameters.
Fidelity: as in the framework of Ferrari Dacrema et al. (RecSys 2019, arXiv:1907.06902): cosine of binary rows with
shrinkage, no normalization of the sum. Equal similarities keep the lower user id.
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
class UserKNNConfig:
    """Data sets differ in their best point: the default is the best of six on Baby; MovieLens-100K wants fewer
    neighbors (docs/models.md)."""

    LIMITS: ClassVar[Mapping[str, Limit]] = {"knn_k": SIZE, "shrink": WEIGHT}

    knn_k: int = 400  # neighbors of a user
    shrink: float = 10.0  # lowers similarities that few items support


class UserKNN(ParameterFree):
    """Uses no features. All matrices are sparse, as are their products, which are computed on the CPU."""

    def __init__(self, data: TrainingData, features: ItemFeatures, config: UserKNNConfig) -> None:
        super().__init__(data, features, config)
        graph = BipartiteGraph(data)
        self._has = interaction_matrix(graph).astype(np.float32)  # (U, I)
        k = min(config.knn_k, data.n_users)
        neighbors, similarities = most_shared(graph, k, of="users", shrink=config.shrink)  # (U, K)
        ends = np.arange(data.n_users + 1) * k
        self._similar = csr_array((similarities.ravel(), neighbors.ravel(), ends), shape=(data.n_users, data.n_users))

    def scorer(self) -> Scorer:
        def score(users: Tensor) -> Tensor:
            sums = self._similar[users.cpu().numpy()] @ self._has  # (B, I)
            return torch.from_numpy(sums.toarray()).to(users.device)

        return score
