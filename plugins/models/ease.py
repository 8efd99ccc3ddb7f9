"""EASE: the linear model of items from items whose optimum is closed (Steck, WWW 2019, arXiv:1905.03375).

B = argmin |R - R B|^2 + reg_weight |B|^2 with diag(B) = 0: with P = (R'R + reg_weight)^-1, B_ij = -P_ij / P_jj
score(u, .) = r_u B

A control without content and parameters, often hard to beat where items have many users.
Fidelity: the paper's equation, on binary R (a pair that occurs twice counts once), inverted in float64 by Cholesky.
R'R has a number for each two items: the one model here of that size, so it refuses more than MOST_ITEMS items. At that
number building it takes some 10 GB, and the scores need 1.6 GB.
Shapes: B batch, I items.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmrec_lmm.api import ItemFeatures, Limit, NotApplicable, ParameterFree, Scorer, TrainingData, above
from mmrec_lmm.graph import BipartiteGraph, interaction_matrix

MOST_ITEMS = 20_000


@dataclass(frozen=True)
class EASEConfig:
    """The default is the best tried on the validation of Baby and MovieLens-100K together (docs/models.md)."""

    LIMITS: ClassVar[Mapping[str, Limit]] = {"reg_weight": above(0)}

    reg_weight: float = 500.0


class EASE(ParameterFree):
    """Uses no features."""

    weights: Tensor  # (I, I) float32, row i is what having item i adds to each item's score

    def __init__(self, data: TrainingData, features: ItemFeatures, config: EASEConfig) -> None:
        super().__init__(data, features, config)
        if data.n_items > MOST_ITEMS:
            raise NotApplicable(
                f"EASE: expected at most {MOST_ITEMS:,} items, as it inverts a matrix of items by items, got "
                f"{data.n_items:,}; try ItemKNN"
            )
        self.graph = BipartiteGraph(data)
        self.register_buffer("weights", solved(self.graph, config.reg_weight), persistent=False)

    def scorer(self) -> Scorer:
        def score(users: Tensor) -> Tensor:
            rows, items = self.graph.items_of(users)
            starts = torch.searchsorted(rows, torch.arange(len(users), device=rows.device))
            return torch.nn.functional.embedding_bag(items, self.weights, starts, mode="sum")  # (B, I)

        return score


def solved(graph: BipartiteGraph, reg_weight: float) -> Tensor:
    """B (I, I) float32."""
    rows = interaction_matrix(graph)
    gram = torch.from_numpy((rows.T @ rows).toarray())  # (I, I) float64
    gram.diagonal().add_(reg_weight)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    del gram
    inverse.div_(-inverse.diagonal().clone())  # column j by -P_jj
    inverse.diagonal().zero_()
    return inverse.float()
