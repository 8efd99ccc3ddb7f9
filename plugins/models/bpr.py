"""BPR: matrix factorization by Bayesian personalized ranking (Rendle et al., UAI 2009, arXiv:1205.2618).

score(u, i) = <p_u, q_i>
loss = -mean log(1e-10 + sigmoid(s_up - s_un)) + reg_weight (|P_u|_F + |Q_p|_F + |Q_n|_F) / B,
its mean over all negatives of a positive where N are drawn

Uses no content: with LightGCN, the baseline that shows what an encoder's features are worth.
Fidelity: MMRec's variant. It has no item bias, and doesn't square the norms of the batch's matrices.
Shapes: B batch, N negatives of a positive, U users, I items, D embedding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmrec_lmm.api import (
    SIZE,
    WEIGHT,
    Batch,
    DotProduct,
    ItemFeatures,
    Limit,
    TrainingData,
)
from mmrec_lmm.losses import batch_norms, bpr


@dataclass(frozen=True)
class BPRConfig:
    """MMRec's keys for BPR; the defaults are a point of MMRec's grid."""

    LIMITS: ClassVar[Mapping[str, Limit]] = {"embedding_size": SIZE, "reg_weight": WEIGHT}

    embedding_size: int = 64
    reg_weight: float = 0.1


class BPR(DotProduct):
    """Uses no features."""

    def __init__(self, data: TrainingData, features: ItemFeatures, config: BPRConfig) -> None:
        super().__init__(data, features, config)
        self.reg_weight = config.reg_weight
        self.user_embedding = nn.Parameter(torch.empty(self.n_users, config.embedding_size))  # (U, D)
        self.item_embedding = nn.Parameter(torch.empty(self.n_items, config.embedding_size))  # (I, D)
        nn.init.xavier_normal_(self.user_embedding)
        nn.init.xavier_normal_(self.item_embedding)

    def training_loss(self, batch: Batch) -> Mapping[str, Tensor]:
        users = nn.functional.embedding(batch.users, self.user_embedding)  # (B, D)
        positives = nn.functional.embedding(batch.positives, self.item_embedding)
        negatives = nn.functional.embedding(batch.negatives, self.item_embedding)  # (B, D), or (B, N, D)
        positive, several = (users * positives).sum(1), negatives.ndim == 3
        negative = torch.einsum("bd,bnd->bn", users, negatives) if several else (users * negatives).sum(1)
        return {
            "bpr": bpr(positive.unsqueeze(1) if several else positive, negative),
            "reg": self.reg_weight * batch_norms(users, positives, negatives),
        }

    def vectors(self) -> tuple[Tensor, Tensor]:
        return self.user_embedding, self.item_embedding
