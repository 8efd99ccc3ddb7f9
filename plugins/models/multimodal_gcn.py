"""The graph convolution that SLMRec and MMGCL share: user and item embeddings per source, propagated, then read out.

A source is the item's id or one of its modalities: s_id = q_i and s_m = W_m f_i / |f_i| + b_m, zero where the item
lacks the modality; or, without `dense`, the features as they are, s_m = f_i. All sources share the user embeddings u:
X_c = [u ; s_c]. Propagation is P(X) = mean of X, S X, ..., S^L X, and a readout W [P(X_id) ; P(X_image) ; ...] + b
turns the sources into one vector.

Three things keep this cheap, and exact:
P and the readout are linear, so W P(X) = P(W X): readouts propagate D columns instead of S D.
The graph is bipartite, so one side's rows need only every other block of the layers (graph.propagate_mean_to).
Normalizing features is a factor per row, applied after the projection: no normalized copy of a table is kept.

Shapes: U users, I items, R rows asked for, D embedding, S sources.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmrec_lmm.api import ConfigError, DotProduct, ItemFeatures, TrainingData, project
from mmrec_lmm.graph import Side, SparseMatrix, propagate_mean_to

_SHORT = {"image": "v", "text": "t", "audio": "a"}


def short_name(modality: str) -> str:
    """A modality as the authors' parameters call it: v(isual), t(ext), a(udio); any other by its full name."""
    return _SHORT.get(modality, modality)


def rows(table: Tensor, ids: Tensor) -> Tensor:
    """table[ids] (R, D), with a backward pass that adds up repeated ids quickly."""
    return nn.functional.embedding(ids, table)


class MultimodalGCN(DotProduct):
    """The embeddings, their propagation over `adjacency`, and the readouts; a subclass adds its loss.

    `readouts` are a subclass's parameter names of the readouts of users and of items. A subclass calls
    `init_weights` after it has added all its layers.
    """

    adjacency: SparseMatrix

    def __init__(
        self,
        data: TrainingData,
        features: ItemFeatures,
        config: Any,
        *,
        width: int,
        layers: int,
        readouts: tuple[str, str],
        dense: bool = True,
    ) -> None:
        super().__init__(data, features, config)
        if not len(features):
            raise ConfigError(
                f"{type(self).__name__}: expected item features, got none; try LightGCN, which needs none"
            )
        self.width, self.layers, self.dense = width, layers, dense
        self.modalities = sorted(features)
        self.embedding_user = nn.Embedding(self.n_users, width)
        self.embedding_item = nn.Embedding(self.n_items, width)
        for modality in self.modalities if dense else ():
            self.add_module(f"{short_name(modality)}_dense", nn.Linear(features.dims[modality], width))
        self._readouts: Mapping[Side, str] = {"users": readouts[0], "items": readouts[1]}
        for name in readouts:
            self.add_module(name, nn.Linear((1 + len(features)) * width, width))  # S D -> D

    def init_weights(self) -> None:
        """Draw every weight matrix again, Xavier uniform; biases keep torch's default."""
        for module in self.modules():
            if isinstance(module, nn.Embedding | nn.Linear):
                nn.init.xavier_uniform_(module.weight)

    def sources(self) -> Tensor:
        """The items' embeddings by source, side by side: id first, then the modalities by name (I, S D)."""
        tables = self.features()
        return torch.cat([self.embedding_item.weight, *(self._project(m, tables[m]) for m in self.modalities)], dim=1)

    def _project(self, modality: str, table: Tensor) -> Tensor:
        """W f / |f| + b, or f (I, D); zero for items without the modality."""
        if not self.dense:
            return table * self.features.present[modality].unsqueeze(1)
        dense: nn.Linear = getattr(self, f"{short_name(modality)}_dense")
        scale = self.features.derived(f"1 / norms of {modality}", lambda: 1 / _norms(table))  # (I, 1)
        projected = torch.addcmul(dense.bias, project(table, dense.weight), scale)
        return projected * self.features.present[modality].unsqueeze(1)

    def propagate_sources(self, side: Side, matrix: SparseMatrix, sources: Tensor, ids: Tensor) -> Tensor:
        """P(X_c) of each source in `sources` (I, S D), side by side, for some users or items (R, S D).

        The users' embeddings are the same for every source, so they are propagated once.
        """
        from_items = rows(propagate_mean_to(side, matrix, None, sources, self.layers), ids)  # (R, S D)
        from_users = rows(propagate_mean_to(side, matrix, self.embedding_user.weight, None, self.layers), ids)  # (R, D)
        return (from_items.unflatten(1, (-1, self.width)) + from_users.unsqueeze(1)).flatten(1)

    def readout(self, side: Side) -> nn.Linear:
        """The layer that turns one side's propagated sources into its vectors: S D -> D."""
        layer: nn.Linear = getattr(self, self._readouts[side])
        return layer

    def readout_inputs(self, side: Side, sources: Tensor) -> tuple[Tensor, Tensor]:
        """A readout's weights applied before propagation: users (U, D) and items (I, D), for `read_out`."""
        weight = self.readout(side).weight  # (D, S D)
        shared = weight.unflatten(1, (-1, self.width)).sum(dim=1)  # (D, D): every source has the same users
        return self.embedding_user.weight @ shared.T, sources @ weight.T

    def read_out(self, side: Side, matrix: SparseMatrix, inputs: tuple[Tensor, Tensor], ids: Tensor) -> Tensor:
        """The vectors of some users or items (R, D), from the `readout_inputs` of all."""
        return rows(propagate_mean_to(side, matrix, *inputs, self.layers), ids) + self.readout(side).bias

    def vectors(self) -> tuple[Tensor, Tensor]:
        sources = self.sources()
        users, items = (
            propagate_mean_to(side, self.adjacency, *self.readout_inputs(side, sources), self.layers)
            + self.readout(side).bias
            for side in ("users", "items")
        )
        return users, items


def _norms(table: Tensor) -> Tensor:
    """The norm of each row (I, 1); that of a zero row is set to 1e-12, so dividing by it leaves zeros."""
    return torch.linalg.vector_norm(table, dim=1, keepdim=True).clamp_min(1e-12)
