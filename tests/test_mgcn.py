"""MGCN against the figures of MMRec's own code, and against its equations written out in dense matrices.

Shapes: U users, I items, N = U + I nodes, B batch, D embedding, M modalities.
"""

from collections.abc import Iterator
from typing import Any

import golden
import numpy as np
import pytest
import torch
from golden import BATCH, ENTRIES, N_ITEMS, N_USERS, double_features, entry_model, loss_and_gradients
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from mmrec_lmm.config.resolve import Request, resolve
from mmrec_lmm.errors import ConfigError
from mmrec_lmm.plugin.contracts import DotProduct
from mmrec_lmm.plugin.item_features import ItemFeatures
from mmrec_lmm.plugin.registry import Registry
from mmrec_lmm.types import Batch

CONFIG = ENTRIES["MGCN"]["config"]


def mgcn(registry: Registry, own: ItemFeatures | None = None, **config: Any) -> DotProduct:
    """An MGCN of the uneven world."""
    model = golden.build(registry, "MGCN", own or golden.features(), data=golden.uneven_data(), **CONFIG | config)
    golden.copy_features(model)
    return model


@pytest.mark.parametrize("name", golden.entries("MGCN"))
def test_loss_terms_gradients_and_scores_are_those_of_mmrec(registry: Registry, name: str) -> None:
    entry = ENTRIES[name]
    model = entry_model(registry, name, "MGCN")
    terms = {key: term.item() for key, term in model.training_loss(BATCH).items()}
    expected = entry["terms"]
    contrast = CONFIG["cl_loss"] * (expected["nce_users"] + expected["nce_items"])
    assert terms == pytest.approx({"bpr": expected["bpr"], "reg": expected["norms"], "cl": contrast}, abs=1e-5)
    assert loss_and_gradients(model) == pytest.approx({"loss": entry["loss"], **entry["grads"]}, abs=1e-5)
    scores = entry["scores"]
    ours = model.eval().scorer()(torch.arange(3))
    golden.assert_scores(ours, first=scores["first"], norm=scores["norm"], total=scores["sum"])
    if "side" not in entry:
        return
    for modality in ("image", "text"):
        graph, of_entry = model.item_graphs()[modality].csr().to_dense(), entry[f"{modality}_graph"]
        row = {str(item): graph[0, item].item() for item in graph[0].nonzero().flatten().tolist()}
        assert row == pytest.approx(of_entry["row0"], abs=1e-5)
        assert graph.norm().item() == pytest.approx(of_entry["norm"], abs=1e-5)
        assert int(graph.count_nonzero()) == of_entry["nonzero"]
    both = model.all_rows()
    for part in ("side", "content"):
        table = torch.cat([getattr(rows, part) for rows in both])
        assert table.flatten()[:6].tolist() == pytest.approx(entry[part]["first"], abs=1e-5)
        assert table.norm().item() == pytest.approx(entry[part]["norm"], abs=1e-5)
        assert table.sum().item() == pytest.approx(entry[part]["sum"], abs=1e-5)


# The dense reference


