"""The minimum cost of the host's hot paths: their products, gathers, sorts and Adam steps on preallocated buffers.

Each floor does exactly the arithmetic of the real code, to the same results (tests/test_benchmarks.py compares them),
and leaves out what a framework adds: fresh memory, autograd, types, checks, ties, one function per metric. Gradients
are written by hand. Its tables are the real code's own, made before the clock starts.

Shapes: N training rows, B batch, R distinct items of a batch, U users, I items, D embedding, F features, K ranks.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from mmrec_lmm.data.sampling import NegativeSampler, TrainingRows
from mmrec_lmm.evaluation.ranking import BLOCK_BYTES
from mmrec_lmm.types import Interactions


class SamplingFloor:
    """An epoch of batches: random numbers, one binary search, a permutation, and a gather per column."""

    def __init__(self, rows: TrainingRows, generator: torch.Generator) -> None:
        assert isinstance(rows._sampler, NegativeSampler)
        self._users, self._items, self._sampler = rows._users, rows._items, rows._sampler
        self._batch_size, self._generator = rows._batch_size, generator
        n = len(self._users)
        self._uniform = torch.empty(n, dtype=torch.float64)
        self._a, self._b, self._r, self._shuffle = torch.empty(4, n, dtype=torch.int64)
        self._columns = tuple(torch.empty(3, n, dtype=torch.int64))

    def __call__(self) -> Iterator[tuple[Tensor, ...]]:
        """Users, positives and negatives (B,) of each batch, valid until the next epoch."""
        sampler, a, b, r = self._sampler, self._a, self._b, self._r
        torch.rand(len(r), dtype=torch.float64, generator=self._generator, out=self._uniform)
        torch.index_select(sampler._free, 0, self._users, out=a)
        r.copy_(self._uniform.mul_(a))
        torch.add(r, self._users, alpha=sampler._stride, out=a)
        torch.searchsorted(sampler._keys, a, right=True, out=b)
        torch.index_select(sampler._start, 0, self._users, out=a)
        r.add_(b).sub_(a)
        torch.index_select(sampler._items, 0, r, out=b)  # the negatives
        torch.randperm(len(r), generator=self._generator, out=self._shuffle)
        for column, out in zip((self._users, self._items, b), self._columns, strict=True):
            torch.index_select(column, 0, self._shuffle, out=out)
        return zip(*(column.split(self._batch_size) for column in self._columns), strict=True)


class VBPRFloor:
    """VBPR's weights, its features, and the two things done with them: a training epoch, and all item vectors."""

    def __init__(self, weights: Mapping[str, Tensor], tables: Sequence[Tensor], reg_weight: float) -> None:
        """Copies the `weights` of a VBPR model; `tables` (I, F_m) in the order in which the model concatenates."""
        names = ("u_embedding", "i_embedding", "item_linear.weight", "item_linear.bias")
        self.weights = [weights[name].detach().clone() for name in names]
        self.users, self.items, self._w, self._bias = self.weights
        self._tables, self._reg = tables, reg_weight
        widths = [table.shape[1] for table in tables]
        self._blocks = self._w.split(widths, dim=1)  # (D, F_m) each
        n_items, width = self.items.shape
        self._gathered = [torch.empty_like(table) for table in tables]
        self._embeddings, self._projected = torch.empty(n_items, width), torch.empty(n_items, width)
        self._vectors, self._d_vectors = torch.empty(n_items, 2 * width), torch.empty(n_items, 2 * width)
        self._gradients = [torch.empty_like(weight) for weight in self.weights]
        self._w_gradients = self._gradients[2].split(widths, dim=1)
        self._first = [torch.zeros_like(weight) for weight in self.weights]
        self._second = [torch.zeros_like(weight) for weight in self.weights]
        self._steps = [torch.zeros(()) for _ in self.weights]

    def all_vectors(self) -> Tensor:
        """[q_i ; W f_i + b] (I, 2D) of every item."""
        return self._project(self._tables, self.items)

    def _project(self, features: Sequence[Tensor], embeddings: Tensor) -> Tensor:
        out = self._projected[: len(embeddings)]
        torch.addmm(self._bias, features[0], self._blocks[0].T, out=out)
        for table, block in zip(features[1:], self._blocks[1:], strict=True):
            out.addmm_(table, block.T)
        return torch.cat([embeddings, out], dim=1, out=self._vectors[: len(embeddings)])

    def epoch(self, batches: Iterator[tuple[Tensor, ...]], batch_size: int, lr: float) -> Tensor:
        """One step of Adam per batch; the two loss terms (2,), summed over the batches."""
        width = self.items.shape[1]
        ids, ordered, order, place = torch.empty(4, 2 * batch_size, dtype=torch.int64)
        pairs, d_pairs = torch.empty(2, 2 * batch_size, 2 * width)
        users, d_users, difference = torch.empty(3, batch_size, 2 * width)
        totals = torch.zeros(2)
        for rows, positives, negatives in batches:
            n = len(rows)
            # the distinct items, and where in them each row's two items are
            torch.cat([positives, negatives], out=ids[: 2 * n])
            torch.sort(ids[: 2 * n], out=(ordered[: 2 * n], order[: 2 * n]))
            items, ranks = torch.unique_consecutive(ordered[: 2 * n], return_inverse=True)
            place[order[: 2 * n]] = ranks
            where = place[: 2 * n]
            # forward
            r = len(items)
            gathered = [
                torch.index_select(table, 0, items, out=out[:r])
                for table, out in zip(self._tables, self._gathered, strict=True)
            ]
            embeddings = torch.index_select(self.items, 0, items, out=self._embeddings[:r])
            vectors = self._project(gathered, embeddings)  # (R, 2D)
            liked, other = torch.index_select(vectors, 0, where, out=pairs[: 2 * n]).split(n)  # (B, 2D) each
            user = torch.index_select(self.users, 0, rows, out=users[:n])
            gap = torch.sub(liked, other, out=difference[:n])
            d_user = torch.mul(user, gap, out=d_users[:n])
            chance = d_user.sum(1).sigmoid_()  # (B,)
            norms = [torch.linalg.vector_norm(matrix) for matrix in (user, liked, other)]
            totals[0] -= (1e-10 + chance).log().mean()
            totals[1] += sum(norms) * (self._reg / n)
            # backward
            d_gap = (chance * (chance - 1) / ((1e-10 + chance) * n)).unsqueeze(1)  # (B, 1)
            d_liked, d_other = d_pairs[: 2 * n].split(n)
            torch.mul(user, d_gap, out=d_liked)
            torch.neg(d_liked, out=d_other)
            torch.mul(gap, d_gap, out=d_user)
            for gradient, matrix, norm in zip((d_user, d_liked, d_other), (user, liked, other), norms, strict=True):
                gradient.add_(matrix, alpha=self._reg / n / norm.item())
            d_vectors = self._d_vectors[:r].zero_().index_add_(0, where, d_pairs[: 2 * n])
            self._gradients[0].zero_().index_add_(0, rows, d_user)
            self._gradients[1].zero_().index_copy_(0, items, d_vectors[:, :width])
            d_projected = d_vectors[:, width:]
            for table, gradient in zip(gathered, self._w_gradients, strict=True):
                torch.mm(d_projected.T, table, out=gradient)
            torch.sum(d_projected, 0, out=self._gradients[3])
            self._adam(lr)
        return totals

    def _adam(self, lr: float) -> None:
        torch._foreach_add_(self._steps, 1)
        torch._fused_adam_(
            self.weights, self._gradients, self._first, self._second, [], self._steps,
            lr=lr, beta1=0.9, beta2=0.999, weight_decay=0.0, eps=1e-8, amsgrad=False, maximize=False,
        )  # fmt: skip


