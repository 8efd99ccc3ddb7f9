"""Pop, ItemKNN, UserKNN and EASE, models without parameters: by hand, and against their equations written out densely.

Shapes: U users, I items.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import N_ITEMS, uneven_data
from torch import Tensor

from mmrec_lmm.errors import DataError, NotApplicable
from mmrec_lmm.graph import BipartiteGraph, most_shared
from mmrec_lmm.plugin.contracts import Recommender
from mmrec_lmm.plugin.item_features import ItemFeatures
from mmrec_lmm.plugin.registry import Registry
from mmrec_lmm.running import run_folder, runner
from mmrec_lmm.running.grid import run_grid
from mmrec_lmm.running.recommend import recommend
from mmrec_lmm.testing import check_config, scores_of
from mmrec_lmm.typed_json import plain
from mmrec_lmm.types import Interactions, RunSpec, TrainingData

Specs = Callable[..., tuple[RunSpec, ...]]

#: Users 0 to 3 have items {0, 1}, {0, 1}, {0, 2} and {3}; user 0 has item 1 twice. Nobody has item 4.
PAIRS = [(0, 0), (0, 1), (0, 1), (1, 1), (1, 0), (2, 0), (2, 2), (3, 3)]
DATA = TrainingData(5, 5, Interactions(*np.array(PAIRS).T.copy()))


def model(registry: Registry, name: str, data: TrainingData = DATA, **options: Any) -> Recommender:
    config = registry.models.load(name, "config")(**options)
    built: Recommender = registry.models.load(name, "cls")(data, ItemFeatures({}, {}), config)
    return built


def interactions(data: TrainingData) -> Tensor:
    """R (U, I), binary, in float64."""
    matrix = torch.zeros(data.n_users, data.n_items, dtype=torch.float64)
    matrix[data.train.users, data.train.items] = 1
    return matrix


# By hand


def test_pop_counts_the_users_of_each_item(registry: Registry) -> None:
    assert scores_of(model(registry, "Pop")).tolist() == [[3, 2, 1, 1, 0]] * 5


def test_pop_with_a_half_life_weighs_each_pair_by_its_latest_time(registry: Registry) -> None:
    """T is day 10. Item 0 has users on days 10, 5 and 0; item 1 one on days 0 and 10, and one on day 5."""
    days = np.array([10, 0, 10, 5, 5, 0, 5, 10])  # of PAIRS
    data = TrainingData(5, 5, DATA.train, 1.6e9 + 86_400.0 * days)
    scores = scores_of(model(registry, "Pop", data, half_life=5.0))
    torch.testing.assert_close(scores, torch.tensor([[1 + 1 / 2 + 1 / 4, 1 + 1 / 2, 1 / 2, 1, 0]] * 5))
    now = scores_of(model(registry, "Pop", data, half_life=1e-300))
    assert now[0].tolist() == [1, 1, 0, 1, 0]
    for_ever = scores_of(model(registry, "Pop", data, half_life=1e300))
    torch.testing.assert_close(for_ever, scores_of(model(registry, "Pop")))


def test_itemknn_by_hand(registry: Registry) -> None:
    """Items 0 and 1 share two users, of 3 and 2; items 0 and 2 one, of 3 and 1."""
    s01, s02 = 2 / (6**0.5 + 1), 1 / (3**0.5 + 1)
    scores = scores_of(model(registry, "ItemKNN", knn_k=5, shrink=1.0))
    expected = [[s01, s01, s02, 0, 0], [s01, s01, s02, 0, 0], [s02, s01, s02, 0, 0], [0] * 5, [0] * 5]
    torch.testing.assert_close(scores, torch.tensor(expected))
    nearest = scores_of(model(registry, "ItemKNN", knn_k=1, shrink=1.0))  # item 0 keeps item 1 alone
    torch.testing.assert_close(nearest[2], torch.tensor([0, s01, s02, 0, 0]))


def test_itemknn_keeps_the_lower_ids_of_equally_similar_items(registry: Registry) -> None:
    pairs = np.array([(user, item) for user in range(2) for item in range(4)])
    data = TrainingData(3, 4, Interactions(*pairs.T.copy()))
    neighbors, similarities = most_shared(BipartiteGraph(data), 2, of="items")
    assert neighbors.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1]]
    assert similarities.tolist() == [[1, 1]] * 4


def test_the_graph_of_users_is_that_of_items_with_both_exchanged() -> None:
    data = uneven_data()
    turned = TrainingData(data.n_items, data.n_users, Interactions(data.train.items, data.train.users))
    of_users = most_shared(BipartiteGraph(data), 3, of="users", shrink=1.0)
    of_items = most_shared(BipartiteGraph(turned), 3, of="items", shrink=1.0)
    for one, other in zip(of_users, of_items, strict=True):
        np.testing.assert_array_equal(one, other)


def test_userknn_by_hand(registry: Registry) -> None:
    """Users 0 and 1 share items 0 and 1, of two each; either shares item 0 with user 2; nobody anything with user 3."""
    s01, s02 = 2 / (2 + 1), 1 / (2 + 1)
    scores = scores_of(model(registry, "UserKNN", knn_k=4, shrink=1.0))
    of_0 = [s01 + s02, s01, s02, 0, 0]
    torch.testing.assert_close(scores, torch.tensor([of_0, of_0, [2 * s02, 2 * s02, 0, 0, 0], [0] * 5, [0] * 5]))
    nearest = scores_of(model(registry, "UserKNN", knn_k=1, shrink=1.0))
    torch.testing.assert_close(nearest[2], torch.tensor([s02, s02, 0, 0, 0]))  # of user 0, the lower id


def test_ease_of_two_items_by_hand(registry: Registry) -> None:
    """R'R + 2 = [[5, 1], [1, 4]], whose inverse is [[4, -1], [-1, 5]] / 19: B_01 = 1 / 5 and B_10 = 1 / 4."""
    pairs = np.array([(0, 0), (1, 0), (2, 0), (2, 1), (3, 1)])
    data = TrainingData(4, 2, Interactions(*pairs.T.copy()))
    ease: Any = model(registry, "EASE", data, reg_weight=2.0)
    torch.testing.assert_close(ease.weights, torch.tensor([[0, 1 / 5], [1 / 4, 0]]))
    torch.testing.assert_close(scores_of(ease)[2], torch.tensor([1 / 4, 1 / 5]))


