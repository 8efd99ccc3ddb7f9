"""What SLMRec and MMGCL share: one user table and an item table per source, propagated, then read out.

The sources are the item's id and each of its modalities: s_id = q_i and s_m = W_m f_i / |f_i| + b_m, zero where the
item lacks the modality. The same user table u stands above each: X_c = [u ; s_c]. Propagation is
P(X) = mean of X, S X, ..., S^L X, and a read-out W [P(X_id) ; P(X_image) ; ...] + b turns the sources into one vector.

Three things keep this cheap, and exact:
P and the read-out are linear, so that W P(X) = P(W X): read-outs propagate D columns instead of S D.
The graph is bipartite, so that one side's rows need only every other block of the layers (graph.propagate_mean_to).
Normalising features is a factor per row, applied after the projection: no normalised copy of a table is kept.

Shapes: U users, I items, R rows asked for, D embedding, S sources.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmrec_lmm.api import ConfigError, DotProduct, ItemFeatures, TrainingData
from mmrec_lmm.graph import Side, SparseMatrix, propagate_mean_to

_SHORT = {"image": "v", "text": "t", "audio": "a"}


def short_name(modality: str) -> str:
    """A modality as the authors' parameters call it: v(isual), t(ext), a(udio); any other by its full name."""
    return _SHORT.get(modality, modality)


def rows(table: Tensor, ids: Tensor) -> Tensor:
    """table[ids] (R, D), with a backward pass that adds up repeated ids quickly."""
    return nn.functional.embedding(ids, table)


class Sources(DotProduct):
    """The tables, their propagation over `adjacency`, and the read-outs; a subclass adds its loss.

    `readers` are its names of the read-outs of users and of items. It calls `glorot` when all its layers stand.
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
        readers: tuple[str, str],
    ) -> None:
        super().__init__(data, features, config)
        if not len(features):
            raise ConfigError(f"{type(self).__name__} needs item features, but this run has none; LightGCN needs none")
        self.width, self.layers = width, layers
        self.modalities = sorted(features)
        self.embedding_user = nn.Embedding(self.n_users, width)
        self.embedding_item = nn.Embedding(self.n_items, width)
        for modality in self.modalities:
            self.add_module(f"{short_name(modality)}_dense", nn.Linear(features.dims[modality], width))
        self._readers: Mapping[Side, str] = {"users": readers[0], "items": readers[1]}
        for name in readers:
            self.add_module(name, nn.Linear((1 + len(features)) * width, width))  # S D -> D

    def glorot(self) -> None:
        """Draw every weight matrix anew, Glorot uniform; biases keep torch's default."""
        for module in self.modules():
            if isinstance(module, nn.Embedding | nn.Linear):
                nn.init.xavier_uniform_(module.weight)

    def sources(self) -> Tensor:
        """The item tables side by side: id first, then the modalities by name (I, S D)."""
        tables = self.features()
        return torch.cat([self.embedding_item.weight, *(self._projected(m, tables[m]) for m in self.modalities)], dim=1)

    def _projected(self, modality: str, table: Tensor) -> Tensor:
        """W f / |f| + b (I, D), zero for items without the modality."""
        dense: nn.Linear = getattr(self, f"{short_name(modality)}_dense")
        scale = self.features.derived(f"1 / norms of {modality}", lambda: 1 / _norms(table))  # (I, 1)
        projected = torch.addcmul(dense.bias, table @ dense.weight.T, scale)
        return projected * self.features.present[modality].unsqueeze(1)

    def propagated(self, side: Side, matrix: SparseMatrix, sources: Tensor, ids: Tensor) -> Tensor:
        """P(X_c) of each source in `sources` (I, S D), side by side, for some users or items (R, S D).

        What starts at users is the same for every source, so that it is propagated once.
        """
        from_items = rows(propagate_mean_to(side, matrix, None, sources, self.layers), ids)  # (R, S D)
        from_users = rows(propagate_mean_to(side, matrix, self.embedding_user.weight, None, self.layers), ids)  # (R, D)
        return (from_items.unflatten(1, (-1, self.width)) + from_users.unsqueeze(1)).flatten(1)

    def reader(self, side: Side) -> nn.Linear:
        """The read-out of one side's propagated sources: S D -> D."""
        reader: nn.Linear = getattr(self, self._readers[side])
        return reader

    def mixed(self, side: Side, sources: Tensor) -> tuple[Tensor, Tensor]:
        """A read-out's weights applied before propagation: users (U, D) and items (I, D), for `read_out`."""
        weight = self.reader(side).weight  # (D, S D)
        shared = weight.unflatten(1, (-1, self.width)).sum(dim=1)  # (D, D): every source has the same users
        return self.embedding_user.weight @ shared.T, sources @ weight.T

    def read_out(self, side: Side, matrix: SparseMatrix, mixed: tuple[Tensor, Tensor], ids: Tensor) -> Tensor:
        """What the read-out makes of the propagated sources of some users, or items (R, D)."""
        return rows(propagate_mean_to(side, matrix, *mixed, self.layers), ids) + self.reader(side).bias

    def vectors(self) -> tuple[Tensor, Tensor]:
        sources = self.sources()
        users, items = (
            propagate_mean_to(side, self.adjacency, *self.mixed(side, sources), self.layers) + self.reader(side).bias
            for side in ("users", "items")
        )
        return users, items


def _norms(table: Tensor) -> Tensor:
    """The length of each row (I, 1); a row of zeros gets a tiny one, and stays zero when divided by it."""
    return torch.linalg.vector_norm(table, dim=1, keepdim=True).clamp_min(1e-12)
