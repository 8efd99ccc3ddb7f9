"""Graphs that models share: the bipartite graph of training interactions, and item graphs of nearest neighbors.

A matrix here is sparse and constant, and has its transpose, so a propagation keeps nothing for its backward pass: the
gradient of S x with respect to x is S' g, and S' is stored (for a symmetric matrix it is S itself). Nothing of size
items x items or users x items is ever in memory.

    graph = BipartiteGraph(data)                                            every training pair is an edge
    adjacency = graph.adjacency("symmetric")                                D^-1/2 A D^-1/2
    output = propagate_mean(adjacency, torch.cat([users, items]), layers=3)           (N, D)
    view = graph.adjacency("symmetric", kept=graph.drop_edges(0.3))         the same with 30 % of the edges left out

Shapes: U users, I items, N = U + I nodes (users first), E edges, D embedding, k neighbors.
"""

import importlib
import logging
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .errors import PluginError
from .formatting import first_line, renamed
from .types import Interactions, TrainingData

if TYPE_CHECKING:
    from scipy.sparse import csr_array

logger = logging.getLogger(__name__)

#: Old names, which the next version drops.
_RENAMED = {
    "Neighbours": "Neighbors",
    "Normalisation": "Normalization",
    "nearest_neighbours": "nearest_neighbors",
    "neighbour_sum": "neighbor_sum",
}


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        return renamed(__name__, name, _RENAMED)
    raise AttributeError(f"module {__name__} has no attribute {name!r}")


with warnings.catch_warnings():  # torch warns once per process that this layout is in beta: here, where it is muted
    warnings.simplefilter("ignore")
    torch.eye(1).to_sparse_csr()

Normalization = Literal["symmetric", "random_walk", "random_walk_with_self", "random_walk_plus_self", "plain"]
Side = Literal["users", "items"]
Ties = Literal["own_first", "topk"]

BLOCK_ROWS = 256  # of similarities at once in the search for neighbors on a CPU
BLOCK_BYTES = 256 << 20  # of them on a GPU, which wants few large products
GROUP = 16  # similarities of which only the largest is compared at first
SHARED_ROWS = 1_024  # users, or items, whose similarities by what they share are in memory at once
SAMPLE = 1_000  # items whose exact neighbors are searched, to measure the recall of approximate ones


class SparseMatrix(nn.Module):
    """A constant sparse matrix (R, C) in CSR form, with its transpose; it moves with the model that holds it.

    Not part of the saved state: the model that holds it can build it again. A symmetric matrix stores no second form.
    """

    crow: Tensor  # (R + 1,)
    col: Tensor  # (nnz,)
    values: Tensor  # (nnz,)
    t_crow: Tensor | None  # the same of the transpose; None where the matrix is symmetric
    t_col: Tensor | None
    t_values: Tensor | None
    n_users: int | None = None  # of a bipartite matrix: no entry joins two users or two items, or a node with itself

    def __init__(
        self, forward: tuple[Tensor, Tensor, Tensor], transpose: tuple[Tensor, Tensor, Tensor] | None = None
    ) -> None:
        """Either form is (crow, col, values)."""
        super().__init__()
        own: Mapping[str, Tensor | None] = dict(zip(("crow", "col", "values"), forward, strict=True))
        other = dict(zip(("t_crow", "t_col", "t_values"), transpose or (None, None, None), strict=True))
        for name, tensor in {**own, **other}.items():
            self.register_buffer(name, tensor, persistent=False)
        self._scratch, self._blocks = _Scratch(), _Blocks()

    @classmethod
    def from_entries(cls, rows: Tensor, cols: Tensor, values: Tensor, shape: tuple[int, int]) -> "SparseMatrix":
        """From `values` (nnz,) at `rows` and `cols`, in any order; values at one place add up."""
        entries = values.detach()
        return cls(_csr(rows, cols, entries, shape), _csr(cols, rows, entries, (shape[1], shape[0])))

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.crow) - 1, len(self.crow if self.t_crow is None else self.t_crow) - 1

    def csr(self, *, transposed: bool = False) -> Tensor:
        """The matrix, or its transpose, as torch's own sparse tensor; shares memory."""
        rows, columns = self.shape
        if not transposed:
            return _sparse(self.crow, self.col, self.values, (rows, columns))
        if self.t_crow is None or self.t_col is None or self.t_values is None:
            return self.csr()
        return _sparse(self.t_crow, self.t_col, self.t_values, (columns, rows))

    def rows_of(self, side: Side, *, transposed: bool = False) -> Tensor:
        """The rows of one side of a bipartite matrix, (U, I) or (I, U), as torch's own sparse tensor."""
        assert self.n_users is not None, "only a bipartite matrix falls into two blocks"
        users, entries = self.n_users, len(self.col) // 2  # either block has each edge once
        crow, col = self._blocks.pattern(side, self.crow, self.col, users)  # of the transpose, too
        values = self.t_values if transposed and self.t_values is not None else self.values
        shape = users, self.shape[0] - users
        if side == "users":
            return _sparse(crow, col, values[:entries], shape)
        return _sparse(crow, col, values[entries:], shape[::-1])

    def extra_repr(self) -> str:
        kind = "symmetric" if self.t_values is None else "with transpose"
        return f"{self.shape[0]} x {self.shape[1]}, {len(self.values)} entries, {kind}"