# Against the equations


@pytest.mark.parametrize(("k", "shrink"), [(1, 0.0), (3, 2.5), (100, 10.0)])
def test_itemknn_is_its_equation(registry: Registry, k: int, shrink: float) -> None:
    matrix = interactions(uneven_data())
    counts = matrix.sum(0)
    similar = (matrix.T @ matrix) / ((counts[:, None] * counts).sqrt() + shrink)
    similar.fill_diagonal_(0).nan_to_num_(0)
    order = sorted(range(N_ITEMS), key=lambda item: item)
    kept = torch.zeros_like(similar)  # (I, I): row j has the neighbors of item j
    for item in order:
        best = sorted(order, key=lambda other: (-float(similar[item, other]), other))[:k]
        kept[item, best] = similar[item, best]
    scores = scores_of(model(registry, "ItemKNN", uneven_data(), knn_k=k, shrink=shrink))
    torch.testing.assert_close(scores, (matrix @ kept.T).float())


@pytest.mark.parametrize("reg_weight", [0.5, 100.0])
def test_ease_is_the_optimum_under_a_zero_diagonal(registry: Registry, reg_weight: float) -> None:
    """Each column solves the ridge regression of that item on all others."""
    matrix = interactions(uneven_data())
    weights = torch.zeros(N_ITEMS, N_ITEMS, dtype=torch.float64)
    for item in range(N_ITEMS):
        others = torch.arange(N_ITEMS) != item
        rest = matrix[:, others]
        ridge = rest.T @ rest + reg_weight * torch.eye(N_ITEMS - 1, dtype=torch.float64)
        weights[others, item] = torch.linalg.solve(ridge, rest.T @ matrix[:, item])
    ease: Any = model(registry, "EASE", uneven_data(), reg_weight=reg_weight)
    torch.testing.assert_close(ease.weights.double(), weights, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(scores_of(ease), (matrix @ weights).float(), atol=1e-5, rtol=1e-5)


def test_ease_refuses_a_catalog_whose_matrix_would_not_fit(registry: Registry) -> None:
    data = TrainingData(1, 20_001, Interactions(np.array([0]), np.array([0])))
    with pytest.raises(NotApplicable, match=r"EASE: expected at most 20,000 items, .* got 20,001; try ItemKNN"):
        model(registry, "EASE", data)


# Runs


@pytest.mark.parametrize("name", ["Pop", "ItemKNN", "UserKNN", "EASE"])
def test_a_run_is_evaluated_once_and_recommends(specs: Specs, registry: Registry, tmp_path: Path, name: str) -> None:
    [spec] = specs(model=name)
    result = runner.run(spec, registry, out=tmp_path)
    assert (result.epochs, result.best_epoch, result.stopped) == (0, 0, "untrained")
    assert (result.record.parameters, result.record.parameters_trained) == (0, 0)
    assert set(result.test) == set(result.valid)
    assert (result.path / run_folder.WEIGHTS).is_file()
    users, items = run_folder.load_topk(result.path, n_users=12, n_items=result.record.n_items)
    frame = recommend(result.run_id, None, 5, registry, out=tmp_path, internal_ids=True)
    lists = frame.groupby("user")["item"].agg(list)
    for user, listed in zip(users.tolist(), items.tolist(), strict=True):
        assert lists[user] == listed[:5]
    assert runner.run(spec, registry, out=tmp_path, force=True).test == result.test


def timed(folder: Path, *, unit: int = 1) -> None:
    """Give the toy data times, and as `later` others."""
    file = folder / "toy" / "toy.inter"
    header, *rows = file.read_text().splitlines()
    times = [(1_600_000_000 + 86_400 * (row * 7 % 100), 1_600_000_000 + 86_400 * row) for row in range(len(rows))]
    lines = [f"{row}\t{one * unit}\t{other * unit}" for row, (one, other) in zip(rows, times, strict=True)]
    file.write_text("\n".join([f"{header}\ttimestamp\tlater", *lines]) + "\n")


def test_a_run_reads_times_where_its_model_asks_for_them_and_is_named_by_them(
    specs: Specs, registry: Registry, data_path: Path, tmp_path: Path
) -> None:
    timed(data_path)

    def made(**keys: str) -> runner.RunResult:
        [spec] = specs(model="Pop", **keys)
        return runner.run(spec, registry, out=tmp_path)

    ever, recent, later = made(), made(half_life="3"), made(half_life="3", TIME_FIELD="later")
    assert len({ever.run_id, recent.run_id, later.run_id}) == 3
    assert recent.test != later.test
    assert made(TIME_FIELD="later").run_id == ever.run_id  # which reads none
    assert len(recommend(recent.run_id, None, 5, registry, out=tmp_path, internal_ids=True)) == 60
    points = specs(model="Pop", half_life="[null, 3]")
    assert [result.test for result in run_grid(points, registry, out=tmp_path).results] == [ever.test, recent.test]


def test_times_in_another_unit_give_the_same_lists(
    specs: Specs, registry: Registry, data_path: Path, tmp_path: Path
) -> None:
    before = (data_path / "toy" / "toy.inter").read_text()
    found = []
    for unit in (1, 1_000, 1_000_000_000):
        (data_path / "toy" / "toy.inter").write_text(before)
        timed(data_path, unit=unit)
        [spec] = specs(model="Pop", half_life="3")
        found.append(runner.run(spec, registry, out=tmp_path).test)
    assert found[0] == found[1] == found[2]


def test_a_model_that_reads_times_names_the_column_that_is_missing(
    specs: Specs, registry: Registry, tmp_path: Path
) -> None:
    [spec] = specs(model="Pop", half_life="3")
    words = (
        r"toy.inter: model Pop: expected the column 'timestamp' .*; try --TIME_FIELD=COLUMN if it has another name, or"
    )
    with pytest.raises(DataError, match=words):
        runner.run(spec, registry, out=tmp_path)


def test_a_key_that_came_later_leaves_pops_ids_alone(registry: Registry) -> None:
    config = registry.models.load("Pop", "config")
    assert plain(config()) == {}
    check_config(config)


@pytest.mark.parametrize("name", ["ItemKNN", "UserKNN", "EASE"])
def test_users_and_items_without_training_rows_score_zero(registry: Registry, name: str) -> None:
    scores = scores_of(model(registry, name))
    assert not scores[4].any()
    assert not scores[:, 4].any()
