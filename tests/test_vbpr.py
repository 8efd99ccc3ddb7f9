"""VBPR against the figures of MMRec's own code, and against its equation written out in full.

Shapes: U users, I items, D embedding, F features of all modalities together.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from golden import BATCH, N_USERS, WIDTH, assert_scores, build, features, loss_and_gradients
from torch import Tensor

from mmrec_lmm.errors import ConfigError
from mmrec_lmm.plugin.contracts import DotProduct
from mmrec_lmm.plugin.item_features import ItemFeatures
from mmrec_lmm.plugin.registry import Registry
from mmrec_lmm.types import Batch, Interactions, TrainingData

# What MMRec's code computes on the world of golden.py, with embedding_size 8 and reg_weight 0.1
LOSS = 1.152828
GRADIENT_NORMS = {
    "u_embedding": 0.706166,
    "i_embedding": 0.223515,
    "item_linear.weight": 0.678972,
    "item_linear.bias": 0.036475,
}
SCORES = {
    "first": [0.126558, 0.553726, 0.841509, -0.093176, -0.052556, 1.136400],
    "norm": 3.170490,
    "total": 3.089630,
}  # of users 0 to 2; first: user 0, items 0 to 5


@pytest.fixture
def make(registry: Registry) -> Any:
    """Makes a VBPR on given features, filled by the golden rule."""

    def make(own: ItemFeatures) -> DotProduct:
        return build(registry, "VBPR", own, embedding_size=WIDTH, reg_weight=0.1)

    return make


def test_loss_and_gradients_are_those_of_mmrec(make: Any) -> None:
    assert loss_and_gradients(make(features())) == pytest.approx({"loss": LOSS, **GRADIENT_NORMS}, abs=1e-5)


def test_scores_are_those_of_mmrec(make: Any) -> None:
    assert_scores(make(features()).scorer()(torch.arange(3)), **SCORES)


def equation(model: DotProduct, tables: dict[str, Tensor], *, reg_weight: float) -> tuple[Tensor, Tensor]:
    """Loss and all scores (U, I) as the equation says, every item projected."""
    parts = dict(model.named_parameters())
    inputs = torch.cat([tables["text"], tables["image"]], dim=1)  # (I, F)
    projected = inputs @ parts["item_linear.weight"].T + parts["item_linear.bias"]  # (I, D)
    items = torch.cat([parts["i_embedding"], projected], dim=1)  # (I, 2D)
    scores = parts["u_embedding"] @ items.T
    users, positives, negatives = BATCH.users, BATCH.positives, BATCH.negatives
    difference = scores[users, positives] - scores[users, negatives]
    norms = [matrix.pow(2).sum().sqrt() for matrix in (parts["u_embedding"][users], items[positives], items[negatives])]
    loss = -(1e-10 + torch.sigmoid(difference)).log().mean() + reg_weight * sum(norms) / len(users)
    return loss, scores


@pytest.mark.parametrize("joint", [False, True])
def test_projecting_the_batchs_rows_equals_projecting_all_in_value_and_gradient(make: Any, joint: bool) -> None:
    dense = make(theirs := features(dtype=torch.float64, joint=joint)).double()
    loss, scores = equation(dense, theirs(), reg_weight=0.1)
    loss.backward()
    sparse = make(own := features(dtype=torch.float64, joint=joint)).double()
    ours = sum(sparse.training_loss(BATCH).values())
    ours.backward()
    assert ours.item() == pytest.approx(loss.item(), abs=1e-12)
    for (name, mine), reference in zip(sparse.named_parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, reference.grad, rtol=0, atol=1e-12, msg=name)
    for modality in theirs:
        if joint:
            torch.testing.assert_close(own()[modality].grad, theirs()[modality].grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(sparse.scorer()(torch.arange(N_USERS)), scores, rtol=0, atol=1e-12)


def test_an_item_that_is_in_the_batch_more_than_once_counts_each_time(make: Any) -> None:
    model = make(features())
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
    blank = ItemFeatures(tables, {"image": torch.ones(300, dtype=torch.bool)})
    torch.manual_seed(0)
    model = registry.models.load("VBPR", "cls")(data, blank, registry.models.load("VBPR", "config")())
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
    with pytest.raises(ConfigError, match="VBPR: expected item features, got none; try BPR"):
        model(data, ItemFeatures({}, {}), config())
