"""LATTICE against the figures of MMRec's own code, and against its equations written out in dense matrices.

Shapes: U users, I items, N = U + I nodes, D embedding, k neighbors.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import (
    BATCH,
    N_ITEMS,
    N_USERS,
    WIDTH,
    assert_scores,
    build,
    dense_adjacency,
    features,
    loss_and_gradients,
    training_data,
    uneven_data,
)
from helpers import call
from torch import Tensor
from torch.nn.functional import leaky_relu, normalize

from mmrec_lmm import graph
from mmrec_lmm.config.resolve import Request, resolve
from mmrec_lmm.errors import ConfigError, ConfigValueError
from mmrec_lmm.plugin.contracts import DotProduct
from mmrec_lmm.plugin.item_features import ItemFeatures
from mmrec_lmm.plugin.registry import Registry
from mmrec_lmm.typed_json import plain
from mmrec_lmm.types import Batch, Interactions, TrainingData

# What MMRec's code computes on the golden world (models.md, section 7)
CONFIG = {
    "embedding_size": WIDTH,
    "feat_embed_dim": WIDTH,
    "weight_size": (WIDTH, WIDTH),
    "knn_k": 5,
    "reg_weight": 0.01,
}
LOSS = 0.696961
GRADIENT_NORMS = {
    "modal_weight": 0.016045,
    "user_embedding.weight": 0.168032,
    "item_id_embedding.weight": 0.201822,
    "image_embedding.weight": 0.002625,
    "text_embedding.weight": 0.002821,
    "image_trs.weight": 0.006437,
    "image_trs.bias": 0.001395,
    "text_trs.weight": 0.004483,
    "text_trs.bias": 0.000974,
}
LATER_BATCHES = ("user_embedding.weight", "item_id_embedding.weight")  # all that learns after an epoch's first batch


def lattice(
    registry: Registry, own: ItemFeatures | None = None, *, data: TrainingData | None = None, **config: Any
) -> DotProduct:
    """A LATTICE on the golden world: its copies hold the features, and modal_weight counts image before text."""
    own = own or features()
    model = build(registry, "LATTICE", own, data=data, **{**CONFIG, **config})
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for modality, table in own().items():
            if not own.joint:
                parameters[f"{modality}_embedding.weight"].copy_(table)
        if "modal_weight" in parameters:
            parameters["modal_weight"].copy_(torch.tensor([0.5, 0.3, 0.1])[: len(own)])
    return model


def test_loss_and_gradients_are_those_of_mmrec_in_the_first_and_the_second_batch(registry: Registry) -> None:
    model = lattice(registry)
    model.on_epoch_start(0)
    assert loss_and_gradients(model) == pytest.approx({"loss": LOSS, **GRADIENT_NORMS}, abs=1e-5)
    model.zero_grad()
    later = {name: GRADIENT_NORMS[name] for name in LATER_BATCHES}
    assert loss_and_gradients(model) == pytest.approx({"loss": LOSS, **later}, abs=1e-5)
    model.zero_grad()
    model.on_epoch_start(1)
    assert loss_and_gradients(model) == pytest.approx({"loss": LOSS, **GRADIENT_NORMS}, abs=1e-5)


def test_scores_are_those_of_mmrec(registry: Registry) -> None:
    assert_scores(
        lattice(registry).eval().scorer()(torch.arange(3)),
        first=[0.044372, 0.426666, 0.101957, 0.400562, 0.558591, 0.183152],
        norm=2.073980,
        total=1.249900,
    )


# The dense reference


def knn(x: Tensor, k: int, known: Tensor) -> Tensor:
    """Cosines (I, I) of each item with its k nearest, zero elsewhere; an item that isn't known has only itself."""
    unit = normalize(x, dim=1)
    similar = unit @ unit.T
    candidates = similar.detach().masked_fill(~known, -torch.inf)
    best = candidates.topk(min(k, int(known.sum())), dim=1).indices
    kept = torch.zeros_like(similar).scatter(1, best, 1.0) * similar
    return torch.where(known.unsqueeze(1), kept, torch.eye(len(x), dtype=x.dtype))


def laplacian(matrix: Tensor) -> Tensor:
    """D^-1/2 W D^-1/2; a row whose sum isn't positive vanishes (in MMRec it turns into NaN)."""
    scale = matrix.sum(1).masked_fill(matrix.sum(1) <= 0, torch.inf).pow(-0.5)
    return scale.unsqueeze(1) * matrix * scale


