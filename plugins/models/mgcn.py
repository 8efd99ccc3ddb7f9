"""MGCN: multi-view graph convolutional network for multimedia recommendation (Yu et al., ACM MM 2023,
arXiv:2308.03588).

The item embeddings Q decide what of each modality counts (purifier); an item graph and the user-item graph propagate
the result E_m (item view), the latter also the ids, C (behavior view); attention finds what the modalities have in
common, K, and C decides what counts of the rest (fuser).

x_m = Q * sigmoid(gate_m(trs_m(X_m))),  y_m = L_m^n_layers x_m,  E_m = [R y_m ; y_m],  L_m = D^-1/2 kNN(raw_m) D^-1/2
C = mean of layers of S = D^-1/2 A D^-1/2 on [P ; Q],  R = the rows of users of S
K = sum_m a_m E_m,  a = softmax over m of q tanh(W E_m + b),  Z_m = sigmoid(prefer_m(C)) * (E_m - K)
side = (sum_m Z_m + K) / (M + 1),  z = C + side,  score(u, i) = <z_u, z_i>
loss = -mean log sigmoid(s_up - s_un) + reg_weight (|z_u|^2 + |z_p|^2 + |z_n|^2) / 2B
       + cl_loss (InfoNCE(side_u -> C_u; .2) + InfoNCE(side_p -> C_p; .2)), of unit length, within the batch

All after y_m is row by row, so a batch computes it for its own rows alone.

Fidelity: MMRec's code, which is the authors'; tests compare it with that code's values to 1e-5. X_m is a trainable copy
of the features; L_m is of the features as given, with cosines as weights, from the run's own features (MMRec reads a
cached file that may be of others), and made again at each full refresh of joint ones. The paper adds to K the mean of
Z_m: `fusion: paper`. Its contrast has all users and items in the denominator; the code's, and ours, the batch. A user
or item that is in a batch twice is its own negative, as in the code. `reg_batch_size` and `knn_ties` as in LATTICE.
Ours: any number of modalities (MMRec's code needs two; of one, K = E and Z = 0). An item that lacks a modality (absent,
or a zero row, which makes MMRec's loss NaN) has x_m = 0 and only itself as a neighbor there, and the softmax of items
is over what they have. An item without any has side = 0, and no part in the contrast. A row of kNN whose cosines don't
sum to more than 0 vanishes (in MMRec it is NaN).
Shapes: B batch, R rows, U users, I items, D embedding, M modalities.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, normalize

from mmrec_lmm.api import (
    LAYERS,
    SIZE,
    WEIGHT,
    Batch,
    ItemFeatures,
    Limit,
    TrainingData,
    distinct,
    project,
)
from mmrec_lmm.graph import (
    BipartiteGraph,
    SparseMatrix,
    nearest_neighbors,
    propagate,
    propagate_to,
    symmetric_weights,
)
from mmrec_lmm.losses import bpr, info_nce

from .multimodal_gcn import short_name
from .trained_features import TrainedFeatures

_TEMPERATURE = 0.2  # written into the authors' loss


@dataclass(frozen=True)
class MGCNConfig:
    """MMRec's keys for MGCN; the defaults are a point of its grid."""

    LIMITS: ClassVar[Mapping[str, Limit]] = {
        **dict.fromkeys(("embedding_size", "knn_k", "reg_batch_size"), SIZE),
        **dict.fromkeys(("n_ui_layers", "n_layers"), LAYERS),
        **dict.fromkeys(("cl_loss", "reg_weight"), WEIGHT),
    }

    embedding_size: int = 64
    n_ui_layers: int = 2  # of the user-item graph
    n_layers: int = 1  # of the item graphs
    knn_k: int = 10  # neighbors per graph, the item itself among them
    knn_ties: Literal["own_first", "topk"] = "own_first"  # equal cosines: itself, then lower ids; MMRec: torch's topk
    fusion: Literal["released", "paper"] = "released"
    cl_loss: float = 0.01  # weight of the contrast
    reg_weight: float = 1e-4
    reg_batch_size: int | None = None  # rows by which reg is divided; None: those of the batch


@dataclass(frozen=True)
class Rows:
    """Some users' or items' vectors (R, D): `content` C and `side`."""

    content: Tensor
    side: Tensor

    @property
    def final(self) -> Tensor:
        return self.content + self.side


