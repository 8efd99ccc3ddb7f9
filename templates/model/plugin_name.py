"""PluginName: matrix factorization with a projection of item features. Replace this by what your model does.

score(u, i) = <p_u, q_i + sum over modalities m of W_m f_im>
Shapes: B batch, U users, I items, D embedding, F feature width of a modality.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmrec_lmm.api import Batch, DotProduct, ItemFeatures, Limit, ModelSpec, TrainingData, at_least, hookimpl, project


@dataclass(frozen=True)
class PluginNameConfig:
    """The model's own configuration keys, with types, defaults and limits."""

    LIMITS: ClassVar[Mapping[str, Limit]] = {"embedding_size": at_least(1), "reg_weight": at_least(0)}

    embedding_size: int = 64
    reg_weight: float = 1e-4  # of the squared norms of a batch's embeddings


class PluginName(DotProduct):
    def __init__(self, data: TrainingData, features: ItemFeatures, config: PluginNameConfig) -> None:
        super().__init__(data, features, config)
        width = config.embedding_size
        self.users = nn.Parameter(nn.init.xavier_normal_(torch.empty(data.n_users, width)))  # (U, D)
        self.items = nn.Parameter(nn.init.xavier_normal_(torch.empty(data.n_items, width)))  # (I, D)
        self.projections = nn.ParameterDict(
            {modality: nn.init.xavier_normal_(torch.empty(width, dim)) for modality, dim in features.dims.items()}
        )  # (D, F) each

    def vectors(self) -> tuple[Tensor, Tensor]:
        """(U, D) and (I, D). Features are read at every call: end-to-end training refreshes them."""
        items: Tensor = self.items
        for modality, table in self.features().items():
            items = items + project(table, self.projections[modality])
        return self.users, items

    def training_loss(self, batch: Batch) -> Mapping[str, Tensor]:
        users, items = self.vectors()
        own, liked, other = users[batch.users], items[batch.positives], items[batch.negatives]  # (B, D) each
        difference = (own * (liked - other)).sum(dim=1)  # (B,)
        norms = own.square().sum() + self.items[batch.positives].square().sum()
        return {
            "bpr": nn.functional.softplus(-difference).mean(),
            "reg": self.config.reg_weight * norms / len(difference),
        }


@hookimpl
def mmrec_register_models() -> list[ModelSpec]:
    return [ModelSpec("PluginName", cls=PluginName, config=PluginNameConfig, summary="matrix factorization")]
