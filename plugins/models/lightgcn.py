"""LightGCN: embeddings averaged over the layers of the user-item graph (He et al., SIGIR 2020, arXiv:2002.02126).

x^0 = [P ; Q],  x^l = D^-1/2 A D^-1/2 x^(l-1),  z = mean of x^0 ... x^n_layers,  score(u, i) = <z_u, z_i>
loss = -mean log(1e-10 + sigmoid(s_up - s_un)) + reg_weight (|P_u|_F + |Q_p|_F + |Q_n|_F) / B

Uses no content: with BPR, the baseline that shows what an encoder's features are worth.
Fidelity: MMRec's variant. It adds 1e-7 to degrees, and the norms of the batch's matrices (of layer 0) are not squared;
the paper has the squared norm.
Shapes: B batch, U users, I items, D embedding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmrec_lmm.api import (
    LAYERS,
    SIZE,
    WEIGHT,
    Batch,
    ConfigValueError,
    DotProduct,
    ItemFeatures,
    Limit,
    TrainingData,
)
from mmrec_lmm.graph import BipartiteGraph, propagate_mean
from mmrec_lmm.losses import batch_norms, bpr


@dataclass(frozen=True)
class LightGCNConfig:
    """MMRec's keys for LightGCN; the defaults are a point of MMRec's grid."""

    LIMITS: ClassVar[Mapping[str, Limit]] = {"embedding_size": SIZE, "n_layers": LAYERS, "reg_weight": WEIGHT}

    embedding_size: int = 64
    n_layers: int = 3
    reg_weight: float = 0.01

    def __post_init__(self) -> None:
        if self.n_layers < 0:
            raise ConfigValueError("n_layers", f"must be 0 or more, got {self.n_layers}")


class LightGCN(DotProduct):
    """Uses no features."""

    def __init__(self, data: TrainingData, features: ItemFeatures, config: LightGCNConfig) -> None:
        super().__init__(data, features, config)
        self.n_layers, self.reg_weight = config.n_layers, config.reg_weight
        self.adjacency = BipartiteGraph(data).adjacency("symmetric", epsilon=1e-7)
        self.user_embedding = nn.Parameter(torch.empty(self.n_users, config.embedding_size))  # (U, D)
        self.item_embedding = nn.Parameter(torch.empty(self.n_items, config.embedding_size))  # (I, D)
        nn.init.xavier_uniform_(self.user_embedding)
        nn.init.xavier_uniform_(self.item_embedding)

    def training_loss(self, batch: Batch) -> Mapping[str, Tensor]:
        lookup = nn.functional.embedding
        all_users, all_items = self.vectors()
        users, positives, negatives = (
            lookup(batch.users, all_users),
            lookup(batch.positives, all_items),
            lookup(batch.negatives, all_items),
        )  # (B, D) each
        norms = batch_norms(
            lookup(batch.users, self.user_embedding),
            lookup(batch.positives, self.item_embedding),
            lookup(batch.negatives, self.item_embedding),
        )
        return {
            "bpr": bpr((users * positives).sum(1), (users * negatives).sum(1)),
            "reg": self.reg_weight * norms,
        }

    def vectors(self) -> tuple[Tensor, Tensor]:
        nodes = torch.cat([self.user_embedding, self.item_embedding])  # (U + I, D)
        users, items = propagate_mean(self.adjacency, nodes, self.n_layers).split([self.n_users, self.n_items])
        return users, items
