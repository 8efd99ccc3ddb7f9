"""MMGCN against the figures of MMRec's own code, and against its equations written out over all nodes.

Shapes: U users, I items, N = U + I, D embedding, Q width of a tower's input.
"""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import (
    BATCH,
    N_ITEMS,
    N_USERS,
    SHORT,
    WIDTH,
    assert_scores,
    build,
    dense_adjacency,
    features,
    loss_and_gradients,
    uneven_data,
)
from torch import Tensor
from torch.nn.functional import leaky_relu, linear, logsigmoid, normalize

from benchmarks.counting import count
from mmrec_lmm.config.resolve import Request, resolve
from mmrec_lmm.data.sampling import TrainingRows
from mmrec_lmm.errors import ConfigError
from mmrec_lmm.graph import BipartiteGraph, Side
from mmrec_lmm.plugin.contracts import DotProduct
from mmrec_lmm.plugin.item_features import ItemFeatures
from mmrec_lmm.plugin.registry import Registry, load_registry
from mmrec_lmm.types import Batch, Interactions, RunSpec, TrainingData

# What MMRec's code computes on the world of golden.py, with embedding_size 8 and reg_weight 0.1
LOSS = 0.71044
GRADIENT_NORMS = {
    "v_gcn.MLP.weight": 0.000547,
    "v_gcn.MLP.bias": 0.000353,
    "v_gcn.conv_embed_1.weight": 0.002768,
    "v_gcn.linear_layer1.weight": 0.000605,
    "v_gcn.linear_layer1.bias": 0.000807,
    "v_gcn.g_layer1.weight": 0.005932,
    "v_gcn.g_layer1.bias": 0.006589,
    "v_gcn.conv_embed_2.weight": 0.000905,
    "v_gcn.linear_layer2.weight": 0.001409,
    "v_gcn.linear_layer2.bias": 0.010425,
    "v_gcn.g_layer2.weight": 0.016948,
    "v_gcn.g_layer2.bias": 0.016725,
    "v_gcn.conv_embed_3.weight": 0.010274,
    "v_gcn.linear_layer3.weight": 0.010365,
    "v_gcn.linear_layer3.bias": 0.008213,
    "v_gcn.g_layer3.weight": 0.059284,
    "v_gcn.g_layer3.bias": 0.042201,
    "t_gcn.conv_embed_1.weight": 0.001821,
    "t_gcn.linear_layer1.weight": 0.003316,
    "t_gcn.linear_layer1.bias": 0.004315,
    "t_gcn.g_layer1.weight": 0.011434,
    "t_gcn.g_layer1.bias": 0.012218,
    "t_gcn.conv_embed_2.weight": 0.008594,
    "t_gcn.linear_layer2.weight": 0.010171,
    "t_gcn.linear_layer2.bias": 0.011266,
    "t_gcn.g_layer2.weight": 0.030499,
    "t_gcn.g_layer2.bias": 0.031942,
    "t_gcn.conv_embed_3.weight": 0.008562,
    "t_gcn.linear_layer3.weight": 0.01674,
    "t_gcn.linear_layer3.bias": 0.024136,
    "t_gcn.g_layer3.weight": 0.079405,
    "t_gcn.g_layer3.bias": 0.059732,
}
SCORES = {
    "first": [0.099532, 0.168705, 0.056591, 0.088122, 0.022758, 0.088312],
    "norm": 0.50256,
    "total": 2.71117,
}  # of users 0 to 2; first: user 0, items 0 to 5


@pytest.fixture
def make(registry: Registry) -> Any:
    """Makes an MMGCN on given features, filled by the golden rule."""

    def make(own: ItemFeatures | None = None, **config: Any) -> DotProduct:
        return build(registry, "MMGCN", own, **{"embedding_size": WIDTH, "reg_weight": 0.1, **config})

    return make


def test_loss_and_gradients_are_those_of_mmrec(make: Any) -> None:
    assert loss_and_gradients(make(trainable_id=False)) == pytest.approx({"loss": LOSS, **GRADIENT_NORMS}, abs=1e-5)


def test_scores_are_those_of_mmrec(make: Any) -> None:
    assert_scores(make(trainable_id=False).scorer()(torch.arange(3)), **SCORES)


def only_run(request: Request) -> RunSpec:
    (run,) = resolve(request, model=load_registry().models.get("MMGCN"), encoder=None, dataset=None).runs
    return run


