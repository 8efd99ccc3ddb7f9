"""SLMRec against the figures of MMRec's own code, and against its equations written out over all nodes.

Shapes: B batch, U users, I items, N = U + I, D recdim, S sources.
"""

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
    symmetric,
    uneven_data,
)
from torch import Tensor
from torch.nn.functional import cross_entropy, dropout, linear, normalize

from mmrec_lmm.errors import ConfigError
from mmrec_lmm.plugin.contracts import DotProduct
from mmrec_lmm.plugin.item_features import ItemFeatures
from mmrec_lmm.plugin.registry import Registry
from mmrec_lmm.types import Interactions, TrainingData

# What MMRec's code computes on the world of golden.py, with recdim 8, FAC, ssl_temp 0.5 and ssl_alpha 0.1
LOSS = 4.146218
GRADIENT_NORMS = {
    "embedding_user.weight": 2.323597,
    "embedding_item.weight": 2.234503,
    "v_dense.weight": 2.180668,
    "v_dense.bias": 2.631357,
    "t_dense.weight": 2.271982,
    "t_dense.bias": 3.085565,
    "embedding_item_after_GCN.weight": 7.902565,
    "embedding_item_after_GCN.bias": 9.873751,
    "embedding_user_after_GCN.weight": 3.896974,
    "embedding_user_after_GCN.bias": 3.776855,
    "g_i_iv.weight": 0.009039,
    "g_i_iv.bias": 0.001039,
    "g_v_iv.weight": 0.00997,
    "g_v_iv.bias": 0.0,
    "g_iv_iva.weight": 0.004799,
    "g_iv_iva.bias": 0.000429,
    "g_iva_ivat.weight": 0.007938,
    "g_iva_ivat.bias": 0.000758,
    "g_t_ivat.weight": 0.012689,
    "g_t_ivat.bias": 0.0,
}
SCORES = {
    "first": [0.498956, 0.505658, 0.493295, 0.522461, 0.513764, 0.496244],
    "norm": 3.37916,
    "total": 22.65362,
}  # of users 0 to 2; first: user 0, items 0 to 5
NO_GRADIENT = {"g_a_iva.weight", "g_a_iva.bias"}  # audio's, which this world lacks

ALPHA, SSL_TEMP, TEMP, RATE, LAYERS = 0.1, 0.5, 0.2, 0.3, 3
SETS = [("image",), ("text",), ("image", "text"), ("audio", "image", "text")]


@pytest.fixture
def make(registry: Registry) -> Any:
    """Makes an SLMRec on given features, filled by the golden rule."""

    def make(own: ItemFeatures | None = None, **config: Any) -> DotProduct:
        return build(registry, "SLMRec", own, **{"recdim": WIDTH, "ssl_temp": SSL_TEMP, **config})

    return make


def test_loss_and_gradients_are_those_of_mmrec(make: Any) -> None:
    model = make()
    assert loss_and_gradients(model) == pytest.approx({"loss": LOSS, **GRADIENT_NORMS}, abs=1e-5)
    assert {name for name, parameter in model.named_parameters() if parameter.grad is None} == NO_GRADIENT


def test_the_sigmoid_of_scores_is_what_mmrec_ranks_by(make: Any) -> None:
    assert_scores(make().scorer()(torch.arange(3)).sigmoid(), **SCORES)


