"""Popular: ranks items by how often they were chosen. A whole plugin, as small as one gets.

score(u, i) = w log(n_i + smoothing), where n_i counts the training interactions of item i, and w is learned.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mmrec_lmm.api import Batch, ItemFeatures, Limit, ModelSpec, Recommender, Scorer, TrainingData, above, hookimpl


@dataclass(frozen=True)
class PopularConfig:
    """The model's own configuration keys, with types, defaults and limits."""

    LIMITS: ClassVar[Mapping[str, Limit]] = {"smoothing": above(0)}

    smoothing: float = 1.0  # added to each item's count, as 0 has no logarithm


class Popular(Recommender):
    popularity: Tensor  # (I,)

    def __init__(self, data: TrainingData, features: ItemFeatures, config: PopularConfig) -> None:
        super().__init__(data, features, config)
        counts = torch.bincount(torch.as_tensor(data.train.items), minlength=data.n_items)  # (I,)
        self.register_buffer("popularity", torch.log(counts + config.smoothing))
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        scores = self.weight * self.popularity
        return {"bpr": -logsigmoid(scores[batch.positives] - scores[batch.negatives]).mean()}

    def scorer(self) -> Scorer:
        scores = (self.weight * self.popularity).detach()
        return lambda users: scores.expand(len(users), -1)  # (B, I)


@hookimpl
def mmrec_register_models() -> list[ModelSpec]:
    return [ModelSpec("Popular", cls=Popular, config=PopularConfig, summary="by popularity", uses_features=False)]
