"""MMGCL against the figures of LMM4Rec's own code, and against its equations written out over all nodes.

Shapes: B batch, U users, I items, N = U + I, E edges, D latent_dim, S sources.
"""

from typing import Any

import numpy as np
import pytest
import torch
from golden import (
    BATCH,
    ENTRIES,
    N_ITEMS,
    N_USERS,
    SHORT,
    WIDTH,
    assert_scores,
    build,
    dense_adjacency,
    entries,
    features,
    loss_and_gradients,
    symmetric,
    uneven_data,
)
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, normalize

from mmrec_lmm.config.resolve import Request, resolve
from mmrec_lmm.errors import ConfigError
from mmrec_lmm.graph import BipartiteGraph
from mmrec_lmm.plugin.contracts import DotProduct
from mmrec_lmm.plugin.item_features import ItemFeatures
from mmrec_lmm.plugin.registry import Registry
from mmrec_lmm.testing import check_model
from mmrec_lmm.typed_json import plain
from mmrec_lmm.types import Batch, Interactions, TrainingData

# What LMM4Rec's code computes on the world of golden.py, with latent_dim 8, ssl_alpha 0.4, ssl_temp 0.2, dropout_rate 0
LOSS = 2.710788
GRADIENT_NORMS = {
    "embedding_user.weight": 1.414888,
    "embedding_item.weight": 1.173006,
    "v_dense.weight": 1.718579,
    "v_dense.bias": 1.076778,
    "t_dense.weight": 1.157211,
    "t_dense.bias": 0.669688,
    "read_user.weight": 4.391613,
    "read_user.bias": 2.483318,
    "read_item.weight": 3.792402,
    "read_item.bias": 2.683753,
}
SCORES = {
    "first": [0.487807, 0.515996, 0.472396, 0.516572, 0.511686, 0.491528],
    "norm": 3.37095,
    "total": 22.60569,
}  # of users 0 to 2; first: user 0, items 0 to 5

ALPHA, TEMPERATURE, LAYERS = 0.4, 0.2, 3
SETS = [("image",), ("text",), ("image", "text"), ("audio", "image", "text")]


@pytest.fixture
def make(registry: Registry) -> Any:
    """Makes an MMGCL on given features, filled by the golden rule."""

    def make(own: ItemFeatures | None = None, **config: Any) -> DotProduct:
        return build(registry, "MMGCL", own, **{"latent_dim": WIDTH, **config})

    return make


def test_loss_and_gradients_are_those_of_lmm4rec(make: Any) -> None:
    model = make(dropout_rate=0.0)
    assert loss_and_gradients(model) == pytest.approx({"loss": LOSS, **GRADIENT_NORMS}, abs=1e-5)


def test_the_sigmoid_of_scores_is_what_lmm4rec_ranks_by(make: Any) -> None:
    assert_scores(make(dropout_rate=0.0).scorer()(torch.arange(3)).sigmoid(), **SCORES)


class Equations:
    """MMGCL with dense adjacencies, every source and every node by itself, and InfoNCE as a cross-entropy."""

    def __init__(self, model: DotProduct, own: ItemFeatures) -> None:
        self.parts = dict(model.named_parameters())
        self.items = [self.parts["embedding_item.weight"]]
        for modality in sorted(own):
            if not model.dense:
                self.items.append(own()[modality])
                continue
            projected = self.linear(f"{SHORT[modality]}_dense", normalize(own()[modality]))
            self.items.append(projected * own.present[modality].unsqueeze(1))

    def linear(self, name: str, x: Tensor) -> Tensor:
        return linear(x, self.parts[f"{name}.weight"], self.parts[f"{name}.bias"])

    def propagated(self, matrices: list[Tensor]) -> list[Tensor]:
        """The mean of the layers (N, D) of each source on its own matrix."""
        means = []
        for matrix, items in zip(matrices, self.items, strict=True):
            terms = [torch.cat([self.parts["embedding_user.weight"], items])]
            for _ in range(LAYERS):
                terms.append(matrix @ terms[-1])
            means.append(torch.stack(terms).mean(0))
        return means

    def vectors(self, matrices: list[Tensor]) -> tuple[Tensor, Tensor]:
        users, items = torch.cat(self.propagated(matrices), dim=1).split([N_USERS, N_ITEMS])
        return self.linear("read_user", users), self.linear("read_item", items)

    def negatives(self, matrices: list[Tensor], borrowed: set[int]) -> Tensor:
        """Positives that have the negative's sources at the places `borrowed` (B, D), of unit length."""
        parts = [
            nodes[N_USERS:][BATCH.negatives if place in borrowed else BATCH.positives]
            for place, nodes in enumerate(self.propagated(matrices))
        ]
        return normalize(self.linear("read_item", torch.cat(parts, dim=1)))

    def bpr(self) -> Tensor:
        users, items = self.vectors([full()] * len(self.items))
        scores = users @ items.T
        difference = scores[BATCH.users, BATCH.positives] - scores[BATCH.users, BATCH.negatives]
        return -(10e-6 + difference.sigmoid()).log().mean()