def equations(model: DotProduct, config: dict[str, Any], *, batch: Batch = BATCH) -> tuple[Tensor, Tensor]:
    """Loss and all scores (U, I) from the parameters of a model of `uneven_data`, by the equations in its file."""
    parts, raw, present = dict(model.named_parameters()), model.features(), model.features.present
    modalities = sorted(raw)
    weight = torch.softmax(parts["modal_weight"], 0) if len(modalities) > 1 else torch.ones(1)
    fixed, learned = [], []
    for share, modality in zip(weight, modalities, strict=True):
        own = raw[modality] if model.features.joint else parts[f"{modality}_embedding.weight"]
        projected = own @ parts[f"{modality}_trs.weight"].T + parts[f"{modality}_trs.bias"]
        fixed.append(share * laplacian(knn(raw[modality].detach(), config["knn_k"], present[modality])))
        learned.append(share * knn(projected, config["knn_k"], present[modality]))
    item_graph = 0.9 * torch.stack(fixed).sum(0) + 0.1 * laplacian(torch.stack(learned).sum(0))
    arrived = parts["item_id_embedding.weight"]
    for _ in range(config.get("n_layers", 1)):
        arrived = item_graph @ arrived

    x = torch.cat([parts["user_embedding.weight"], parts["item_id_embedding.weight"]])
    with_loops = dense_adjacency(uneven_data()).to(x.dtype) + torch.eye(len(x), dtype=x.dtype)
    walk = with_loops / with_loops.sum(1, keepdim=True)
    layers = [x]
    cf_model = config.get("cf_model", "lightgcn")
    for layer in range(0 if cf_model == "mf" else 2):
        if cf_model == "lightgcn":
            layers.append(walk @ layers[-1])
            continue
        side = walk @ x
        w1, b1, w2, b2 = (
            parts[f"{name}.{layer}.{part}"] for name in ("GC_Linear", "Bi_Linear") for part in ("weight", "bias")
        )
        x = leaky_relu(side @ w1.T + b1) + leaky_relu((x * side) @ w2.T + b2)
        layers.append(x / x.norm(dim=1, keepdim=True))
    users, items = torch.stack(layers).mean(0).split([N_USERS, N_ITEMS])
    items = items + arrived / arrived.norm(dim=1, keepdim=True)

    u, p, n = users[batch.users], items[batch.positives], items[batch.negatives]
    loss = -torch.sigmoid((u * p).sum(1) - (u * n).sum(1)).log().mean()
    loss = loss + config["reg_weight"] * 0.5 * (u.pow(2).sum() + p.pow(2).sum() + n.pow(2).sum()) / len(batch)
    return loss, users @ items.T


