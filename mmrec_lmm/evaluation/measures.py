"""Measures: the metrics of a run as the host calls them, with what they need prepared and what they return checked.

Shapes: U evaluated users, I items, K the largest cutoff.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ..data.arrays import blaming_changes, read_only
from ..data.sampling import distinct
from ..errors import PluginError
from ..plugin.registry import NamedSpecs
from ..plugin.specs import MetricSpec
from ..types import FeatureTable, Interactions, RankedLists
from .ranking import Ranking


@dataclass(frozen=True)
class Measures:
    """The metrics `names` of a registry, for lists of items with these `features`, trained on `train`."""

    specs: NamedSpecs[MetricSpec]
    names: Sequence[str]
    train: Interactions
    n_users: int
    n_items: int
    features: Mapping[str, FeatureTable] = field(default_factory=dict)

    @cached_property
    def needs_places(self) -> bool:
        """True if a metric asks for the places of held-out items among all candidates."""
        return any("places" in self.specs.get(name).needs for name in self.names)

    @cached_property
    def _popularity(self) -> np.ndarray:
        pairs = distinct(self.train.users * self.n_items + self.train.items)
        return np.bincount(pairs % self.n_items, minlength=self.n_items)  # (I,)

    def values(self, ranking: Ranking, cutoffs: Sequence[int]) -> dict[str, np.ndarray]:
        """{"recall@20": (U,) float64, ...}: each metric at each cutoff, per evaluated user, unrounded; () where it has
        one value for all users. PluginError names a metric that returns anything else.
        """
        ranked: RankedLists | None = None
        found = {}
        hits, positives, items = map(read_only, (ranking.hits, ranking.n_positives, ranking.items))
        for name in self.names:
            spec, function = self.specs.get(name), self.specs.load(name, "fn")
            if spec.context and ranked is None:
                ranked = RankedLists(
                    read_only(ranking.users), items, hits, positives, read_only(self._popularity), self.n_users,
                    np.ones(self.n_items, dtype=bool) if ranking.among is None else read_only(ranking.among),
                    self.features, ranking.places,
                )  # fmt: skip
            for k in cutoffs:
                with blaming_changes(self._who(spec)):
                    made = function(ranked, k) if spec.context else function(hits, positives, k)
                found[f"{spec.name.lower()}@{k}"] = self._checked(spec, made, len(ranking.users), k)
        return found

    def _checked(self, spec: MetricSpec, made: object, users: int, k: int) -> np.ndarray:
        values = np.asarray(made)
        shape = (users,) if spec.per_user else ()
        what = f"a number for each of {users} users, {shape}" if spec.per_user else "one number"
        if values.dtype.kind not in "fiub" or values.shape != shape:
            raise PluginError(f"{self._who(spec)} at {k}: expected {what}, got {values.dtype} {values.shape}")
        if not np.isfinite(values).all():
            raise PluginError(f"{self._who(spec)} at {k}: expected finite numbers, got NaN or infinity")
        return values.astype(np.float64, copy=False)

    def _who(self, spec: MetricSpec) -> str:
        return f"plugin {self.specs.provider(spec.name)}: metric {spec.name}"


def means(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The mean over users of each metric; the number itself of one that has a single value."""
    return {name: float(array.mean()) for name, array in values.items()}