class MGCN(TrainedFeatures):
    """Needs at least one modality; takes any."""

    def __init__(self, data: TrainingData, features: ItemFeatures, config: MGCNConfig) -> None:
        super().__init__(data, features, config, width=config.embedding_size)
        self.config: MGCNConfig = config
        self.adjacency = BipartiteGraph(data).adjacency("symmetric")
        for modality in self.modalities:
            self.add_module(f"gate_{short_name(modality)}", nn.Sequential(self._layer(), nn.Sigmoid()))
        if len(self.modalities) > 1:
            self.query_common = nn.Sequential(self._layer(), nn.Tanh(), nn.Linear(self.width, 1, bias=False))
            for modality in self.modalities:
                self.add_module(f"gate_{modality}_prefer", nn.Sequential(self._layer(), nn.Sigmoid()))

    def _layer(self) -> nn.Linear:
        return nn.Linear(self.width, self.width)

    def training_loss(self, batch: Batch) -> Mapping[str, Tensor]:
        config = self.config
        ids, (of_users, of_items) = self.propagate_ids(self.adjacency, config.n_ui_layers), self._item_view()
        known = self._known()  # (I, M)
        users, user_places, user_counts = distinct(batch.users)  # (R,), (B,), (R,); R differs for items
        items, item_places, item_counts = distinct(batch.positives)
        u = self._fuse(embedding(users, ids[0]), _rows(of_users, users), None)
        p = self._fuse(embedding(items, ids[1]), _rows(of_items, items), known[items])
        n = self._fuse(embedding(batch.negatives, ids[1]), _rows(of_items, batch.negatives), known[batch.negatives])

        final = [
            rows if places is None else embedding(places, rows)
            for rows, places in ((u.final, user_places), (p.final, item_places), (n.final, None))
        ]  # (B, D) each
        squares = torch.stack([rows.square().sum() for rows in final]).sum()
        contrast = _contrast(u, user_counts, None) + _contrast(p, item_counts, known[items].any(dim=1))
        return {
            "bpr": bpr((final[0] * final[1]).sum(1), (final[0] * final[2]).sum(1), gamma=0),
            "reg": config.reg_weight * 0.5 * squares / (config.reg_batch_size or len(batch)),
            "cl": config.cl_loss * contrast,
        }

    def vectors(self) -> tuple[Tensor, Tensor]:
        users, items = self.all_rows()
        return users.final, items.final

    def all_rows(self) -> tuple[Rows, Rows]:
        """All users' rows, and all items'."""
        ids, (of_users, of_items) = self.propagate_ids(self.adjacency, self.config.n_ui_layers), self._item_view()
        return self._fuse(ids[0], of_users, None), self._fuse(ids[1], of_items, self._known())

    def _known(self) -> Tensor:
        """Which modalities an item has (I, M)."""
        return torch.stack([self.known(modality) for modality in self.modalities], dim=1)

    def _item_view(self) -> tuple[Tensor, Tensor]:
        """E of users (U, M, D), and of items (I, M, D)."""
        parts, graphs = [], self.item_graphs()
        for modality in self.modalities:
            trs, gate = self.trs(modality), self.get_submodule(f"gate_{short_name(modality)}")
            content = project(self.feature_table(modality), trs.weight) + trs.bias  # (I, D)
            purified = self.item_id_embedding.weight * gate(content) * self.known(modality).unsqueeze(1)
            for _ in range(self.config.n_layers):
                purified = propagate(graphs[modality], purified)
            parts.append(purified)
        items = torch.cat(parts, dim=1)  # (I, M D)
        users = propagate_to("users", self.adjacency, items)  # R y for all modalities at once
        return tuple(rows.unflatten(1, (-1, self.width)) for rows in (users, items))

    def _fuse(self, content: Tensor, views: Tensor, known: Tensor | None) -> Rows:
        """From C (R, D), E (R, M, D), and which modalities the rows have (R, M); None: all."""
        if len(self.modalities) == 1:
            return Rows(content, views[:, 0] if self.config.fusion == "paper" else views[:, 0] / 2)
        weights = self.query_common(views).squeeze(2)  # (R, M)
        if known is not None:
            weights = weights.masked_fill(~known, torch.finfo(weights.dtype).min)
        common = (torch.softmax(weights, dim=1).unsqueeze(2) * views).sum(1)  # K (R, D)
        preferred = torch.stack([self.get_submodule(f"gate_{m}_prefer")(content) for m in self.modalities], dim=1)
        special = preferred * (views - common.unsqueeze(1))  # Z (R, M, D)
        if known is not None:
            special = special * known.unsqueeze(2)
        if self.config.fusion == "paper":
            return Rows(content, common + special.mean(1))
        return Rows(content, (special.sum(1) + common) / (1 + len(self.modalities)))

    def item_graphs(self) -> Mapping[str, SparseMatrix]:
        """L_m (I, I) by modality."""
        name = f"MGCN {self.config.knn_k} {self.config.knn_ties}"
        graphs: Mapping[str, SparseMatrix] = self.features.derived(name, self._item_graphs, differentiable=False)
        return graphs

    def _item_graphs(self) -> dict[str, SparseMatrix]:
        graphs, tables, shape = {}, self.features(), (self.n_items, self.n_items)
        for modality in self.modalities:
            known, ties = self.known(modality), self.config.knn_ties
            near = nearest_neighbors(tables[modality], self.config.knn_k, present=known, ties=ties)
            weights = symmetric_weights(near.cosines, near.cosines.sum(1), near)  # (I, k)
            rows = torch.arange(self.n_items, device=weights.device).repeat_interleave(weights.shape[1])
            graphs[modality] = SparseMatrix.from_entries(rows, near.items.flatten(), weights.flatten(), shape)
        return graphs


def _rows(views: Tensor, ids: Tensor) -> Tensor:
    """views[ids] (R, M, D), with a backward pass that adds up repeated ids quickly."""
    return embedding(ids, views.flatten(1)).unflatten(1, views.shape[1:])


def _contrast(rows: Rows, counts: Tensor | None, known: Tensor | None) -> Tensor:
    """InfoNCE from side to content over a batch that has each row `counts` times (R,), once if None; rows that are not
    `known` (R,) have no part in it, and it is 0 where none is."""
    side, content = normalize(rows.side, dim=1), normalize(rows.content, dim=1)
    if known is None:
        return info_nce(side, content, temperature=_TEMPERATURE, repeats=counts, counts=counts)
    often = known.to(side.dtype) if counts is None else known * counts.to(side.dtype)
    some = known.any()
    often = torch.where(some, often, 1.0)  # any finite value, which doesn't count
    return some * info_nce(side, content, temperature=_TEMPERATURE, repeats=often, counts=often)
