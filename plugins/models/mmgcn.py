"""MMGCN: multi-modal graph convolution network (Wei et al., ACM MM 2019, doi:10.1145/3343031.3351034).

One tower per modality m, on x = rows of unit length of [preference_m ; f_m], where an image first goes through an MLP:
    h = lrelu(M x W_l),  x' = lrelu(L_l x) + id,  x <- lrelu(G_l [h ; x'])     in each of three layers
z = mean of the towers' x,  score(u, i) = <z_u, z_i>
loss = -mean log sigmoid(s_up - s_un) + reg_weight (mean of the batch's id^2 + mean preference_image^2)

M averages over neighbors. The users' preferences replace the features that users don't have; `id`, a table of all
nodes that every tower shares, carries the collaborative signal.

Fidelity: MMRec's equations, compared by tests to 1e-5 with `trainable_id: false`. There, as in the authors' code on a
GPU, id and preferences are not parameters: they keep their random values, and reg_weight changes only the logged loss.
The paper learns them, and so does the default here, `trainable_id: true`; no published number comes from it. The
presets mmrec and lmm keep them frozen. As there, three layers, whatever `n_layers` says in MMRec's files, and of the
preferences only the image's are regularized. Vectors are computed from the current parameters, not from the last
batch's. An item that lacks a modality enters that tower as zeros.

Constants are computed once: inputs of frozen features, and M x of frozen preferences. M x W is computed in the order
that gives the dense product fewer rows. The last layer is computed for the rows that the loss reads.
Shapes: B batch, U users, I items, N = U + I, D embedding, F features of a modality, Q width of a tower's input.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, linear, normalize

from mmrec_lmm.api import (
    SIZE,
    WEIGHT,
    Batch,
    ConfigError,
    DotProduct,
    ItemFeatures,
    Limit,
    TrainingData,
    each,
)
from mmrec_lmm.graph import BipartiteGraph, Side, SparseMatrix, propagate_to
from mmrec_lmm.losses import bpr

from .multimodal_gcn import rows, short_name

_LAYERS = 3


@dataclass(frozen=True)
class MMGCNConfig:
    """MMRec's keys; the point is one of MMRec's and of LMM4Rec's grids."""

    LIMITS: ClassVar[Mapping[str, Limit]] = {"embedding_size": SIZE, "reg_weight": WEIGHT, "hidden": each(SIZE)}

    embedding_size: int = 64  # D
    reg_weight: float = 0.001
    trainable_id: bool = True  # learn id and preferences
    hidden: Mapping[str, int] = field(default_factory=lambda: {"image": 256})  # Q behind an MLP; Q is F where not named


