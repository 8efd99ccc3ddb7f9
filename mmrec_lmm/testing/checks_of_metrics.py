"""The conformance checks of metrics. Each takes the registry, the metric's name, and how messages call it.

Shapes: U users, K ranks, I items, P held-out items among the candidates.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import NotApplicable
from ..plugin.registry import Registry
from ..types import Places, RankedLists
from . import checkerboard_features
from .conformance import Fault

_USERS, _RANKS, _ITEMS = 40, 12, 30


def values(registry: Registry, name: str, owner: str) -> None:
    """One finite number per user, from the first k ranks of that user alone, that doesn't fall when a hit is added."""
    spec, function = registry.metrics.get(name), registry.metrics.load(name, "fn")
    if spec.context:
        raise NotApplicable("it takes whole lists")
    rng = np.random.default_rng(0)
    hits = rng.random((_USERS, _RANKS)) < 0.3  # (U, K)
    hits[0], hits[1] = False, True
    positives = hits.sum(axis=1).clip(1) + rng.integers(0, 3, _USERS)  # (U,)
    for k in (1, 5, _RANKS):
        before = hits.copy()
        found = np.asarray(function(hits, positives, k))
        if found.shape != (_USERS,) or found.dtype.kind not in "fiub":
            raise Fault(
                f"{owner}: expected one number for each of {_USERS} users, {(_USERS,)}, at {k}, got {found.dtype} "
                f"{found.shape}: "
                "reduce over ranks (axis=1), not over users"
            )
        if not np.isfinite(found).all():
            raise Fault(f"{owner}: a value at {k} is NaN or infinite: users without a hit need a number, too")
        if not np.array_equal(before, hits):
            raise Fault(f"{owner}: it writes into hits, which other metrics read: copy before changing")
        if not np.allclose(found, function(hits[::-1].copy(), positives[::-1].copy(), k)[::-1]):
            raise Fault(f"{owner}: a user's value at {k} depends on other users: reduce over ranks alone")
        later = hits.copy()
        later[:, k:] = ~later[:, k:]
        if not np.allclose(found, function(later, positives, k)):
            raise Fault(f"{owner}: its value at {k} depends on later ranks: begin with hits[:, :k]")
        if spec.larger_is_better:
            for rank in range(k):
                more = hits.copy()
                more[:, rank] = True
                if (np.asarray(function(more, positives + 1, k)) < function(hits, positives + 1, k) - 1e-12).any():
                    raise Fault(
                        f"{owner}: its value at {k} falls when a hit is added at rank {rank + 1}: larger must be "
                        "better, as epochs are selected by it"
                    )


def lists(registry: Registry, name: str, owner: str) -> None:
    """Of whole lists: finite numbers of the promised shape, whatever the order of users, from the first k ranks alone
    and from what its spec says it needs; also for short and empty lists."""
    spec, function = registry.metrics.get(name), registry.metrics.load(name, "fn")
    if not spec.context:
        raise NotApplicable("it takes hits alone")
    whole = _ranked_lists()
    ranked = dataclasses.replace(
        whole,
        features=whole.features if "features" in spec.needs else {},
        places=whole.places if "places" in spec.needs else None,
    )
    shape = (_USERS,) if spec.per_user else ()
    what = f"one number for each of {_USERS} users, {shape}," if spec.per_user else "one number"
    for k in (1, 5, _RANKS):
        found = _value(function, ranked, whole, k, owner)
        if found.shape != shape or found.dtype.kind not in "fiub":
            cure = "; per_user=False says that it has one number for all" if spec.per_user and not found.shape else ""
            raise Fault(f"{owner}: expected {what} at {k}, got {found.dtype} {found.shape}{cure}")
        if not np.isfinite(found).all():
            raise Fault(
                f"{owner}: a value at {k} is NaN or infinite: lists may be empty or short (items end with -1), "
                "and items may be nobody's or lack features"
            )
        if not _same(ranked, _ranked_lists()):
            raise Fault(f"{owner}: it writes into what it gets, which other metrics read: copy before changing")
        turned = np.asarray(function(_turned(ranked), k))
        if not np.allclose(found, turned[::-1] if spec.per_user else turned):
            raise Fault(
                f"{owner}: its value at {k} depends on the order of users"
                + (", or a user's on other users: reduce over ranks alone" if spec.per_user else "")
            )
        later = ranked.items.copy()
        later[:, k:] = np.where(later[:, k:] >= 0, (later[:, k:] + 1) % _ITEMS, -1)
        hits = np.concatenate([ranked.hits[:, :k], ~ranked.hits[:, k:] & (later[:, k:] >= 0)], axis=1)
        if not np.allclose(found, function(dataclasses.replace(ranked, items=later, hits=hits), k)):
            raise Fault(f"{owner}: its value at {k} depends on later ranks: begin with ranked.items[:, :k]")


def _value(function: Callable[..., Any], ranked: RankedLists, whole: RankedLists, k: int, owner: str) -> np.ndarray:
    """The metric's value. Fault if it reads what its spec doesn't ask for."""
    try:
        return np.asarray(function(ranked, k))
    except Exception:
        for need in ("features", "places"):
            try:
                function(dataclasses.replace(ranked, **{need: getattr(whole, need)}), k)
            except Exception:  # of something else: the first error says what
                continue
            raise Fault(f'{owner}: it reads ranked.{need}: its spec needs needs=("{need}",)') from None
        raise


def _ranked_lists() -> RankedLists:
    """Lists of users, the first of whom has an empty one and the second a short one. The last items are no candidates
    and nobody's, and the last has no features."""
    rng = np.random.default_rng(0)
    candidates = np.arange(_ITEMS) < _ITEMS - 2
    ranks = np.argsort(rng.random((_USERS, _ITEMS)), axis=1)
    items = np.stack([row[candidates[row]][:_RANKS] for row in ranks])  # (U, K)
    items[0], items[1, 3:] = -1, -1
    hits = (rng.random(items.shape) < 0.3) & (items >= 0)
    n_positives = hits.sum(axis=1).clip(1) + rng.integers(0, 3, _USERS)
    rows = np.repeat(np.arange(1, _USERS), 2)  # user 0 has no held-out item among the candidates
    others = np.full(_USERS, int(candidates.sum()) - 2)
    return RankedLists(
        users=np.arange(_USERS),
        items=items,
        hits=hits,
        n_positives=n_positives,
        popularity=np.where(candidates, rng.integers(0, 20, _ITEMS), 0),
        n_users=_USERS + 5,
        candidates=candidates,
        features=checkerboard_features(_ITEMS),
        places=Places(rows, rng.integers(0, others[0], len(rows)).astype(np.float64), others),
    )


def _turned(ranked: RankedLists) -> RankedLists:
    """The same lists, the last user first."""
    places = ranked.places and Places(
        _USERS - 1 - ranked.places.rows[::-1], ranked.places.above[::-1].copy(), ranked.places.others[::-1].copy()
    )
    rows = {name: getattr(ranked, name)[::-1].copy() for name in ("items", "hits", "n_positives")}
    return dataclasses.replace(ranked, places=places, **rows)


def _same(one: RankedLists, other: RankedLists) -> bool:
    """True if both have the same arrays."""
    names = ("users", "items", "hits", "n_positives", "popularity", "candidates")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names) and all(
        np.array_equal(table.values, other.features[modality].values) for modality, table in one.features.items()
    )


CHECKS: Mapping[str, Callable[[Registry, str, str], None]] = {"values": values, "lists": lists}