class BipartiteGraph(nn.Module):
    """The training interactions as a graph: distinct pairs, users 0 .. U-1 and items U .. N-1.

    A pair that occurs twice is one edge. (MMRec's SLMRec and MMGCN would count it twice; the data sets that it ships
    have none.)
    """

    users: Tensor  # (E,) ascending
    items: Tensor  # (E,) ascending for each user
    by_item: Tensor  # (E,) the order of edges by item, then user
    crow: Tensor  # (N + 1,) of A = [[0, R], [R', 0]]: the edges by user, then the edges by item
    col: Tensor  # (2E,)

    def __init__(self, data: TrainingData) -> None:
        super().__init__()
        self.n_users, self.n_items = data.n_users, data.n_items
        users, items = _distinct(data.train, data.n_items)
        by_item = np.lexsort((users, items))
        degrees = np.concatenate(
            [np.bincount(users, minlength=self.n_users), np.bincount(items, minlength=self.n_items)]
        )
        crow = np.concatenate([[0], np.cumsum(degrees)])
        col = np.concatenate([items + self.n_users, users[by_item]])
        for name, array in {"users": users, "items": items, "by_item": by_item}.items():
            self.register_buffer(name, torch.from_numpy(array), persistent=False)
        for name, array in {"crow": crow, "col": col}.items():
            self.register_buffer(name, torch.from_numpy(array).to(_index_dtype(len(col))), persistent=False)
        self._scratch, self._blocks = _Scratch(), _Blocks()

    def __len__(self) -> int:
        """The number of edges."""
        return len(self.users)

    @property
    def n_nodes(self) -> int:
        return self.n_users + self.n_items

    def items_of(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """All pairs of `users` (B,): the row in `users` and the item of each, both (R,), by row, then item."""
        starts, ends = self.crow[users].long(), self.crow[users + 1].long()  # (B,)
        lengths = ends - starts
        rows = torch.arange(len(users), device=users.device).repeat_interleave(lengths)  # (R,)
        before = lengths.cumsum(0) - lengths  # pairs of earlier rows
        places = torch.arange(len(rows), device=users.device) + (starts - before)[rows]
        return rows, self.items[places]

    def degrees(self, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The number of edges of each user (U,) and of each item (I,), as floats; only those `kept` (E,) count."""
        ones = (torch.ones_like(self.users) if kept is None else kept).to(torch.get_default_dtype())
        return scatter(ones, self.users, self.n_users), scatter(ones, self.items, self.n_items)

    def adjacency(
        self, normalization: Normalization = "symmetric", *, epsilon: float = 0.0, kept: Tensor | None = None
    ) -> SparseMatrix:
        """The (N, N) matrix of the edges, or of those `kept` (E,) bool, normalized by their degrees D:

        symmetric D^-1/2 A D^-1/2 · random_walk D^-1 A · random_walk_with_self (D + 1)^-1 (A + 1) ·
        random_walk_plus_self D^-1 A + 1 · plain A

        `epsilon` is added to degrees. A node without edges has a row of zeros, besides its self loop. Dropped edges
        stay as zeros on the sparsity pattern of the whole graph, which is why this is quick enough for every batch.
        """
        of_users, of_items = (degree + epsilon for degree in self.degrees(kept))
        if normalization == "random_walk_with_self":
            of_users, of_items = of_users + 1, of_items + 1
        to_users, to_items = of_users[self.users], of_items[self.items]  # (E,) the degrees at an edge's two ends
        if normalization == "plain":
            by_user = by_item = torch.ones_like(to_users)
        elif normalization == "symmetric":
            by_user = by_item = (to_users * to_items).rsqrt()
        else:
            by_user, by_item = to_users.reciprocal(), to_items.reciprocal()
        if kept is not None:  # a degree of zero made infinities at dropped edges
            by_user, by_item = by_user.where(kept, 0), by_item.where(kept, 0)
        values = torch.cat([by_user, by_item[self.by_item]])  # (2E,)
        if normalization in ("symmetric", "plain"):
            return self._bipartite((self.crow, self.col, values))
        transposed = torch.cat([by_item, by_user[self.by_item]])  # the pattern is its own transpose
        loops = {
            "random_walk_with_self": torch.cat([of_users, of_items]).reciprocal(),
            "random_walk_plus_self": values.new_ones(self.n_nodes),
        }.get(normalization)
        if loops is None:
            return self._bipartite((self.crow, self.col, values), (self.crow, self.col, transposed))
        return self._matrix(self._with_loops(values, loops), self._with_loops(transposed, loops))

    def _bipartite(self, *forms: tuple[Tensor, Tensor, Tensor]) -> SparseMatrix:
        matrix = self._matrix(*forms)
        matrix.n_users = self.n_users
        return matrix

    def _matrix(self, *forms: tuple[Tensor, Tensor, Tensor]) -> SparseMatrix:
        matrix = SparseMatrix(*forms)
        matrix._scratch, matrix._blocks = self._scratch, self._blocks  # views made anew for every batch share these
        return matrix

    def _with_loops(self, values: Tensor, loops: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The CSR form with a diagonal (N,) added: it goes first in users' rows, last in items' rows."""
        nodes = torch.arange(self.n_nodes + 1, device=values.device, dtype=self.crow.dtype)
        crow = self.crow + nodes
        diagonal = torch.cat([crow[: self.n_users], crow[self.n_users + 1 :] - 1]).long()  # places of the loops
        off = torch.ones(len(values) + self.n_nodes, dtype=torch.bool, device=values.device)
        off[diagonal] = False
        col, entries = self.col.new_empty(len(off)), values.new_empty(len(off))
        col[diagonal], entries[diagonal] = nodes[:-1], loops
        col[off], entries[off] = self.col, values
        return crow, col, entries

    def drop_edges(self, rate: float, weights: Tensor | None = None) -> Tensor:
        """A mask (E,) of the edges that stay when a share of `rate` is dropped: exactly floor(E (1 - rate)), drawn
        without replacement from torch's default generator: uniformly, or each next one with a probability in
        proportion to its weight, of `weights` (E,) above 0."""
        return _chosen(len(self), int(len(self) * (1 - rate)), self.users.device, weights)

    def drop_nodes(self, rate: float) -> Tensor:
        """A mask (E,) of the edges that stay when floor(rate U) users and floor(rate I) items are dropped."""
        device = self.users.device
        users = _chosen(self.n_users, self.n_users - int(self.n_users * rate), device)
        items = _chosen(self.n_items, self.n_items - int(self.n_items * rate), device)
        return users[self.users] & items[self.items]


def propagate(matrix: SparseMatrix, x: Tensor) -> Tensor:
    """matrix @ x for x (C, D), with gradient for x. Several sources go side by side, as columns of one x."""
    return _Propagation.apply(x, matrix)


def propagate_mean(matrix: SparseMatrix, x: Tensor, layers: int) -> Tensor:
    """The mean of x, S x, ..., S^layers x for a square matrix S and x (N, D), as in LightGCN.

    Computed as x + S (x + S (x + ...)), forward and backward: no layer is kept, and one scratch buffer serves them all.
    (Fresh memory for every layer would cost more time than the arithmetic, in page faults.)
    """
    return x if layers == 0 else _MeanOfLayers.apply(x.contiguous(), matrix, layers)


def propagate_to(side: Side, matrix: SparseMatrix, x: Tensor) -> Tensor:
    """One side's rows of matrix @ x in a bipartite graph, where they need only the other side's x: (I, D) -> (U, D)
    for "users", (U, D) -> (I, D) for "items". Half the work of `propagate`."""
    return _PropagationTo.apply(x, matrix, side)


def propagate_mean_to(
    side: Side, matrix: SparseMatrix, users: Tensor | None, items: Tensor | None, layers: int
) -> Tensor:
    """One side's rows of `propagate_mean` for users (U, D) and items (I, D), of which one may be None: zeros.

    In a bipartite graph a layer of users needs only the layer of items before it, and so on: half the work.
    """
    if layers and matrix.n_users is not None:
        return _MeanOfLayersTo.apply(users, items, matrix, side, layers)
    known = items if users is None else users
    assert known is not None, "expected users or items, got neither"
    zeros = known.new_zeros(matrix.shape[0] - len(known), known.shape[1])
    users, items = zeros if users is None else users, zeros if items is None else items
    means = propagate_mean(matrix, torch.cat([users, items]), layers)
    return means[: len(users)] if side == "users" else means[len(users) :]


class _Propagation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: SparseMatrix) -> Tensor:
        ctx.matrix = matrix
        return _product(matrix.csr(), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _product(ctx.matrix.csr(transposed=True), gradient.contiguous()), None


class _MeanOfLayers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: SparseMatrix, layers: int) -> Tensor:
        ctx.matrix, ctx.layers = matrix, layers
        return _mean_of_layers(matrix.csr(), x, layers, matrix._scratch)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        transpose = ctx.matrix.csr(transposed=True)
        return _mean_of_layers(transpose, gradient.contiguous(), ctx.layers, ctx.matrix._scratch), None, None


class _PropagationTo(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: SparseMatrix, side: Side) -> Tensor:
        ctx.matrix, ctx.side = matrix, side
        return _product(matrix.rows_of(side), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        transpose = ctx.matrix.rows_of(_OTHER[ctx.side], transposed=True)
        return _product(transpose, gradient.contiguous()), None, None


class _MeanOfLayersTo(torch.autograd.Function):
    """users + R (items + R' (users + R items)), divided by the number of terms; and the same from the items' side."""

    @staticmethod
    def forward(
        ctx: Any, users: Tensor | None, items: Tensor | None, matrix: SparseMatrix, side: Side, layers: int
    ) -> Tensor | None:
        ctx.matrix, ctx.side, ctx.layers = matrix, side, layers
        x: dict[Side, Tensor | None] = {"users": users, "items": items}
        rows: dict[Side, Tensor] = {each: matrix.rows_of(each) for each in x}
        turn = side if layers % 2 == 0 else _OTHER[side]
        total = x[turn]
        for layer in range(1, layers + 1):
            turn = _OTHER[turn]
            own, scale = x[turn], 1 / (layers + 1) if layer == layers else 1.0
            if total is not None:
                total = _product(rows[turn], total, plus=own, scale=scale)
            elif own is not None:
                total = own * scale
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        """Propagate the gradient back through the same blocks; each step adds a term."""
        wanted: dict[Side, bool] = dict(zip(_OTHER, ctx.needs_input_grad[:2], strict=True))
        turn: Side = ctx.side
        step = gradient / (ctx.layers + 1)
        sums: dict[Side, Tensor] = {turn: step} if wanted[turn] else {}
        for layer in range(1, ctx.layers + 1):
            turn = _OTHER[turn]
            if layer == ctx.layers and not wanted[turn]:
                break
            step = _product(ctx.matrix.rows_of(turn, transposed=True), step)
            if wanted[turn]:
                sums[turn] = sums[turn].add_(step) if turn in sums else step
        return sums.get("users"), sums.get("items"), None, None, None


_OTHER: Mapping[Side, Side] = {"users": "items", "items": "users"}


def _mean_of_layers(csr: Tensor, x: Tensor, layers: int, scratch: "_Scratch") -> Tensor:
    """Horner's scheme, alternating between a new tensor, which the last step fills, and a scratch one."""
    out, spare = x.new_empty(x.shape), scratch.like(x) if layers > 1 else None
    total = x
    for layer in range(1, layers):
        total = _product(csr, total, plus=x, out=out if (layers - layer) % 2 == 0 else spare)
    return _product(csr, total, plus=x, scale=1 / (layers + 1), out=out)


class _Scratch:
    """One buffer, reused while shape, type and device stay the same; its content doesn't outlive a call."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def like(self, x: Tensor) -> Tensor:
        known = self._buffer
        if known.shape != x.shape or known.dtype != x.dtype or known.device != x.device:
            self._buffer = x.new_empty(x.shape)
        return self._buffer


class _Blocks:
    """The patterns of a bipartite matrix's two blocks, made once on each device that the matrix moves to."""

    def __init__(self) -> None:
        self._known: dict[tuple[Side, torch.device], tuple[Tensor, Tensor]] = {}

    def pattern(self, side: Side, crow: Tensor, col: Tensor, users: int) -> tuple[Tensor, Tensor]:
        """(crow, col) of one side's rows, from those of the whole matrix, whose first rows are `users`."""
        known = self._known.get((side, col.device))
        if known is None:
            entries = len(col) // 2
            if side == "users":
                known = crow[: users + 1], col[:entries] - users
            else:
                known = crow[users:] - entries, col[entries:]
            self._known[side, col.device] = known
        return known


def _sparse(crow: Tensor, col: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """torch's own sparse tensor over these parts; on the CPU where the device has none."""
    if values.device.type == "mps":
        crow, col, values = crow.cpu(), col.cpu(), values.cpu()
    return torch.sparse_csr_tensor(crow, col, values, shape, check_invariants=False)


def _product(
    csr: Tensor, x: Tensor, *, plus: Tensor | None = None, scale: float = 1.0, out: Tensor | None = None
) -> Tensor:
    """scale (csr @ x + plus), into `out` where given."""
    if x.device.type == "mps":
        _notice_mps()
        on_cpu = _product(csr, x.cpu(), plus=None if plus is None else plus.cpu(), scale=scale)
        return on_cpu.to(x.device) if out is None else out.copy_(on_cpu)
    if out is None:
        out = x.new_empty(csr.shape[0], x.shape[1])
    return torch.addmm(out if plus is None else plus, csr, x, beta=0 if plus is None else scale, alpha=scale, out=out)


@cache
def _notice_mps() -> None:
    logger.warning("torch has no sparse product on MPS: graph propagation runs on the CPU")


def interaction_matrix(graph: BipartiteGraph) -> "csr_array":
    """R (U, I) float64 on the CPU: 1 where a user has an item."""
    from scipy.sparse import csr_array

    users, items = graph.users.cpu().numpy(), graph.items.cpu().numpy()
    return csr_array((np.ones(len(users)), (users, items)), shape=(graph.n_users, graph.n_items))


def most_shared(graph: BipartiteGraph, k: int, *, of: Side, shrink: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """The graph of users by the items that they share, or of items by their users: each one's `k` most similar others,
    (n, k) int64, and their similarities n_ij / (sqrt(n_i n_j) + shrink), (n, k) float32.

    n_ij counts what both have, n_i what one has. Who shares something with fewer than k has 0 with similarity 0 in
    their places; equally similar ones are taken by lower id. Those that share nothing are never compared, and
    similarities of SHARED_ROWS to all others are in memory at once.
    """
    rows = interaction_matrix(graph)
    rows = (rows if of == "users" else rows.T).tocsr()  # (n, .)
    n, counts = rows.shape[0], np.diff(rows.indptr).astype(np.int64)
    neighbors, similarities = np.zeros((n, k), dtype=np.int64), np.zeros((n, k), dtype=np.float32)
    for start in range(0, n, SHARED_ROWS):
        both = (rows[start : start + SHARED_ROWS] @ rows.T).tocoo()  # (., n) n_ij
        own, other = both.coords[0].astype(np.int64) + start, both.coords[1].astype(np.int64)
        different = other != own
        own, other, shared = own[different], other[different], both.data[different]
        similar = shared / (np.sqrt(counts[other] * counts[own]) + shrink)
        order = np.lexsort((other, -similar, own))
        own = own[order]
        rank = np.arange(len(own)) - np.searchsorted(own, own)  # among one's others
        kept = rank < k
        neighbors[own[kept], rank[kept]] = other[order][kept]
        similarities[own[kept], rank[kept]] = similar[order][kept]
    return neighbors, similarities


@dataclass(frozen=True)
class Neighbors:
    """Nearest neighbors of every item: `items` (I, k), their `cosines` (I, k), without gradient. `real` (I, k) bool is
    False where an item has fewer than k; there `items` has its own id, and `cosines` zero. `recall` is the share of the
    exact neighbors among them, the item itself not counted: 1 of an exact search, else measured on a sample."""

    items: Tensor
    cosines: Tensor
    real: Tensor
    recall: float = 1.0


@torch.no_grad()
def nearest_neighbors(
    x: Tensor,
    k: int,
    *,
    present: Tensor | None = None,
    ties: Ties = "own_first",
    probes: int | None = None,
    block_rows: int | None = None,
) -> Neighbors:
    """The k items of largest cosine in `x` (I, D): exact, O(I^2 D) time, O(I) memory.

    `ties` chooses among equal cosines. own_first: the item itself, which is thus always among its neighbors, then lower
    ids. topk: those that torch's topk picks from the row of cosines; many equal items then all have the same k
    neighbors, and most of them aren't among their own. With fewer than k candidates all of them are neighbors. An
    item that is not `present` (I,) or whose row is zero has only itself, and is nobody else's neighbor.

    With `probes` the search is approximate, for large I: faiss puts the C candidates into some 4 sqrt(C) clusters and
    compares an item with those of the `probes` clusters nearest to it, which takes O(C^1.5 D) time. `ties` is own_first
    then, among what was compared. The same input and number of threads give the same result. Raises PluginError
    without faiss.

    `block_rows` of cosines are in memory at once; by default as many as suit the device.
    """
    norms = torch.linalg.vector_norm(x, dim=1)
    usable = norms != 0  # NaN counts as usable: it must reach the loss, where it is noticed
    if present is not None:
        usable = usable & present
    ids = usable.nonzero().squeeze(1)  # (C,) the candidates
    own = torch.arange(len(x), device=x.device).unsqueeze(1)  # (I, 1)
    k, recall = min(k, len(x)), 1.0
    items, values = own.repeat(1, k), x.new_zeros(len(x), k)
    real = torch.zeros_like(items, dtype=torch.bool)
    values[:, 0], real[:, 0] = 1.0, True
    if len(ids):
        unit = x[ids].div_(norms[ids].unsqueeze(1)).nan_to_num_(0.0, 0.0, 0.0)  # (C, D)
        width = min(k, len(ids))
        if probes is None:
            found, similar = _most_similar(unit, width, ties, block_rows)  # (C, width) both
        else:
            found, similar = _most_similar_in_clusters(unit, width, probes)
            recall = _recall(unit, found, similar)
        reached = similar > -torch.inf
        items[ids, :width], real[ids, :width] = ids[found], reached
        values[ids, :width] = similar.clamp_(max=1.0).where(reached, 0.0)
    return Neighbors(items, values, real, recall)


def _most_similar(unit: Tensor, k: int, ties: Ties, block_rows: int | None) -> tuple[Tensor, Tensor]:
    """For each row of `unit` (C, D), the k rows (C, k) of largest cosine with it, ascending by row; and the cosines
    (C, k), that with itself infinite if it goes first."""
    n = len(unit)
    block = min(n, block_rows or _block_rows(unit))
    buffer = unit.new_full((block, -(-n // GROUP) * GROUP), -torch.inf)  # whole groups
    similar = unit.new_empty(n, k)
    found = torch.empty(n, k, dtype=torch.long, device=unit.device)
    tied = torch.zeros(n, dtype=torch.bool, device=unit.device)  # at the border of the k, so the choice is open

    def products(start: int, stop: int) -> Tensor:
        """The cosines (block, C) of some rows."""
        cosines = torch.mm(unit[start:stop], unit.T, out=buffer[: stop - start, :n])
        if ties == "own_first":
            cosines.diagonal(start).fill_(torch.inf)  # first, despite rounding
        return cosines

    for start in range(0, n, block):
        stop = min(start + block, n)
        cosines = products(start, stop)
        if ties == "topk":
            best = cosines.topk(k, dim=1).indices  # exactly k: topk's choice among equals depends on it
        else:
            values, best = _largest(buffer[: stop - start], n, min(k + 1, n))  # one more, to see ties
            best = best[:, :k]
            if k < n:
                tied[start:stop] = values[:, k - 1] == values[:, k]
        found[start:stop] = best.sort(dim=1).values
        similar[start:stop] = cosines.gather(1, found[start:stop])
    for number in (tied.nonzero().squeeze(1) // block).unique().tolist():  # asked once: a GPU would wait in each block
        start, stop = number * block, min((number + 1) * block, n)
        rows = tied[start:stop].nonzero().squeeze(1)
        cosines = products(start, stop)[rows]
        lowest = _lowest_of_ties(cosines, cosines.topk(k, dim=1).values[:, -1:], k)
        found[start + rows], similar[start + rows] = lowest, cosines.gather(1, lowest)
    return found, similar


def _block_rows(unit: Tensor) -> int:
    if unit.device.type == "cpu":
        return BLOCK_ROWS
    return max(BLOCK_ROWS, BLOCK_BYTES // (unit.element_size() * len(unit)))


def _largest(rows: Tensor, n: int, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of the first n numbers of each row (R, G x GROUP), in order, and their columns; which of equal ones
    is left open. The other numbers of a row are -inf.

    The k are in those k of the G groups whose largest numbers are largest. Column j G + g belongs to group g.
    """
    groups = rows.shape[1] // GROUP
    if groups <= 2 * k:  # then this would be no less to search
        return rows[:, :n].topk(k, dim=1)
    best = rows.view(-1, GROUP, groups).amax(dim=1).topk(k, dim=1).indices  # (R, k)
    members = torch.arange(GROUP, device=rows.device) * groups  # (GROUP,)
    columns = (best.unsqueeze(2) + members).flatten(1)  # (R, k x GROUP)
    values, places = rows.gather(1, columns).topk(k, dim=1)
    return values, columns.gather(1, places)


def _lowest_of_ties(products: Tensor, threshold: Tensor, k: int) -> Tensor:
    """The k largest columns (R, k) of each row (R, C), where more than k reach the k-th value `threshold` (R, 1)."""
    above, equal = products > threshold, products == threshold
    room = k - above.sum(dim=1, keepdim=True)  # (R, 1)
    chosen = above | (equal & (equal.cumsum(dim=1) <= room))
    return chosen.nonzero()[:, 1].view(-1, k)


def _most_similar_in_clusters(unit: Tensor, k: int, probes: int) -> tuple[Tensor, Tensor]:
    """As `_most_similar`, among the rows of the `probes` clusters nearest to each. Where these have fewer than k rows,
    a row has itself once more, with a cosine of -inf."""
    faiss = _faiss()
    faiss.omp_set_num_threads(torch.get_num_threads())
    n, width = unit.shape
    vectors = unit.float().cpu().numpy()
    clusters = max(1, min(round(4 * math.sqrt(n)), n // 39))  # 39 points for each, which faiss asks for
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, clusters, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.niter = 0, 5
    index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, 64
    index.train(vectors)
    index.add(vectors)
    index.nprobe = min(probes, clusters)
    found, similar = torch.empty(n, k, dtype=torch.long), torch.empty(n, k)
    for start in range(0, n, 1 << 14):
        rows = slice(start, start + (1 << 14))
        own = torch.arange(n)[rows].unsqueeze(1)
        values, others = (torch.from_numpy(part) for part in index.search(vectors[rows], min(k + 1, n)))
        columns = torch.cat([own, others.where(others >= 0, own)], dim=1)
        values = torch.cat([torch.full(own.shape, torch.inf), values.where(columns[:, 1:] != own, -torch.inf)], dim=1)
        by_id = columns.argsort(dim=1, stable=True)
        columns, values = columns.gather(1, by_id), values.gather(1, by_id)
        best = values.argsort(dim=1, descending=True, stable=True)[:, :k].sort(dim=1).values
        found[rows], similar[rows] = columns.gather(1, best), values.gather(1, best)
    return found.to(unit.device), similar.to(unit)


def _recall(unit: Tensor, found: Tensor, similar: Tensor) -> float:
    """The share of a sample's rows of `found` (C, k), themselves not counted, that are exact: no closer row is left
    out. Equal cosines are as good as each other."""
    n, k = found.shape
    sample = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:SAMPLE].to(unit.device)
    exact = 0
    for rows in sample.split(64):
        cosines = unit[rows] @ unit.T
        cosines.scatter_(1, rows.unsqueeze(1), torch.inf)
        least = cosines.topk(k, dim=1).values[:, -1:]
        reached = (cosines.gather(1, found[rows]) >= least) & (similar[rows] > -torch.inf)
        exact += int(reached.sum()) - len(rows)
    recall = exact / max(1, len(sample) * (k - 1)) if k > 1 else 1.0
    logger.info("approximate neighbors of %d items: recall %.4f, measured on %d of them", n, recall, len(sample))
    return recall


def approximate_search() -> str:
    """The library that searches for approximate neighbors, and its version, for a run's record."""
    return f"faiss {_faiss().__version__}"


@cache
def _faiss() -> Any:
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise PluginError(
            f"approximate neighbors: expected faiss, got {first_line(error)}; try pip install 'mmrec-lmm[ann]'"
        ) from None


def cosines(x: Tensor, neighbors: Neighbors) -> Tensor:
    """Each item's cosine with its `neighbors` (I, k), as `neighbors.cosines` but with gradient for `x` (I, D).

    An item that has only itself has 1 there, without gradient, even where its row is zero.
    """
    unit = nn.functional.normalize(x, dim=1)
    values = (unit.unsqueeze(1) * unit[neighbors.items]).sum(dim=2)  # (I, k)
    alone = neighbors.real.sum(dim=1, keepdim=True) == 1
    return torch.where(neighbors.real, torch.where(alone, 1.0, values), 0.0)


def symmetric_weights(values: Tensor, degrees: Tensor, neighbors: Neighbors) -> Tensor:
    """values_ij d_i^-1/2 d_j^-1/2 (I, k) for degrees (I,): a graph normalized as D^-1/2 W D^-1/2, with gradient.

    A degree that isn't positive counts as infinite, so its entries become zero and not NaN.
    """
    positive = degrees > 0
    scale = degrees.where(positive, 1.0).rsqrt() * positive  # (I,)
    return values * scale.unsqueeze(1) * scale[neighbors.items]


def neighbor_sum(items: Tensor, weights: Tensor, x: Tensor) -> Tensor:
    """sum_k weights_ik x[items_ik] (I, D), with gradient for `weights` (I, k) and `x` (I, D): a sparse product whose
    values learn. For constant weights, SparseMatrix.from_entries and `propagate` are quicker."""
    return nn.functional.embedding_bag(items, x, per_sample_weights=weights, mode="sum")


def scatter(values: Tensor, index: Tensor, size: int) -> Tensor:
    """(size, ...): row j is the sum of those rows of `values` (E, ...) whose `index` (E,) is j; zero without any.

    torch_scatter computes it where it is installed (`pip install 'mmrec-lmm[scatter]'`), torch elsewhere: whole numbers
    come out equal, other sums may differ by rounding.
    """
    fused = _torch_scatter()
    if fused is not None:
        return fused(values, index, dim=0, dim_size=size)
    return values.new_zeros(size, *values.shape[1:]).index_add(0, index, values)


@cache
def _torch_scatter() -> Callable[..., Tensor] | None:
    """The package's sum; None where it isn't installed, or was built for another torch."""
    try:
        return importlib.import_module("torch_scatter").scatter_sum
    except ImportError:
        return None
    except (OSError, RuntimeError) as error:
        logger.warning("torch_scatter can't be loaded (%s); torch's own operation is used instead", first_line(error))
        return None


def _distinct(train: Interactions, n_items: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct pairs, ascending by user, then item. (np.unique hashes integers, which takes far longer.)"""
    keys = np.sort(train.users.astype(np.int64) * n_items + train.items)
    users, items = np.divmod(keys[np.diff(keys, prepend=-1) != 0], n_items)
    return users, items


def _chosen(n: int, size: int, device: torch.device, weights: Tensor | None = None) -> Tensor:
    """A mask (n,) with exactly `size` True, drawn uniformly or by `weights` (n,).

    By weights it is a race (Efraimidis & Spirakis, 2006): arrival times are exponential with the weights as rates, and
    the first `size` are chosen. torch.multinomial has the same distribution, for at most 2^24 candidates.
    """
    mask = torch.zeros(n, dtype=torch.bool, device=device)
    if weights is None:
        first = torch.randperm(n, device=device)[:size]
    else:
        times = torch.empty_like(weights).exponential_()
        first = (times / weights).argsort()[:size]
    mask[first] = True
    return mask


def _csr(rows: Tensor, cols: Tensor, values: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """(crow, col, values) of entries in any order."""
    order = torch.argsort(rows * shape[1] + cols)
    counts = scatter(torch.ones_like(rows), rows, shape[0])
    crow = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    dtype = _index_dtype(len(rows))
    return crow.to(dtype), cols[order].to(dtype), values[order]


def _index_dtype(n: int) -> torch.dtype:
    return torch.int32 if n < 2**31 else torch.int64