class MMGCN(DotProduct):
    """Needs at least one modality; takes any."""

    id_embedding: Tensor  # (N, D)

    def __init__(self, data: TrainingData, features: ItemFeatures, config: MMGCNConfig) -> None:
        super().__init__(data, features, config)
        if not len(features):
            raise ConfigError("MMGCN: expected item features, got none; try LightGCN, which needs none")
        self.adjacency = BipartiteGraph(data).adjacency("random_walk")  # M
        self.modalities = sorted(features)
        table = torch.empty(self.n_users + self.n_items, config.embedding_size)  # (N, D)
        _add_table(self, "id_embedding", nn.init.xavier_normal_(table), trainable=config.trainable_id)
        for modality in self.modalities:
            tower = Tower(
                self.n_users,
                features.dims[modality],
                config.embedding_size,
                hidden=config.hidden.get(modality),
                trainable=config.trainable_id,
            )
            self.add_module(f"{short_name(modality)}_gcn", tower)

    def training_loss(self, batch: Batch) -> Mapping[str, Tensor]:
        n = len(batch)
        items = torch.cat([batch.positives, batch.negatives])  # (2B,)
        of_users, of_items = self._towers(batch.users, items)
        positives, negatives = of_items.split(n)  # (B, D) each
        scores = (of_users * positives).sum(1), (of_users * negatives).sum(1)
        return {"bpr": bpr(*scores, gamma=0.0), "reg": self.config.reg_weight * self._squares(batch.users, items)}

    def _squares(self, users: Tensor, items: Tensor) -> Tensor:
        """The mean square of the id rows (a batch's user counts once for each of its items), and of preferences."""
        of_users, of_items = self._identity()
        squares = rows(of_users, users).square().mean() + rows(of_items, items).square().mean()
        if "image" in self.modalities:
            preference: Tensor = self._tower("image").preference
            squares = squares + torch.linalg.vector_norm(preference).square() / preference.numel()
        return squares

    def _tower(self, modality: str) -> "Tower":
        tower: Tower = getattr(self, f"{short_name(modality)}_gcn")
        return tower

    def _identity(self) -> tuple[Tensor, Tensor]:
        """The rows of users (U, D) and of items (I, D) of the id table."""
        of_users, of_items = self.id_embedding.split([self.n_users, self.n_items])
        return of_users, of_items

    def _towers(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """z of some users and some items, (., D) each."""
        identity = self._identity()
        outputs = [self._tower(m)(m, self.features, self.adjacency, identity, users, items) for m in self.modalities]
        of_users, of_items = (torch.stack(each).mean(dim=0) for each in zip(*outputs, strict=True))
        return of_users, of_items

    def vectors(self) -> tuple[Tensor, Tensor]:
        device = self.adjacency.values.device
        return self._towers(torch.arange(self.n_users, device=device), torch.arange(self.n_items, device=device))


class Tower(nn.Module):
    """The convolutions of one modality. Users and items are separate tensors: each side's neighbors are the other."""

    preference: Tensor  # (U, Q)

    def __init__(self, n_users: int, width: int, out: int, *, hidden: int | None, trainable: bool) -> None:
        super().__init__()
        self.trainable = trainable
        self._frozen: tuple[int, tuple[Tensor, Tensor]] | None = None
        inputs = hidden or width  # Q
        _add_table(self, "preference", nn.init.xavier_normal_(torch.empty(n_users, inputs)), trainable=trainable)
        self.MLP = nn.Linear(width, inputs) if hidden else None
        for layer in range(1, _LAYERS + 1):
            convolution, own = Convolution(inputs), nn.Linear(inputs, out)
            joint = nn.Linear(inputs + out, out)
            nn.init.xavier_normal_(own.weight)
            if layer == 1:  # the others keep torch's default, as in the authors' code
                nn.init.xavier_normal_(joint.weight)
            for name, module in {"conv_embed_": convolution, "linear_layer": own, "g_layer": joint}.items():
                self.add_module(f"{name}{layer}", module)
            inputs = out

    def forward(
        self,
        modality: str,
        features: ItemFeatures,
        matrix: SparseMatrix,
        identity: tuple[Tensor, Tensor],
        user_ids: Tensor,
        item_ids: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The last layer's rows of some users and some items, (., D) each."""
        id_users, id_items = identity
        users, near_items = self._preferences(matrix)
        items = self._contents(modality, features)
        for layer in range(1, _LAYERS + 1):
            weight: Tensor = getattr(self, f"conv_embed_{layer}").weight
            of_users, of_items = (user_ids, item_ids) if layer == _LAYERS else (None, None)
            h_users = _convolve("users", matrix, items, weight, of_users)
            h_items = _convolve("items", matrix, users, weight, of_items) if near_items is None else near_items @ weight
            if layer == _LAYERS:
                users, id_users = rows(users, user_ids), rows(id_users, user_ids)
                items, id_items = rows(items, item_ids), rows(id_items, item_ids)
            users = self._combine(layer, h_users, users, id_users)
            items = self._combine(layer, h_items, items, id_items)
            near_items = None
        return users, items

    def _combine(self, layer: int, near: Tensor, own: Tensor, identity: Tensor) -> Tensor:
        """lrelu(G [h ; x']) of some rows, from M x W, themselves and their ids."""
        own_layer, joint = (getattr(self, f"{name}{layer}") for name in ("linear_layer", "g_layer"))
        h = leaky_relu(near, inplace=True)  # (., Q)
        x = leaky_relu(own_layer(own), inplace=True) + identity  # (., D)
        of_h, of_x = joint.weight.split([h.shape[1], x.shape[1]], dim=1)  # G in two blocks, which saves joining h and x
        return leaky_relu(linear(x, of_x, joint.bias).addmm(h, of_h.T), inplace=True)

    def _preferences(self, matrix: SparseMatrix) -> tuple[Tensor, Tensor | None]:
        """Users' inputs (U, Q), and if they are frozen their mean over each item's neighbors (I, Q), computed once."""
        if self.trainable:
            return normalize(self.preference), None
        version = self.preference._version  # torch increases it when saved weights are loaded
        if self._frozen is None or self._frozen[0] != version:
            users = normalize(self.preference)
            self._frozen = version, (users, propagate_to("items", matrix, users))
        return self._frozen[1]

    def _contents(self, modality: str, features: ItemFeatures) -> Tensor:
        """Items' inputs (I, Q)."""

        def compute(project: Callable[[Tensor], Tensor] = lambda table: table) -> Tensor:
            return normalize(project(features()[modality]) * features.present[modality].unsqueeze(1))

        contents: Tensor = compute(self.MLP) if self.MLP else features.derived(f"MMGCN's input of {modality}", compute)
        return contents


def _convolve(side: Side, matrix: SparseMatrix, x: Tensor, weight: Tensor, ids: Tensor | None) -> Tensor:
    """M x W for the rows `ids` of one side (None: all): as M (x W) where x, of the other side, has fewer rows than
    that, else as (M x) W."""
    assert matrix.n_users is not None
    n_side = matrix.n_users if side == "users" else matrix.shape[0] - matrix.n_users
    weight_first = len(x) < (n_side if ids is None else len(ids))
    mean = propagate_to(side, matrix, x @ weight if weight_first else x)
    mean = mean if ids is None else rows(mean, ids)
    return mean if weight_first else mean @ weight


class Convolution(nn.Module):
    """W of M x W, multiplied from the right, without bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_normal_(torch.empty(width, width)))


def _add_table(module: nn.Module, name: str, table: Tensor, *, trainable: bool) -> None:
    """Add a table to the module, as a parameter or as a buffer."""
    if trainable:
        module.register_parameter(name, nn.Parameter(table))
    else:
        module.register_buffer(name, table)