class Equations:
    """SLMRec with a dense adjacency, every source and every node by itself, and InfoNCE as a cross-entropy."""

    def __init__(self, model: DotProduct, own: ItemFeatures, matrix: Tensor) -> None:
        self.parts = dict(model.named_parameters())
        self.matrix = matrix
        sources = {"id": self.parts["embedding_item.weight"]}
        for modality in sorted(own):
            projected = self.linear(f"{SHORT[modality]}_dense", normalize(own()[modality]))
            sources[modality] = projected * own.present[modality].unsqueeze(1)
        self.items = sources  # each (I, D)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return linear(x, self.parts[f"{name}.weight"], self.parts[f"{name}.bias"])

    def propagated(self, *, masked: str = "", rate: float = 0.0) -> dict[str, Tensor]:
        """The mean of the layers (N, D) of each source; with dropout, all sources of a layer share one call."""
        tables = {name: 0 * items if name == masked else items for name, items in self.items.items()}
        users = self.parts["embedding_user.weight"]
        x = torch.cat([torch.cat([users, items]) for items in tables.values()], dim=1)  # (N, S D)
        terms = [x]
        for _ in range(LAYERS):
            x = dropout(self.matrix @ x, rate)
            terms.append(x)
        return dict(zip(tables, torch.stack(terms).mean(0).split(WIDTH, dim=1), strict=True))

    def vectors(self, **view: Any) -> tuple[Tensor, Tensor]:
        users, items = torch.cat([*self.propagated(**view).values()], dim=1).split([N_USERS, N_ITEMS])
        return self.linear("embedding_user_after_GCN", users), self.linear("embedding_item_after_GCN", items)

    def batch(self, **view: Any) -> tuple[Tensor, Tensor]:
        users, items = self.vectors(**view)
        return normalize(users)[BATCH.users], normalize(items)[BATCH.positives]

    def aligned(self) -> Tensor:
        z = {name: nodes[N_USERS:][BATCH.positives] for name, nodes in self.propagated().items()}
        a = self.linear("g_i_iv", z["id"])
        b = self.linear("g_iv_iva", a)
        loss = torch.zeros(())
        if "image" in z:
            loss = loss + info_nce(a, self.linear("g_v_iv", z["image"]), SSL_TEMP)
        if "audio" in z:
            loss = loss + info_nce(b, self.linear("g_a_iva", z["audio"]), SSL_TEMP)
        if "text" in z:
            loss = loss + info_nce(self.linear("g_iva_ivat", b), self.linear("g_t_ivat", z["text"]), SSL_TEMP)
        return loss

    def contrasted(self, *views: dict[str, Any]) -> Tensor:
        first, second = (self.batch(**view) for view in views)
        return sum((info_nce(*pair, SSL_TEMP) for pair in zip(first, second, strict=True)), start=torch.zeros(()))

    def loss(self, ssl: Tensor) -> Tensor:
        return info_nce(*self.batch(), TEMP) + ALPHA * ssl


def info_nce(anchors: Tensor, positives: Tensor, temperature: float) -> Tensor:
    return cross_entropy(anchors @ positives.T / temperature, torch.arange(len(anchors)))


def assert_equal_gradients(model: DotProduct, reference: DotProduct) -> None:
    for (name, mine), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        if other.grad is None:
            assert mine.grad is None, name
        else:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("joint", [False, True], ids=["frozen", "joint"])
