"""BM3 against the figures of MMRec's own code, and against its equations written out in dense matrices.

Shapes: U users, I items, B batch, D embedding.
"""

import zlib
from collections.abc import Iterator
from typing import Any

import golden
import numpy as np
import pytest
import torch
from golden import BATCH, ENTRIES, N_ITEMS, N_USERS, double_features, entry_model, loss_and_gradients
from torch import Tensor
from torch.nn.functional import cosine_similarity

from mmrec_lmm.config.resolve import Request, resolve
from mmrec_lmm.errors import ConfigError
from mmrec_lmm.plugin.contracts import DotProduct
from mmrec_lmm.plugin.item_features import ItemFeatures
from mmrec_lmm.plugin.registry import Registry
from mmrec_lmm.types import Batch

CONFIG = ENTRIES["BM3"]["config"]


def bm3(registry: Registry, own: ItemFeatures | None = None, **config: Any) -> DotProduct:
    """A BM3 of the uneven world."""
    model = golden.build(registry, "BM3", own or golden.features(), data=golden.uneven_data(), **CONFIG | config)
    golden.copy_features(model)
    return model


def hashed_mask(name: str, size: int, rate: float) -> Tensor:
    """The reference's mask of a table of `size` rows."""
    values = golden.uniform(size * golden.WIDTH, zlib.crc32(name.encode()))
    return torch.tensor((values >= rate).reshape(size, golden.WIDTH)).to(torch.get_default_dtype())


