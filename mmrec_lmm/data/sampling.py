"""Training rows in batches, and the samplers that draw their negatives.

`uniform` follows MMRec's rule: uniform over the items that occur in training, never one that the user has there. Drawn
exactly, without rejection: if a user's training items have ranks p_0 < p_1 < ... among the T training items, the r-th
item that the user does *not* have is r + #{j : p_j - j <= r}. One binary search over all users' (p_j - j) answers a
whole epoch.

A sampler that `redraws` proposes any item, and the host draws again where the user has it, at most TRIES times.

Shapes: N training rows, U users, I items, T distinct training items, B batch, R drawn items.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..config.schema import Limit, at_least
from ..errors import DataError, PluginError
from ..machine import to_device
from ..plugin.contracts import Sampler
from ..types import Batch, Interactions, TrainingData

TRIES = 1_000  # draws for one row, until a sampler that redraws has failed


def distinct(keys: np.ndarray) -> np.ndarray:
    """The distinct values of `keys` (N,), ascending. np.unique hashes integers, and takes a hundred times as long for
    some millions."""
    keys = np.sort(keys)
    return keys[np.diff(keys, prepend=keys[:1] - 1) != 0]


class NegativeSampler:
    """Draws a training item that the user doesn't have, for any vector of users."""

    def __init__(self, train: Interactions, n_users: int) -> None:
        occurs = np.bincount(train.items) > 0
        items, ranks = np.flatnonzero(occurs), (np.cumsum(occurs) - 1)[train.items]  # (T,), (N,)
        stride = len(items) + 1
        pairs = distinct(train.users * stride + ranks)  # (user, rank)
        users, ranks = pairs // stride, pairs % stride
        degree = np.bincount(users, minlength=n_users)
        _check_free(degree, len(items))
        start = np.concatenate([[0], np.cumsum(degree)[:-1]])
        before = ranks - (np.arange(len(pairs)) - start[users])  # p_j - j: items before this one that the user lacks
        self._stride = stride
        self._items = torch.from_numpy(items)
        self._keys = torch.from_numpy(users * stride + before)
        self._start = torch.from_numpy(start)
        self._free = torch.from_numpy(len(items) - degree)  # (U,) items to draw from

    def draw(self, users: Tensor, generator: torch.Generator) -> Tensor:
        """One negative (R,) for each of `users` (R,). Ascending users are quickest: the search stays in cache."""
        uniform = torch.rand(len(users), dtype=torch.float64, generator=generator)
        r = uniform.mul_(self._free.index_select(0, users)).long()  # r-th of the user's free items
        keys = torch.add(r, users, alpha=self._stride)
        owned_before = torch.searchsorted(self._keys, keys, right=True).sub_(self._start.index_select(0, users))
        return self._items.index_select(0, r.add_(owned_before))  # several times quicker than indexing by brackets


def _check_free(degree: np.ndarray, n_items: int) -> None:
    """DataError if a user has all `n_items` training items; `degree` (U,) counts each user's."""
    if (degree == n_items).any():
        user = int(np.argmax(degree == n_items))
        raise DataError(
            f"user {user} has all {n_items:,} training items, so no negative item exists for them; "
            f"drop such users ({int((degree == n_items).sum()):,} of {len(degree):,})"
        )


class Uniform(Sampler):
    """Each training item that the user lacks is as likely as another."""

    def __init__(self, data: TrainingData, config: Any = None) -> None:
        super().__init__(data, config)
        self._exact = NegativeSampler(data.train, data.n_users)

    def draw(self, users: Tensor, generator: torch.Generator) -> Tensor:
        return self._exact.draw(users, generator)


@dataclass(frozen=True)
class PopularityConfig:
    LIMITS: ClassVar[Mapping[str, Limit]] = {"power": at_least(0)}

    power: float = 0.75  # of an item's count, as word2vec draws words; 0: uniform


