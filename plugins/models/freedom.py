"""FREEDOM: freezing and denoising graph structures for multimodal recommendation (Zhou & Shen, ACM MM 2023,
arXiv:2211.06924).

A graph G of the items nearest to each other by cosine, frozen, propagates the item embeddings Q; a graph of users and
items, of which each epoch keeps a part, propagates P and Q.

B_m = 1 at the knn_k items nearest by features of modality m, itself among them;  G = sum_m w_m B_m / knn_k
h = G^n_mm_layers Q,  [u ; i] = mean of layers of D^-1/2 A D^-1/2 on [P ; Q],  score(u, i) = <u, i + h>
loss = BPR(u; i + h) + reg_weight sum_m BPR(u; X_m trs_m),  BPR = -mean log sigmoid(s_up - s_un)

In training A has floor(E (1 - dropout)) of the E edges, drawn at each start of an epoch without replacement and with
weights (d_u d_i)^-1/2, and D are its own degrees: edges of popular items and of active users are dropped first.
Scores are from all edges. w_image = mm_image_weight, and the other modalities have equal shares of the rest.

Fidelity: MMRec's code, which is the authors'; tests compare it with that code's values to 1e-5. X_m is a trainable copy
of the features. The bias of trs_m is left out: it cancels. `reg_weight` weighs the modalities' terms; there is no L2
penalty. The paper rounds the number of edges up, the code down. MMRec caches G in a file that another encoder's run
then reads; here G is made from the run's features, and again at each full refresh of joint ones. `knn_ties: topk` is
MMRec's rule for equal cosines, as in LATTICE.
Ours: an item that lacks a modality (absent, or a zero row, which in MMRec becomes everybody's neighbor) has only itself
as a neighbor there, and a pair of items counts in the modality's term only if both have it. `item_graph_self: false`
takes knn_k others; `pruning: uniform` is the paper's ablation.
Shapes: B batch, R distinct items of a batch, U users, I items, E edges, D embedding, k neighbors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mmrec_lmm.api import (
    LAYERS,
    RATE,
    SIZE,
    WEIGHT,
    Batch,
    ConfigValueError,
    ItemFeatures,
    Limit,
    TrainingData,
    between,
    distinct,
    project,
)
from mmrec_lmm.graph import BipartiteGraph, Neighbors, SparseMatrix, nearest_neighbors, propagate
from mmrec_lmm.losses import bpr

from .trained_features import TrainedFeatures, mean_where

_EPSILON = 1e-7  # MMRec's, added to degrees


@dataclass(frozen=True)
class FREEDOMConfig:
    """MMRec's keys for FREEDOM; the defaults are a point of its grid."""

    LIMITS: ClassVar[Mapping[str, Limit]] = {
        **dict.fromkeys(("embedding_size", "knn_k"), SIZE),
        **dict.fromkeys(("n_mm_layers", "n_ui_layers"), LAYERS),
        "mm_image_weight": between(0, 1),
        "dropout": RATE,
        "reg_weight": WEIGHT,
    }

    embedding_size: int = 64
    n_mm_layers: int = 1  # of the item graph
    n_ui_layers: int = 2  # of the user-item graph
    knn_k: int = 10  # neighbors per modality, the item itself among them
    knn_ties: Literal["own_first", "topk"] = "own_first"  # equal cosines: itself, then lower ids; MMRec: torch's topk
    item_graph_self: bool = True  # false: knn_k other items
    mm_image_weight: float = 0.1  # share of the image's graph; 1 of a single modality
    dropout: float = 0.8  # share of the edges that an epoch leaves out
    pruning: Literal["degree", "uniform"] = "degree"  # how these are drawn
    reg_weight: float = 1e-3  # of the modalities' terms

    def __post_init__(self) -> None:
        if not self.item_graph_self and self.knn_ties != "own_first":
            raise ConfigValueError(
                "item_graph_self", f"must be true where knn_ties is {self.knn_ties}, got false", "knn_ties"
            )


