"""Parts of libraries that MMRec's model files import, for machines without those libraries: written here, from their
documentation. Where the library is installed, the file gets the library.

torch_scatter: `scatter` and its forms. torch_geometric: message passing as these files use it. sparsesvd: `sparsesvd`.
Shapes: N nodes, E edges, D features.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .interface import names, set_attribute

_REDUCE = {"sum": "sum", "add": "sum", "mean": "mean", "max": "amax", "min": "amin", "mul": "prod"}


def scatter(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
    reduce: str = "sum",
) -> Tensor:
    """`src` reduced over equal `index` along `dim`: sum, add, mean, max, min or mul; 0 where an index doesn't occur."""
    if reduce not in _REDUCE:
        raise ValueError(f"reduce: expected one of {', '.join(_REDUCE)}, got {reduce!r}")
    dim = dim % src.dim()
    size = list(src.shape)
    size[dim] = dim_size if dim_size is not None else int(index.max()) + 1 if index.numel() else 0
    if index.dim() == 1 and out is None and reduce in ("sum", "add", "mean"):  # several times as quick
        total = src.new_zeros(size).index_add(dim, index, src)
        if reduce != "mean":
            return total
        counts = torch.bincount(index, minlength=size[dim]).clamp_(min=1).to(src.dtype)
        return total / counts.view([-1 if place == dim else 1 for place in range(src.dim())])
    if index.dim() == 1 and src.dim() > 1:
        index = index.view([-1 if place == dim else 1 for place in range(src.dim())])
    index = index.expand_as(src)
    if out is not None:
        return out.scatter_reduce_(dim, index, src, reduce=_REDUCE[reduce])
    return src.new_zeros(size).scatter_reduce(dim, index, src, reduce=_REDUCE[reduce], include_self=False)