def full() -> Tensor:
    return symmetric(dense_adjacency(uneven_data()))


def info_nce(anchors: Tensor, candidates: Tensor) -> Tensor:
    return cross_entropy(anchors @ candidates.T / TEMPERATURE, torch.arange(len(anchors)))


def dense(kept: Tensor, graph: BipartiteGraph) -> Tensor:
    """S of the edges `kept` (E,) alone, built anew."""
    adjacency = torch.zeros(N_USERS + N_ITEMS, N_USERS + N_ITEMS)
    users, items = graph.users[kept], graph.items[kept] + N_USERS
    adjacency[users, items] = adjacency[items, users] = 1.0
    return symmetric(adjacency)


def assert_equal(model: DotProduct, reference: DotProduct, ours: dict[str, Tensor], loss: Tensor) -> None:
    """The same loss, and the same gradient of every parameter."""
    loss.backward()
    total = torch.stack([*ours.values()]).sum()
    total.backward()
    assert total.item() == pytest.approx(loss.item(), abs=1e-5)
    for (name, mine), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)


# UGNN


def eight_columns(*modalities: str, joint: bool = False, absent: int | None = None) -> ItemFeatures:
    """Features as wide as the ids: the first columns of the world's."""
    own = features(*modalities, absent=absent)
    tables = {m: table.repeat(1, 2)[:, :WIDTH] for m, table in own().items()}  # audio has six
    return ItemFeatures(tables, own.present, joint=joint)


@pytest.mark.parametrize("name", entries("UGNN"))
def test_without_projections_the_numbers_are_those_of_ugnn(
    make: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    entry = ENTRIES[name]
    data = uneven_data() if entry["world"] == "uneven" else None
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in entry["config"].items()}
    model = make(eight_columns(), data=data, dense=False, **options)
    if "kept_edges" in entry:
        kept = {tuple(edge) for edge in entry["kept_edges"]}
        pairs = zip(model.graph.users.tolist(), model.graph.items.tolist(), strict=True)
        mask = torch.tensor([pair in kept for pair in pairs])
        assert mask.sum() == len(kept) == int(len(mask) * (1 - entry["config"]["dropout_rate"]))
        monkeypatch.setattr(model.graph, "drop_edges", lambda rate: mask)
    terms = {key: term.item() for key, term in model.training_loss(BATCH).items()}
    expected = {"bpr": entry["terms"]["bpr"], "ssl": ALPHA * entry["terms"]["ssl"]}
    assert terms == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert loss_and_gradients(model) == pytest.approx({"loss": entry["loss"], **entry["grads"]}, rel=1e-5, abs=1e-5)
    scores = entry["scores"]
    ours = model.eval().scorer()(torch.arange(3)).sigmoid()
    assert_scores(ours, first=scores["first"], norm=scores["norm"], total=scores["sum"])


@pytest.mark.parametrize("modalities", SETS, ids="+".join)
def test_ugnn_equals_the_equations_on_a_graph_without_edges(make: Any, modalities: tuple[str, ...]) -> None:
    own = eight_columns(*modalities, absent=5)
    model, reference = (make(own, data=uneven_data(), dense=False) for _ in range(2))
    torch.manual_seed(3)
    ours = model.training_loss(BATCH)
    torch.manual_seed(3)
    kept = model.graph.drop_edges(0.3)
    equations = Equations(reference, own)
    users, items = equations.vectors([dense(kept, model.graph)] * (1 + len(own)))
    contrast = info_nce(normalize(users)[BATCH.users], normalize(items)[BATCH.positives])
    assert_equal(model, reference, ours, equations.bpr() + 2 * ALPHA * contrast)


@pytest.mark.parametrize("variant", ["released", "paper"])
@pytest.mark.parametrize("joint", [False, True], ids=["frozen", "joint"])
def test_ugnn_keeps_the_contract(registry: Registry, joint: bool, variant: str) -> None:
    model, config = (registry.models.load("MMGCL", part) for part in ("cls", "config"))
    check_model(model, config(dense=False, latent_dim=5, variant=variant), modalities=("image",), joint=joint)


def test_joint_features_of_ugnn_get_a_gradient_but_for_absent_items(make: Any) -> None:
    own = eight_columns("image", "text", joint=True, absent=5)
    make(own, dense=False).training_loss(BATCH)["bpr"].backward()
    for table in own().values():
        assert table.grad is not None
        assert table.grad[5].eq(0).all()
        assert table.grad[[0, 4, 8]].ne(0).all()


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (features("image", "text"), "got image 24, text 10; try --dense=true, or an encoder of one width"),
        (features("text"), "got text 10; try --latent_dim=10"),
    ],
)
def test_features_of_another_width_than_the_ids_are_refused_by_ugnn(make: Any, own: ItemFeatures, message: str) -> None:
    with pytest.raises(ConfigError, match=f"of latent_dim 8 columns where dense is false, {message}"):
        make(own, dense=False)