class FREEDOM(TrainedFeatures):
    """Needs at least one modality; takes any."""

    def __init__(self, data: TrainingData, features: ItemFeatures, config: FREEDOMConfig) -> None:
        super().__init__(data, features, config, width=config.embedding_size, bias=False)
        self.config: FREEDOMConfig = config
        self.graph = BipartiteGraph(data)
        self.adjacency = self.graph.adjacency("symmetric", epsilon=_EPSILON)
        self.pruned = self.adjacency  # of the epoch

    def on_epoch_start(self, epoch: int) -> None:
        if self.config.dropout > 0:
            kept = self.graph.drop_edges(self.config.dropout, self.edge_weights())
            self.pruned = self.graph.adjacency("symmetric", epsilon=_EPSILON, kept=kept)

    def edge_weights(self) -> Tensor | None:
        """By which an edge is kept (E,); None: all alike."""
        if self.config.pruning == "uniform":
            return None
        users, items = (degrees + _EPSILON for degrees in self.graph.degrees())
        return (users[self.graph.users] * items[self.graph.items]).rsqrt()

    def training_loss(self, batch: Batch) -> Mapping[str, Tensor]:
        all_users, all_items = self._vectors(self.pruned)
        users = nn.functional.embedding(batch.users, all_users)  # (B, D)
        positives = nn.functional.embedding(batch.positives, all_items)
        negatives = nn.functional.embedding(batch.negatives, all_items)
        terms = {"bpr": bpr((users * positives).sum(1), (users * negatives).sum(1), gamma=0)}
        if self.config.reg_weight == 0:
            return terms
        items, place, _ = distinct(torch.cat([batch.positives, batch.negatives]))  # (R,), (2B,)
        for modality in self.modalities:
            content = project(self.feature_rows(modality, items), self.trs(modality).weight)  # (R, D)
            pairs = content if place is None else nn.functional.embedding(place, content)  # (2B, D)
            liked, other = pairs.split(len(batch))
            known = self.known(modality)
            both = known[batch.positives] & known[batch.negatives]  # (B,)
            losses = -nn.functional.logsigmoid((users * (liked - other)).sum(1))
            terms[f"bpr_{modality}"] = self.config.reg_weight * mean_where(losses, both)
        return terms

    def vectors(self) -> tuple[Tensor, Tensor]:
        return self._vectors(self.adjacency)

    def _vectors(self, adjacency: SparseMatrix) -> tuple[Tensor, Tensor]:
        users, items = self.propagate_ids(adjacency, self.config.n_ui_layers)
        graph, near = self.item_graph(), self.item_id_embedding.weight
        for _ in range(self.config.n_mm_layers):
            near = propagate(graph, near)
        return users, items + near

    def item_graph(self) -> SparseMatrix:
        """G (I, I)."""
        graph: SparseMatrix = self.features.derived(f"FREEDOM {self.config}", self._item_graph, differentiable=False)
        return graph

    def _item_graph(self) -> SparseMatrix:
        config, tables = self.config, self.features()
        columns, weights = [], []
        for modality, share in self.modality_weights().items():
            k = config.knn_k + (not config.item_graph_self)
            near = nearest_neighbors(tables[modality], k, present=self.known(modality), ties=config.knn_ties)
            counted = near.real if config.item_graph_self else _others(near)
            columns.append(near.items)
            weights.append(share * counted / counted.sum(dim=1, keepdim=True))
        items, values = torch.cat(columns, dim=1), torch.cat(weights, dim=1)  # (I, M k) both
        rows = torch.arange(self.n_items, device=items.device).repeat_interleave(items.shape[1])
        return SparseMatrix.from_entries(rows, items.flatten(), values.flatten(), (self.n_items, self.n_items))

    def modality_weights(self) -> dict[str, float]:
        """w_m by modality, which sum to 1."""
        others = [modality for modality in self.modalities if modality != "image"]
        image = self.config.mm_image_weight if others and len(others) < len(self.modalities) else float(not others)
        return {m: image if m == "image" else (1 - image) / len(others) for m in self.modalities}


def _others(near: Neighbors) -> Tensor:
    """Where (I, k) a neighbor is another item; an item without others keeps itself."""
    own = near.items == torch.arange(len(near.items), device=near.items.device).unsqueeze(1)
    others = near.real & ~own
    return torch.where(others.any(dim=1, keepdim=True), others, near.real)
