"""LATTICE: latent structure mining for multimedia recommendation (Zhang et al., ACM MM 2021, arXiv:2104.09036).

Each modality m gives two graphs of the k nearest items by cosine: one of the raw features, fixed, and one of features
that learn, X_m trs_m. They are mixed into one item graph S, which propagates the item embeddings E. The result h is
added to the vectors z of a collaborative model of the user-item graph.

w = softmax(modal_weight),  L(W) = D^-1/2 W D^-1/2 with D the row sums of W
S = lambda sum_m w_m L(kNN(raw_m)) + (1 - lambda) L(sum_m w_m kNN(trs_m(X_m))),  h = S^n_layers E
score(u, i) = <z_u, z_i + h_i / |h_i|>,  z = mean of layers of (D + 1)^-1 (A + 1), or NGCF's, or the embeddings (mf)
loss = -mean log sigmoid(s_up - s_un) + reg_weight (|u|^2 + |p|^2 + |n|^2) / 2B over the batch's final rows

No matrix here is items x items. Each row of S has k neighbors per graph, with weights that learn: the same numbers as
the dense matrices of the authors' code, in O(I k D) instead of O(I^3).

Fidelity: MMRec's code, which follows the authors'. The item graph learns in the first batch of each epoch only and is
constant for the rest of it; X_m is a trainable copy of the frozen features. `graph_every`, ours, makes it learn every N
batches, with neighbors found again; the fixed graphs stay. `reg_batch_size` replaces the B of the loss: MMRec divides
by its train_batch_size in the short last batch too. `knn_ties: topk` is MMRec's rule for equal
cosines, whatever torch's topk picks: items with equal features (texts filled in with the mean) then have the same k
neighbors, which may leave out the item itself. `own_first`, the default, takes the item itself, then lower ids.
`knn_probes`, for large catalogs, finds neighbors approximately; the run's record has their recall.
Ours: an item without features (absent, or a zero row, which makes MMRec's graph NaN) has only itself as a neighbor, and
features that train with their encoder are used directly, without a copy.
Shapes: B batch, U users, I items, D embedding, F features, k neighbors, M modalities.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mmrec_lmm.api import (
    LAYERS,
    OPTIONAL,
    RATE,
    SIZE,
    WEIGHT,
    Batch,
    ConfigError,
    ConfigValueError,
    DotProduct,
    ItemFeatures,
    Limit,
    TrainingData,
    between,
    each,
)
from mmrec_lmm.graph import (
    BipartiteGraph,
    Neighbors,
    SparseMatrix,
    approximate_search,
    cosines,
    nearest_neighbors,
    neighbor_sum,
    propagate,
    propagate_mean,
    symmetric_weights,
)
from mmrec_lmm.losses import bpr


@dataclass(frozen=True)
class LATTICEConfig:
    """MMRec's keys for LATTICE; the defaults are the authors' point."""

    LIMITS: ClassVar[Mapping[str, Limit]] = {
        **dict.fromkeys(("embedding_size", "feat_embed_dim", "knn_k", "knn_probes", "reg_batch_size"), SIZE),
        "n_layers": LAYERS,
        "graph_every": Limit("at least 0", lambda batches: batches >= 0, spelled={0: None}),
        "lambda_coeff": between(0, 1),
        "weight_size": each(SIZE),
        "mess_dropout": each(RATE),
        "reg_weight": WEIGHT,
    }

    embedding_size: int = 64
    feat_embed_dim: int = 64  # of trs_m, in which learned neighbors are found
    knn_k: int = 10  # neighbors per graph, the item itself among them
    knn_ties: Literal["own_first", "topk"] = "own_first"  # equal cosines: itself, then lower ids; MMRec: torch's topk
    knn_probes: int | None = field(default=None, metadata=OPTIONAL)  # clusters searched for neighbors; None: all items
    graph_every: int | None = field(default=None, metadata=OPTIONAL)  # batches per graph that learns; None: the epoch's
    n_layers: int = 1  # of the item graph
    lambda_coeff: float = 0.9  # share of the fixed graphs; the learned one has the rest
    cf_model: Literal["lightgcn", "ngcf", "mf"] = "lightgcn"
    weight_size: tuple[int, ...] = (64, 64)  # one per layer of the user-item graph; the sizes count for ngcf only
    mess_dropout: tuple[float, ...] = (0.1, 0.1)  # ngcf: one rate per layer
    reg_weight: float = 1e-5
    reg_batch_size: int | None = None  # rows by which reg is divided; None: those of the batch

    def __post_init__(self) -> None:
        if self.knn_k < 1:
            raise ConfigValueError("knn_k", f"must be 1 or more, as the item itself counts, got {self.knn_k}")
        if self.knn_probes is not None and self.knn_probes < 1:
            raise ConfigValueError("knn_probes", f"must be 1 or more, or null: exact, got {self.knn_probes}")
        if self.knn_probes is not None and self.knn_ties != "own_first":
            raise ConfigValueError(
                "knn_probes", f"must be null where knn_ties is {self.knn_ties}, got {self.knn_probes}", "knn_ties"
            )
        if not 0 <= self.lambda_coeff <= 1:
            raise ConfigValueError("lambda_coeff", f"must be a share from 0 to 1, got {self.lambda_coeff}")
        if self.cf_model != "ngcf":
            return
        if len(self.mess_dropout) != len(self.weight_size):
            raise ConfigValueError(
                "mess_dropout",
                f"must have a rate for each of weight_size's {len(self.weight_size)} layers, "
                f"got {len(self.mess_dropout)}",
                "weight_size",
            )
        if set(self.weight_size) - {self.embedding_size}:
            raise ConfigValueError(
                "cf_model",
                f"ngcf averages its layers, so each of weight_size must be the embedding_size {self.embedding_size}, "
                f"got {list(self.weight_size)}",
                "weight_size",
                "embedding_size",
            )


@dataclass(frozen=True)
class FixedGraph:
    """One modality's graph of raw features: neighbors, weights (I, k), and the items (I,) that have features."""

    neighbors: Neighbors
    weights: Tensor
    known: Tensor