@pytest.fixture
def _double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def double_features(*modalities: str, **options: Any) -> ItemFeatures:
    own = features(*modalities, **options)
    tables = {modality: table.detach().double() for modality, table in own().items()}
    return ItemFeatures(tables, own.present, joint=own.joint)


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("joint", [False, True], ids=["frozen", "joint"])
@pytest.mark.parametrize(
    ("modalities", "absent", "config"),
    [
        (("image", "text"), None, {}),
        (("image", "text"), 4, {"n_layers": 2}),
        (("text",), 4, {}),
        (("audio", "image", "text"), 4, {}),
        (("image", "text"), None, {"knn_k": 15}),
        (("image", "text"), None, {"knn_k": 1}),
        (("image", "text"), 4, {"cf_model": "mf"}),
        (("image", "text"), None, {"cf_model": "ngcf", "mess_dropout": (0.0, 0.0)}),
    ],
    ids=lambda value: str(value),
)
def test_the_sparse_form_equals_the_dense_equations_in_value_and_gradient(
    registry: Registry, modalities: tuple[str, ...], absent: int | None, config: dict[str, Any], joint: bool
) -> None:
    options = {**CONFIG, **config}
    own = double_features(*modalities, joint=joint, absent=absent)
    dense = lattice(registry, own, data=uneven_data(), **config)
    loss, scores = equations(dense, options)
    loss.backward()
    own = double_features(*modalities, joint=joint, absent=absent)
    sparse = lattice(registry, own, data=uneven_data(), **config)
    ours = torch.stack([*sparse.training_loss(BATCH).values()]).sum()
    ours.backward()
    assert ours.item() == pytest.approx(loss.item(), abs=1e-12)
    for (name, mine), theirs in zip(sparse.named_parameters(), dense.parameters(), strict=True):
        assert mine.grad is not None, name
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=1e-12, msg=name)
    for modality in own if joint else ():
        torch.testing.assert_close(own()[modality].grad, dense.features()[modality].grad, rtol=0, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(sparse.eval().scorer()(torch.arange(N_USERS)), scores, rtol=0, atol=1e-12)


def two_kinds_of_items(registry: Registry, **config: Any) -> DotProduct:
    """Items of one kind have equal features, and more of them are equal than have a place; every cosine is exactly 0
    or 1, of raw and of learned features."""
    tables = {}
    for modality, table in double_features()().items():
        tables[modality] = torch.zeros_like(table)
        tables[modality][torch.arange(N_ITEMS), torch.arange(N_ITEMS) % 2] = 1.0
    own = ItemFeatures(tables, double_features().present)
    model = lattice(registry, own, data=uneven_data(), **config)
    with torch.no_grad():
        for modality in own:
            trs = model.get_submodule(f"{modality}_trs")
            assert isinstance(trs, torch.nn.Linear)
            trs.weight.copy_(torch.eye(*trs.weight.shape))
            trs.bias.zero_()
    return model


@pytest.mark.usefixtures("_double")
def test_under_mmrecs_rule_equal_items_have_the_neighbors_of_plain_topk_in_both_kinds_of_graphs(
    registry: Registry,
) -> None:
    ours, own_first = (two_kinds_of_items(registry, knn_ties=ties) for ties in ("topk", "own_first"))
    loss, scores = equations(ours, CONFIG)
    assert torch.stack([*ours.training_loss(BATCH).values()]).sum().item() == pytest.approx(loss.item(), abs=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval().scorer()(torch.arange(N_USERS)), scores, rtol=0, atol=1e-12)
        assert (own_first.eval().scorer()(torch.arange(N_USERS)) - scores).abs().max() > 1e-3
    for model, lists in ((ours, 2), (own_first, N_ITEMS)):
        graphs = model.item_graph()[0].split(CONFIG["knn_k"], dim=1)
        assert len(graphs) == 4  # raw and learned, of either modality
        for items in graphs:
            has_itself = (items == torch.arange(N_ITEMS).unsqueeze(1)).any(dim=1)
            assert len(items.unique(dim=0)) <= lists
            assert bool(has_itself.all()) == (model is own_first)


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("n_layers", [1, 2])
def test_later_batches_of_an_epoch_have_the_first_ones_graph_and_the_same_gradient_of_embeddings(
    registry: Registry, n_layers: int
) -> None:
    model = lattice(registry, double_features(absent=4), n_layers=n_layers)
    first = loss_and_gradients(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in LATER_BATCHES:
                parameter.add_(torch.randn_like(parameter))  # would change the graph, if it weren't standing still
    model.zero_grad()
    second = loss_and_gradients(model)
    assert second == pytest.approx({name: first[name] for name in ("loss", *LATER_BATCHES)}, abs=1e-12)
    model.on_epoch_start(1)
    assert loss_and_gradients(model)["loss"] != pytest.approx(first["loss"], abs=1e-6)


def test_the_graph_learns_every_so_many_batches_and_from_each_epochs_start(registry: Registry) -> None:
    def learning(graph_every: int | None) -> list[bool]:
        """By batch of two epochs, whether the loss reaches the features' projections."""
        model, found = lattice(registry, graph_every=graph_every), []
        for epoch in (0, 1):
            model.on_epoch_start(epoch)
            for _ in range(5):
                model.zero_grad()
                found.append("image_trs.weight" in loss_and_gradients(model))
        return found

    once, second = [True, *4 * [False]], [True, False, True, False, True]
    assert [learning(batches) for batches in (None, 2, 1)] == [2 * once, 2 * second, 10 * [True]]
    config = registry.models.load("LATTICE", "config")
    assert "graph_every" not in plain(config()), "and so in no earlier run's name"


def test_evaluation_builds_the_graph_once_from_current_parameters_and_leaves_the_epochs_graph_alone(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lattice(registry)
    loss = loss_and_gradients(model)["loss"]
    searched = []
    plugin = sys.modules[type(model).__module__]
    search = graph.nearest_neighbors
    monkeypatch.setattr(plugin, "nearest_neighbors", lambda *a, **k: searched.append(1) or search(*a, **k))
    with torch.no_grad():
        before = (scorer := model.eval().scorer())(torch.arange(N_USERS))
        scorer(torch.arange(3))
        assert len(searched) == 2  # one graph per modality; those of raw features are kept
        model.get_parameter("image_trs.weight").add_(1.0)
        assert not torch.equal(model.scorer()(torch.arange(N_USERS)), before)
    assert torch.stack([*model.train().training_loss(BATCH).values()]).sum().item() == loss


def test_ngcf_drops_messages_in_training_alone(registry: Registry) -> None:
    model = lattice(registry, cf_model="ngcf", mess_dropout=(0.5, 0.5))
    model.train()
    losses = {round(sum(model.training_loss(BATCH).values()).item(), 6) for _ in range(4)}
    assert len(losses) > 1
    model.eval()
    assert torch.equal(model.scorer()(torch.arange(3)), model.scorer()(torch.arange(3)))


def test_training_leaves_the_features_that_others_share_untouched(registry: Registry) -> None:
    own = features()
    before = {modality: table.clone() for modality, table in own().items()}
    model = lattice(registry, own)
    optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
    loss_and_gradients(model)
    optimizer.step()
    assert not torch.equal(model.get_parameter("image_embedding.weight"), before["image"])
    assert all(torch.equal(own()[modality], before[modality]) for modality in own)


def test_joint_features_have_no_copy_and_their_raw_graphs_follow_a_refresh(registry: Registry) -> None:
    model = lattice(registry, own := features(joint=True))
    embeddings = {name for name in model.state_dict() if name.endswith("_embedding.weight")}
    assert embeddings == {"user_embedding.weight", "item_id_embedding.weight"}
    with torch.no_grad():
        before = model.eval().scorer()(torch.arange(3))
        own.refresh("image", torch.arange(N_ITEMS), own()["image"].detach().flip(0))
        assert not torch.equal(model.scorer()(torch.arange(3)), before)


def test_the_regularizer_divides_by_a_fixed_batch_size_where_one_is_given(registry: Registry) -> None:
    own, fixed = (lattice(registry, reg_batch_size=size).training_loss(BATCH)["reg"].item() for size in (None, 2048))
    assert own == pytest.approx(fixed * 2048 / len(BATCH))


# Bad input


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"knn_k": 0}, "knn_k must be 1 or more, as the item itself counts, got 0"),
        ({"lambda_coeff": 1.5}, "lambda_coeff must be a share from 0 to 1, got 1.5"),
        (
            {"cf_model": "ngcf", "weight_size": (8, 4)},
            r"each of weight_size must be the embedding_size 8, got \[8, 4\]",
        ),
        (
            {"cf_model": "ngcf", "mess_dropout": (0.1,)},
            "mess_dropout must have a rate for each of weight_size's 2 layers, got 1",
        ),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(registry: Registry, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        registry.models.load("LATTICE", "config")(**{**CONFIG, **config})


def test_without_any_feature_it_says_so(registry: Registry) -> None:
    model, config = (registry.models.load("LATTICE", part) for part in ("cls", "config"))
    with pytest.raises(ConfigError, match="LATTICE: expected item features, got none; try LightGCN"):
        model(training_data(), ItemFeatures({}, {}), config())


@pytest.mark.parametrize("k", [5, 15, 1000])
@pytest.mark.parametrize("kind", ["zero rows", "all zero", "constant", "absent"])
def test_poor_features_give_a_finite_loss_and_finite_gradients(registry: Registry, kind: str, k: int) -> None:
    tables = {modality: table.clone() for modality, table in features()().items()}
    present = torch.ones(N_ITEMS, dtype=torch.bool)
    for table in tables.values():
        if kind == "zero rows":
            table[3:6] = 0
        elif kind == "constant":
            table[:] = 0.7
        else:
            table[:] = 0
    if kind == "absent":
        present[:] = False
    model = lattice(registry, ItemFeatures(tables, dict.fromkeys(tables, present)), knn_k=k)
    numbers = loss_and_gradients(model)
    assert np.isfinite([*numbers.values()]).all(), numbers
    assert model.eval().scorer()(torch.arange(N_USERS)).isfinite().all()


def test_items_without_any_feature_are_left_with_their_own_embedding(registry: Registry) -> None:
    tables = {modality: torch.zeros_like(table) for modality, table in features()().items()}
    model = lattice(registry, ItemFeatures(tables, dict.fromkeys(tables, torch.ones(N_ITEMS, dtype=torch.bool))))
    items, weights = model.item_graph()
    arrived = graph.neighbor_sum(items, weights, own := model.get_parameter("item_id_embedding.weight"))
    torch.testing.assert_close(arrived, own)


def test_a_batch_of_one_and_a_user_with_one_training_row_train(registry: Registry) -> None:
    config, cls = (registry.models.load("LATTICE", part) for part in ("config", "cls"))
    data = TrainingData(3, N_ITEMS, Interactions(np.array([0, 2]), np.array([1, 4])))  # and user 1 has none
    model = cls(data, features(), config(knn_k=3))
    numbers = loss_and_gradients(model, Batch(torch.tensor([2]), torch.tensor([4]), torch.tensor([1])))
    assert np.isfinite([*numbers.values()]).all()
    assert model.eval().scorer()(torch.arange(3)).isfinite().all()


def test_approximate_neighbors_report_the_recall_of_every_graph_and_exact_ones_nothing(registry: Registry) -> None:
    pytest.importorskip("faiss", reason="approximate neighbors need faiss: pip install 'mmrec-lmm[ann]'")
    exact, near = lattice(registry), lattice(registry, knn_probes=1)
    loss = loss_and_gradients(exact)["loss"]
    assert loss_and_gradients(near)["loss"] == pytest.approx(loss, abs=1e-6)  # so few items are one cluster
    recall = {"raw": 1.0, "learned": 1.0}
    report = near.report()
    assert report["neighbor_recall"] == {"image": recall, "text": recall}
    assert re.fullmatch(r"faiss \d+\.\d+.*", report["neighbor_search"])
    assert exact.report() == {}


def test_a_runs_record_has_the_recall_of_its_approximate_neighbors(
    data_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss", reason="approximate neighbors need faiss: pip install 'mmrec-lmm[ann]'")
    monkeypatch.chdir(data_path.parent)
    found = []
    for option in ([], ["--knn_probes=1"]):
        answer = call("run", "-m", "LATTICE", "-d", "toy", "--encoder", "basic", "--epochs=1", *option, "--json")
        assert answer.code == 0, answer.err
        found.append(json.loads(answer.out))
    exact, near = found
    assert exact["run_id"] != near["run_id"]
    assert "LATTICE" not in exact["record"]
    recall = near["record"]["LATTICE"]["neighbor_recall"]
    assert set(recall) == set(near["record"]["features"])
    assert all(0 <= share <= 1 for shares in recall.values() for share in shares.values())


def test_exact_neighbors_are_no_new_part_of_a_runs_id(registry: Registry) -> None:
    config = registry.models.load("LATTICE", "config")
    assert "knn_probes" not in plain(config())
    assert plain(config(knn_probes=16))["knn_probes"] == 16


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"knn_probes": 0}, "knn_probes must be 1 or more, or null: exact, got 0"),
        ({"knn_probes": 8, "knn_ties": "topk"}, "knn_probes must be null where knn_ties is topk, got 8"),
    ],
)
def test_probes_that_cant_be_searched_are_refused(registry: Registry, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigValueError, match=message):
        registry.models.load("LATTICE", "config")(**values)


@pytest.mark.parametrize("preset", ["mmrec", "lmm", "paper"])
def test_the_presets_of_the_sources_divide_the_regularizer_and_treat_equal_cosines_as_they_do(
    registry: Registry, preset: str
) -> None:
    request = Request(model="LATTICE", dataset="baby", preset=preset)
    lattice, sections = registry.models.get("LATTICE"), ("encoder", *registry.paradigms.names())
    (run,) = resolve(request, model=lattice, encoder=None, dataset=None, sections=sections).runs
    assert run.model_config.reg_batch_size == run.settings.train_batch_size
    assert run.model_config.knn_ties == "topk"
    assert run.settings.learning_rate_scheduler == (0.96, 50.0)


@pytest.mark.parametrize("grid", ["mmrec", "lmm"])
def test_either_grid_has_sixteen_runs(registry: Registry, grid: str) -> None:
    request = Request(model="LATTICE", dataset="baby", grid=grid)
    runs = resolve(request, model=registry.models.get("LATTICE"), encoder=None, dataset=None).runs
    assert len({(run.model_config.reg_weight, run.settings.learning_rate) for run in runs}) == len(runs) == 16