def test_ugnns_preset_and_grid_are_lmm4recs_and_other_runs_keep_their_ids(registry: Registry) -> None:
    request = Request(model="MMGCL", dataset="baby", preset="ugnn", grid="ugnn")
    runs = resolve(request, model=registry.models.get("MMGCL"), encoder=None, dataset=None).runs
    assert [run.model_config.ssl_alpha for run in runs] == [0.4, 0.5, 0.6, 0.7, 0.8]
    assert {(run.model_config.latent_dim, run.model_config.dense, run.settings.seed) for run in runs} == {
        (768, False, 2022)
    }
    config = registry.models.load("MMGCL", "config")
    assert "dense" not in plain(config())
    assert plain(config(dense=False))["dense"] is False


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("modalities", SETS, ids="+".join)
def test_released_adds_twice_the_contrast_on_a_graph_without_edges(
    make: Any, modalities: tuple[str, ...], rate: float
) -> None:
    own = features(*modalities, absent=5)
    model, reference = (make(own, data=uneven_data(), dropout_rate=rate) for _ in range(2))
    torch.manual_seed(3)
    ours = model.training_loss(BATCH)
    torch.manual_seed(3)
    kept = model.graph.drop_edges(rate)
    assert int(kept.sum()) == int(30 * (1 - rate))
    equations = Equations(reference, own)
    users, items = equations.vectors([dense(kept, model.graph)] * (1 + len(own)))
    contrast = info_nce(normalize(users)[BATCH.users], normalize(items)[BATCH.positives])
    assert_equal(model, reference, ours, equations.bpr() + 2 * ALPHA * contrast)


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("modalities", SETS, ids="+".join)
def test_paper_contrasts_both_views_with_challenging_negatives(
    make: Any, modalities: tuple[str, ...], rate: float
) -> None:
    own = features(*modalities)
    model, reference = (make(own, data=uneven_data(), variant="paper", dropout_rate=rate) for _ in range(2))
    torch.manual_seed(3)
    ours = model.training_loss(BATCH)
    torch.manual_seed(3)  # drawn in this order: the masked modality, view 1's edges, view 2's nodes
    order = sorted(modalities)
    chances = {"image": 0.1, "text": 0.9, "audio": 0.5}
    masked = 1 + int(torch.multinomial(torch.tensor([chances[modality] for modality in order]), 1))
    first = [dense(model.graph.drop_edges(rate), model.graph)] * (1 + len(order))
    second = [full()] * (1 + len(order))
    second[masked] = dense(model.graph.drop_nodes(rate), model.graph)

    equations = Equations(reference, own)
    (users, items), (users_2, items_2) = (
        (normalize(users)[BATCH.users], normalize(items)[BATCH.positives])
        for users, items in (equations.vectors(first), equations.vectors(second))
    )
    hard = equations.negatives(first, {len(order)})
    hard_2 = equations.negatives(second, set(range(1, 1 + len(order))))
    contrast = info_nce(users, users_2) + info_nce(items, torch.cat([items_2, hard, hard_2]))
    assert_equal(model, reference, ours, equations.bpr() + ALPHA * contrast)


def test_the_modality_to_be_masked_is_drawn_with_its_chance(make: Any) -> None:
    model = make(features("audio", "image", "text"), variant="paper", mask_p=(0.25, 0.75))
    assert model.mask_probabilities.tolist() == pytest.approx(
        [0.5, 0.25, 0.75]
    )  # audio's isn't given: the mean of the others
    with pytest.raises(ConfigError, match=r"mask_p: expected a number above 0 for one .* \(text\), got \[1.0, 0.0\]"):
        make(features("text"), mask_p=(1.0, 0.0))


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_users_and_items_that_lose_all_their_edges_keep_their_own_rows(make: Any, variant: str) -> None:
    model = make(variant=variant, dropout_rate=0.98)  # no edge in view 1, no user and no item with edges in view 2
    assert model.graph.drop_edges(0.98).sum() == 0
    assert all(np.isfinite(value) for value in loss_and_gradients(model).values())


def test_a_batch_of_one_has_nothing_to_contrast(make: Any) -> None:
    one = Batch(*(column[:1] for column in (BATCH.users, BATCH.positives, BATCH.negatives)))
    assert make().training_loss(one)["ssl"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ssl_temp", 0.0, "ssl_temp must be above 0, got 0.0"),
        ("dropout_rate", 1.0, "dropout_rate must be at least 0 and below 1, got 1.0"),
        ("mask_p", (0.0, 0.0), r"mask_p must be numbers of at least 0, not all 0, got \[0.0, 0.0\]"),
    ],
)
def test_a_value_that_has_no_meaning_is_refused_by_name(registry: Registry, key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        registry.models.load("MMGCL", "config")(**{key: value})


def test_without_any_feature_it_says_so(registry: Registry) -> None:
    data = TrainingData(1, 2, Interactions(np.array([0]), np.array([0])))
    model, config = (registry.models.load("MMGCL", part) for part in ("cls", "config"))
    with pytest.raises(ConfigError, match="MMGCL: expected item features, got none; try LightGCN"):
        model(data, ItemFeatures({}, {}), config())
