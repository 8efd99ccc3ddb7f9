"""MMRec's base classes and helper functions under their names there, for model files alone.

What each does is MMRec's documented behavior, also where ours differs: its published numbers need it.
Shapes: B batch, U users, I items, D embedding, k neighbors.
"""

import datetime
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_EPSILON = 1e-7  # added to degrees


class AbstractRecommender(nn.Module):
    """The methods that a trainer calls."""

    def pre_epoch_processing(self) -> Any:
        """Called before each epoch."""

    def post_epoch_processing(self) -> Any:
        """Called after each epoch; a text that it returns is logged."""

    def calculate_loss(self, interaction: Tensor) -> Any:
        """One tensor, or a tuple of tensors, which are summed and logged one by one."""
        raise NotImplementedError

    def predict(self, interaction: Any) -> Any:
        raise NotImplementedError

    def full_sort_predict(self, interaction: Any) -> Any:
        """Scores (B, I) of [users, mask]."""
        raise NotImplementedError

    def __setattr__(self, name: str, value: Any) -> None:
        set_attribute(self, name, value)


def set_attribute(module: nn.Module, name: str, value: Any) -> None:
    """Set an attribute. A tensor replaces a parameter of that name, which is then trained no more: so it is on a GPU,
    where `Parameter(...).to(device)` gives a tensor that was never a parameter."""
    parameters = vars(module).get("_parameters") or {}  # none before nn.Module's constructor
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and name in parameters:
        del parameters[name]
    nn.Module.__setattr__(module, name, value)


class GeneralRecommender(AbstractRecommender):
    """Sets what MMRec's models read of configuration, training data and features."""

    def __init__(self, config: Any, dataloader: Any) -> None:
        super().__init__()
        self.USER_ID, self.ITEM_ID = config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]
        self.NEG_ITEM_ID = f"{config['NEG_PREFIX']}{self.ITEM_ID}"
        self.n_users = dataloader.dataset.get_user_num()
        self.n_items = dataloader.dataset.get_item_num()
        self.batch_size = config["train_batch_size"]
        self.device = config["device"]
        self.v_feat: Tensor | None = dataloader.features.get("image")  # (I, F), float32 on the device
        self.t_feat: Tensor | None = dataloader.features.get("text")


# Losses


class BPRLoss(nn.Module):
    """-mean log(gamma + sigmoid(positive - negative))."""

    def __init__(self, gamma: float = 1e-10) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, pos_score: Tensor, neg_score: Tensor) -> Tensor:
        return -(self.gamma + torch.sigmoid(pos_score - neg_score)).log().mean()


class EmbLoss(nn.Module):
    """The sum of the arguments' norms, over the rows of the last: (1,)."""

    def __init__(self, norm: float = 2) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, *embeddings: Tensor) -> Tensor:
        total = embeddings[-1].new_zeros(1)
        for embedding in embeddings:
            total = total + torch.norm(embedding, p=self.norm)
        return total / embeddings[-1].shape[0]


class L2Loss(nn.Module):
    """Half the sum of squares of all arguments: (1,)."""

    def forward(self, *embeddings: Tensor) -> Tensor:
        total = embeddings[-1].new_zeros(1)
        for embedding in embeddings:
            total = total + embedding.square().sum() / 2
        return total


# Initial weights, for `module.apply`


def xavier_normal_initialization(module: nn.Module) -> None:
    _initialize(module, nn.init.xavier_normal_)


def xavier_uniform_initialization(module: nn.Module) -> None:
    _initialize(module, nn.init.xavier_uniform_)


def _initialize(module: nn.Module, draw: Any) -> None:
    if isinstance(module, nn.Embedding | nn.Linear):
        draw(module.weight.data)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.constant_(module.bias.data, 0)


