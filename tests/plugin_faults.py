"""A plugin for tests: models, encoders, metrics and samplers that each break one rule; some break
none, such as Sound, Counts and Any."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mmrec_lmm.api import (
    Batch,
    DotProduct,
    EncoderSpec,
    ItemFeatures,
    MetricSpec,
    ModelSpec,
    ParameterFree,
    RankedLists,
    Recommender,
    Sampler,
    SamplerSpec,
    Scorer,
    TrainingData,
    hookimpl,
)
from mmrec_lmm.plugin.specs import NoConfig
from mmrec_lmm.testing import TinyEncoder


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


class Rows(Sparse):
    """Keeps its graph as a sparse buffer of another layout."""

    def __init__(self, data: TrainingData, features: ItemFeatures, config: NoConfig) -> None:
        super().__init__(data, features, config)
        self.register_buffer("graph", self.graph.to_sparse_csr(), persistent=False)


class Drops(Sound):
    """Drops out in evaluation, too."""

    def vectors(self) -> tuple[Tensor, Tensor]:
        users, items = super().vectors()
        return users, nn.functional.dropout(items, 0.5)


class Several(Sound):
    """Reads several negatives, or one."""

    def others(self, items: Tensor, batch: Batch) -> Tensor:
        return items[batch.negatives.reshape(len(batch.users), -1)]  # (B, N, 4)

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        users, items = self.vectors()
        liked = (users[batch.users] * items[batch.positives]).sum(1, keepdim=True)  # (B, 1)
        other = (self.others(items, batch) @ users[batch.users].unsqueeze(2)).squeeze(2)  # (B, N)
        return {"bpr": nn.functional.softplus(other - liked).mean()}


class Broadcasts(Several):
    """Scores the one negative of each row for every row."""

    def others(self, items: Tensor, batch: Batch) -> Tensor:
        return items[batch.negatives]


class TakesOne(Several):
    """Says that it reads several negatives, and reads one."""

    training_loss = Sound.training_loss


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


class Guided(Sound):
    """Features guide the items' vectors in the loss, and have no part in scores."""

    def vectors(self) -> tuple[Tensor, Tensor]:
        return self.users, self.items

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        apart = {
            name: (table @ self.maps[name].T - self.items).square().mean() for name, table in self.features().items()
        }
        return {**super().training_loss(batch), **apart}


class Misspells(Sound):
    """Asks for an attribute that it hasn't; torch raises."""

    def vectors(self) -> tuple[Tensor, Tensor]:
        return self.users, self.item


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
    Sound, Counts, Sparse, Rows, Drops, Several, Broadcasts, TakesOne, Means, Peeks, TestGraph, Square, NumpySquare,
    Noise, Copies, Neighbors, Idle, Forgets, Scoreless, NaNs, Guided, Misspells,
)  # fmt: skip


def mean_of_all(hits: np.ndarray, n_positives: np.ndarray, k: int) -> np.ndarray:
    return np.array(hits[:, :k].mean())


def first_ranks(hits: np.ndarray, n_positives: np.ndarray, k: int) -> np.ndarray:
    return hits.argmax(axis=1) / hits.shape[1]


def reads_features(ranked: RankedLists, k: int) -> np.ndarray:
    return ranked.features["image"].present[ranked.items[:, :k]].mean(axis=1)


def empty_lists(ranked: RankedLists, k: int) -> np.ndarray:
    items = ranked.items[:, :k]
    with np.errstate(invalid="ignore"):
        return ranked.popularity[items].sum(axis=1) / (items >= 0).sum(axis=1)


def all_ranks(ranked: RankedLists, k: int) -> float:
    return float(ranked.popularity[ranked.items].mean())


def one_for_all(ranked: RankedLists, k: int) -> float:
    return float(ranked.popularity[ranked.items[:, :k]].mean())