@pytest.mark.parametrize("preset", ["mmrec", "lmm"])
def test_the_presets_of_the_sources_freeze_what_is_frozen_there(preset: str) -> None:
    request = Request(model="MMGCN", dataset="toy", preset=preset)
    assert only_run(request).model_config.trainable_id is False


def test_mmrecs_own_file_is_read_and_its_number_of_layers_means_nothing(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "MMGCN.yaml").write_text("embedding_size: 32\nn_layers: 2\nreg_weight: 0.01\n")
    run = only_run(Request(model="MMGCN", dataset="toy", configs=tmp_path))
    assert (run.model_config.embedding_size, run.model_config.reg_weight) == (32, 0.01)


def equations(
    model: DotProduct, own: ItemFeatures, *, reg_weight: float, batch: Batch = BATCH
) -> tuple[Tensor, Tensor]:
    """Loss and all scores (U, I): every layer for every node, on a dense adjacency."""
    parts = dict(model.state_dict(keep_vars=True))
    adjacency = dense_adjacency(uneven_data()).float()
    mean = (adjacency / adjacency.sum(1, keepdim=True).clamp(min=1)).to(parts["id_embedding"])  # M, as exact as ours
    total = torch.zeros(())
    for modality, table in own().items():
        part = {name.partition(".")[2]: p for name, p in parts.items() if name.startswith(f"{SHORT[modality]}_gcn.")}
        if modality == "image":
            table = linear(table, part["MLP.weight"], part["MLP.bias"])
        table = table * own.present[modality].unsqueeze(1)
        x = normalize(torch.cat([part["preference"], table]))  # (N, Q)
        for layer in (1, 2, 3):
            h = leaky_relu(mean @ (x @ part[f"conv_embed_{layer}.weight"]))
            own_x = leaky_relu(linear(x, part[f"linear_layer{layer}.weight"], part[f"linear_layer{layer}.bias"]))
            joined = torch.cat([h, own_x + parts["id_embedding"]], dim=1)
            x = leaky_relu(linear(joined, part[f"g_layer{layer}.weight"], part[f"g_layer{layer}.bias"]))
        total = total + x / len(own)
    users, items = total.split([N_USERS, N_ITEMS])
    scores = users @ items.T
    bpr = -logsigmoid(scores[batch.users, batch.positives] - scores[batch.users, batch.negatives]).mean()
    of_users = parts["id_embedding"][batch.users].repeat(2, 1)
    of_items = parts["id_embedding"][N_USERS + torch.cat([batch.positives, batch.negatives])]
    squares = (of_users**2 + of_items**2).mean()
    if "image" in own:
        squares = squares + (parts["v_gcn.preference"] ** 2).mean()
    return bpr + reg_weight * squares, scores


