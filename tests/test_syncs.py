"""On a GPU the host runs ahead: a step, or a block of an evaluation, that asks for a result makes it wait. Here the
operations that ask are refused on the CPU; tests/test_gpu.py has torch refuse them on a GPU."""

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.synthetic import QUICK, features, interactions
from mmrec_lmm.config.settings import Settings
from mmrec_lmm.data.sampling import TrainingRows
from mmrec_lmm.evaluation import ranking
from mmrec_lmm.graph import nearest_neighbors
from mmrec_lmm.plugin.contracts import ParameterFree, Recommender, Scorer
from mmrec_lmm.plugin.item_features import ItemFeatures
from mmrec_lmm.plugin.registry import Registry, load_registry
from mmrec_lmm.plugin.specs import resolve
from mmrec_lmm.testing import no_syncs, noted_syncs
from mmrec_lmm.training.loop import Validation
from mmrec_lmm.training.trainer import Trainer
from mmrec_lmm.types import Batch, TrainingData

SPLITS = interactions(QUICK, np.random.default_rng(0))
DATA = TrainingData(QUICK.users, QUICK.items, SPLITS["train"])
TABLES = features(QUICK, np.random.default_rng(1))
MODELS = [spec.name for spec in load_registry().models if not issubclass(resolve(spec.cls), ParameterFree)]
WITH_FEATURES = [spec.name for spec in load_registry().models if spec.uses_features]

PLANTS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "a branch": lambda x: 1 if x.sum() > 0 else 0,
    "a copy": lambda x: x.cpu(),
    "a list": lambda x: x.tolist(),
    "a mask": lambda x: x[x > 0],
    "a masked write": lambda x: x.clone().__setitem__(x > 0, 0.0),
    "places": lambda x: (x > 0).nonzero(),
    "distinct values": lambda x: x.unique(),
    "repetition": lambda x: x.repeat_interleave(torch.ones(len(x), dtype=torch.long), dim=0),
    "a draw": lambda x: torch.multinomial(x.abs() + 1, 1),
    "equality": lambda x: torch.equal(x, x),
}
QUIET: dict[str, Callable[[Tensor], object]] = {
    "arithmetic": lambda x: (x @ x.T).softmax(dim=1).topk(2),
    "places in a tensor": lambda x: x[torch.tensor([1, 0])],
    "a choice": lambda x: torch.where(x > 0, x, 0.0),
    "a regular repetition": lambda x: x.repeat_interleave(3, dim=0),
    "a repetition of known length": lambda x: x.repeat_interleave(
        torch.ones(len(x), dtype=torch.long), dim=0, output_size=len(x)
    ),
    "a part": lambda x: x[1:, :2],
}


@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
def test_what_asks_a_gpu_for_a_value_is_refused(plant: Callable[[Tensor], object]) -> None:
    x = torch.randn(5, 5)
    plant(x)
    with noted_syncs() as found:
        plant(x)
    assert found
    with pytest.raises(AssertionError, match="makes the host wait"), no_syncs():
        plant(x)


@pytest.mark.parametrize("work", QUIET.values(), ids=QUIET)
def test_what_leaves_values_on_the_gpu_is_not(work: Callable[[Tensor], object]) -> None:
    with no_syncs():
        work(torch.randn(5, 5))


