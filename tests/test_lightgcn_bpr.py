"""The controls without content, LightGCN and BPR, against their equations written out in dense matrices.

Shapes: U users, I items, N = U + I nodes, D embedding.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from golden import BATCH, N_ITEMS, N_USERS, WIDTH, build, dense_adjacency, loss_and_gradients, symmetric, uneven_data
from torch import Tensor

from mmrec_lmm.plugin.item_features import ItemFeatures
from mmrec_lmm.plugin.registry import Registry
from mmrec_lmm.types import Batch, Interactions, TrainingData


def equation(nodes: Tensor, adjacency: Tensor, n_layers: int, reg_weight: float) -> tuple[Tensor, Tensor]:
    """Loss and all scores (U, I) of LightGCN from layer 0 (N, D); with no layers these are BPR's."""
    layers = [nodes]
    for _ in range(n_layers):
        layers.append(adjacency @ layers[-1])
    users, items = (sum(layers) / len(layers)).split([N_USERS, N_ITEMS])
    scores = users @ items.T
    difference = scores[BATCH.users, BATCH.positives] - scores[BATCH.users, BATCH.negatives]
    rows = [nodes[BATCH.users], nodes[N_USERS + BATCH.positives], nodes[N_USERS + BATCH.negatives]]
    norms = sum(matrix.pow(2).sum().sqrt() for matrix in rows) / len(BATCH)
    return -(1e-10 + torch.sigmoid(difference)).log().mean() + reg_weight * norms, scores


@pytest.mark.parametrize(
    ("name", "n_layers"),
    [("BPR", 0), ("LightGCN", 0), ("LightGCN", 1), ("LightGCN", 2), ("LightGCN", 3), ("LightGCN", 4)],
)
def test_loss_gradients_and_scores_are_those_of_the_equations(registry: Registry, name: str, n_layers: int) -> None:
    layers = {"n_layers": n_layers} if name == "LightGCN" else {}
    model = build(
        registry, name, ItemFeatures({}, {}), data=uneven_data(), embedding_size=WIDTH, reg_weight=0.1, **layers
    )
    parameters = dict(model.named_parameters())
    nodes = torch.cat([*parameters.values()]).detach().requires_grad_()  # (N, D)
    loss, scores = equation(nodes, symmetric(dense_adjacency(uneven_data())), n_layers, 0.1)
    loss.backward()
    numbers = loss_and_gradients(model)
    assert numbers["loss"] == pytest.approx(loss.item(), abs=1e-6)
    ours = torch.cat([parameters["user_embedding"].grad, parameters["item_embedding"].grad])
    torch.testing.assert_close(ours, nodes.grad, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model.eval().scorer()(torch.arange(N_USERS)), scores, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("name", "deviation"), [("BPR", "normal"), ("LightGCN", "uniform")])
def test_embeddings_start_with_glorots_spread(registry: Registry, name: str, deviation: str) -> None:
    users = np.arange(400)
    data = TrainingData(400, 300, Interactions(users, users % 300))
    torch.manual_seed(0)
    model = registry.models.load(name, "cls")(data, ItemFeatures({}, {}), registry.models.load(name, "config")())
    parameters = dict(model.named_parameters())
    assert {key: tuple(value.shape) for key, value in parameters.items()} == {
        "user_embedding": (400, 64),
        "item_embedding": (300, 64),
    }
    for value in parameters.values():
        expected = math.sqrt(2 / sum(value.shape))
        assert value.std().item() == pytest.approx(expected, rel=0.02)
        bounded = value.abs().max().item() <= math.sqrt(3) * expected
        assert bounded == (deviation == "uniform")


@pytest.mark.parametrize("name", ["BPR", "LightGCN"])
def test_users_and_items_without_a_training_row_and_a_batch_of_one_do_no_harm(registry: Registry, name: str) -> None:
    cls, config = (registry.models.load(name, part) for part in ("cls", "config"))
    model: Any = cls(
        TrainingData(3, 4, Interactions(np.array([0, 2]), np.array([1, 3]))), ItemFeatures({}, {}), config()
    )
    batch = Batch(torch.tensor([2]), torch.tensor([3]), torch.tensor([1]))
    assert np.isfinite([*loss_and_gradients(model, batch).values()]).all()
    assert model.eval().scorer()(torch.arange(3)).isfinite().all()


def test_a_negative_number_of_layers_is_refused(registry: Registry) -> None:
    with pytest.raises(ValueError, match="n_layers must be 0 or more, got -1"):
        registry.models.load("LightGCN", "config")(n_layers=-1)