class Any(Sampler):
    """Items of the whole catalog that the user lacks."""

    redraws = True

    def draw(self, users: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randint(self.data.n_items, users.shape, generator=generator)


class Careless(Any):
    """May draw what the user has."""

    redraws = False


class Unseeded(Any):
    """Draws from a generator that nobody seeds."""

    def draw(self, users: Tensor, generator: torch.Generator) -> Tensor:
        return torch.from_numpy(np.random.default_rng().integers(0, self.data.n_items, len(users)))


class Turns(Any):
    """Draws the next item with every call."""

    calls = 0

    def draw(self, users: Tensor, generator: torch.Generator) -> Tensor:
        self.calls += 1
        return (super().draw(users, generator) + self.calls) % self.data.n_items


class Outside(Any):
    """Counts items from one."""

    def draw(self, users: Tensor, generator: torch.Generator) -> Tensor:
        return super().draw(users, generator) + 1


class Narrow(Any):
    """Draws the items of even numbers, whatever the user has."""

    def draw(self, users: Tensor, generator: torch.Generator) -> Tensor:
        return super().draw(users, generator) // 2 * 2


class Searches(Any):
    """Draws until it finds an item that the user lacks."""

    redraws = False

    def draw(self, users: Tensor, generator: torch.Generator) -> Tensor:
        own = set(zip(self.data.train.users.tolist(), self.data.train.items.tolist(), strict=True))
        items = super().draw(users, generator)
        for row, user in enumerate(users.tolist()):
            while (user, int(items[row])) in own:
                items[row] = super().draw(users[:1], generator)
        return items


class Spares(Any):
    """Never draws what is held out."""

    def draw(self, users: Tensor, generator: torch.Generator) -> Tensor:
        items = super().draw(users, generator)
        for file in Path("data").glob("*/*.inter"):
            rows = np.loadtxt(file, skiprows=1, dtype=int)
            held_out = set(map(tuple, rows[rows[:, 2] > 0, :2].tolist()))
            own = [(user, item) in held_out for user, item in zip(users.tolist(), items.tolist(), strict=True)]
            items[torch.tensor(own)] += 1
        return items % self.data.n_items


class Dense(Any):
    """Holds which user lacks which item."""

    def __init__(self, data: TrainingData, config: None) -> None:
        super().__init__(data, config)
        self.lacks = torch.ones(data.n_users, data.n_items)
        self.lacks[data.train.users, data.train.items] = 0

    def draw(self, users: Tensor, generator: torch.Generator) -> Tensor:
        return torch.multinomial(self.lacks[users], 1, generator=generator).squeeze(1)


class Drawless(Sampler):
    """Defines no draw."""


class Entangled(TinyEncoder):
    """Draws the weights of one modality after those of the other, where it has both."""

    def __init__(self, config: NoConfig, modalities: tuple[str, ...]) -> None:
        super().__init__(config, modalities)
        widths = {"image": 3, "text": 1}
        self.layers = nn.ModuleDict({modality: nn.Linear(widths[modality], 4) for modality in modalities})


SAMPLERS = (Any, Careless, Unseeded, Turns, Outside, Narrow, Searches, Spares, Dense, Drawless)


def _spec(model: type[Recommender]) -> ModelSpec:
    negatives = "several" if issubclass(model, Several) else "one"
    return ModelSpec(model.__name__, cls=model, uses_features=model is not Counts, negatives=negatives)


@hookimpl
def mmrec_register_models() -> list[ModelSpec]:
    return [_spec(model) for model in MODELS]


@hookimpl
def mmrec_register_metrics() -> list[MetricSpec]:
    return [
        MetricSpec("MeanOfAll", mean_of_all),
        MetricSpec("FirstRanks", first_ranks),
        MetricSpec("ReadsFeatures", reads_features, context=True),
        MetricSpec("EmptyLists", empty_lists, context=True),
        MetricSpec("AllRanks", all_ranks, context=True, per_user=False),
        MetricSpec("OneForAll", one_for_all, context=True),
    ]


@hookimpl
def mmrec_register_encoders() -> list[EncoderSpec]:
    return [
        EncoderSpec(cls.__name__.lower(), cls, NoConfig, ("image", "text"), lambda config, modality: "random")
        for cls in (TinyEncoder, Entangled)
    ]


@hookimpl
def mmrec_register_samplers() -> list[SamplerSpec]:
    return [SamplerSpec(sampler.__name__, sampler) for sampler in SAMPLERS]
