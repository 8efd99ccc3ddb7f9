"""All-rank evaluation: every user of a split against every item, training items masked.

A plan is made once per split (who is evaluated, which items are masked, which count as hits); ranking then runs in
blocks of users through one reused buffer of scores, and the metrics work on the whole (U, K) matrix of hits. Within a
block nothing waits for the device: no operation's shape depends on values, and NaN is looked for at the end.

Shapes: U evaluated users, I items, B users of a block, K the largest cutoff, G groups of S items.
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import isqrt

import numpy as np
import torch
from torch import Tensor

from ..data.sampling import distinct
from ..errors import PluginError, TrainingDiverged
from ..plugin.contracts import Recommender, device_of
from ..types import Chance, Interactions, Places

#: Bytes of scores at once: on a CPU few enough for its caches, on a GPU enough to keep all of it busy.
BLOCK_BYTES, GPU_BLOCK_BYTES = 8 << 20, 512 << 20
BLOCK_USERS = 64  # at least: each product reads all items' vectors

_LAST = 2**31 - 1  # the largest index
_UNMASKED = -0x7F800000 * 2**32  # `_keys` of -inf are less


@dataclass(frozen=True)
class Ranking:
    """Top items of each evaluated user: `users` (U,) ascending, `items` (U, K) best first, -1 where a user has fewer
    candidates; `hits` (U, K) bool, `n_positives` (U,) held-out rows, duplicates counted; `places` of held-out items
    where they were asked for. Only items of the mask `among` (I,) bool could be listed; None: all."""

    users: np.ndarray
    items: np.ndarray
    hits: np.ndarray
    n_positives: np.ndarray
    places: Places | None = None
    among: np.ndarray | None = None


class Ranker:
    """Ranks all items, or only `among` (I,) bool, for `users` (U,), distinct and ascending; never those that a user has
    in `masked`."""

    def __init__(
        self, users: np.ndarray, masked: Sequence[Interactions], n_items: int, among: np.ndarray | None = None
    ) -> None:
        self.users, self._n_items = users, n_items
        self._out = torch.from_numpy(np.flatnonzero(~among)) if among is not None else None
        seen = [self.keys(rows)[np.isin(rows.users, users)] for rows in masked]
        self._masked = torch.from_numpy(distinct(np.concatenate(seen)))  # ascending keys

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
        last = max(self.users.max(initial=0), rows.users.max(initial=0))
        present = np.bincount(self.users, minlength=last + 1)
        below = np.cumsum(present) - present  # evaluated users before each user
        return below[rows.users] * self._n_items + rows.items

    @torch.no_grad()
    def top(self, model: Recommender, k: int, *, batch_size: int = 4096) -> Tensor:
        """The best `k` items (U, K) of every user, ties by item id, -1 where candidates run out.

        `batch_size` bounds a block of a model without `vectors`. Raises TrainingDiverged where a score is NaN. A score
        of -inf is one like others, and ties with the least finite number of its type.
        """
        top = self._top(model, k, batch_size)
        if bool((top[:, -1] < 0).any()):  # few candidates, or some have the score that masks
            listed = (top >= 0).sum(dim=1).numpy()
            short = np.flatnonzero(listed < np.minimum(k, self.candidates))
            if len(short):
                top[short] = self._of(short)._top(model, k, batch_size, finite=True)
        return top

    def rankable(self, keys: Tensor) -> Tensor:
        """Those of `keys` (row x I + item, ascending) whose item can be ranked for its user."""
        place = torch.searchsorted(self._masked, keys).clamp_(max=max(0, len(self._masked) - 1))
        masked = self._masked[place] == keys if len(self._masked) else torch.zeros_like(keys, dtype=torch.bool)
        if self._out is not None:
            masked |= torch.isin(keys % self._n_items, self._out)
        return keys[~masked]

    @torch.no_grad()
    def above(self, model: Recommender, keys: Tensor, *, batch_size: int = 4096) -> Tensor:
        """For each of `keys` (P,), ascending, of items that can be ranked: how many other candidates of the user, not
        in `keys` themselves, score higher, and half of those that score the same, as float32. (P,) float64.

        Exact: each pair is compared with all items, some pairs at a time. Raises TrainingDiverged where a score is NaN.
        """
        model.eval()
        device, groups = device_of(model), Groups(self._n_items, 1)
        vectors = model.vectors()
        score = _finite(_scored(model, groups) if vectors is None else _multiplied(*vectors, groups))
        size = min(batch_size, max(BLOCK_USERS, block_bytes(device) // (4 * self._n_items)), max(1, len(self.users)))
        dtype = torch.float32 if vectors is None else vectors[0].dtype
        buffer = torch.empty(size, self._n_items, dtype=dtype, device=device)
        users = torch.from_numpy(self.users).to(device)
        found = torch.zeros(len(keys), dtype=torch.float64)
        met_nan = torch.zeros((), dtype=torch.bool, device=device)
        starts = torch.arange(0, len(users) + size, size).clamp_(max=len(users))
        bounds = torch.searchsorted(self._masked, starts * self._n_items).tolist()
        pairs = torch.searchsorted(keys, starts * self._n_items).tolist()
        for number, (start, stop) in enumerate(pairwise(starts.tolist())):
            scores = buffer[: stop - start]
            score(users[start:stop], scores)
            met_nan |= scores.isnan().any()
            flat, first = scores.view(-1), start * self._n_items
            own = (keys[pairs[number] : pairs[number + 1]] - first).to(device)  # (p,)
            reached = flat[own].float()
            flat[(self._masked[bounds[number] : bounds[number + 1]] - first).to(device)] = -torch.inf
            flat[own] = -torch.inf
            if self._out is not None:
                scores.index_fill_(1, self._out.to(device), -torch.inf)
            step = max(1, block_bytes(device) // (4 * self._n_items))
            counts = []
            for rows, values in zip((own // self._n_items).split(step), reached.split(step), strict=True):
                others, own_score = scores.index_select(0, rows).float(), values.unsqueeze(1)  # (step, I), (step, 1)
                counts.append((others > own_score).sum(1).double() + (others == own_score).sum(1).double() / 2)
            found[pairs[number] : pairs[number + 1]] = torch.cat(counts).cpu() if counts else 0.0
        if bool(met_nan):
            raise TrainingDiverged("a score is NaN, so nothing can be ranked")
        return found

    def _of(self, rows: np.ndarray) -> "Ranker":
        """The ranker of the users in some rows, ascending."""
        masked = self._masked.numpy()
        masked = masked[np.isin(masked // self._n_items, rows)]
        part = copy(self)
        part.users = self.users[rows]
        part._masked = torch.from_numpy(
            np.searchsorted(rows, masked // self._n_items) * self._n_items + masked % self._n_items
        )
        return part

    def _top(self, model: Recommender, k: int, batch_size: int, *, finite: bool = False) -> Tensor:
        """As `top`; but a candidate whose score is -inf is listed only if scores are made `finite`."""
        model.eval()
        vectors = model.vectors()
        device = vectors[0].device if vectors is not None else device_of(model)
        users = torch.from_numpy(self.users).to(device)
        groups = Groups.for_top(k, self._n_items)
        if vectors is None:
            score, size, dtype = _scored(model, groups), batch_size, torch.float32
        else:
            score, dtype = _multiplied(*vectors, groups), vectors[0].dtype
            size = max(BLOCK_USERS, block_bytes(device) // (4 * groups.width))
        size = max(1, min(size, len(users)))
        score = _finite(score) if finite else score
        starts = torch.arange(0, len(users) + size, size).clamp_(max=len(users))
        bounds = torch.searchsorted(self._masked, starts * self._n_items).tolist()
        masked, out = self._masked.to(device), None if self._out is None else groups.columns(self._out.to(device))

        rank = BlockRanker(groups, k, score, torch.empty(size, groups.width, dtype=dtype, device=device), out)
        top = torch.full((len(users), k), -1, device=device)  # (U, K)
        for number, (start, stop) in enumerate(pairwise(starts.tolist())):
            hidden = masked[bounds[number] : bounds[number + 1]] - start * self._n_items
            best = rank(users[start:stop], hidden)
            top[start:stop, : best.shape[1]] = best
        if rank.met_nan:
            raise TrainingDiverged("a score is NaN, so nothing can be ranked")
        return top.cpu()


class Evaluator:
    """Ranks all items, or only `among` (I,) bool, for the users of `held_out`, and marks which are held-out ones."""

    def __init__(
        self, held_out: Interactions, masked: Sequence[Interactions], n_items: int, among: np.ndarray | None = None
    ) -> None:
        users, self._n_positives = np.unique(held_out.users, return_counts=True)  # both (U,)
        self._ranker = Ranker(users, masked, n_items, among)
        self._truth = torch.from_numpy(distinct(self._ranker.keys(held_out)))
        self._n_items, self._among = n_items, among

    @cached_property
    def _rankable(self) -> Tensor:
        """The keys (P,) of held-out items that can be ranked."""
        return self._ranker.rankable(self._truth)

    def rank(self, model: Recommender, k: int, *, batch_size: int = 4096, places: bool = False) -> Ranking:
        """The ranking of every evaluated user, with the `places` of held-out items or not; arguments and errors as of
        `Ranker.top`."""
        top = self._ranker.top(model, k, batch_size=batch_size)
        return self.ranking(top, self._ranker.above(model, self._rankable, batch_size=batch_size) if places else None)

    def ranking(self, items: Tensor, above: Tensor | None = None) -> Ranking:
        """The ranking whose best items (U, K) int64 are known, and the result of `Ranker.above` (P,) perhaps too;
        ValueError if they aren't of these users."""
        if items.ndim != 2 or len(items) != len(self._ranker.users):
            raise ValueError(f"expected items of {len(self._ranker.users)} users, got {tuple(items.shape)}")
        keys = items + torch.arange(len(items)).unsqueeze(1) * self._n_items  # (U, K)
        place = torch.searchsorted(self._truth, keys).clamp_(max=len(self._truth) - 1)
        hits = (self._truth[place] == keys) & (items >= 0)
        places = None if above is None else self._places(above.numpy())
        return Ranking(self._ranker.users, items.numpy(), hits.numpy(), self._n_positives, places, self._among)

    def _places(self, above: np.ndarray) -> Places:
        rows = (self._rankable // self._n_items).numpy()  # (P,)
        if above.shape != rows.shape:
            raise ValueError(f"expected {len(rows)} held-out items, got {len(above)}")
        return Places(rows, above, self._ranker.candidates - np.bincount(rows, minlength=len(self._ranker.users)))

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


@dataclass(frozen=True)
class Groups:
    """Items in G groups of S consecutive ids: the best items are among those of the groups with the largest maxima.

    That is quicker than a `topk` of all scores where the maxima are cheap. So a row of scores holds all groups' first
    items, then all their second ones, and so on: the maxima are elementwise ones of S stretches. Item i stands in
    column (i mod S) G + i div S; if the last group isn't full, its last columns stand for no item.
    """

    n_items: int
    size: int  # S

    @classmethod
    def for_top(cls, k: int, n_items: int) -> "Groups":
        """Groups of which `k` hold about as many items as there are groups; of one item each in a small catalog."""
        size = isqrt(n_items // k)
        return cls(n_items, size if size > 2 else 1)

    @property
    def count(self) -> int:
        return -(-self.n_items // self.size)

    @property
    def width(self) -> int:
        return self.size * self.count

    def arrange(self, rows: Tensor, out: Tensor) -> Tensor:
        """Write `rows` (B, I) of a number per item into `out` (B, S G), in the order of groups."""
        whole, rest = divmod(self.n_items, self.size)
        target = self._by_rank(out).transpose(1, 2)  # (B, G, S)
        target[:, :whole] = rows[:, : whole * self.size].unflatten(1, (whole, self.size))
        if rest:
            target[:, whole, :rest] = rows[:, whole * self.size :]
        return out

    def columns(self, items: Tensor) -> Tensor:
        """Where the scores of items are in a row."""
        return items % self.size * self.count + items // self.size

    def hide(self, scores: Tensor, keys: Tensor) -> None:
        """Set -inf at `keys` (row x I + item), and where the last group has no items, in `scores` (B, S G)."""
        rows, items = keys // self.n_items, keys % self.n_items
        scores.view(-1).index_fill_(0, rows * self.width + self.columns(items), -torch.inf)
        missing = self.width - self.n_items
        self._by_rank(scores)[:, self.size - missing :, -1].fill_(-torch.inf)

    def top(self, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Items (B, min(k, I)) of each row's largest `scores` (B, S G), best first, equal scores by lower id, -1 for
        masked (-inf); and whether a score is NaN, () bool. Scores are compared as float32.

        Exact, also for ties: where an item's group isn't among the k largest by maximum and number, each of these has
        an item that is larger, or as large and of lower id.
        """
        k = min(k, self.n_items)
        maxima = self._by_rank(scores).amax(1) if self.size > 1 else scores  # (B, G)
        keys = _keys(maxima, torch.arange(self.count, device=scores.device))
        if self.size > 1:
            best = _indices(keys.topk(min(k, self.count), sorted=False).values).unsqueeze(2)
            ranks = torch.arange(self.size, device=scores.device)
            candidates = scores.gather(1, (best + ranks * self.count).flatten(1))
            keys = _keys(candidates, (best * self.size + ranks).flatten(1))
        keys = keys.topk(k).values
        masked = keys < _UNMASKED
        return _indices(keys).masked_fill_(masked, -1), maxima.isnan().any()

    def _by_rank(self, scores: Tensor) -> Tensor:
        """(B, S, G): item s of group g."""
        return scores.unflatten(1, (self.size, self.count))


class BlockRanker:
    """The best `k` items of one block of users after another, through one buffer of scores. Nothing in a call waits
    for the device; `met_nan` () tells whether any score so far was NaN.

    `score` writes the scores of users (B,) into rows of `buffer` (., S G), in the order of `groups`. Columns `out` are
    hidden from all users.
    """

    def __init__(
        self,
        groups: Groups,
        k: int,
        score: Callable[[Tensor, Tensor], object],
        buffer: Tensor,
        out: Tensor | None = None,
    ) -> None:
        self.met_nan = torch.zeros((), dtype=torch.bool, device=buffer.device)
        self._groups, self._k, self._score, self._buffer, self._out = groups, k, score, buffer, out

    def __call__(self, users: Tensor, hidden: Tensor) -> Tensor:
        """The best items (B, min(K, I)) of `users` (B,) but for `hidden`: keys of row x I + item, row in the block."""
        scores = self._buffer[: len(users)]
        self._score(users, scores)
        self._groups.hide(scores, hidden)
        if self._out is not None:
            scores.index_fill_(1, self._out, -torch.inf)
        items, nan = self._groups.top(scores, self._k)
        self.met_nan |= nan
        return items


def block_bytes(device: torch.device) -> int:
    """The bytes of scores that a device ranks at once."""
    return BLOCK_BYTES if device.type == "cpu" else GPU_BLOCK_BYTES


def _multiplied(users: Tensor, items: Tensor, groups: Groups) -> Callable[[Tensor, Tensor], object]:
    """Writes products of vectors (n_users, D) and (I, D)."""
    arranged = groups.arrange(items.T, items.new_zeros(items.shape[1], groups.width))
    return lambda ids, out: torch.mm(users.index_select(0, ids), arranged, out=out)


def _scored(model: Recommender, groups: Groups) -> Callable[[Tensor, Tensor], object]:
    """Writes what the model's own scorer returns: a copy, since it is masked in place."""
    scorer = model.scorer()

    def write(ids: Tensor, out: Tensor) -> None:
        scores = scorer(ids)  # (B, I)
        if scores.shape != (len(ids), groups.n_items):
            raise PluginError(
                f"model {type(model).__name__}: expected scores of {len(ids)} users x {groups.n_items} items from its "
                f"scorer, got {tuple(scores.shape)}"
            )
        groups.arrange(scores, out)

    return write


def _finite(score: Callable[[Tensor, Tensor], object]) -> Callable[[Tensor, Tensor], object]:
    """Writes what `score` does, with the least finite number, also of float32, in place of -inf."""

    def write(ids: Tensor, out: Tensor) -> None:
        score(ids, out)
        out.clamp_(min=max(torch.finfo(out.dtype).min, torch.finfo(torch.float32).min))

    return write


def _keys(values: Tensor, indices: Tensor) -> Tensor:
    """int64 that order like `values` (as float32), equal ones by lower index; `indices` are below 2^31."""
    bits = (values.float() + 0.0).view(torch.int32)  # -0.0 + 0.0 is 0.0
    bits ^= (bits >> 31).bitwise_and_(_LAST)  # among negative numbers, the larger magnitude is the smaller number
    return torch.add(_LAST - indices, bits, alpha=2**32)


def _indices(keys: Tensor) -> Tensor:
    """The indices in such keys, which are overwritten."""
    return keys.bitwise_not_().bitwise_and_(_LAST)
