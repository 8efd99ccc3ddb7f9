"""FREEDOM against the figures of MMRec's own code, and against its equations written out in dense matrices.

Shapes: U users, I items, N = U + I nodes, E edges.
"""

from collections.abc import Iterator
from typing import Any

import golden
import numpy as np
import pytest
import torch
from golden import BATCH, ENTRIES, N_ITEMS, N_USERS, double_features, entry_model, loss_and_gradients
from torch import Tensor
from torch.nn.functional import logsigmoid

from mmrec_lmm.config.resolve import Request, resolve
from mmrec_lmm.errors import ConfigError
from mmrec_lmm.plugin.contracts import DotProduct
from mmrec_lmm.plugin.item_features import ItemFeatures
from mmrec_lmm.plugin.registry import Registry
from mmrec_lmm.types import Interactions, TrainingData

CONFIG = ENTRIES["FREEDOM"]["config"]


def freedom(registry: Registry, own: ItemFeatures | None = None, **config: Any) -> DotProduct:
    """A FREEDOM of the uneven world."""
    model = golden.build(registry, "FREEDOM", own or golden.features(), data=golden.uneven_data(), **CONFIG | config)
    golden.copy_features(model)
    return model


def keep(model: DotProduct, edges: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Start an epoch whose draw is `edges`."""
    wanted = {tuple(edge) for edge in edges}
    pairs = zip(model.graph.users.tolist(), model.graph.items.tolist(), strict=True)
    mask = torch.tensor([pair in wanted for pair in pairs])
    assert mask.sum() == len(edges) == int(len(mask) * (1 - model.config.dropout))
    monkeypatch.setattr(model.graph, "drop_edges", lambda rate, weights: mask)
    model.on_epoch_start(0)


@pytest.mark.parametrize("name", golden.entries("FREEDOM"))
def test_loss_terms_gradients_and_scores_are_those_of_mmrec(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    entry = ENTRIES[name]
    model = entry_model(registry, name, "FREEDOM")
    if "kept_edges" in entry:
        keep(model, entry["kept_edges"], monkeypatch)
        assert model.pruned.values.norm().item() == pytest.approx(entry["masked_adj"]["norm"], abs=1e-5)
        assert model.pruned.values.sum().item() == pytest.approx(entry["masked_adj"]["sum"], abs=1e-5)
        weights = model.edge_weights()
        assert weights.norm().item() == pytest.approx(entry["edge_weights"]["norm"], abs=1e-5)
        assert weights.sum().item() == pytest.approx(entry["edge_weights"]["sum"], abs=1e-5)
    else:
        model.on_epoch_start(0)
    if "item_graph" in entry:
        dense = model.item_graph().csr().to_dense()
        row = {str(item): dense[0, item].item() for item in dense[0].nonzero().flatten().tolist()}
        assert row == pytest.approx(entry["item_graph"]["row0"], abs=1e-5)
        assert dense.norm().item() == pytest.approx(entry["item_graph"]["norm"], abs=1e-5)
        assert int(dense.count_nonzero()) == entry["item_graph"]["nonzero"]
    scale = {"bpr": 1.0}
    terms = {
        key: term.item() / scale.get(key, CONFIG["reg_weight"]) for key, term in model.training_loss(BATCH).items()
    }
    assert terms == pytest.approx(entry["terms"], abs=1e-5)
    found = {"loss": entry["loss"], **entry["grads"]}
    without_gradient = {key: found.pop(key) for key in list(found) if key.endswith("_trs.bias")}  # which we leave out
    assert not any(without_gradient.values())
    assert loss_and_gradients(model) == pytest.approx(found, abs=1e-5)
    scores = entry["scores"]
    ours = model.eval().scorer()(torch.arange(3))
    golden.assert_scores(ours, first=scores["first"], norm=scores["norm"], total=scores["sum"])


# The dense reference


def equations(model: DotProduct, config: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Loss and all scores (U, I) from the parameters of a model of `uneven_data`, by the equations in its file."""
    parts, raw = dict(model.named_parameters()), model.features()
    graph: Any = 0
    shares = {1: [1.0], 2: [0.3, 0.7], 3: [0.35, 0.3, 0.35]}[len(raw)]  # by name: audio, image, text
    for share, modality in zip(shares, sorted(raw), strict=True):
        binary = golden.dense_neighbors(raw[modality].detach(), config["knn_k"], model.features.present[modality]) != 0
        graph = graph + share * binary / binary.sum(1, keepdim=True)
    near = parts["item_id_embedding.weight"]
    for _ in range(config["n_mm_layers"]):
        near = graph @ near
    nodes = torch.cat([parts["user_embedding.weight"], parts["item_id_embedding.weight"]])
    adjacency = golden.dense_adjacency(golden.uneven_data()).to(nodes.dtype)

    def vectors(edges: Tensor) -> tuple[Tensor, Tensor]:
        scale = (edges.sum(1) + 1e-7).rsqrt()
        means = golden.dense_mean_of_layers(scale[:, None] * edges * scale, nodes, config["n_ui_layers"])
        return means[:N_USERS], means[N_USERS:] + near

    kept = model.pruned.csr().to_dense() != 0
    users, items = vectors(adjacency * kept)
    u, p, n = users[BATCH.users], BATCH.positives, BATCH.negatives
    loss = -logsigmoid((u * (items[p] - items[n])).sum(1)).mean()
    for modality in raw:
        own = raw[modality] if model.features.joint else parts[f"{modality}_embedding.weight"]
        content, known = own @ parts[f"{modality}_trs.weight"].T, model.features.present[modality]
        rows = known[p] & known[n]
        if rows.any():
            gap = (u * (content[p] - content[n])).sum(1)[rows]
            loss = loss - config["reg_weight"] * logsigmoid(gap).mean()
    users, items = vectors(adjacency)
    return loss, users @ items.T


@pytest.fixture
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("joint", [False, True], ids=["frozen", "joint"])
@pytest.mark.parametrize(
    ("modalities", "absent", "config"),
    [
        (("image", "text"), None, {}),
        (("image", "text"), 4, {"n_mm_layers": 2}),
        (("image", "text"), 4, {"n_ui_layers": 0, "n_mm_layers": 0}),
        (("text",), 4, {"knn_k": 15}),
        (("audio", "image", "text"), 4, {"knn_k": 1}),
    ],
    ids=str,
)
def test_the_sparse_form_equals_the_dense_equations_in_value_and_gradient(
    registry: Registry, modalities: tuple[str, ...], absent: int | None, config: dict[str, Any], joint: bool
) -> None:
    config = {**config, "dropout": 0.4}
    sparse, dense = (
        freedom(registry, double_features(*modalities, joint=joint, absent=absent), **config) for _ in range(2)
    )
    for model in (sparse, dense):
        torch.manual_seed(5)
        model.on_epoch_start(0)
    golden.assert_same_as_dense(sparse, dense, *equations(dense, CONFIG | config))


# Pruning


def test_an_epochs_edges_are_drawn_by_degree_without_replacement_and_again_from_the_same_state(
    registry: Registry,
) -> None:
    model = freedom(registry, dropout=0.9)  # keeps 2 of 30 edges, as 1 - 0.9 is a little less than 0.1
    weights = model.edge_weights().double()
    torch.manual_seed(1)
    draws = torch.stack([model.graph.drop_edges(0.9, model.edge_weights()) for _ in range(20_000)])  # (draws, E)
    assert (draws.sum(1) == 2).all()
    by_torch = torch.stack([torch.bincount(torch.multinomial(weights, 2), minlength=30) for _ in range(20_000)])
    often = torch.stack([draws.double().mean(0), by_torch.double().mean(0)])
    assert (often[0] - often[1]).abs().max() < 5 * (2 * 0.1 * 0.9 / 20_000) ** 0.5

    assert often[0][weights.argmax()] > 1.5 * often[0][weights.argmin()]

    state = torch.get_rng_state()
    model.on_epoch_start(0)
    values = model.pruned.values.clone()
    model.on_epoch_start(1)
    assert not torch.equal(model.pruned.values, values)
    torch.set_rng_state(state)
    model.on_epoch_start(0)
    assert torch.equal(model.pruned.values, values)


def test_scores_are_from_all_edges_and_uniform_pruning_draws_without_weights(registry: Registry) -> None:
    full = freedom(registry, dropout=0.0)
    scores = full.eval().scorer()(torch.arange(N_USERS))
    model = freedom(registry, dropout=0.6, pruning="uniform")
    assert model.edge_weights() is None
    model.on_epoch_start(0)
    assert int(model.pruned.values.count_nonzero()) == 2 * 12
    assert torch.equal(model.eval().scorer()(torch.arange(N_USERS)), scores)
    assert model.training_loss(BATCH)["bpr"] != full.training_loss(BATCH)["bpr"]


def test_the_number_of_edges_kept_is_rounded_down_in_double_precision(registry: Registry) -> None:
    ten = TrainingData(2, N_ITEMS, Interactions(np.repeat([0, 1], 5), np.arange(10)))
    model = golden.build(registry, "FREEDOM", golden.features(), data=ten, **CONFIG | {"dropout": 0.8})
    model.on_epoch_start(0)
    assert int(model.pruned.values.count_nonzero()) == 2 * 1  # 1 - 0.8 is a little less than 0.2


# The item graph


def test_the_item_graph_can_leave_out_the_item_itself(registry: Registry) -> None:
    own = double_features("text", absent=4)
    graphs = [freedom(registry, own, knn_k=k, item_graph_self=k == 4).item_graph().csr().to_dense() for k in (4, 3)]
    with_itself, without = graphs
    alone = torch.zeros(N_ITEMS, dtype=torch.bool)
    alone[[4, 5]] = True
    assert (without.diagonal() > 0).tolist() == alone.tolist()
    others = (with_itself != 0) & ~torch.eye(N_ITEMS, dtype=torch.bool)
    assert torch.equal((without != 0)[~alone], others[~alone])
    torch.testing.assert_close(without.sum(1), torch.ones(N_ITEMS, dtype=without.dtype))


def test_the_item_graph_is_made_once_and_follows_a_full_refresh_of_joint_features(registry: Registry) -> None:
    model = freedom(registry, own := golden.features(joint=True))
    graph = model.item_graph()
    assert model.item_graph() is graph
    assert {name for name in model.state_dict() if name.endswith("_embedding.weight")} == {
        "user_embedding.weight",
        "item_id_embedding.weight",
    }
    with torch.no_grad():
        before = model.eval().scorer()(torch.arange(3))
        own.refresh("text", torch.arange(N_ITEMS), own()["text"].detach().flip(0))
        assert not torch.equal(model.scorer()(torch.arange(3)), before)


def test_without_a_weight_the_modalities_terms_are_not_computed(registry: Registry) -> None:
    assert set(freedom(registry, reg_weight=0.0).training_loss(BATCH)) == {"bpr"}


@pytest.mark.parametrize("kind", ["zero rows", "all zero", "constant", "absent"])
def test_poor_features_give_a_finite_loss_and_finite_gradients(registry: Registry, kind: str) -> None:
    model = freedom(registry, golden.poor_features(kind), knn_k=1000)
    numbers = loss_and_gradients(model)
    assert np.isfinite([*numbers.values()]).all(), numbers
    assert model.eval().scorer()(torch.arange(N_USERS)).isfinite().all()
    if kind in ("all zero", "absent"):
        assert torch.equal(model.item_graph().csr().to_dense(), torch.eye(N_ITEMS))


# Configuration


def test_a_graph_of_others_needs_a_rule_that_has_the_item_itself(registry: Registry) -> None:
    with pytest.raises(ValueError, match="item_graph_self must be true where knn_ties is topk, got false"):
        registry.models.load("FREEDOM", "config")(item_graph_self=False, knn_ties="topk")


def test_without_any_feature_it_says_so(registry: Registry) -> None:
    model, config = (registry.models.load("FREEDOM", part) for part in ("cls", "config"))
    with pytest.raises(ConfigError, match="FREEDOM: expected item features, got none; try LightGCN"):
        model(golden.training_data(), ItemFeatures({}, {}), config())


def test_mmrecs_grid_has_eight_runs_with_its_rule_for_ties(registry: Registry) -> None:
    request = Request(model="FREEDOM", dataset="baby", preset="mmrec", grid="mmrec")
    runs = resolve(request, model=registry.models.get("FREEDOM"), encoder=None, dataset=None).runs
    assert len({(run.model_config.dropout, run.model_config.reg_weight) for run in runs}) == len(runs) == 8
    assert {run.model_config.knn_ties for run in runs} == {"topk"}