class EvaluationFloor:
    """A whole evaluation of VBPR: all item vectors, scores, mask, top K, hits, and four metrics at each cutoff."""

    def __init__(self, model: VBPRFloor, held_out: Interactions, train: Interactions, cutoffs: Sequence[int]) -> None:
        self._model = model
        n_items, k = len(model.items), max(cutoffs)
        users, place, counts = np.unique(held_out.users, return_inverse=True, return_counts=True)
        self._users, self._n_positives = torch.from_numpy(users), torch.from_numpy(counts).double().unsqueeze(1)
        self._held_out = torch.from_numpy(place), torch.from_numpy(held_out.items).unsqueeze(1)  # (M,), (M, 1)
        block = min(len(users), BLOCK_BYTES // (4 * n_items))
        known = np.isin(train.users, users)
        keys = np.searchsorted(users, train.users[known]) * n_items + train.items[known]
        seen = torch.from_numpy(np.sort(keys))
        starts = range(0, len(users), block)
        bounds = torch.searchsorted(seen, torch.tensor([*starts, len(users)]) * n_items).tolist()
        self._seen = [seen[a:b] - start * n_items for (a, b), start in zip(pairwise(bounds), starts, strict=True)]

        self._user_vectors = torch.empty(len(users), model.users.shape[1])
        self._scores = torch.empty(block, n_items)
        self._best, self._top = torch.empty(block, k), torch.empty(len(users), k, dtype=torch.int64)
        self._listed = torch.empty(len(held_out), k, dtype=torch.int64)
        self._found = torch.empty(len(held_out), k, dtype=torch.bool)
        self._hits, self._precisions = torch.empty(2, len(users), k, dtype=torch.float64)

        ranks = torch.arange(1, k + 1, dtype=torch.float64)
        self._ranks, self._cutoffs = ranks, torch.tensor(cutoffs)
        self._within = (ranks.unsqueeze(1) <= self._cutoffs).double()  # (K, C)
        self._discounts = self._within / torch.log2(ranks + 1).unsqueeze(1)
        self._bound = torch.minimum(self._n_positives, self._cutoffs)  # (U, C)
        self._ideal = (1 / torch.log2(ranks + 1)).cumsum(0)[self._bound.long() - 1]

    def __call__(self) -> Tensor:
        """(4, U, C): Recall, NDCG, Precision and MAP of each user at each cutoff."""
        self._rank()
        self._mark()
        gained, discounted = self._hits @ self._within, self._hits @ self._discounts
        torch.cumsum(self._hits, 1, out=self._precisions).div_(self._ranks).mul_(self._hits)
        averaged = (self._precisions @ self._within).div_(self._bound)
        return torch.stack([
            gained / self._n_positives, discounted.div_(self._ideal), gained / self._cutoffs, averaged
        ])  # fmt: skip

    def _rank(self) -> None:
        """The top K of each user."""
        items = self._model.all_vectors()
        torch.index_select(self._model.users, 0, self._users, out=self._user_vectors)
        size, k = len(self._scores), self._top.shape[1]
        blocks = zip(self._user_vectors.split(size), self._top.split(size), self._seen, strict=True)
        for users, top, seen in blocks:
            scores = torch.mm(users, items.T, out=self._scores[: len(users)])
            scores.view(-1).index_fill_(0, seen, -torch.inf)
            torch.topk(scores, k, out=(self._best[: len(users)], top))

    def _mark(self) -> None:
        """The ranks of the held-out items in those lists: each is compared with its own user's list."""
        place, items = self._held_out
        torch.index_select(self._top, 0, place, out=self._listed)
        row, rank = torch.eq(self._listed, items, out=self._found).nonzero(as_tuple=True)
        self._hits.zero_()[place[row], rank] = 1
