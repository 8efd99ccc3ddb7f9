"""Which interactions a data set keeps: the k-core filter. Array operations: no loop over users or items.

Shapes: N interactions.
"""

import numpy as np


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