def scatter_add(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> Tensor:
    return scatter(src, index, dim, out, dim_size, "sum")


def scatter_mean(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> Tensor:
    return scatter(src, index, dim, out, dim_size, "mean")


def scatter_max(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """The largest values, and the place of each in `src` along `dim`; its length where an index doesn't occur."""
    values = scatter(src, index, dim, out, dim_size, "max")
    dim = dim % src.dim()
    if index.dim() == 1 and src.dim() > 1:
        index = index.view([-1 if place == dim else 1 for place in range(src.dim())])
    index = index.expand_as(src)
    places = torch.arange(src.shape[dim], device=src.device)
    places = places.view([-1 if place == dim else 1 for place in range(src.dim())]).expand_as(src)
    found = torch.where(src == values.gather(dim, index), places, src.shape[dim])
    first = torch.full_like(values, src.shape[dim], dtype=torch.long)
    return values, first.scatter_reduce(dim, index, found, reduce="amin")


def scatter_softmax(src: Tensor, index: Tensor, dim: int = -1, dim_size: int | None = None) -> Tensor:
    dim = dim % src.dim()
    if index.dim() == 1 and src.dim() > 1:
        index = index.view([-1 if place == dim else 1 for place in range(src.dim())])
    index = index.expand_as(src)
    shifted = (src - scatter(src.detach(), index, dim, dim_size=dim_size, reduce="max").gather(dim, index)).exp()
    return shifted / scatter(shifted, index, dim, dim_size=dim_size).gather(dim, index)


# torch_geometric


class MessagePassing(nn.Module):
    """y_i = update(aggregate over edges (j, i) of message(x_j, ...)); `flow` as in the library."""

    def __init__(self, aggr: str | None = "add", *, flow: str = "source_to_target", node_dim: int = -2, **_: Any):
        super().__init__()
        if flow not in ("source_to_target", "target_to_source"):
            raise ValueError(f"flow: expected source_to_target or target_to_source, got {flow!r}")
        self.aggr, self.flow, self.node_dim = aggr or "add", flow, node_dim

    def __setattr__(self, name: str, value: Any) -> None:
        set_attribute(self, name, value)

    def propagate(self, edge_index: Tensor, size: Any = None, **values: Any) -> Tensor:
        target, source = (1, 0) if self.flow == "source_to_target" else (0, 1)
        sizes = list(size) if size is not None else [None, None]
        for value in values.values():
            for side, part in enumerate(value if isinstance(value, tuple) else (value, value)):
                if sizes[side] is None and isinstance(part, Tensor) and part.dim() > 1:
                    sizes[side] = part.shape[self._dim(part)]
        if sizes[target] is None:
            sizes[target] = sizes[source]
        known = {
            "edge_index": edge_index, "size": sizes, "index": edge_index[target], "dim_size": sizes[target],
            "edge_index_i": edge_index[target], "edge_index_j": edge_index[source], "ptr": None,
            "size_i": sizes[target], "size_j": sizes[source], **values,
        }  # fmt: skip

        def argument(name: str) -> Any:
            if name in known:
                return known[name]
            of, end = values.get(name[:-2]), name[-2:]
            if name[:-2] not in values or end not in ("_i", "_j"):
                raise TypeError(f"message passing: expected the argument {name}, got {', '.join(values) or 'none'}")
            side = target if end == "_i" else source
            part = of[side] if isinstance(of, tuple) else of
            return part.index_select(self._dim(part), edge_index[side]) if isinstance(part, Tensor) else part

        def call(function: Callable[..., Any], first: tuple[Any, ...] = ()) -> Any:
            wanted = list(inspect.signature(function).parameters.values())[len(first) :]
            given = {
                one.name: argument(one.name)
                for one in wanted
                if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
                and (one.default is one.empty or one.name in known or one.name[:-2] in values)
            }
            return function(*first, **given)

        return call(self.update, (call(self.aggregate, (call(self.message),)),))

    def reset_parameters(self) -> None:
        """There are none here; layers call it before they set their own."""

    def _dim(self, part: Tensor) -> int:
        return self.node_dim if part.dim() > 1 else 0

    def message(self, x_j: Tensor) -> Tensor:
        return x_j

    def aggregate(self, inputs: Tensor, index: Tensor, ptr: Any = None, dim_size: int | None = None) -> Tensor:
        return scatter(inputs, index, self._dim(inputs), dim_size=dim_size, reduce=self.aggr)

    def update(self, inputs: Tensor) -> Tensor:
        return inputs


def _node_count(edge_index: Tensor, num_nodes: int | None) -> int:
    return num_nodes if num_nodes is not None else int(edge_index.max()) + 1 if edge_index.numel() else 0


def remove_self_loops(edge_index: Tensor, edge_attr: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    kept = edge_index[0] != edge_index[1]
    return edge_index[:, kept], None if edge_attr is None else edge_attr[kept]


def add_self_loops(
    edge_index: Tensor, edge_attr: Tensor | None = None, fill_value: float = 1.0, num_nodes: int | None = None
) -> tuple[Tensor, Tensor | None]:
    loops = torch.arange(_node_count(edge_index, num_nodes), device=edge_index.device).repeat(2, 1)
    if edge_attr is not None:
        edge_attr = torch.cat([edge_attr, edge_attr.new_full((loops.shape[1], *edge_attr.shape[1:]), fill_value)])
    return torch.cat([edge_index, loops], dim=1), edge_attr


def degree(index: Tensor, num_nodes: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
    size = _node_count(index, num_nodes)
    return torch.bincount(index, minlength=size).to(dtype or torch.get_default_dtype())


def softmax(
    src: Tensor, index: Tensor | None = None, ptr: Any = None, num_nodes: int | None = None, dim: int = 0
) -> Tensor:
    """`src` (E, ...) by its softmax over edges of equal `index`. Earlier versions have `num_nodes` in the place of
    `ptr`."""
    assert index is not None, "softmax: expected index"
    num_nodes = ptr if isinstance(ptr, int) else num_nodes
    return scatter_softmax(src, index, dim, dim_size=_node_count(index, num_nodes))


def dropout_adj(
    edge_index: Tensor,
    edge_attr: Tensor | None = None,
    p: float = 0.5,
    force_undirected: bool = False,
    num_nodes: int | None = None,
    training: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Edges without a random share `p` of them; under `force_undirected` both directions of an edge go together."""
    if not training or p == 0:
        return edge_index, edge_attr
    kept = torch.rand(edge_index.shape[1], device=edge_index.device) >= p
    if force_undirected:
        kept &= edge_index[0] <= edge_index[1]
        edges = edge_index[:, kept]
        attr = None if edge_attr is None else edge_attr[kept]
        return torch.cat([edges, edges.flip(0)], dim=1), None if attr is None else torch.cat([attr, attr])
    return edge_index[:, kept], None if edge_attr is None else edge_attr[kept]


def uniform(size: int, value: Any) -> None:
    """Fill a tensor from U(-b, b), b = size^-1/2."""
    if isinstance(value, Tensor):
        bound = 1.0 / math.sqrt(size)
        value.data.uniform_(-bound, bound)


def glorot(value: Any) -> None:
    if isinstance(value, Tensor):
        bound = math.sqrt(6.0 / (value.shape[-2] + value.shape[-1]))
        value.data.uniform_(-bound, bound)


def zeros(value: Any) -> None:
    if isinstance(value, Tensor):
        value.data.zero_()


# sparsesvd


def sparsesvd(matrix: Any, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k largest singular triplets of a sparse matrix (R, C), largest first: (k, R), (k,), (k, C)."""
    from scipy.sparse.linalg import svds

    if k >= min(matrix.shape):
        left, values, right = np.linalg.svd(matrix.toarray(), full_matrices=False)
        return left.T, values, right
    start = np.ones(min(matrix.shape))  # by default a random vector
    left, values, right = svds(matrix.astype(np.float64), k=k, v0=start)
    order = np.argsort(-values)
    return left.T[order], values[order], right[order]


def _torch_scatter() -> Mapping[str, Mapping[str, Any]]:
    return {"torch_scatter": names(scatter, scatter_add, scatter_mean, scatter_max) | {"scatter_sum": scatter_add,
            "scatter_softmax": scatter_softmax}}  # fmt: skip


@functools.cache
def _torch_geometric() -> Mapping[str, Mapping[str, Any]]:
    utils = names(remove_self_loops, add_self_loops, degree, softmax, dropout_adj, scatter)
    inits = names(uniform, glorot, zeros)
    message_passing = names(MessagePassing)
    return {
        "torch_geometric": {},
        "torch_geometric.nn": message_passing,
        "torch_geometric.nn.conv": message_passing,
        "torch_geometric.nn.conv.message_passing": message_passing,
        "torch_geometric.nn.inits": inits,
        "torch_geometric.utils": utils,
        "torch_geometric.utils.dropout": names(dropout_adj),
    }


#: Libraries by name: a function that returns their modules, by name.
STAND_INS: Mapping[str, Callable[[], Mapping[str, Mapping[str, Any]]]] = {
    "torch_scatter": _torch_scatter,
    "torch_geometric": _torch_geometric,
    "sparsesvd": lambda: {"sparsesvd": names(sparsesvd)},
}