def hash_masks(model: DotProduct, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next loss draw the reference's masks."""
    names = iter(["dropout.user", "dropout.item", *(f"dropout.{modality}" for modality in model.modalities)])

    def kept_entries(ids: Tensor, size: int) -> Tensor:
        return hashed_mask(next(names), size, model.config.dropout)[ids]

    monkeypatch.setattr(model, "kept_entries", kept_entries)


@pytest.mark.parametrize("name", golden.entries("BM3"))
def test_loss_terms_gradients_and_scores_are_those_of_mmrec(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    entry = ENTRIES[name]
    model, config = entry_model(registry, name, "BM3"), entry["config"]
    weights = {"user_item": 1.0, "item_user": 1.0, "reg": config["reg_weight"]}
    hash_masks(model, monkeypatch)
    found = {key: term.item() / weights.get(key, 2.0) for key, term in model.training_loss(BATCH).items()}
    found["norms"] = found.pop("reg")
    assert found == pytest.approx(entry["terms"], abs=1e-5)
    hash_masks(model, monkeypatch)
    assert loss_and_gradients(model) == pytest.approx({"loss": entry["loss"], **entry["grads"]}, rel=1e-5, abs=1e-5)
    scores = entry["scores"]
    ours = model.eval().scorer()(torch.arange(3))
    golden.assert_scores(ours, first=scores["first"], norm=scores["norm"], total=scores["sum"])


# The dense reference


def equations(model: DotProduct, config: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Loss and all scores (U, I) from the parameters of a model of `uneven_data`, by the equations in its file."""
    parts, raw, present = dict(model.named_parameters()), model.features(), model.features.present
    ids = parts["item_id_embedding.weight"]
    nodes = torch.cat([parts["user_embedding.weight"], ids])
    edges = golden.dense_adjacency(golden.uneven_data()).to(nodes.dtype)
    scale = (edges.sum(1) + 1e-7).rsqrt()
    means = golden.dense_mean_of_layers(scale[:, None] * edges * scale, nodes, config["n_layers"])
    users, items = means[:N_USERS], means[N_USERS:] + ids

    def f(x: Tensor) -> Tensor:
        return x @ parts["predictor.weight"].T + parts["predictor.bias"]

    def drop(x: Tensor, name: str) -> Tensor:
        mask = hashed_mask(f"dropout.{name}", len(x), config["dropout"])
        return x.detach() * mask / (1 - config["dropout"])

    u, p = BATCH.users, BATCH.positives
    target = drop(items, "item")
    loss = 2 - cosine_similarity(f(users)[u], target[p]).mean()
    loss = loss - cosine_similarity(f(items)[p], drop(users, "user")[u]).mean()
    for modality in raw:
        own = raw[modality] if model.features.joint else parts[f"{modality}_embedding.weight"]
        content = own @ parts[f"{modality}_trs.weight"].T + parts[f"{modality}_trs.bias"]
        rows = p[present[modality][p]]
        for other in (target, drop(content, modality)):
            distances = 1 - cosine_similarity(f(content)[rows], other[rows])
            loss = loss + config["cl_weight"] * distances.sum() / max(1, len(rows))
    if config.get("regularizer") == "squares":
        loss = loss + config["reg_weight"] * (users[u].pow(2).sum() + items[p].pow(2).sum()) / len(BATCH)
    else:
        loss = loss + config["reg_weight"] * (users.norm() + items.norm()) / N_ITEMS
    return loss, f(users) @ f(items).T


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
        (("image", "text"), 4, {"n_layers": 3, "cl_weight": 0.7}),
        (("text",), 4, {"n_layers": 0, "regularizer": "squares"}),
        (("audio", "image", "text"), 4, {}),
    ],
    ids=str,
)
def test_the_loss_on_distinct_rows_equals_the_dense_equations_in_value_and_gradient(
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    modalities: tuple[str, ...],
    absent: int | None,
    config: dict[str, Any],
    joint: bool,
) -> None:
    config = {**config, "dropout": 0.3}
    ours, dense = (bm3(registry, double_features(*modalities, joint=joint, absent=absent), **config) for _ in range(2))
    hash_masks(ours, monkeypatch)
    golden.assert_same_as_dense(ours, dense, *equations(dense, CONFIG | config))


# Dropout, negatives and poor input


def test_masks_keep_their_share_are_drawn_again_for_each_batch_and_repeat_from_the_same_state(
    registry: Registry,
) -> None:
    model = bm3(registry, dropout=0.3)
    torch.manual_seed(3)
    kept = torch.stack([model.kept_entries(torch.arange(N_ITEMS), N_ITEMS) for _ in range(500)])
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert kept.mean().item() == pytest.approx(0.7, abs=0.01)
    state = torch.get_rng_state()
    first, second = (torch.stack([*model.training_loss(BATCH).values()]) for _ in range(2))
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(torch.stack([*model.training_loss(BATCH).values()]), first)


def test_a_row_that_is_in_a_batch_twice_has_one_mask(registry: Registry) -> None:
    model = bm3(registry, dropout=0.5)
    once, twice = Batch(*torch.tensor([[3], [7], [1]])), Batch(*torch.tensor([[3, 3], [7, 7], [1, 2]]))
    losses = []
    for batch in (once, twice):
        torch.manual_seed(2)
        losses.append([term.item() for term in model.training_loss(batch).values()])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_negatives_and_dropout_have_no_part_in_scores_nor_negatives_in_the_loss(registry: Registry) -> None:
    model = bm3(registry)
    other = Batch(BATCH.users, BATCH.positives, BATCH.positives)
    losses = [torch.stack([*model.training_loss(batch).values()]) for batch in (BATCH, other)]
    assert torch.equal(*losses)
    scores = [bm3(registry, dropout=rate).eval().scorer()(torch.arange(N_USERS)) for rate in (0.0, 0.5)]
    assert torch.equal(*scores)


@pytest.mark.parametrize("kind", ["zero rows", "all zero", "constant", "absent"])
def test_poor_features_give_a_finite_loss_and_finite_gradients(registry: Registry, kind: str) -> None:
    model = bm3(registry, golden.poor_features(kind), dropout=0.9)
    terms = {key: term.item() for key, term in model.training_loss(BATCH).items()}
    numbers = loss_and_gradients(model)
    assert np.isfinite([*terms.values(), *numbers.values()]).all(), numbers
    if kind in ("all zero", "absent"):
        assert terms["image_target"] == terms["text_mask"] == 0


def test_without_any_feature_it_says_so(registry: Registry) -> None:
    model, config = (registry.models.load("BM3", part) for part in ("cls", "config"))
    with pytest.raises(ConfigError, match="BM3: expected item features, got none; try LightGCN"):
        model(golden.training_data(), ItemFeatures({}, {}), config())


def test_mmrecs_grid_has_eight_runs(registry: Registry) -> None:
    request = Request(model="BM3", dataset="baby", preset="mmrec", grid="mmrec")
    runs = resolve(request, model=registry.models.get("BM3"), encoder=None, dataset=None).runs
    points = {(run.model_config.n_layers, run.model_config.reg_weight, run.model_config.dropout) for run in runs}
    assert len(points) == len(runs) == 8
