"""Training rows in batches, each with a negative drawn by MMRec's rule.

The rule: uniform over the items that occur in training, never one that the user has there. Drawn exactly, without
rejection: if a user's training items have ranks p_0 < p_1 < ... among the T training items, the r-th item that the
user does *not* have is r + #{j : p_j - j <= r}. One binary search over all users' (p_j - j) answers a whole epoch.

Shapes: N training rows, U users, T distinct training items, B batch.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..machine import to_device
from ..types import Batch, Interactions


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
        start = np.concatenate([[0], np.cumsum(degree)[:-1]])
        before = ranks - (np.arange(len(pairs)) - start[users])  # p_j - j: items before this one that the user lacks
        if (degree == len(items)).any():
            user = int(np.argmax(degree == len(items)))
            raise DataError(
                f"user {user} has all {len(items):,} training items, so no negative item exists for them; "
                f"drop such users ({int((degree == len(items)).sum()):,} of {n_users:,})"
            )
        self._stride = stride
        self._items = torch.from_numpy(items)
        self._keys = torch.from_numpy(users * stride + before)
        self._start = torch.from_numpy(start)
        self._free = torch.from_numpy(len(items) - degree)  # (U,) items to draw from

    def draw(self, users: Tensor, generator: torch.Generator) -> Tensor:
        """One negative (N,) for each of `users` (N,). Ascending users are quickest: the search stays in cache."""
        uniform = torch.rand(len(users), dtype=torch.float64, generator=generator)
        r = uniform.mul_(self._free.index_select(0, users)).long()  # r-th of the user's free items
        keys = torch.add(r, users, alpha=self._stride)
        owned_before = torch.searchsorted(self._keys, keys, right=True).sub_(self._start.index_select(0, users))
        return self._items.index_select(0, r.add_(owned_before))  # several times quicker than indexing by brackets


class TrainingRows:
    """All training rows, shuffled anew each epoch, in batches on a device; the last one may be short."""

    def __init__(self, train: Interactions, n_users: int, batch_size: int, device: torch.device | str = "cpu") -> None:
        order = np.argsort(train.users, kind="stable")
        self._users = torch.from_numpy(train.users[order])  # (N,) ascending
        self._items = torch.from_numpy(train.items[order])
        self._sampler = NegativeSampler(train, n_users)
        self._batch_size = batch_size
        self._device = torch.device(device)

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return -(-len(self._users) // self._batch_size)

    def epoch(self, generator: torch.Generator) -> Iterator[Batch]:
        """One pass in random order; every row meets one fresh negative. `generator` is a CPU generator."""
        negatives = self._sampler.draw(self._users, generator)
        shuffle = torch.randperm(len(self._users), generator=generator)
        columns = [
            to_device(column.index_select(0, shuffle), self._device) for column in (self._users, self._items, negatives)
        ]
        for users, positives, drawn in zip(*(column.split(self._batch_size) for column in columns), strict=True):
            yield Batch(users, positives, drawn)
