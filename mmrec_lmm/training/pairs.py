"""The items that an encoder is tuned on: which train, which are held out, and which form a batch.

Duplicates. Items that share an image file or a text, or are linked by others that do, are duplicates: the one's image
belongs to the other's text. No batch holds two of them, so whatever losses an encoder has, none takes a true pair for a
false one; of duplicates more numerous than the batches of an epoch, others are drawn in each. And duplicates are held
out together or not at all: the items that select the epoch have never been seen.

Shapes: N items that have image and text.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .. import cache
from ..data.items import Source
from ..errors import DataError
from ..types import TuningSizes
from .paradigms import FineTuning


@dataclass(frozen=True)
class Pairs:
    """Items that have an image and a text (N,), and the group (N,) of each: equal for twins, from 0."""

    items: np.ndarray
    groups: np.ndarray

    def __len__(self) -> int:
        return len(self.items)

    def where(self, mask: np.ndarray) -> "Pairs":
        return Pairs(self.items[mask], np.unique(self.groups[mask], return_inverse=True)[1])


def split(
    source: Source, unreadable: Collection[int], tuning: FineTuning, *, name: str
) -> tuple[Pairs, Pairs, TuningSizes]:
    """What trains, what is held out, and how many of what there are."""
    items = np.array([item for item in np.sort(source.items).tolist() if item not in unreadable], np.int64)
    hashes = cache.hash_readable(source.images)
    pairs = Pairs(
        items, duplicate_groups([hashes[item] or "" for item in items], [source.texts[item] for item in items])
    )
    held_out = hold_out(pairs.groups, tuning.held_out, np.random.default_rng([tuning.seed, 0]))
    parts = pairs.where(~held_out), pairs.where(held_out)
    if min(len(np.unique(part.groups)) for part in parts) < 2:
        raise DataError(
            f"encoder {name} can't be tuned: of {len(pairs)} items with a readable image and a text {len(parts[0])} "
            f"are left to train on and {len(parts[1])} to be held out (ft.held_out={tuning.held_out}); each takes two "
            "items that share neither image nor text"
        )
    twins = int((np.bincount(pairs.groups)[pairs.groups] > 1).sum())
    return *parts, TuningSizes(len(parts[0]), len(parts[1]), twins, len(source.items) - len(items))


def duplicate_groups(images: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """Groups (N,) of twins: the connected parts of the graph that joins each image to each text by an item."""
    ends = [np.unique(np.asarray(names, dtype=str), return_inverse=True)[1] for names in (images, texts)]
    n_images, n_texts = (int(end.max(initial=-1)) + 1 for end in ends)
    edges = (np.ones(len(images)), (ends[0], ends[1] + n_images))
    parts: np.ndarray = connected_components(coo_array(edges, shape=(n_images + n_texts,) * 2), directed=False)[1]
    return parts[ends[0]]


def hold_out(groups: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Which items (N,) are held out: whole groups in random order, each that still fits into the share. A group larger
    than that, such as of all items with a placeholder for an image, is never."""
    members = np.bincount(groups)
    room = max(2, round(share * len(groups)))
    chosen = np.zeros(len(members), bool)
    for group in rng.permutation(len(members)):
        if members[group] <= room:
            chosen[group] = True
            room -= members[group]
    return chosen[groups]


def count_batches(groups: np.ndarray, size: int) -> int:
    """How many batches of `size` items an epoch has, none with two of a group; 1 where there are too few for any."""
    members = np.bincount(groups)
    count = max(1, len(groups) // size)
    while count > 1 and np.minimum(members, count).sum() < count * size:
        count -= 1
    return count


def make_batches(groups: np.ndarray, count: int, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Places of items in `count` random batches of at most `size`, no two of a group in one.

    Like cards: a group's items lie together and go round, so that no batch gets two of them as long as they are no
    more than the batches; those beyond are left out, as are those that exceed the batches' size.
    """
    shuffled = rng.permutation(len(groups))
    turn = rng.permutation(int(groups.max()) + 1)[groups]  # (N,): of the item's group
    order = shuffled[np.argsort(turn[shuffled], kind="stable")]
    first = np.searchsorted(turn[order], turn[order])  # (N,): where the item's group begins
    order = order[np.arange(len(order)) - first < count][: count * size]
    return [order[start::count] for start in range(count)]
