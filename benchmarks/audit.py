"""How often `data audit` finds a leak, and flags an honest file: `python -m benchmarks.audit [--seeds 100]`.

Each seed draws a small world: users and items with tastes, content that shows them, interactions by taste and
popularity, MMRec's split. Honest files are made of content, of training rows, or of both. Each of ten leaks puts
held-out rows into an honest file in another way. The last file is made from all rows alike, which isn't seen.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from mmrec_lmm.checking.audit import ALPHA, PERMUTATIONS, FileAudit, Matrix, Pairs, Side, audit_file
from mmrec_lmm.data.splitting import TEST, TRAIN, VALID, split_labels

USERS, ITEMS, TASTES, WIDTH, RANK, NEIGHBORS = 300, 500, 8, 32, 16, 10
STRENGTH = 1.0  # the length of a leak in a file, beside its honest part


@dataclass(frozen=True)
class World:
    """Pairs with labels, and content (I, WIDTH) that shows the items' tastes."""

    pairs: Pairs
    content: np.ndarray

    def rows(self, *labels: int) -> np.ndarray:
        """Who has what in the splits, (U, I)."""
        chosen = np.isin(self.pairs.labels, labels)
        found = np.zeros((self.pairs.n_users, self.pairs.n_items))
        found[self.pairs.users[chosen], self.pairs.items[chosen]] = 1
        return found


def world(seed: int) -> World:
    rng = np.random.default_rng(seed)
    tastes, items = rng.standard_normal((USERS, TASTES)), rng.standard_normal((ITEMS, TASTES))
    scores = 0.7 * tastes @ items.T + rng.standard_normal(ITEMS)  # the items' popularity
    scores += rng.gumbel(size=scores.shape)
    order, counts = np.argsort(-scores, axis=1), rng.integers(8, 30, USERS)
    users = np.repeat(np.arange(USERS), counts)
    chosen = np.concatenate([row[:count] for row, count in zip(order, counts, strict=True)])
    labels = split_labels(users, rng)
    content = items @ rng.standard_normal((TASTES, WIDTH)) + rng.standard_normal((ITEMS, WIDTH))
    return World(Pairs.from_rows(users, chosen, labels, USERS, ITEMS), content)


def embeddings(rows: np.ndarray) -> np.ndarray:
    """The items' part (I, RANK) of the largest singular vectors of normalized rows."""
    degrees = [np.maximum(rows.sum(axis=axis, keepdims=True), 1) for axis in (0, 1)]
    _, values, items = np.linalg.svd(rows / np.sqrt(degrees[0] * degrees[1]), full_matrices=False)
    return np.asarray(items[:RANK].T * values[:RANK])


def beside(content: np.ndarray, leak: np.ndarray) -> np.ndarray:
    """Content and a leak in columns of their own, the leak as long as the content."""
    scale = STRENGTH * np.sqrt((content**2).sum() / max((leak**2).sum(), 1e-12))
    return np.concatenate([content, leak * scale], axis=1)


def neighbors(values: np.ndarray) -> sparse.csr_array:
    """Links from each row to its nearest."""
    rows = values - values.mean(axis=0)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    similar = rows @ rows.T
    np.fill_diagonal(similar, -np.inf)
    nearest = np.argsort(-similar, axis=1)[:, :NEIGHBORS]
    links = np.zeros((len(rows), len(rows)))
    np.put_along_axis(links, nearest, 1, axis=1)
    return sparse.csr_array(links)


def mean_content(rows: np.ndarray, content: np.ndarray) -> np.ndarray:
    return np.asarray(rows @ content / np.maximum(rows.sum(axis=1, keepdims=True), 1))


def shared(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Items (I, I) that one user has, the first in `rows` and the second in `others`."""
    return np.asarray((rows.T @ others > 0) * 1.0)


File = tuple[Side, Matrix]
HONEST: Mapping[str, Callable[[World], File]] = {
    "content": lambda w: ("item", w.content),
    "embeddings of training": lambda w: ("item", embeddings(w.rows(TRAIN))),
    "content beside embeddings of training": lambda w: ("item", beside(w.content, embeddings(w.rows(TRAIN)))),
    "graph of content": lambda w: ("item", neighbors(w.content)),
    "graph of training": lambda w: ("item", neighbors(embeddings(w.rows(TRAIN)))),
    "profiles of training": lambda w: ("user", mean_content(w.rows(TRAIN), w.content)),
    "user-item graph of training": lambda w: ("both", sparse.csr_array(w.rows(TRAIN))),
}
LEAKS: Mapping[str, Callable[[World], File]] = {
    "content beside embeddings of training and test": lambda w: (
        "item", beside(w.content, embeddings(w.rows(TRAIN, TEST))),
    ),
    "content beside embeddings of training and validation": lambda w: (
        "item", beside(w.content, embeddings(w.rows(TRAIN, VALID))),
    ),
    "content moved to the profiles of test users": lambda w: (
        "item", w.content + STRENGTH * mean_content(w.rows(TEST).T, mean_content(w.rows(TRAIN), w.content)),
    ),
    "a column of test counts": lambda w: ("item", np.c_[w.content, w.rows(TEST).sum(axis=0)]),
    "a column of validation counts": lambda w: ("item", np.c_[w.content, w.rows(VALID).sum(axis=0)]),
    "graph of training and test": lambda w: ("item", neighbors(embeddings(w.rows(TRAIN, TEST)))),
    "graph of content, linked by test users": lambda w: (
        "item", sparse.csr_array(neighbors(w.content) + 0.5 * shared(w.rows(TEST), w.rows(TRAIN))),
    ),
    "profiles of training and test": lambda w: ("user", mean_content(w.rows(TRAIN, TEST), w.content)),
    "profiles of test": lambda w: ("user", mean_content(w.rows(TEST), w.content)),
    "user-item graph of training and half of test": lambda w: (
        "both", sparse.csr_array(w.rows(TRAIN) + w.rows(TEST) * (np.arange(ITEMS) % 2)),
    ),
}  # fmt: skip
UNSEEN: Mapping[str, Callable[[World], File]] = {
    "not seen: embeddings of all rows": lambda w: ("item", embeddings(w.rows(TRAIN, VALID, TEST))),
}


def audited(make: Callable[[World], File], seed: int, permutations: int = PERMUTATIONS) -> FileAudit:
    """The audit of one file in the world of a seed."""
    made = world(seed)
    side, matrix = make(made)
    return audit_file("file", side, matrix, made.pairs, permutations=permutations, seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--leak-seeds", type=int, default=20)
    parser.add_argument("--permutations", type=int, default=PERMUTATIONS)
    options = parser.parse_args()
    print(f"flagged at {ALPHA:g} with {options.permutations:,} permutations")
    for kind, files, seeds in (
        ("honest", HONEST, options.seeds),
        ("leak", LEAKS, options.leak_seeds),
        ("leak", UNSEEN, options.leak_seeds),
    ):
        for name, make in files.items():
            found = [audited(make, seed, options.permutations) for seed in range(seeds)]
            flagged = [one.leak for one in found if one.leak]
            by = ", ".join(f"{flagged.count(leak)} {leak}" for leak in dict.fromkeys(flagged))
            print(f"{kind}  {name}: {len(flagged)} of {seeds}{f' ({by})' if by else ''}", flush=True)


if __name__ == "__main__":
    main()