@pytest.mark.parametrize("joint", [False, True], ids=["frozen", "joint"])
@pytest.mark.parametrize("trainable", [False, True], ids=["constant-ids", "learned-ids"])
@pytest.mark.parametrize("modalities", [("image",), ("text",), ("image", "text"), ("audio", "image", "text")])
def test_values_and_gradients_are_those_of_the_equations(
    make: Any, modalities: tuple[str, ...], trainable: bool, joint: bool
) -> None:
    def world() -> tuple[DotProduct, ItemFeatures]:
        own = features(*modalities, joint=joint, absent=4)
        return make(own, data=uneven_data(), trainable_id=trainable), own

    (model, own), (reference, theirs) = world(), world()
    loss, scores = equations(reference, theirs, reg_weight=0.1)
    loss.backward()
    assert loss_and_gradients(model)["loss"] == pytest.approx(loss.item(), abs=1e-6)
    assert ("id_embedding" in dict(model.named_parameters())) is trainable
    for (name, mine), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-7, msg=name)
    if joint:
        for modality in modalities:
            torch.testing.assert_close(own()[modality].grad, theirs()[modality].grad, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(model.scorer()(torch.arange(N_USERS)), scores, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("trainable", [False, True], ids=["constant-ids", "learned-ids"])
def test_training_follows_the_equations_step_by_step(make: Any, trainable: bool) -> None:
    def world() -> tuple[DotProduct, ItemFeatures, torch.optim.Adam]:
        single = features("image", "text", absent=4)
        own = ItemFeatures({name: table.double() for name, table in single().items()}, dict(single.present))
        model = make(own, data=uneven_data(), trainable_id=trainable).double()
        return model, own, torch.optim.Adam(model.parameters(), lr=0.01)

    (model, _, optimizer), (reference, theirs, their_optimizer) = world(), world()
    rows, generator = TrainingRows(uneven_data().train, N_USERS, 4), torch.Generator().manual_seed(0)
    losses = []
    for _ in range(10):
        for batch in rows.epoch(generator):
            loss = torch.stack([*model.training_loss(batch).values()]).sum()
            expected, _ = equations(reference, theirs, reg_weight=0.1, batch=batch)
            assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
            losses.append(loss.item())
            for each, its_optimizer in ((loss, optimizer), (expected, their_optimizer)):
                its_optimizer.zero_grad()
                each.backward()
                its_optimizer.step()
    half = len(losses) // 2
    assert sum(losses[half:]) < sum(losses[:half]) * 0.9  # it was trained
    _, scores = equations(reference, theirs, reg_weight=0.1)
    torch.testing.assert_close(model.scorer()(torch.arange(N_USERS)), scores, rtol=1e-7, atol=1e-9)


def test_constants_are_computed_again_when_saved_weights_are_loaded(make: Any) -> None:
    model = make(trainable_id=False)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    before = model.scorer()(torch.arange(N_USERS))
    changed = weights | {"t_gcn.preference": weights["t_gcn.preference"].flip(1)}
    model.load_state_dict(changed)
    assert not torch.equal(model.scorer()(torch.arange(N_USERS)), before)
    model.load_state_dict(weights)
    assert torch.equal(model.scorer()(torch.arange(N_USERS)), before)


def test_the_regularizer_of_constants_moves_no_weight(make: Any) -> None:
    light, heavy = (loss_and_gradients(make(trainable_id=False, reg_weight=weight)) for weight in (0.0, 100.0))
    assert heavy.pop("loss") > light.pop("loss")
    assert heavy == light


def test_an_item_nobody_has_and_a_user_with_one_item_get_finite_gradients(registry: Registry) -> None:
    data = TrainingData(3, 4, Interactions(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0])))
    values = torch.zeros(4, 5)
    values[:2] = torch.rand(2, 5)
    own = ItemFeatures({"image": values}, {"image": torch.tensor([True, True, False, True])})
    config = registry.models.load("MMGCN", "config")(embedding_size=4)
    model = registry.models.load("MMGCN", "cls")(data, own, config)
    batch = type(BATCH)(torch.tensor([1]), torch.tensor([1]), torch.tensor([3]))
    torch.stack([*model.training_loss(batch).values()]).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_without_any_feature_it_says_so(registry: Registry) -> None:
    data = TrainingData(1, 2, Interactions(np.array([0]), np.array([0])))
    model, config = (registry.models.load("MMGCN", part) for part in ("cls", "config"))
    with pytest.raises(ConfigError, match="MMGCN: expected item features, got none; try LightGCN"):
        model(data, ItemFeatures({}, {}), config())


@pytest.mark.parametrize(("n_users", "n_items"), [(9, 4), (4, 9)])
@pytest.mark.parametrize("side", ["users", "items"])
@pytest.mark.parametrize("ids", [None, [2, 0, 2], [0, 1, 2, 3] * 3])
def test_the_dense_product_of_a_convolution_takes_the_fewer_rows(
    n_users: int, n_items: int, side: Side, ids: list[int] | None
) -> None:
    users = np.arange(9) % n_users
    data = TrainingData(n_users, n_items, Interactions(users, np.arange(9) % n_items))
    matrix = BipartiteGraph(data).adjacency("random_walk")
    _convolve = importlib.import_module(load_registry().models.load("MMGCN", "cls").__module__)._convolve
    here, there = (n_users, n_items) if side == "users" else (n_items, n_users)
    x, weight = torch.randn(there, 5), torch.randn(5, 5)
    chosen = None if ids is None else torch.tensor(ids)
    expected = matrix.rows_of(side).to_dense() @ x @ weight
    torch.testing.assert_close(_convolve(side, matrix, x, weight, chosen), expected if ids is None else expected[ids])
    counted = count(lambda: _convolve(side, matrix, x, weight, chosen))
    assert counted.flops == 2 * min(there, here if ids is None else len(ids)) * 5 * 5
