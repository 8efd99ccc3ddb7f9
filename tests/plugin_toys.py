"""A plugin for tests, loaded with `-p tests/plugin_toys.py`: models that do one thing, and that surely."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmrec_lmm.api import Batch, DotProduct, ItemFeatures, ModelSpec, Recommender, Scorer, TrainingData, hookimpl


@dataclass(frozen=True)
class FavoriteConfig:
    favorite: int = 0  # an item


class Favorite(Recommender):
    """Recommends one item first to everybody, then the others from the last to the first. There is nothing to learn."""

    scores: Tensor  # (I,)

    def __init__(self, data: TrainingData, features: ItemFeatures, config: FavoriteConfig) -> None:
        super().__init__(data, features, config)
        self.idle = nn.Parameter(torch.ones(()))
        scores = torch.arange(data.n_items).float()
        scores[config.favorite] = data.n_items
        self.register_buffer("scores", scores)

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"idle": self.idle**2}

    def scorer(self) -> Scorer:
        return lambda users: self.scores.expand(len(users), -1)  # (B, I)


@dataclass(frozen=True)
class FragileConfig:
    breaks_at: int = 0  # the epoch whose loss is NaN; -1 for never


class Fragile(Favorite):
    """A loss that becomes NaN."""

    def __init__(self, data: TrainingData, features: ItemFeatures, config: FragileConfig) -> None:
        super().__init__(data, features, FavoriteConfig())
        self.breaks_at, self.epoch = config.breaks_at, -1

    def on_epoch_start(self, epoch: int) -> None:
        self.epoch = epoch

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"fragile": self.idle * (float("nan") if self.epoch == self.breaks_at else 1.0)}


@dataclass(frozen=True)
class DropoutConfig:
    width: int = 4


class Dropout(DotProduct):
    """Matrix factorization with dropout: draws from torch's default generator at each step."""

    def __init__(self, data: TrainingData, features: ItemFeatures, config: DropoutConfig) -> None:
        super().__init__(data, features, config)
        self.users = nn.Parameter(torch.randn(data.n_users, config.width))
        self.items = nn.Parameter(torch.randn(data.n_items, config.width))

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        users = nn.functional.dropout(self.users[batch.users], 0.5)
        difference = (users * (self.items[batch.positives] - self.items[batch.negatives])).sum(1)
        return {"bpr": nn.functional.softplus(-difference).mean()}

    def vectors(self) -> tuple[Tensor, Tensor]:
        return self.users, self.items


@hookimpl
def mmrec_register_models() -> list[ModelSpec]:
    return [
        ModelSpec("Favorite", cls=Favorite, config=FavoriteConfig, uses_features=False),
        ModelSpec("Fragile", cls=Fragile, config=FragileConfig, uses_features=False),
        ModelSpec("Dropout", cls=Dropout, config=DropoutConfig, uses_features=False),
    ]
