"""Interactions and features of a real data set's size and shape, drawn from a seed: no file is needed to measure.

Shapes: U users, I items, N interactions, F feature width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from mmrec_lmm.types import FeatureTable, Interactions

SPREAD = 1.2  # sigma of the lognormal degrees: fits Amazon Baby's users and items up to the 99th percentile


@dataclass(frozen=True)
class Size:
    """How much of everything; the defaults are Amazon Baby's."""

    users: int = 19_445
    items: int = 7_050
    train: int = 118_551
    valid: int = 20_559
    test: int = 21_682
    widths: Mapping[str, int] = field(default_factory=lambda: {"image": 4096, "text": 384})

    def times(self, factor: int, widths: Mapping[str, int]) -> "Size":
        """`factor` times as many users, items and interactions, which keeps the degrees; other `widths`."""
        users, items, train, valid, test = (
            factor * number for number in (self.users, self.items, self.train, self.valid, self.test)
        )
        return Size(users, items, train, valid, test, widths)


BABY = Size()
QUICK = Size(users=300, items=200, train=2_000, valid=320, test=340, widths={"image": 48, "text": 16})


def interactions(size: Size, rng: np.random.Generator) -> dict[str, Interactions]:
    """Splits by name, in random order. No pair occurs twice; each user has 3 training rows or more, and 1 or more of
    either other split; the degrees of users and items have a long tail."""
    floors = {"train": 3, "valid": 1, "test": 1}
    activity = rng.lognormal(sigma=SPREAD, size=size.users)
    rows = {split: _degrees(getattr(size, split), at_least, activity, rng) for split, at_least in floors.items()}
    users = np.concatenate([np.repeat(np.arange(size.users), degrees) for degrees in rows.values()])  # (N,)
    items = _distinct_items(users, size.items, rng)
    splits = {}
    for split, part in zip(rows, np.split(np.arange(len(users)), np.cumsum([size.train, size.valid])), strict=True):
        order = rng.permutation(part)
        splits[split] = Interactions(users[order], items[order])
    return splits


def features(size: Size, rng: np.random.Generator) -> dict[str, FeatureTable]:
    """Normal deviates, one table per modality, no item missing."""
    present = np.ones(size.items, dtype=bool)
    return {
        modality: FeatureTable(modality, rng.standard_normal((size.items, width), np.float32), present, modality)
        for modality, width in size.widths.items()
    }


def clustered(items: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Vectors (I, F) with neighbors, as learned features have: items around centers, 50 each, and centers around 32
    topics. The deviations are 1 of topics, 0.7 of centers and 1 of items, so clusters overlap.
    """
    centers = 0.7 * rng.standard_normal((-(-items // 50), width), np.float32)
    centers += rng.standard_normal((32, width), np.float32)[rng.integers(32, size=len(centers))]
    values = rng.standard_normal((items, width), np.float32)
    for start in range(0, items, 4096):
        block = values[start : start + 4096]
        block += centers[rng.integers(len(centers), size=len(block))]
    return values


def _degrees(total: int, at_least: int, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Whole numbers (U,) that sum to `total`: `at_least` each, the rest in proportion to `weights`."""
    return at_least + rng.multinomial(total - at_least * len(weights), weights / weights.sum())


def _distinct_items(users: np.ndarray, n_items: int, rng: np.random.Generator) -> np.ndarray:
    """An item (N,) for each row, popular ones more often, no two rows of a user alike: repeats are drawn again."""
    popularity = rng.lognormal(sigma=SPREAD, size=n_items)
    popularity /= popularity.sum()
    items = np.full(len(users), -1)
    repeats = np.arange(len(users))
    while len(repeats):
        items[repeats] = rng.choice(n_items, len(repeats), p=popularity)
        first = np.unique(users * n_items + items, return_index=True)[1]
        repeats = np.setdiff1d(np.arange(len(users)), first)
    return items