class Popularity(Sampler):
    """An item with n training rows is drawn in proportion to n ** power, among those that the user lacks (Mikolov et
    al., NeurIPS 2013, arXiv:1310.4546, for words)."""

    redraws = True

    def __init__(self, data: TrainingData, config: PopularityConfig) -> None:
        super().__init__(data, config)
        counts = np.bincount(data.train.items, minlength=data.n_items)  # (I,)
        degree = np.bincount(_pairs(data) // data.n_items, minlength=data.n_users)
        _check_free(degree, int((counts > 0).sum()))
        shares = np.where(counts > 0, counts / counts.max(initial=1), 0.0)
        self._ends = torch.from_numpy(np.cumsum(np.where(counts > 0, shares**config.power, 0.0)))  # (I,)
        self._last = int(np.flatnonzero(counts).max(initial=0))

    def draw(self, users: Tensor, generator: torch.Generator) -> Tensor:
        uniform = torch.rand(len(users), dtype=torch.float64, generator=generator)
        places = torch.searchsorted(self._ends, uniform.mul_(self._ends[-1]), right=True)
        return places.clamp_(max=self._last)  # rounding may reach the end


class Checked(Sampler):
    """Any plugin's sampler, with what it draws checked, and drawn again where it `redraws`. Errors name the plugin."""

    def __init__(self, sampler: Sampler, data: TrainingData, *, name: str) -> None:
        super().__init__(data, None)
        self._sampler, self._name = sampler, name
        self._pairs: Tensor | None = None
        if sampler.redraws:
            self._pairs = torch.from_numpy(_pairs(data))

    def draw(self, users: Tensor, generator: torch.Generator) -> Tensor:
        items = self._proposed(users, generator)
        if self._pairs is None:
            return items
        rows = self._owned(users, items)
        items = items.clone() if len(rows) else items  # which may be a part of the sampler's own memory
        for _ in range(TRIES - 1):
            if not len(rows):
                return items
            again = self._proposed(users[rows], generator)
            items[rows] = again
            rows = rows[self._owned(users[rows], again)]
        if len(rows):
            raise PluginError(
                f"{self._name}: expected an item that user {int(users[rows[0]])} doesn't have, got none in {TRIES:,} "
                "draws; try another sampler, or dropping users who have nearly all items"
            )
        return items

    def _proposed(self, users: Tensor, generator: torch.Generator) -> Tensor:
        before = users._version
        items = self._sampler.draw(users, generator)
        if users._version != before:
            raise PluginError(
                f"{self._name}: expected draw to leave the users of the training rows as they are, got a change; try "
                "users.clone()"
            )
        if not isinstance(items, Tensor) or items.dtype != torch.int64 or items.shape != users.shape:
            got = f"{items.dtype} {tuple(items.shape)}" if isinstance(items, Tensor) else type(items).__name__
            raise PluginError(f"{self._name}: expected items int64 ({len(users)},) from draw, got {got}")
        if len(items) and not 0 <= int(items.min()) <= int(items.max()) < self.data.n_items:
            raise PluginError(
                f"{self._name}: expected items from 0 to {self.data.n_items - 1} from draw, got {int(items.min())} to "
                f"{int(items.max())}"
            )
        return items

    def _owned(self, users: Tensor, items: Tensor) -> Tensor:
        """The rows (.,) where the user has the item in training."""
        assert self._pairs is not None
        keys = users * self.data.n_items + items
        places = torch.searchsorted(self._pairs, keys).clamp_(max=len(self._pairs) - 1)
        return (self._pairs[places] == keys).nonzero().squeeze(1)


def _pairs(data: TrainingData) -> np.ndarray:
    """The distinct training pairs, user x I + item, ascending."""
    return distinct(data.train.users * data.n_items + data.train.items)


class TrainingRows:
    """All training rows, in a new order each epoch, in batches on a device; the last one may be short.

    `sampler` draws `n_negatives` items for each row; by default one, by MMRec's rule; 0: none.
    """

    def __init__(
        self,
        train: Interactions,
        n_users: int,
        batch_size: int,
        device: torch.device | str = "cpu",
        *,
        sampler: Sampler | None = None,
        n_negatives: int = 1,
    ) -> None:
        order = np.argsort(train.users, kind="stable")
        self._users = torch.from_numpy(train.users[order])  # (N,) ascending
        self._items = torch.from_numpy(train.items[order])
        self._n_negatives = n_negatives
        self._sampler = sampler or (NegativeSampler(train, n_users) if n_negatives else None)
        self._batch_size = batch_size
        self._device = torch.device(device)

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return -(-len(self._users) // self._batch_size)

    def epoch(self, generator: torch.Generator) -> Iterator[Batch]:
        """One pass in random order; every row meets fresh negatives. `generator` is a CPU generator."""
        negatives = self._negatives(generator)
        shuffle = torch.randperm(len(self._users), generator=generator)
        columns = [
            to_device(column.index_select(0, shuffle), self._device) for column in (self._users, self._items, negatives)
        ]
        for users, positives, drawn in zip(*(column.split(self._batch_size) for column in columns), strict=True):
            yield Batch(users, positives, drawn)

    def _negatives(self, generator: torch.Generator) -> Tensor:
        """(N,) if there is one for each row, else (N, n_negatives)."""
        count = self._n_negatives
        if self._sampler is None:
            return self._users.new_empty(len(self._users), 0)
        if count == 1:
            return self._sampler.draw(self._users, generator)
        return self._sampler.draw(self._users.repeat_interleave(count), generator).view(-1, count)
