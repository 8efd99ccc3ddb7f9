"""Pop: ranks items by how many users chose them, the same for everybody.

score(u, i) = n_i, the users who have item i in training

A control: what a model gains by knowing its users. It has no parameters. Training items are masked when lists are made,
as those of all models.
Fidelity: the common definition. Equal counts rank by item id.
Shapes: B batch, I items.
"""

from dataclasses import dataclass

from torch import Tensor

from mmrec_lmm.api import ItemFeatures, ParameterFree, Scorer, TrainingData
from mmrec_lmm.graph import BipartiteGraph


@dataclass(frozen=True)
class PopConfig:
    """Pop has no keys."""


class Pop(ParameterFree):
    """Uses no features."""

    counts: Tensor  # (I,)

    def __init__(self, data: TrainingData, features: ItemFeatures, config: PopConfig) -> None:
        super().__init__(data, features, config)
        self.register_buffer("counts", BipartiteGraph(data).degrees()[1], persistent=False)

    def scorer(self) -> Scorer:
        return lambda users: self.counts.expand(len(users), -1)  # (B, I)