def equations(model: DotProduct, config: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Loss and all scores (U, I) from the parameters of a model of `uneven_data`, by the equations in its file."""
    parts, raw, present = dict(model.named_parameters()), model.features(), model.features.present
    short = {"audio": "a", "image": "v", "text": "t"}

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ parts[f"{name}.weight"].T + parts[f"{name}.bias"]

    ids = parts["item_id_embedding.weight"]
    nodes = torch.cat([parts["user_embedding.weight"], ids])
    adjacency = golden.symmetric(golden.dense_adjacency(golden.uneven_data()).to(nodes.dtype))
    content = golden.dense_mean_of_layers(adjacency, nodes, config["n_ui_layers"])  # (N, D)
    views, known = [], []
    for modality in sorted(raw):
        own = raw[modality] if model.features.joint else parts[f"{modality}_embedding.weight"]
        gate = torch.sigmoid(linear(f"gate_{short[modality]}.0", linear(f"{modality}_trs", own)))
        view = ids * gate * present[modality].unsqueeze(1)
        near = golden.dense_neighbors(raw[modality].detach(), config["knn_k"], present[modality])
        degrees = near.sum(1)
        scale = torch.where(degrees > 0, degrees.abs().rsqrt(), 0.0)  # in MMRec one that isn't positive makes NaN
        for _ in range(config["n_layers"]):
            view = (scale[:, None] * near * scale) @ view
        views.append(torch.cat([adjacency[:N_USERS, N_USERS:] @ view, view]))
        known.append(torch.cat([torch.ones(N_USERS, dtype=torch.bool), present[modality]]))
    has, count = torch.stack(known), len(views)  # (M, N)
    if count == 1:
        common, special = views[0], [torch.zeros_like(views[0])]
    else:
        logits = torch.stack(
            [(linear("query_common.0", view).tanh() @ parts["query_common.2.weight"].T)[:, 0] for view in views]
        )
        weights = torch.where(has, logits.exp(), 0.0)
        weights = weights / weights.sum(0).clamp_min(1e-30)
        common = sum(weight.unsqueeze(1) * view for weight, view in zip(weights, views, strict=True))
        special = [
            torch.sigmoid(linear(f"gate_{modality}_prefer.0", content)) * (view - common) * own.unsqueeze(1)
            for modality, view, own in zip(sorted(raw), views, known, strict=True)
        ]
    side = common + sum(special) / count if config.get("fusion") == "paper" else (common + sum(special)) / (count + 1)
    users, items = (content + side).split([N_USERS, N_ITEMS])

    u, p, n = BATCH.users, BATCH.positives, BATCH.negatives
    loss = -logsigmoid((users[u] * (items[p] - items[n])).sum(1)).mean()
    squares = users[u].pow(2).sum() + items[p].pow(2).sum() + items[n].pow(2).sum()
    loss = loss + config["reg_weight"] * 0.5 * squares / len(BATCH)
    for rows in (u, N_USERS + p[has[:, N_USERS + p].any(0)]):
        if len(rows):
            similar = normalize(side[rows], dim=1) @ normalize(content[rows], dim=1).T
            loss = loss + config["cl_loss"] * cross_entropy(similar / 0.2, torch.arange(len(rows)))
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
        (("image", "text"), 4, {"n_layers": 2, "fusion": "paper"}),
        (("image", "text"), 5, {"n_layers": 0, "n_ui_layers": 0}),
        (("text",), 5, {"knn_k": 15}),
        (("image",), None, {"fusion": "paper"}),
        (("audio", "image", "text"), 4, {"knn_k": 1, "cl_loss": 0.5}),
    ],
    ids=str,
)
def test_the_sparse_form_equals_the_dense_equations_in_value_and_gradient(
    registry: Registry, modalities: tuple[str, ...], absent: int | None, config: dict[str, Any], joint: bool
) -> None:
    sparse, dense = (
        mgcn(registry, double_features(*modalities, joint=joint, absent=absent), **config) for _ in range(2)
    )
    golden.assert_same_as_dense(sparse, dense, *equations(dense, CONFIG | config))


# Item graphs, poor input


def test_item_graphs_are_made_once_and_follow_a_full_refresh_of_joint_features(registry: Registry) -> None:
    model = mgcn(registry, own := golden.features(joint=True))
    graphs = model.item_graphs()
    assert model.item_graphs() is graphs
    own.refresh("text", torch.arange(N_ITEMS), own()["text"].detach().flip(0))
    made = model.item_graphs()
    assert torch.equal(made["image"].csr().to_dense(), graphs["image"].csr().to_dense())
    assert not torch.equal(made["text"].csr().to_dense(), graphs["text"].csr().to_dense())


def test_a_batch_of_items_without_any_feature_has_no_contrast_of_items(registry: Registry) -> None:
    own = golden.features(absent=4)
    model, users = mgcn(registry, own), torch.tensor([1, 2])
    batch = Batch(users, torch.tensor([4, 4]), torch.tensor([1, 2]))
    others = Batch(users, torch.tensor([7, 7]), torch.tensor([1, 2]))
    alone, both = (model.training_loss(each)["cl"].item() for each in (batch, others))
    assert alone + CONFIG["cl_loss"] * np.log(2) == pytest.approx(both, abs=1e-6)  # an item twice, against itself
    assert np.isfinite([*loss_and_gradients(model, batch).values()]).all()


@pytest.mark.parametrize("kind", ["zero rows", "all zero", "constant", "absent"])
def test_poor_features_give_a_finite_loss_and_finite_gradients(registry: Registry, kind: str) -> None:
    model = mgcn(registry, golden.poor_features(kind), knn_k=1000)
    numbers = loss_and_gradients(model)
    assert np.isfinite([*numbers.values()]).all(), numbers
    assert model.eval().scorer()(torch.arange(N_USERS)).isfinite().all()
    if kind in ("all zero", "absent"):
        assert not model.all_rows()[1].side.any()


def test_the_regularizer_divides_by_a_fixed_batch_size_where_one_is_given(registry: Registry) -> None:
    own, fixed = (mgcn(registry, reg_batch_size=size).training_loss(BATCH)["reg"].item() for size in (None, 2048))
    assert own == pytest.approx(fixed * 2048 / len(BATCH))


def test_without_any_feature_it_says_so(registry: Registry) -> None:
    model, config = (registry.models.load("MGCN", part) for part in ("cls", "config"))
    with pytest.raises(ConfigError, match="MGCN: expected item features, got none; try LightGCN"):
        model(golden.training_data(), ItemFeatures({}, {}), config())


def test_mmrecs_grid_has_three_runs_with_its_batch_size_ties_and_schedule(registry: Registry) -> None:
    request = Request(model="MGCN", dataset="baby", preset="mmrec", grid="mmrec")
    runs = resolve(request, model=registry.models.get("MGCN"), encoder=None, dataset=None).runs
    assert [run.model_config.cl_loss for run in runs] == [0.001, 0.01, 0.1]
    for run in runs:
        assert run.model_config.reg_batch_size == run.settings.train_batch_size
        assert run.model_config.knn_ties == "topk"
        assert run.settings.learning_rate_scheduler == (0.96, 50.0)
