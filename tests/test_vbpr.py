"""VBPR against the figures of MMRec's own code, and against its equation written out in full.

Shapes: U users, I items, D embedding, F features of all modalities together.
"""

import math
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmrec_lmm.contracts import DotProduct
from mmrec_lmm.errors import ConfigError
from mmrec_lmm.features import ItemFeatures
from mmrec_lmm.registry import Registry
from mmrec_lmm.types import Batch, Interactions, TrainingData

N_USERS, N_ITEMS, WIDTH = 12, 15, 8
BATCH = Batch(torch.arange(6), torch.arange(6) * 5 % N_ITEMS, (torch.arange(6) * 5 + 2) % N_ITEMS)

# What MMRec's code computes on the world below (models.md, section 7), with embedding_size 8 and reg_weight 0.1
LOSS = 1.152828
GRADIENT_NORMS = {
    "u_embedding": 0.706166,
    "i_embedding": 0.223515,
    "item_linear.weight": 0.678972,
    "item_linear.bias": 0.036475,
}
SCORES_FIRST = [0.126558, 0.553726, 0.841509, -0.093176, -0.052556, 1.136400]  # user 0, items 0 to 5
SCORES_NORM, SCORES_SUM = 3.170490, 3.089630  # users 0 to 2


def uniform(n: int, h: int) -> np.ndarray:
    """n numbers in [0, 1) by an integer hash of their position and of `h`, the same on every machine."""
    x = (np.arange(n, dtype=np.uint64) + np.uint64(h * 2654435761 % 2**32)) % 2**32
    for _ in range(2):
        x ^= x >> np.uint64(16)
        x = x * np.uint64(0x45D9F3B) % 2**32
    x ^= x >> np.uint64(16)
    return x / 2**32


def filled(name: str, shape: torch.Size) -> Tensor:
    """The golden world's value of a parameter: uniform, and of a matrix' usual scale."""
    n = math.prod(shape)
    values = 2 * uniform(n, zlib.crc32(name.encode())) - 1
    matrix = len(shape) >= 2 and n > shape[-1]
    values = values * math.sqrt(3 / (n / shape[0])) if matrix else 0.1 * values
    return torch.tensor(values.reshape(shape), dtype=torch.float32)


def golden_features(dtype: torch.dtype = torch.float32, *, joint: bool = False) -> ItemFeatures:
    widths = {"image": (24, 11), "text": (10, 12)}
    tables = {
        modality: torch.tensor(2 * uniform(N_ITEMS * width, h).reshape(N_ITEMS, width) - 1, dtype=torch.float32).to(
            dtype
        )
        for modality, (width, h) in widths.items()
    }
    return ItemFeatures(tables, dict.fromkeys(tables, torch.ones(N_ITEMS, dtype=torch.bool)), joint=joint)


