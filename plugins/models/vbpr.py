"""VBPR: visual Bayesian personalized ranking (He & McAuley, AAAI 2016, arXiv:1510.01784).

score(u, i) = <p_u, [q_i ; W f_i + b]>,  f_i = the item's features of all modalities, side by side
loss = -mean log(1e-10 + sigmoid(s_up - s_un)) + reg_weight (|U_u|_F + |E_p|_F + |E_n|_F) / B

Fidelity: MMRec's variant. It has no item and visual biases, adds the text (before the image), and doesn't square the
norms of the batch's matrices. In training only the rows of the batch are projected, which gives the same values and
gradients as projecting the whole catalog. An item that lacks a modality contributes zeros there.
Shapes: B batch, R distinct items of a batch, U users, I items, D embedding, F features of all modalities together.
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
    ConfigError,
    DotProduct,
    ItemFeatures,
    Limit,
    TrainingData,
    distinct,
    project,
)
from mmrec_lmm.losses import batch_norms, bpr


@dataclass(frozen=True)
class VBPRConfig:
    """MMRec's keys for VBPR; the defaults are a point of MMRec's grid, and the best tried on Baby's validation."""

    LIMITS: ClassVar[Mapping[str, Limit]] = {"embedding_size": SIZE, "reg_weight": WEIGHT}

    embedding_size: int = 64  # of q_i and of W f_i each; users have twice as many
    reg_weight: float = 0.1


class VBPR(DotProduct):
    """Needs at least one modality; takes any."""

    def __init__(self, data: TrainingData, features: ItemFeatures, config: VBPRConfig) -> None:
        super().__init__(data, features, config)
        if not len(features):
            raise ConfigError("VBPR: expected item features, got none; try BPR, which needs none")
        width = config.embedding_size
        self.modalities = sorted(features, reverse=True)  # text before image, as MMRec concatenates
        self.widths = [features.dims[modality] for modality in self.modalities]
        self.reg_weight = config.reg_weight
        self.u_embedding = nn.Parameter(torch.empty(self.n_users, 2 * width))  # (U, 2D)
        self.i_embedding = nn.Parameter(torch.empty(self.n_items, width))  # (I, D)
        self.item_linear = nn.Linear(sum(self.widths), width)  # F -> D
        nn.init.xavier_uniform_(self.u_embedding)
        nn.init.xavier_uniform_(self.i_embedding)
        nn.init.xavier_normal_(self.item_linear.weight)
        nn.init.zeros_(self.item_linear.bias)

    def training_loss(self, batch: Batch) -> Mapping[str, Tensor]:
        items, place, _ = distinct(torch.cat([batch.positives, batch.negatives]))  # (R,), (2B,)
        embeddings = nn.functional.embedding(items, self.i_embedding)  # (R, D)
        vectors = self.item_vectors(self.features.rows(items), embeddings)  # (R, 2D)
        pairs = vectors if place is None else nn.functional.embedding(place, vectors)  # (2B, 2D)
        positives, negatives = pairs.split(len(batch))  # (B, 2D) each
        users = nn.functional.embedding(batch.users, self.u_embedding)  # (B, 2D)
        return {
            "bpr": bpr((users * positives).sum(1), (users * negatives).sum(1)),
            "reg": self.reg_weight * batch_norms(users, positives, negatives),
        }

    def item_vectors(self, features: Mapping[str, Tensor], embeddings: Tensor) -> Tensor:
        """[q_i ; W f_i + b] (R, 2D), from the features and q_i of R items."""
        blocks = self.item_linear.weight.split(self.widths, dim=1)  # W by modality: (D, F_m) each
        projected = self.item_linear.bias + sum(
            project(features[modality], block) for modality, block in zip(self.modalities, blocks, strict=True)
        )
        return torch.cat([embeddings, projected], dim=1)

    def vectors(self) -> tuple[Tensor, Tensor]:
        return self.u_embedding, self.item_vectors(self.features(), self.i_embedding)