class LightGCN_Encoder(GeneralRecommender):
    """Mean of the layers of D^-1/2 A D^-1/2 on [users ; items]. `forward` leaves out a random share of the entries,
    itself drawn between 0 and `drop_ratio`; `get_embedding` none."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.interaction_matrix = dataset.inter_matrix(form="coo").astype(np.float32)
        self.user_count, self.item_count = self.n_users, self.n_items
        self.latent_size = config["embedding_size"]
        self.n_layers = 3 if config["n_layers"] is None else config["n_layers"]
        self.layers = [self.latent_size] * self.n_layers
        self.drop_ratio, self.drop_flag = 1.0, True
        draw = nn.init.xavier_uniform_
        self.embedding_dict = nn.ParameterDict(
            {
                "user_emb": nn.Parameter(draw(torch.empty(self.user_count, self.latent_size))),
                "item_emb": nn.Parameter(draw(torch.empty(self.item_count, self.latent_size))),
            }
        )
        self.sparse_norm_adj = self.get_norm_adj_mat().to(self.device)

    def get_norm_adj_mat(self) -> Tensor:
        """(U + I, U + I)."""
        users = torch.from_numpy(self.interaction_matrix.row).long()
        items = torch.from_numpy(self.interaction_matrix.col).long() + self.n_users
        nodes = self.n_users + self.n_items
        rows, columns = torch.cat([users, items]), torch.cat([items, users])
        entries = torch.stack([rows, columns]).unique(dim=1)
        degrees = torch.bincount(entries[0], minlength=nodes).double() + _EPSILON
        values = degrees[entries[0]].rsqrt() * degrees[entries[1]].rsqrt()
        return _sparse(entries, values.float(), (nodes, nodes)).coalesce()

    def sparse_dropout(self, x: Tensor, rate: float, noise_shape: int) -> Tensor:
        kept = torch.rand(noise_shape, device=x.device) >= rate
        values = x._values()[kept] / (1 - rate)
        return _sparse(x._indices()[:, kept], values, x.shape)

    def forward(self, inputs: Any) -> tuple[Tensor, Tensor]:
        adjacency = self.sparse_norm_adj
        if self.drop_flag:
            rate = np.random.random() * self.drop_ratio
            adjacency = self.sparse_dropout(adjacency, rate, adjacency._nnz())
        users, items = self._embed(adjacency)
        return users[inputs[0]], items[inputs[1]]

    def get_embedding(self) -> tuple[Tensor, Tensor]:
        return self._embed(self.sparse_norm_adj)

    def _embed(self, adjacency: Tensor) -> tuple[Tensor, Tensor]:
        nodes = torch.cat([self.embedding_dict["user_emb"], self.embedding_dict["item_emb"]])
        layers = [nodes]
        for _ in range(self.n_layers):
            layers.append(torch.sparse.mm(adjacency, layers[-1]))
        mean = torch.stack(layers, dim=1).mean(dim=1)
        return mean[: self.n_users], mean[self.n_users :]


# Item graphs. Dense ones are items x items: MMRec's interface, which model files are written for.


def build_sim(context: Tensor) -> Tensor:
    """The cosines (I, I) of all rows (I, F); a row of zeros has NaN, as there."""
    unit = context / torch.norm(context, p=2, dim=-1, keepdim=True)
    return unit @ unit.T


def build_knn_neighbourhood(adj: Tensor, topk: int) -> Tensor:
    """`adj` (I, I) with the k largest values of each row, else zero."""
    values, items = torch.topk(adj, topk, dim=-1)
    return torch.zeros_like(adj).scatter_(-1, items, values)


def compute_normalized_laplacian(adj: Tensor) -> Tensor:
    """D^-1/2 A D^-1/2, dense."""
    return get_dense_laplacian(adj, "sym")


def build_knn_normalized_graph(adj: Tensor, topk: int, is_sparse: bool, norm_type: str) -> Tensor:
    """The graph of the k largest values of each row of `adj` (I, I), normalized; in COO form if `is_sparse`."""
    if not is_sparse:
        return get_dense_laplacian(build_knn_neighbourhood(adj, topk), norm_type)
    values, items = torch.topk(adj, topk, dim=-1)  # (I, k)
    rows = torch.arange(len(adj), device=adj.device).repeat_interleave(items.shape[1])
    entries, weights = get_sparse_laplacian(
        torch.stack([rows, items.flatten()]), values.flatten(), num_nodes=len(adj), normalization=norm_type
    )
    return _sparse(entries, weights, adj.shape)


def get_sparse_laplacian(
    edge_index: Tensor, edge_weight: Tensor, num_nodes: int, normalization: str = "none"
) -> tuple[Tensor, Tensor]:
    """Edges (2, E) and their weights (E,), normalized by degrees: sym, rw or none."""
    rows, columns = edge_index
    degrees = edge_weight.new_zeros(num_nodes).index_add_(0, rows, edge_weight)
    if normalization == "sym":
        scale = _power(degrees, -0.5)
        edge_weight = scale[rows] * edge_weight * scale[columns]
    elif normalization == "rw":
        edge_weight = _power(degrees, -1.0)[rows] * edge_weight
    return edge_index, edge_weight


def get_dense_laplacian(adj: Tensor, normalization: str = "none") -> Tensor:
    """`adj` (I, I) normalized by the sums of its rows: sym, rw or none."""
    degrees = adj.sum(dim=-1)
    if normalization == "sym":
        scale = _power(degrees, -0.5)
        return scale.unsqueeze(1) * adj * scale.unsqueeze(0)
    if normalization == "rw":
        return _power(degrees, -1.0).unsqueeze(1) * adj
    return adj


def _sparse(entries: Tensor, values: Tensor, shape: Any) -> Tensor:
    return torch.sparse_coo_tensor(entries, values, shape, check_invariants=False)


def _power(degrees: Tensor, exponent: float) -> Tensor:
    """Degrees to a power; 0 for a degree of 0."""
    return degrees.pow(exponent).masked_fill(degrees == 0, 0.0)


# Small helpers


def get_local_time() -> str:
    return datetime.datetime.now().strftime("%b-%d-%Y-%H-%M-%S")


def init_seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def early_stopping(
    value: float, best: float, cur_step: int, max_step: int, bigger: bool = True
) -> tuple[float, int, bool, bool]:
    """The best value, the steps since it, and whether to stop, and whether `value` is the new best."""
    if value > best if bigger else value < best:
        return value, 0, False, True
    return best, cur_step + 1, cur_step + 1 > max_step, False


def dict2str(result_dict: Mapping[str, float]) -> str:
    return "    ".join(f"{metric}: {value:.4f}" for metric, value in result_dict.items())


def get_trainer() -> Any:
    raise NotImplementedError("get_trainer: a model file needs no trainer here: the host trains it")


def names(*objects: Any) -> dict[str, Any]:
    """Classes and functions by their names."""
    return {one.__name__: one for one in objects}


_RECOMMENDERS = names(AbstractRecommender, GeneralRecommender)
_LOSSES = names(BPRLoss, EmbLoss, L2Loss)

#: What each module of MMRec's offers to a model file.
MODULES: Mapping[str, Mapping[str, Any]] = {
    "common": {},
    "common.abstract_recommender": _RECOMMENDERS,
    "common.loss": _LOSSES,
    "common.init": names(xavier_normal_initialization, xavier_uniform_initialization),
    "common.encoders": names(LightGCN_Encoder),
    "utils": {},
    "utils.utils": names(
        build_sim, build_knn_neighbourhood, compute_normalized_laplacian, build_knn_normalized_graph,
        get_sparse_laplacian, get_dense_laplacian, get_local_time, init_seed, early_stopping, dict2str, get_trainer,
    ),
    "models": {},
    "models.common": {},  # LayerGCN imports from here, where MMRec has nothing
    "models.common.abstract_recommender": _RECOMMENDERS,
    "models.common.loss": _LOSSES,
}  # fmt: skip
