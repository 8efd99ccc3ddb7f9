"""All-rank evaluation: every user of a split against every item, training items masked.

A plan is made once per split (who is evaluated, which items are masked, which count as hits); ranking then runs in
blocks of users through one reused buffer of scores, and the metrics work on the whole (U, K) matrix of hits.

Shapes: U evaluated users, I items, B users of a block, K the largest cutoff.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..errors import TrainingDiverged
from ..plugin.contracts import Recommender
from ..types import Chance, Interactions

#: Of one metric at one cutoff: hits (U, K) bool, number of held-out rows (U,), cutoff -> (U,) float64.
MetricFunction = Callable[[np.ndarray, np.ndarray, int], np.ndarray]

BLOCK_BYTES = 8 << 20  # of scores at once: small enough to stay in a processor's cache between product and top-k


@dataclass(frozen=True)
class Ranking:
    """Top items of each evaluated user: `users` (U,) ascending, `items` (U, K) best first, -1 where a user has fewer
    candidates; `hits` (U, K) bool, `n_positives` (U,) held-out rows, duplicates counted."""

    users: np.ndarray
    items: np.ndarray
    hits: np.ndarray
    n_positives: np.ndarray


class Ranker:
    """Ranks all items, or only `among` (I,) bool, for `users` (U,), distinct and ascending; never those that a user has
    in `masked`."""

    def __init__(
        self, users: np.ndarray, masked: Sequence[Interactions], n_items: int, among: np.ndarray | None = None
    ) -> None:
        self.users, self._n_items = users, n_items
        self._out = torch.from_numpy(np.flatnonzero(~among)) if among is not None else None
        seen = [self.keys(rows)[np.isin(rows.users, users)] for rows in masked]
        self._masked = torch.from_numpy(np.unique(np.concatenate(seen)))  # ascending keys

    @property
    def candidates(self) -> np.ndarray:
        """The number (U,) of items that can be ranked for each user."""
        masked, left = self._masked.numpy(), self._n_items
        if self._out is not None:
            masked = masked[~np.isin(masked % self._n_items, self._out.numpy())]
            left -= len(self._out)
        return left - np.bincount(masked // self._n_items, minlength=len(self.users))

    def keys(self, rows: Interactions) -> np.ndarray:
        """row x I + item, where row is the user's place among `users` (or where it would be)."""
        return np.searchsorted(self.users, rows.users) * self._n_items + rows.items

    @torch.no_grad()
    def top(self, model: Recommender, k: int, *, batch_size: int = 4096) -> Tensor:
        """The best `k` items (U, K) of every user, ties by item id, -1 where candidates run out.

        `batch_size` bounds a block of a model without `vectors`. Raises TrainingDiverged where a score is NaN.
        """
        model.eval()
        vectors = model.vectors()
        device = vectors[0].device if vectors is not None else next(model.parameters()).device
        users = torch.from_numpy(self.users).to(device)
        if vectors is None:
            score, block = _fresh_scores(model), batch_size
        else:
            block = max(1, min(len(users), BLOCK_BYTES // (4 * self._n_items)))
            score = _buffered_scores(vectors[0][users], vectors[1], block)
        starts = torch.arange(0, len(users) + block, block).clamp_(max=len(users))
        bounds = torch.searchsorted(self._masked, starts * self._n_items).tolist()
        masked, out = self._masked.to(device), None if self._out is None else self._out.to(device)

        top = torch.full((len(users), k), -1)  # (U, K)
        for number, (start, stop) in enumerate(pairwise(starts.tolist())):
            scores = score(users, slice(start, stop))  # (B, I)
            hidden = masked[bounds[number] : bounds[number + 1]] - start * self._n_items
            scores.view(-1)[hidden] = -torch.inf
            if out is not None:
                scores[:, out] = -torch.inf
            best = top_items(scores, min(k, self._n_items))
            top[start:stop, : best.shape[1]] = best
        return top


class Evaluator:
    """Ranks all items, or only `among` (I,) bool, for the users of `held_out`, and marks which are held-out ones."""

    def __init__(
        self, held_out: Interactions, masked: Sequence[Interactions], n_items: int, among: np.ndarray | None = None
    ) -> None:
        users, self._n_positives = np.unique(held_out.users, return_counts=True)  # both (U,)
        self._ranker = Ranker(users, masked, n_items, among)
        self._truth = torch.from_numpy(np.unique(self._ranker.keys(held_out)))
        self._n_items = n_items

    def rank(self, model: Recommender, k: int, *, batch_size: int = 4096) -> Ranking:
        """The ranking of every evaluated user; arguments and errors as of `Ranker.top`."""
        items = self._ranker.top(model, k, batch_size=batch_size)
        keys = items + torch.arange(len(items)).unsqueeze(1) * self._n_items  # (U, K)
        place = torch.searchsorted(self._truth, keys).clamp_(max=len(self._truth) - 1)
        hits = (self._truth[place] == keys) & (items >= 0)
        return Ranking(self._ranker.users, items.numpy(), hits.numpy(), self._n_positives)

    def chance(self, ranking: Ranking, k: int) -> Chance:
        """A ranking's recall at `k` beside that of random ones: a user's hits are hypergeometric, K draws from the
        items that can be ranked."""
        items = np.maximum(self._ranker.candidates, 1)  # N (U,)
        rows = (self._truth // self._n_items).numpy()
        share = np.bincount(rows, minlength=len(items)) / items  # of the held-out ones among them
        draws = np.minimum(k, items)
        spread = (items - draws) / np.maximum(items - 1, 1)
        deviations = np.sqrt(draws * share * (1 - share).clip(0) * spread) / self._n_positives
        recall = ranking.hits[:, :k].sum(axis=1) / self._n_positives
        return Chance(
            score=float(recall.mean()),
            mean=float((draws * share / self._n_positives).mean()),
            deviation=float(np.sqrt((deviations**2).sum()) / len(items)),
        )


def top_items(scores: Tensor, k: int) -> Tensor:
    """Indices (B, k) of each row's largest scores, best first, equal scores by lower index; -1 for masked (-inf).

    `topk` leaves the order of ties open. Rows that have a tie among their first k + 1 are rare, and sorted whole.
    """
    wanted = min(k + 1, scores.shape[1])
    values, items = scores.topk(wanted, dim=1)  # (B, k + 1)
    if values[:, 0].isnan().any():
        raise TrainingDiverged("a score is NaN, so nothing can be ranked")
    tied = (values[:, 1:] == values[:, :-1]).any(dim=1).nonzero().squeeze(1)
    if len(tied):
        values[tied], items[tied] = (
            part[:, :wanted] for part in scores[tied].sort(dim=1, descending=True, stable=True)
        )
    return items.masked_fill_(values == -torch.inf, -1)[:, :k]


def metric_values(
    ranking: Ranking, metrics: Mapping[str, MetricFunction], cutoffs: Sequence[int]
) -> dict[str, np.ndarray]:
    """{"recall@20": (U,) float64, ...}: each metric at each cutoff, per evaluated user, unrounded."""
    return {
        f"{name.lower()}@{k}": function(ranking.hits, ranking.n_positives, k)
        for name, function in metrics.items()
        for k in cutoffs
    }


def _buffered_scores(users: Tensor, items: Tensor, block: int) -> Callable[[Tensor, slice], Tensor]:
    """Scores of a block of evaluated users from vectors, written into one buffer over and over."""
    buffer = users.new_empty(block, len(items))
    return lambda _, rows: torch.mm(users[rows], items.T, out=buffer[: rows.stop - rows.start])


def _fresh_scores(model: Recommender) -> Callable[[Tensor, slice], Tensor]:
    """Scores of a block of evaluated users from the model's own scorer: a copy, since they are masked in place, and
    contiguous by rows, since a scorer may return a transpose."""
    scorer = model.scorer()
    return lambda users, rows: scorer(users[rows]).clone(memory_format=torch.contiguous_format)