@pytest.mark.parametrize("modalities", SETS, ids="+".join)
def test_fac_is_the_chain_of_equations_on_any_modalities(make: Any, modalities: tuple[str, ...], joint: bool) -> None:
    own, theirs = (features(*modalities, joint=joint, absent=5) for _ in range(2))
    model, reference = (make(each, data=uneven_data()) for each in (own, theirs))
    equations = Equations(reference, theirs, symmetric(dense_adjacency(uneven_data())))
    loss = equations.loss(equations.aligned())
    loss.backward()
    assert loss_and_gradients(model)["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert_equal_gradients(model, reference)
    if joint:
        for modality in modalities:
            torch.testing.assert_close(own()[modality].grad, theirs()[modality].grad, rtol=1e-4, atol=1e-6)
    users, items = equations.vectors()
    torch.testing.assert_close(model.scorer()(torch.arange(N_USERS)), users @ items.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", ["FM", "FD+FM"])
@pytest.mark.parametrize("modalities", SETS, ids="+".join)
def test_fm_masks_two_different_sources(make: Any, modalities: tuple[str, ...], task: str) -> None:
    own = features(*modalities)
    model, reference = (make(own, data=uneven_data(), ssl_task=task, dropout_rate=RATE) for _ in range(2))
    equations = Equations(reference, own, symmetric(dense_adjacency(uneven_data())))
    torch.manual_seed(5)
    terms = model.training_loss(BATCH)
    torch.manual_seed(5)  # first the sources are drawn, then the dropout of each view
    masked = [["id", *sorted(modalities)][place] for place in torch.randperm(1 + len(modalities))[:2]]
    assert len(set(masked)) == 2
    rate = RATE if "FD" in task else 0.0
    loss = equations.loss(equations.contrasted(*({"masked": source, "rate": rate} for source in masked)))
    loss.backward()
    ours = torch.stack([*terms.values()]).sum()
    ours.backward()
    assert ours.item() == pytest.approx(loss.item(), abs=1e-5)
    assert_equal_gradients(model, reference)


def test_fd_contrasts_two_passes_with_dropout_after_every_layer(make: Any) -> None:
    model, reference = (make(data=uneven_data(), ssl_task="FD", dropout_rate=RATE) for _ in range(2))
    equations = Equations(reference, features(), symmetric(dense_adjacency(uneven_data())))
    torch.manual_seed(5)
    terms = model.training_loss(BATCH)
    torch.manual_seed(5)
    loss = equations.loss(equations.contrasted({"rate": RATE}, {"rate": RATE}))
    loss.backward()
    ours = torch.stack([*terms.values()]).sum()
    ours.backward()
    assert ours.item() == pytest.approx(loss.item(), abs=1e-5)
    assert_equal_gradients(model, reference)


def test_views_without_dropout_are_equal(make: Any) -> None:
    model = make(data=uneven_data(), ssl_task="FD", dropout_rate=0.0)
    equations = Equations(model, features(), symmetric(dense_adjacency(uneven_data())))
    assert model.training_loss(BATCH)["ssl"].item() == pytest.approx(
        ALPHA * equations.contrasted({}, {}).item(), abs=1e-5
    )


def normalized(kind: str) -> Tensor:
    """S of each adj_type, dense."""
    adjacency = dense_adjacency(uneven_data())
    one = torch.eye(len(adjacency))
    mean = adjacency / adjacency.sum(1, keepdim=True).clamp(min=1)
    with_self = (adjacency + one) / (adjacency + one).sum(1, keepdim=True)
    kinds = {"pre": symmetric(adjacency), "plain": adjacency, "norm": with_self, "gcmc": mean, "mean": mean + one}
    return kinds[kind]


@pytest.mark.parametrize("kind", ["pre", "plain", "norm", "gcmc", "mean"])
def test_each_adjacency_is_the_dense_one(make: Any, kind: str) -> None:
    model, reference = (make(data=uneven_data(), adj_type=kind) for _ in range(2))
    equations = Equations(reference, features(), normalized(kind))
    loss = equations.loss(equations.aligned())
    loss.backward()
    assert loss_and_gradients(model)["loss"] == pytest.approx(loss.item(), rel=1e-4)
    for (name, mine), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        if other.grad is not None:
            scale = max(1.0, other.grad.abs().max().item())  # the plain adjacency's grow with the paths
            torch.testing.assert_close(mine.grad / scale, other.grad / scale, rtol=0, atol=1e-4, msg=name)


def test_every_weight_is_glorot_uniform(registry: Registry) -> None:
    data = TrainingData(400, 300, Interactions(np.arange(400), np.arange(400) % 300))
    own = ItemFeatures({"image": torch.rand(300, 500)}, {"image": torch.ones(300, dtype=torch.bool)})
    torch.manual_seed(0)
    model = registry.models.load("SLMRec", "cls")(data, own, registry.models.load("SLMRec", "config")())
    weights = {name: parameter for name, parameter in model.named_parameters() if name.endswith("weight")}
    assert len(weights) > 2
    for name, parameter in weights.items():
        bound = (6 / sum(parameter.shape)) ** 0.5
        assert 0.98 * bound < parameter.abs().max().item() <= bound, name


@pytest.mark.parametrize(("key", "value"), [("temp", 0.0), ("ssl_temp", -1.0), ("dropout_rate", 1.0)])
def test_a_value_that_has_no_meaning_is_refused_by_name(registry: Registry, key: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{key} must be .*, got {value}"):
        registry.models.load("SLMRec", "config")(**{key: value})


def test_without_any_feature_it_says_so(registry: Registry) -> None:
    data = TrainingData(1, 2, Interactions(np.array([0]), np.array([0])))
    model, config = (registry.models.load("SLMRec", part) for part in ("cls", "config"))
    with pytest.raises(ConfigError, match="SLMRec: expected item features, got none; try LightGCN"):
        model(data, ItemFeatures({}, {}), config())
