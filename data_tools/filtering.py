"""Which interactions a data set keeps: the rating threshold, repeated pairs, the k-core. Array operations: no loop over
users or items.

Shapes: N interactions.
"""

import numpy as np
import pandas as pd


def select(
    users: np.ndarray, items: np.ndarray, ratings: np.ndarray | None, *, min_rating: float | None, core: int
) -> tuple[np.ndarray, dict[str, int]]:
    """Which interactions remain, (N,) bool, and how many were dropped for each reason that occurred.

    In this order: ratings below `min_rating`; repeated pairs of a user and an item, of which the first row of the files
    remains; all outside the `core`. `users`, `items` (N,) are codes from 0.
    """
    keep = np.ones(len(users), dtype=bool)
    dropped: dict[str, int] = {}

    def drop(remaining: np.ndarray, reason: str) -> None:
        """Go on with those of the remaining interactions that `remaining` marks."""
        if not remaining.all():
            dropped[reason] = int((~remaining).sum())
            keep[np.flatnonzero(keep)[~remaining]] = False

    if min_rating is not None and ratings is not None:
        drop(ratings >= min_rating, f"rating below {min_rating:g}")
    pairs = users[keep] * (items.max(initial=0) + np.int64(1)) + items[keep]
    drop(~pd.Series(pairs).duplicated().to_numpy(), "pair repeated")
    del pairs
    if core > 1:
        drop(k_core(users[keep], items[keep], core), f"outside the {core}-core")
    return keep, dropped


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
