"""The items that an encoder is tuned on: which are trained on, which are held out, and which form a batch.

Items that share an image file or a text, directly or through other items, are duplicates: the image of one belongs to
the text of another. No batch has two duplicates, so no loss takes a true pair for a false one. An epoch can't use more
duplicates of a group than it has batches; each epoch draws others. Duplicates are held out together or not at all, so
the items that select the epoch are never trained on.

Shapes: N items that have image and text.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..data.items import Source
from ..disk.hashing import hash_readable
from ..errors import DataError
from .paradigms import FineTuning


@dataclass(frozen=True)
class TuningSizes:
    """Numbers of items in a tuning: trained on, held out, duplicates in both (`twins`), and unreadable ones."""

    train: int
    held_out: int
    twins: int
    unreadable: int


@dataclass(frozen=True)
class Pairs:
    """Items that have an image and a text (N,), and the group (N,) of each, from 0: duplicates share one."""

    items: np.ndarray
    groups: np.ndarray

    def __len__(self) -> int:
        return len(self.items)

    def where(self, mask: np.ndarray) -> "Pairs":
        return Pairs(self.items[mask], np.unique(self.groups[mask], return_inverse=True)[1])


def split(
    source: Source, unreadable: Collection[int], tuning: FineTuning, *, name: str
) -> tuple[Pairs, Pairs, TuningSizes]:
    """The pairs to train on, those held out, and their numbers. DataError if there are too few."""
    items = np.array([item for item in np.sort(source.items).tolist() if item not in unreadable], np.int64)
    hashes = hash_readable(source.images)
    pairs = Pairs(
        items, duplicate_groups([hashes[item] or "" for item in items], [source.texts[item] for item in items])
    )
    held_out = hold_out(pairs.groups, tuning.held_out, np.random.default_rng([tuning.seed, 0]))
    parts = pairs.where(~held_out), pairs.where(held_out)
    if min(len(np.unique(part.groups)) for part in parts) < 2:
        raise DataError(
            f"ft.held_out: expected two items that share neither image nor text to train encoder {name} on, and two to "
            f"hold out, got {len(parts[0])} and {len(parts[1])} of {len(pairs)} items with a readable image and a text "
            f"(ft.held_out={tuning.held_out}); try another ft.held_out, or --paradigm pt"
        )
    duplicates = int((np.bincount(pairs.groups)[pairs.groups] > 1).sum())
    return *parts, TuningSizes(len(parts[0]), len(parts[1]), duplicates, len(source.items) - len(items))


def duplicate_groups(images: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """Groups (N,) of duplicates: the connected components of the graph whose edges, the items, join image and text."""
    ends = [np.unique(np.asarray(names, dtype=str), return_inverse=True)[1] for names in (images, texts)]
    n_images, n_texts = (int(end.max(initial=-1)) + 1 for end in ends)
    edges = (np.ones(len(images)), (ends[0], ends[1] + n_images))
    parts: np.ndarray = connected_components(coo_array(edges, shape=(n_images + n_texts,) * 2), directed=False)[1]
    return parts[ends[0]]


def hold_out(groups: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A mask (N,) of the items held out: whole groups in random order, each that still fits into the share.

    A group larger than the share, such as all items with one placeholder image, is never held out.
    """
    members = np.bincount(groups)
    room = max(2, round(share * len(groups)))
    chosen = np.zeros(len(members), bool)
    for group in rng.permutation(len(members)):
        if members[group] <= room:
            chosen[group] = True
            room -= members[group]
    return chosen[groups]


def count_batches(groups: np.ndarray, size: int) -> int:
    """The number of batches of `size` items in an epoch, none with two of a group; 1 if there are too few items."""
    members = np.bincount(groups)
    count = max(1, len(groups) // size)
    while count > 1 and np.minimum(members, count).sum() < count * size:
        count -= 1
    return count


def make_batches(groups: np.ndarray, count: int, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Draw `count` random batches of at most `size` positions of items, no two of a group in one batch.

    Like dealing cards: items are ordered by group and dealt to the batches in turn. Items of a group beyond `count` are
    left out, and so are items beyond the batches' size.
    """
    shuffled = rng.permutation(len(groups))
    turn = rng.permutation(int(groups.max()) + 1)[groups]  # (N,): of the item's group
    order = shuffled[np.argsort(turn[shuffled], kind="stable")]
    first = np.searchsorted(turn[order], turn[order])  # (N,): where the item's group begins
    order = order[np.arange(len(order)) - first < count][: count * size]
    return [order[start::count] for start in range(count)]
