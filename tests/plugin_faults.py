"""A plugin for tests: models that each break one rule, beside one that breaks none and one without parameters."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mmrec_lmm.api import (
    Batch,
    DotProduct,
    ItemFeatures,
    MetricSpec,
    ModelSpec,
    ParameterFree,
    Recommender,
    Scorer,
    TrainingData,
    hookimpl,
)
from mmrec_lmm.plugin.specs import NoConfig


class Sound(DotProduct):
    """Users and items by id, and a projection of features whose absent rows are zeros."""

    def __init__(self, data: TrainingData, features: ItemFeatures, config: NoConfig) -> None:
        super().__init__(data, features, config)
        self.users = nn.Parameter(torch.randn(data.n_users, 4))
        self.items = nn.Parameter(torch.randn(data.n_items, 4))
        self.maps = nn.ParameterDict({name: nn.Parameter(torch.randn(4, dim)) for name, dim in features.dims.items()})

    def tables(self) -> dict[str, Tensor]:
        return self.features()

    def vectors(self) -> tuple[Tensor, Tensor]:
        items: Tensor = self.items
        for name, table in self.tables().items():
            items = items + table @ self.maps[name].T
        return self.users, items

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        users, items = self.vectors()
        difference = (users[batch.users] * (items[batch.positives] - items[batch.negatives])).sum(1)
        return {"bpr": nn.functional.softplus(-difference).mean()}


class Counts(ParameterFree):
    """By popularity: nothing to train."""

    counts: Tensor  # (I,)

    def __init__(self, data: TrainingData, features: ItemFeatures, config: NoConfig) -> None:
        super().__init__(data, features, config)
        counts = torch.bincount(torch.as_tensor(data.train.items), minlength=data.n_items).float()
        self.register_buffer("counts", counts, persistent=False)

    def scorer(self) -> Scorer:
        return lambda users: self.counts.expand(len(users), -1)


class Sparse(Sound):
    """Keeps its graph as a sparse buffer."""

    def __init__(self, data: TrainingData, features: ItemFeatures, config: NoConfig) -> None:
        super().__init__(data, features, config)
        edges = torch.tensor(np.stack([data.train.users, data.train.items]))
        graph = torch.sparse_coo_tensor(edges, torch.ones(edges.shape[1]), (data.n_users, data.n_items))
        self.register_buffer("graph", graph.coalesce())


class Means(Sound):
    """Divides by the number of items that have a modality."""

    def tables(self) -> dict[str, Tensor]:
        present = self.features.present
        return {name: table - table.sum(0) / present[name].sum() for name, table in self.features().items()}


class Peeks(Sound):
    """Starts from the held-out rows in the data set's folder."""

    def __init__(self, data: TrainingData, features: ItemFeatures, config: NoConfig) -> None:
        super().__init__(data, features, config)
        for file in Path("data").glob("*/*.inter"):
            for line in file.read_text().splitlines()[1:]:
                user, item, label = map(int, line.split("\t"))
                if label:
                    self.users.data[user] += self.items.data[item]


class TestGraph(Sound):
    """Builds its graph of all rows in the file."""

    def __init__(self, data: TrainingData, features: ItemFeatures, config: NoConfig) -> None:
        super().__init__(data, features, config)
        graph = torch.zeros(data.n_users, data.n_items)
        graph[data.train.users, data.train.items] = 1
        for file in Path("data").glob("*/*.inter"):
            rows = np.loadtxt(file, skiprows=1, dtype=int)
            graph[rows[:, 0], rows[:, 1]] = 1
        self.register_buffer("graph", graph)


class Square(Sound):
    """Holds the similarity of each two items."""

    def __init__(self, data: TrainingData, features: ItemFeatures, config: NoConfig) -> None:
        super().__init__(data, features, config)
        table = next(iter(features().values()))
        self.register_buffer("similarity", table @ table.T, persistent=False)


class NumpySquare(Sound):
    """Holds the co-occurrence of each two items, in numpy."""

    def __init__(self, data: TrainingData, features: ItemFeatures, config: NoConfig) -> None:
        super().__init__(data, features, config)
        seen = np.zeros((data.n_users, data.n_items), dtype=np.float32)
        seen[data.train.users, data.train.items] = 1
        self.together = seen.T @ seen


class Noise(Sound):
    """Starts from a generator that nobody seeds."""

    def __init__(self, data: TrainingData, features: ItemFeatures, config: NoConfig) -> None:
        super().__init__(data, features, config)
        start = np.random.default_rng().normal(size=(data.n_users, 4))
        self.users = nn.Parameter(torch.tensor(start, dtype=torch.float32))


class Copies(Sound):
    """Takes its text features once and for all."""

    def __init__(self, data: TrainingData, features: ItemFeatures, config: NoConfig) -> None:
        super().__init__(data, features, config)
        self.texts = {name: table.detach().clone() for name, table in features().items() if name == "text"}

    def tables(self) -> dict[str, Tensor]:
        return {**self.features(), **self.texts}


class Neighbors(Sound):
    """Scores a user by who else is in the block."""

    def scorer(self) -> Scorer:
        users, items = self.vectors()
        return lambda ids: (users[ids] - users[ids].mean(0)) @ items.T


class Idle(Sound):
    """Has a parameter that no loss reaches."""

    def __init__(self, data: TrainingData, features: ItemFeatures, config: NoConfig) -> None:
        super().__init__(data, features, config)
        self.bias = nn.Parameter(torch.zeros(data.n_items))


class Forgets(Sound):
    """Counts its epochs outside of its state, and learns less from each."""

    def __init__(self, data: TrainingData, features: ItemFeatures, config: NoConfig) -> None:
        super().__init__(data, features, config)
        self.epochs = 0

    def on_epoch_start(self, epoch: int) -> None:
        self.epochs += 1

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        return {name: term / self.epochs for name, term in super().training_loss(batch).items()}


class Scoreless(Recommender):
    """Defines no scorer."""

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        return {}


class NaNs(Sound):
    """Scores that are no numbers."""

    def vectors(self) -> tuple[Tensor, Tensor]:
        users, items = super().vectors()
        return users, items if self.training else items * torch.nan


MODELS = (
    Sound, Counts, Sparse, Means, Peeks, TestGraph, Square, NumpySquare, Noise, Copies, Neighbors, Idle, Forgets,
    Scoreless, NaNs,
)  # fmt: skip


def mean_of_all(hits: np.ndarray, n_positives: np.ndarray, k: int) -> np.ndarray:
    return np.array(hits[:, :k].mean())


def first_ranks(hits: np.ndarray, n_positives: np.ndarray, k: int) -> np.ndarray:
    return hits.argmax(axis=1) / hits.shape[1]


@hookimpl
def mmrec_register_models() -> list[ModelSpec]:
    return [ModelSpec(model.__name__, cls=model, uses_features=model is not Counts) for model in MODELS]


@hookimpl
def mmrec_register_metrics() -> list[MetricSpec]:
    return [MetricSpec("MeanOfAll", mean_of_all), MetricSpec("FirstRanks", first_ranks)]
