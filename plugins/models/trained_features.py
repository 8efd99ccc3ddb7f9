"""What FREEDOM, BM3 and MGCN share: tables of users and items, and features that train through a projection.

Frozen features are copied, and the copy X_m trains with the model (as in the authors' code), while item graphs stay
those of the features as given. Features that train with their encoder are used directly, without a copy.

Shapes: U users, I items, R rows asked for, D embedding, F_m width of a modality.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mmrec_lmm.api import ConfigError, DotProduct, ItemFeatures, TrainingData
from mmrec_lmm.graph import SparseMatrix, propagate_mean


class TrainedFeatures(DotProduct):
    """The parameters `user_embedding` and `item_id_embedding` of a given width, and by modality m `m_embedding`, which
    is the copy, and `m_trs`: F_m -> D."""

    def __init__(
        self, data: TrainingData, features: ItemFeatures, config: Any, *, width: int, bias: bool = True
    ) -> None:
        super().__init__(data, features, config)
        if not len(features):
            raise ConfigError(
                f"{type(self).__name__}: expected item features, got none; try LightGCN, which needs none"
            )
        self.width, self.modalities = width, sorted(features)
        self.user_embedding = nn.Embedding(self.n_users, width)
        self.item_id_embedding = nn.Embedding(self.n_items, width)
        nn.init.xavier_uniform_(self.user_embedding.weight)
        nn.init.xavier_uniform_(self.item_id_embedding.weight)
        tables = features()
        for modality in self.modalities:
            if not features.joint:
                copy = tables[modality].clone()
                self.add_module(f"{modality}_embedding", nn.Embedding.from_pretrained(copy, freeze=False))
            self.add_module(f"{modality}_trs", nn.Linear(features.dims[modality], width, bias=bias))

    def trs(self, modality: str) -> nn.Linear:
        layer: nn.Linear = getattr(self, f"{modality}_trs")
        return layer

    def feature_table(self, modality: str) -> Tensor:
        """X_m (I, F_m)."""
        return self.features()[modality] if self.features.joint else self.get_parameter(f"{modality}_embedding.weight")

    def feature_rows(self, modality: str, items: Tensor) -> Tensor:
        """X_m of some items (R, F_m)."""
        return nn.functional.embedding(items, self.feature_table(modality))

    def known(self, modality: str) -> Tensor:
        """The items (I,) bool that have a modality: it is present, and its row as given isn't zero."""

        def find() -> Tensor:
            return self.features.present[modality] & (self.features()[modality] != 0).any(dim=1)

        found: Tensor = self.features.derived(f"items with {modality}", find, differentiable=False)
        return found

    def propagate_ids(self, adjacency: SparseMatrix, layers: int) -> tuple[Tensor, Tensor]:
        """The mean of the layers of the user-item graph, of users (U, D) and of items (I, D)."""
        nodes = torch.cat([self.user_embedding.weight, self.item_id_embedding.weight])  # (U + I, D)
        users, items = propagate_mean(adjacency, nodes, layers).split([self.n_users, self.n_items])
        return users, items


def mean_where(values: Tensor, weights: Tensor) -> Tensor:
    """The mean of `values` (R,) with `weights` (R,), whole numbers of at least 0; 0 where all weights are."""
    return (values * weights).sum() / weights.sum().clamp_min(1)
