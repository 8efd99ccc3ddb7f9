"""BM3: bootstrap latent representations for multi-modal recommendation (Zhou et al., WWW 2023, arXiv:2207.05969).

Two views of a vector agree where one is predicted from the other: the second is the first with dropout, and constant.
There are no negatives, no second network and no momentum.

[u ; i'] = mean of layers of D^-1/2 A D^-1/2 on [P ; Q],  i = i' + Q,  x_m = X_m trs_m + b_m,  f(x) = W x + b, for all
drop(x) = x with a share `dropout` of its entries zero, without gradient,  dist(x, y) = mean of 1 - cos(x, y)
loss = dist(f(u), drop(i)) + dist(f(i), drop(u))
       + cl_weight sum_m (dist(f(x_m), drop(i)) + dist(f(x_m), drop(x_m))) + reg_weight (|u|_F + |i|_F) / I
score(u, i) = <f(u), f(i)>

over the batch's pairs (u, i) of users and positives; the norms are those of the whole tables, and not squared.

Fidelity: MMRec's code, which is the authors'; tests compare it with that code's values to 1e-5. X_m is a trainable copy
of the features. In the paper the modalities have no weight (`cl_weight: 1`), and, as far as known, the regularizer
squares the norms of the batch's rows: `regularizer: squares`, |u|^2 + |i|^2 by B, is our reading. Batches have
negatives here too, which are ignored. Masks are drawn for the batch's distinct rows, as the others aren't read; a row
that a batch has twice has one mask. Features have no part in scores, only in the loss.
Ours: an item that lacks a modality (absent, or a zero row) has no part in the modality's two means.
Shapes: B batch, R distinct ids of a batch, U users, I items, D embedding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, normalize

from mmrec_lmm.api import (
    LAYERS,
    RATE,
    SIZE,
    WEIGHT,
    Batch,
    ItemFeatures,
    Limit,
    TrainingData,
    distinct,
    project,
)
from mmrec_lmm.graph import BipartiteGraph

from .trained_features import TrainedFeatures, mean_where


@dataclass(frozen=True)
class BM3Config:
    """MMRec's keys for BM3; the defaults are the authors' point for Baby."""

    LIMITS: ClassVar[Mapping[str, Limit]] = {
        "embedding_size": SIZE,
        "n_layers": LAYERS,
        "dropout": RATE,
        "cl_weight": WEIGHT,
        "reg_weight": WEIGHT,
    }

    embedding_size: int = 64
    n_layers: int = 1
    dropout: float = 0.5  # of the constant views
    cl_weight: float = 2.0  # of the modalities' terms; the paper: 1
    reg_weight: float = 0.1
    regularizer: Literal["norms", "squares"] = "norms"  # squares: of the batch's rows, as we read the paper


class BM3(TrainedFeatures):
    """Needs at least one modality; takes any."""

    def __init__(self, data: TrainingData, features: ItemFeatures, config: BM3Config) -> None:
        super().__init__(data, features, config, width=config.embedding_size)
        self.config: BM3Config = config
        self.adjacency = BipartiteGraph(data).adjacency("symmetric", epsilon=1e-7)
        self.predictor = nn.Linear(self.width, self.width)
        for layer in (self.predictor, *map(self.trs, self.modalities)):
            nn.init.xavier_normal_(layer.weight)

    def training_loss(self, batch: Batch) -> Mapping[str, Tensor]:
        config = self.config
        all_users, all_items = self._propagated()
        users, user_places, user_counts = distinct(batch.users)  # (R,), (B,), (R,); R differs for items
        items, item_places, item_counts = distinct(batch.positives)
        u, i = embedding(users, all_users), embedding(items, all_items)  # (R, D)
        u_target, i_target = self._target(u, users, self.n_users), self._target(i, items, self.n_items)

        def of_pairs(rows: Tensor, places: Tensor | None) -> Tensor:
            return rows if places is None else embedding(places, rows)  # (B, D)

        terms = {
            "user_item": _distances(of_pairs(self._predict(u), user_places), of_pairs(i_target, item_places)).mean(),
            "item_user": _distances(of_pairs(self._predict(i), item_places), of_pairs(u_target, user_places)).mean(),
        }
        for modality in self.modalities:
            trs, counted = self.trs(modality), self.known(modality)[items]  # (R,)
            counted = counted if item_counts is None else counted * item_counts
            content = project(self.feature_rows(modality, items), trs.weight) + trs.bias  # (R, D)
            predicted, target = self._predict(content), self._target(content, items, self.n_items)
            for name, other in (("target", i_target), ("mask", target)):
                distance = mean_where(_distances(predicted, other), counted)
                terms[f"{modality}_{name}"] = config.cl_weight * distance
        if config.regularizer == "norms":
            norms = (torch.linalg.vector_norm(all_users) + torch.linalg.vector_norm(all_items)) / self.n_items
        else:
            squares = (_squares(u, user_counts), _squares(i, item_counts))
            norms = (squares[0] + squares[1]) / len(batch)
        return terms | {"reg": config.reg_weight * norms}

    def vectors(self) -> tuple[Tensor, Tensor]:
        users, items = self._propagated()
        return self.predictor(users), self.predictor(items)

    def _propagated(self) -> tuple[Tensor, Tensor]:
        """u (U, D) and i (I, D)."""
        users, items = self.propagate_ids(self.adjacency, self.config.n_layers)
        return users, items + self.item_id_embedding.weight

    def _predict(self, x: Tensor) -> Tensor:
        """f(x) at unit length."""
        return _unit(self.predictor(x))

    def _target(self, x: Tensor, ids: Tensor, size: int) -> Tensor:
        """drop(x) at unit length, for rows `ids` (R,) of a table of `size` rows."""
        x = x.detach()
        return _unit(x * self.kept_entries(ids, size) if self.config.dropout else x)

    def kept_entries(self, ids: Tensor, size: int) -> Tensor:
        """1 at the entries (R, D) that dropout leaves, 0 elsewhere; equal ids have equal rows."""
        share = 1 - self.config.dropout
        if ids.device.type == "cpu":  # where `ids` are distinct
            return torch.empty(len(ids), self.width).bernoulli_(share)
        return embedding(ids, torch.empty(size, self.width, device=ids.device).bernoulli_(share))


def _unit(x: Tensor) -> Tensor:
    """Rows at unit length, for cosines whose norms are at least 1e-8."""
    return normalize(x, dim=1, eps=1e-8)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """1 - cos (R,) of rows of unit length."""
    return 1 - (x * y).sum(1)


def _squares(x: Tensor, counts: Tensor | None) -> Tensor:
    """The sum of the squares of rows (R, D), each as often as it occurs."""
    squares = x.square().sum(1)
    return squares.sum() if counts is None else (squares * counts).sum()