class LATTICE(DotProduct):
    """Needs at least one modality; takes any."""

    def __init__(self, data: TrainingData, features: ItemFeatures, config: LATTICEConfig) -> None:
        super().__init__(data, features, config)
        if not len(features):
            raise ConfigError("LATTICE: expected item features, got none; try LightGCN, which needs none")
        self.config: LATTICEConfig = config
        self.modalities = sorted(features)  # image before text, as modal_weight counts them
        self.user_embedding = nn.Embedding(self.n_users, config.embedding_size)
        self.item_id_embedding = nn.Embedding(self.n_items, config.embedding_size)
        nn.init.xavier_uniform_(self.user_embedding.weight)
        nn.init.xavier_uniform_(self.item_id_embedding.weight)
        for modality, table in features().items():
            if not features.joint:  # a copy, since training changes it
                self.add_module(f"{modality}_embedding", nn.Embedding.from_pretrained(table.clone(), freeze=False))
            self.add_module(f"{modality}_trs", nn.Linear(table.shape[1], config.feat_embed_dim))
        if len(features) > 1:
            self.modal_weight = nn.Parameter(torch.full((len(features),), 1 / len(features)))  # (M,)
        self.adjacency = BipartiteGraph(data).adjacency("random_walk_with_self")
        if config.cf_model == "ngcf":
            width = config.embedding_size
            self.GC_Linear = nn.ModuleList(nn.Linear(width, width) for _ in config.weight_size)
            self.Bi_Linear = nn.ModuleList(nn.Linear(width, width) for _ in config.weight_size)
        self._graph: SparseMatrix | None = None  # S without gradient, after the batch that made it with gradient
        self._uses = 0  # batches on it, with that one
        self._recall: dict[str, dict[str, float]] = {}  # modality -> of the raw and of the learned neighbors

    def on_epoch_start(self, epoch: int) -> None:
        self._graph = None

    def training_loss(self, batch: Batch) -> Mapping[str, Tensor]:
        if self._graph is None or self._uses == self.config.graph_every:
            items, weights = self.item_graph()
            self._graph, self._uses = _as_matrix(items, weights), 0
            embeddings = self.propagate_items(items, weights)
        else:
            embeddings = self.item_id_embedding.weight
            for _ in range(self.config.n_layers):
                embeddings = propagate(self._graph, embeddings)
        self._uses += 1
        all_users, all_items = self._vectors(embeddings)
        users = nn.functional.embedding(batch.users, all_users)  # (B, D)
        positives = nn.functional.embedding(batch.positives, all_items)
        negatives = nn.functional.embedding(batch.negatives, all_items)
        squares = users.square().sum() + positives.square().sum() + negatives.square().sum()
        return {
            "bpr": bpr((users * positives).sum(1), (users * negatives).sum(1), gamma=0),
            "reg": self.config.reg_weight * 0.5 * squares / (self.config.reg_batch_size or len(batch)),
        }

    def vectors(self) -> tuple[Tensor, Tensor]:
        return self._vectors(self.propagate_items(*self.item_graph()))

    def report(self) -> Mapping[str, Any]:
        """The recall of the item graphs that were made last, by modality, where neighbors are approximate."""
        if self.config.knn_probes is None:
            return {}
        return {"neighbor_recall": self._recall, "neighbor_search": approximate_search()}

    def item_graph(self) -> tuple[Tensor, Tensor]:
        """S, with gradient: the columns (I, 2Mk) of each row's entries, and their weights; a column may occur twice."""
        tables, share = self.features(), self.config.lambda_coeff
        importance = torch.softmax(self.modal_weight, dim=0) if len(tables) > 1 else torch.ones(1)
        fixed: Mapping[str, FixedGraph] = self.features.derived("lattice", self._fixed_graphs, differentiable=False)
        items = [fixed[modality].neighbors.items for modality in self.modalities]
        weights = [share * w * fixed[m].weights for m, w in zip(self.modalities, importance, strict=True)]

        learned, values = [], []
        for modality, weight in zip(self.modalities, importance, strict=True):
            trainable = tables[modality] if self.features.joint else self.get_parameter(f"{modality}_embedding.weight")
            projected = self.get_submodule(f"{modality}_trs")(trainable)  # (I, feat_embed_dim)
            learned.append(self._neighbors(projected, fixed[modality].known))
            self._recall[modality] = {"raw": fixed[modality].neighbors.recall, "learned": learned[-1].recall}
            values.append(weight * cosines(projected, learned[-1]))  # (I, k)
        degrees = torch.stack([part.sum(1) for part in values]).sum(0)  # (I,) of all modalities together
        for neighbors, part in zip(learned, values, strict=True):
            items.append(neighbors.items)
            weights.append((1 - share) * symmetric_weights(part, degrees, neighbors))
        return torch.cat(items, dim=1), torch.cat(weights, dim=1)

    def _fixed_graphs(self) -> dict[str, FixedGraph]:
        graphs = {}
        for modality, table in self.features().items():
            known = self.features.present[modality] & (table != 0).any(dim=1)
            near = self._neighbors(table, known)
            graphs[modality] = FixedGraph(near, symmetric_weights(near.cosines, near.cosines.sum(1), near), known)
        return graphs

    def _neighbors(self, x: Tensor, known: Tensor) -> Neighbors:
        config = self.config
        return nearest_neighbors(x, config.knn_k, present=known, ties=config.knn_ties, probes=config.knn_probes)

    def propagate_items(self, items: Tensor, weights: Tensor) -> Tensor:
        """h = S^n_layers E (I, D)."""
        embeddings = self.item_id_embedding.weight
        for _ in range(self.config.n_layers):
            embeddings = neighbor_sum(items, weights, embeddings)
        return embeddings

    def _vectors(self, propagated: Tensor) -> tuple[Tensor, Tensor]:
        """All users' and items' final vectors, (U, D) and (I, D), from the propagated item embeddings h (I, D)."""
        nodes = torch.cat([self.user_embedding.weight, self.item_id_embedding.weight])  # (U + I, D)
        if self.config.cf_model == "lightgcn":
            nodes = propagate_mean(self.adjacency, nodes, len(self.config.weight_size))
        elif self.config.cf_model == "ngcf":
            nodes = self._ngcf(nodes)
        users, items = nodes.split([self.n_users, self.n_items])
        return users, items + nn.functional.normalize(propagated, dim=1)

    def _ngcf(self, nodes: Tensor) -> Tensor:
        """The mean of NGCF's layers (U + I, D), each normalized but the first (Wang et al., SIGIR 2019)."""
        total = nodes
        for first, second, rate in zip(self.GC_Linear, self.Bi_Linear, self.config.mess_dropout, strict=True):
            side = propagate(self.adjacency, nodes)
            nodes = nn.functional.leaky_relu(first(side)) + nn.functional.leaky_relu(second(nodes * side))
            nodes = nn.functional.dropout(nodes, rate, self.training)
            total = total + nn.functional.normalize(nodes, dim=1)
        return total / (len(self.GC_Linear) + 1)


def _as_matrix(items: Tensor, weights: Tensor) -> SparseMatrix:
    """The item graph as a constant (I, I) sparse matrix."""
    rows = torch.arange(len(items), device=items.device).repeat_interleave(items.shape[1])
    return SparseMatrix.from_entries(rows, items.flatten(), weights.flatten(), (len(items), len(items)))
