"""Who goes where: MMRec's random split per user, and the k-core filter that its data sets went through.

Both are array operations: no loop over users or items. Shapes: N interactions.
"""

import numpy as np

TRAIN, VALID, TEST = 0, 1, 2  # MMRec's x_label


def split_labels(users: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The x_label of each interaction, (N,) int64, by MMRec's rule, drawn with `rng`.

    A user's n interactions are shuffled; the last t are held out, floor(t/2) of them for validation and the rest for
    test, where t = 2 for n < 10 and floor(0.2 n) from 10 on. Users with fewer than 3 interactions keep all in
    training, since n - 2 would leave nothing to train on. `users` (N,) are internal ids.
    """
    order = np.lexsort((rng.random(len(users)), users))  # (N,) by user, shuffled within
    counts = np.bincount(users)  # (n_users,)
    n = counts[users[order]]
    rank = np.arange(len(users)) - (np.cumsum(counts) - counts)[users[order]]  # place within the user, from 0
    held_out = np.where(n < 3, 0, np.where(n < 10, 2, n // 5))
    first_valid = n - held_out
    first_test = first_valid + held_out // 2
    labels = np.empty(len(users), dtype=np.int64)
    labels[order] = np.where(rank < first_valid, TRAIN, np.where(rank < first_test, VALID, TEST))
    return labels


def k_core(users: np.ndarray, items: np.ndarray, k: int) -> np.ndarray:
    """Which interactions remain, (N,) bool, when users and items with fewer than `k` are removed until none is left."""
    keep = np.ones(len(users), dtype=bool)
    while True:
        enough = (np.bincount(users[keep], minlength=users.max(initial=-1) + 1)[users] >= k) & (
            np.bincount(items[keep], minlength=items.max(initial=-1) + 1)[items] >= k
        )
        if enough[keep].all():
            return keep
        keep &= enough