@pytest.fixture
def build(registry: Registry) -> Any:
    """Makes a VBPR on given features, filled by the golden rule."""

    def build(features: ItemFeatures, *, reg_weight: float = 0.1) -> DotProduct:
        users = np.repeat(np.arange(N_USERS), 4)
        train = Interactions(users, (5 * users + 4 * np.tile(np.arange(4), N_USERS)) % N_ITEMS)
        config = registry.models.load("VBPR", "config")(embedding_size=WIDTH, reg_weight=reg_weight)
        model: DotProduct = registry.models.load("VBPR", "cls")(TrainingData(N_USERS, N_ITEMS, train), features, config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(filled(name, parameter.shape))
        return model

    return build


def test_loss_and_gradients_are_those_of_mmrec(build: Any) -> None:
    model = build(golden_features())
    loss = sum(model.training_loss(BATCH).values())
    loss.backward()
    norms = {name: parameter.grad.norm().item() for name, parameter in model.named_parameters()}
    ours, theirs = {"loss": loss.item(), **norms}, {"loss": LOSS, **GRADIENT_NORMS}
    assert ours == pytest.approx(theirs, abs=1e-5)


def test_scores_are_those_of_mmrec(build: Any) -> None:
    ours = build(golden_features()).scorer()(torch.arange(3))
    assert ours.shape == (3, N_ITEMS)
    assert ours[0, :6].tolist() == pytest.approx(SCORES_FIRST, abs=1e-5)
    assert ours.norm().item() == pytest.approx(SCORES_NORM, abs=1e-5)
    assert ours.sum().item() == pytest.approx(SCORES_SUM, abs=1e-5)


def equation(model: DotProduct, features: dict[str, Tensor], *, reg_weight: float) -> tuple[Tensor, Tensor]:
    """Loss and all scores (U, I) as the equation says, every item projected."""
    parts = dict(model.named_parameters())
    inputs = torch.cat([features["text"], features["image"]], dim=1)  # (I, F)
    projected = inputs @ parts["item_linear.weight"].T + parts["item_linear.bias"]  # (I, D)
    items = torch.cat([parts["i_embedding"], projected], dim=1)  # (I, 2D)
    scores = parts["u_embedding"] @ items.T
    users, positives, negatives = BATCH.users, BATCH.positives, BATCH.negatives
    difference = scores[users, positives] - scores[users, negatives]
    norms = [matrix.pow(2).sum().sqrt() for matrix in (parts["u_embedding"][users], items[positives], items[negatives])]
    loss = -(1e-10 + torch.sigmoid(difference)).log().mean() + reg_weight * sum(norms) / len(users)
    return loss, scores


@pytest.mark.parametrize("joint", [False, True])
def test_projecting_the_batchs_rows_equals_projecting_all_in_value_and_gradient(build: Any, joint: bool) -> None:
    dense = build(features := golden_features(torch.float64, joint=joint)).double()
    loss, scores = equation(dense, features(), reg_weight=0.1)
    loss.backward()
    sparse = build(own := golden_features(torch.float64, joint=joint)).double()
    ours = sum(sparse.training_loss(BATCH).values())
    ours.backward()
    assert ours.item() == pytest.approx(loss.item(), abs=1e-12)
    for (name, mine), reference in zip(sparse.named_parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, reference.grad, rtol=0, atol=1e-12, msg=name)
    for modality in features:
        if joint:
            torch.testing.assert_close(own()[modality].grad, features()[modality].grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(sparse.scorer()(torch.arange(N_USERS)), scores, rtol=0, atol=1e-12)


def test_an_item_that_is_in_the_batch_more_than_once_counts_each_time(build: Any) -> None:
    model = build(golden_features())
    alone = Batch(torch.tensor([0]), torch.tensor([4]), torch.tensor([7]))
    thrice = Batch(torch.tensor([0, 0, 0]), torch.tensor([4, 4, 4]), torch.tensor([7, 7, 7]))
    assert model.training_loss(thrice)["bpr"].item() == pytest.approx(model.training_loss(alone)["bpr"].item())
    # three equal rows have a norm of sqrt(3), and there are three of them
    reg = model.training_loss(alone)["reg"].item() * math.sqrt(3) / 3
    assert model.training_loss(thrice)["reg"].item() == pytest.approx(reg)


def test_parameters_have_the_shapes_and_the_initial_spread_that_mmrec_gives_them(registry: Registry) -> None:
    users = np.arange(400)
    data = TrainingData(400, 300, Interactions(users, users % 300))
    tables = {"image": torch.zeros(300, 500)}
    features = ItemFeatures(tables, {"image": torch.ones(300, dtype=torch.bool)})
    torch.manual_seed(0)
    model = registry.models.load("VBPR", "cls")(data, features, registry.models.load("VBPR", "config")())
    parameters = dict(model.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    assert shapes == {
        "u_embedding": (400, 128),
        "i_embedding": (300, 64),
        "item_linear.weight": (64, 500),
        "item_linear.bias": (64,),
    }
    for name in ("u_embedding", "i_embedding", "item_linear.weight"):  # Glorot: variance 2 / (rows + columns)
        expected = math.sqrt(2 / sum(shapes[name]))
        assert parameters[name].std().item() == pytest.approx(expected, rel=0.02), name
    for name in ("u_embedding", "i_embedding"):  # uniform, hence bounded; the projection is normal
        bound = math.sqrt(6 / sum(shapes[name]))
        assert 0.99 * bound < parameters[name].abs().max().item() <= bound
    assert parameters["item_linear.weight"].abs().max() > math.sqrt(6 / 564)
    assert not parameters["item_linear.bias"].any()


def test_without_any_feature_it_says_so(registry: Registry) -> None:
    data = TrainingData(1, 2, Interactions(np.array([0]), np.array([0])))
    model, config = (registry.models.load("VBPR", part) for part in ("cls", "config"))
    with pytest.raises(ConfigError, match="VBPR needs item features, but this run has none"):
        model(data, ItemFeatures({}, {}), config())
