"""Pop: ranks items by how many users chose them, the same for everybody.

score(u, i) = n_i, the users who have item i in training
with `half_life` h in days: score(u, i) = sum over these users of 2 ** -((T - t) / h), where t is the user's latest time
with item i, and T the latest of all

A control: what a model gains by knowing its users. It has no parameters. Training items are masked when lists are made,
as those of all models.
Fidelity: the common definition. Equal counts rank by item id.
Shapes: B batch, I items, N training rows, P distinct pairs of user and item.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mmrec_lmm.api import OPTIONAL, ItemFeatures, Limit, ParameterFree, Scorer, TrainingData, above
from mmrec_lmm.graph import BipartiteGraph

DAY = 86_400.0  # seconds


@dataclass(frozen=True)
class PopConfig:
    LIMITS: ClassVar[Mapping[str, Limit]] = {"half_life": above(0)}

    half_life: float | None = field(default=None, metadata=OPTIONAL)  # days; None: all times count alike


def reads_timestamps(config: PopConfig) -> bool:
    """True if the configuration weighs rows by time."""
    return config.half_life is not None


class Pop(ParameterFree):
    """Uses no features."""

    counts: Tensor  # (I,)

    def __init__(self, data: TrainingData, features: ItemFeatures, config: PopConfig) -> None:
        super().__init__(data, features, config)
        counts = BipartiteGraph(data).degrees()[1] if config.half_life is None else recent(data, config.half_life)
        self.register_buffer("counts", counts, persistent=False)

    def scorer(self) -> Scorer:
        return lambda users: self.counts.expand(len(users), -1)  # (B, I)


def recent(data: TrainingData, half_life: float) -> Tensor:
    """Each item's users, those of `half_life` days ago by half, (I,) float32."""
    assert data.timestamps is not None
    pairs = data.train.users * data.n_items + data.train.items  # (N,)
    order = np.lexsort((data.timestamps, pairs))
    is_latest = np.append(np.diff(pairs[order]) != 0, True)
    rows = order[is_latest]  # (P,)
    ages = (data.timestamps.max() - data.timestamps[rows]) / DAY
    with np.errstate(over="ignore"):  # of a half-life near 0, for which all but the latest rows count 0
        weights = 0.5 ** (ages / half_life)
    counts = np.bincount(data.train.items[rows], weights=weights, minlength=data.n_items)
    return torch.from_numpy(counts).float()