def test_a_backward_pass_is_watched_too() -> None:
    class Asks(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient * gradient.sum().item()

    with no_syncs():
        loss = Asks.apply(torch.ones(3, requires_grad=True)).sum()
    with pytest.raises(AssertionError, match="_local_scalar_dense"), no_syncs():
        loss.backward()


# Training


class WatchedRows:
    """Training rows under `no_syncs` from the trainer's receipt of a batch until it asks for the next. The first batch
    of an epoch isn't watched: models make there what an epoch, or the run, keeps."""

    def __init__(self, rows: TrainingRows, device: str = "cpu") -> None:
        self._rows, self._device = rows, device
        self.watched = 0
        self._batches: Iterator[Batch] = iter(())

    def __len__(self) -> int:
        return len(self._rows)

    def epoch(self, generator: torch.Generator) -> Iterator[Batch]:
        self._batches = self._watch(generator)
        return self._batches

    def _watch(self, generator: torch.Generator) -> Iterator[Batch]:
        for number, batch in enumerate(self._rows.epoch(generator)):
            with no_syncs(self._device) if number else nullcontext():
                yield batch
            self.watched += number > 0

    def close(self) -> None:
        """End the watch, if a step has failed in it."""
        self._batches.close()  # type: ignore[attr-defined]


def built(registry: Registry, name: str, *, device: str = "cpu", joint: bool = False, **options: Any) -> Recommender:
    torch.manual_seed(0)
    config = registry.models.load(name, "config")(**options)
    held = ItemFeatures.from_tables(TABLES, device, joint=joint)
    model: Recommender = registry.models.load(name, "cls")(DATA, held, config)
    return model.to(device)


@pytest.fixture(autouse=True)
def gpus_way(monkeypatch: pytest.MonkeyPatch, registry: Registry) -> None:
    """Models take the way of a GPU, where they choose by device: each row of a batch is computed, equal ones too."""
    for spec in registry.models:
        module = sys.modules[registry.models.load(spec.name, "cls").__module__]
        if hasattr(module, "distinct"):
            monkeypatch.setattr(module, "distinct", lambda ids: (ids, None, None))


def watched_epoch(model: Recommender, device: str = "cpu") -> int:
    """Train for two epochs under watch; return the number of watched steps."""
    rows = WatchedRows(TrainingRows(DATA.train, DATA.n_users, 300, device), device)
    trainer = Trainer(
        model,
        rows,  # type: ignore[arg-type]
        Settings(clip_grad_norm={"max_norm": 5}),
        validate=lambda: Validation(0.0, {}),
        generator=torch.Generator().manual_seed(0),
    )
    try:
        for epoch in range(2):
            trainer.train_epoch(epoch)
    finally:
        rows.close()
    return rows.watched


@pytest.mark.parametrize("name", MODELS)
def test_no_step_of_a_model_makes_the_host_wait(registry: Registry, name: str) -> None:
    assert watched_epoch(built(registry, name)) == 2 * 6


@pytest.mark.parametrize("name", WITH_FEATURES)
def test_nor_on_features_that_train_with_their_encoder(registry: Registry, name: str) -> None:
    assert watched_epoch(built(registry, name, joint=True)) == 2 * 6


VARIANTS = [
    pytest.param(
        "MMGCL",
        {"variant": "paper"},
        marks=pytest.mark.xfail(strict=True, reason="a draw on the host looks alike here"),
    ),
    ("MMGCN", {"trainable_id": False}),
    ("SLMRec", {"ssl_task": "FD"}),
    ("LATTICE", {"cf_model": "ngcf"}),
    ("LATTICE", {"cf_model": "mf"}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_nor_does_a_variant(registry: Registry, name: str, options: dict[str, Any]) -> None:
    assert watched_epoch(built(registry, name, **options)) == 2 * 6


def test_a_step_that_asks_is_caught_in_the_trainer(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(registry, "BPR")
    loss = model.training_loss

    def planted(batch: Batch) -> Any:
        terms = loss(batch)
        terms["bpr"].item()
        return terms

    monkeypatch.setattr(model, "training_loss", planted)
    with pytest.raises(AssertionError, match="_local_scalar_dense"):
        watched_epoch(model)


@pytest.mark.parametrize("ties", ["own_first", "topk"])
def test_a_search_for_neighbors_waits_no_more_often_in_more_blocks(ties: Any) -> None:
    x = torch.randn(200, 8)
    waits = []
    for block_rows in (200, 20):
        with noted_syncs() as found:
            nearest_neighbors(x, 10, ties=ties, block_rows=block_rows)
        waits.append(len(found))
    assert waits[0] == waits[1] < 10


# Evaluation


class Asking(Recommender):
    """Scores that ask for a value in each block."""

    def __init__(self, *, asks: bool) -> None:
        super().__init__(DATA, ItemFeatures({}, {}), None)
        self.asks = asks
        self.table = torch.nn.Parameter(torch.randn(DATA.n_users, DATA.n_items))

    def training_loss(self, batch: Batch) -> Any:
        raise NotImplementedError

    def scorer(self) -> Scorer:
        def scores(users: Tensor) -> Tensor:
            if self.asks:
                self.table.sum().item()
            return self.table[users]

        return scores


def syncs_of_ranking(model: Recommender, block: int, monkeypatch: pytest.MonkeyPatch, device: str = "cpu") -> int:
    """How often the host waits in an evaluation in blocks of so many users."""
    for name, size in {"BLOCK_BYTES": 4 * block * DATA.n_items, "GPU_BLOCK_BYTES": 4 * block * DATA.n_items}.items():
        monkeypatch.setattr(ranking, name, size)
    monkeypatch.setattr(ranking, "BLOCK_USERS", 1)
    evaluator = ranking.Evaluator(SPLITS["test"], [SPLITS["train"]], DATA.n_items)
    evaluator.rank(model, 20, batch_size=block)  # what is made once
    with noted_syncs(device) as found:
        evaluator.rank(model, 20, batch_size=block)
    return len(found)


@pytest.mark.parametrize("name", [*MODELS, "Pop"])  # the others look up what each user has
def test_no_block_of_an_evaluation_makes_the_host_wait(
    registry: Registry, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built(registry, name)
    assert syncs_of_ranking(model, 40, monkeypatch) == syncs_of_ranking(model, 400, monkeypatch) < 30


def test_nor_one_of_scores_that_are_no_dot_product(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Asking(asks=False)
    assert syncs_of_ranking(model, 40, monkeypatch) == syncs_of_ranking(model, 400, monkeypatch) < 30


def test_a_block_that_asks_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet, asking = Asking(asks=False), Asking(asks=True)
    more = [syncs_of_ranking(asking, 40, monkeypatch) - syncs_of_ranking(quiet, 40, monkeypatch)]
    more += [syncs_of_ranking(asking, 400, monkeypatch) - syncs_of_ranking(quiet, 400, monkeypatch)]
    assert more == [-(-QUICK.users // 40), 1]
