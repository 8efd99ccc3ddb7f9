"""All-rank evaluation against a ranking that anyone can follow: sort (-score, item) in Python."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mmrec_lmm.errors import TrainingDiverged
from mmrec_lmm.evaluation import ranking
from mmrec_lmm.evaluation.measures import Measures
from mmrec_lmm.evaluation.ranking import Evaluator, Groups, Ranker
from mmrec_lmm.plugin.contracts import DotProduct, Recommender, Scorer
from mmrec_lmm.plugin.registry import Registry
from mmrec_lmm.types import Batch, Interactions


class Scores(Recommender):
    """Recommends by a given table of scores (U, I), through `scorer` alone."""

    def __init__(self, table: Sequence[Sequence[float]]) -> None:
        nn.Module.__init__(self)
        self.table = nn.Parameter(torch.tensor(table, dtype=torch.float32))

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError

    def scorer(self) -> Scorer:
        return lambda users: self.table[users]


class DotScores(DotProduct, Scores):
    """The same scores as products: each user's row by the identity."""

    def vectors(self) -> tuple[Tensor, Tensor]:
        return self.table, torch.eye(self.table.shape[1])


class TransposedScores(Scores):
    """The same scores, laid out in memory item by item."""

    def scorer(self) -> Scorer:
        return lambda users: (self.table.detach().T.contiguous()[:, users]).T


MODELS = [Scores, DotScores, TransposedScores]


def rows(*pairs: tuple[int, int]) -> Interactions:
    users, items = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return Interactions(users.copy(), items.copy())


def by_hand(
    table: Sequence[Sequence[float]], train: Interactions, held_out: Interactions, k: int
) -> tuple[list[list[int]], list[list[bool]]]:
    """Items and hits of each held-out user, the slow and obvious way."""
    ranked, hits = [], []
    for user in sorted(set(held_out.users.tolist())):
        masked = set(train.items[train.users == user].tolist())
        truth = set(held_out.items[held_out.users == user].tolist())
        items = [item for item in range(len(table[user])) if item not in masked]
        best = sorted(items, key=lambda item: (-table[user][item], item))[:k]
        ranked.append(best + [-1] * (k - len(best)))
        hits.append([item in truth for item in best] + [False] * (k - len(best)))
    return ranked, hits


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[list[int]], Interactions, Interactions]:
    """Scores among so few integers that ties abound, training rows and held-out rows, which may overlap and repeat."""
    n_users, n_items = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    table = draw(
        st.lists(st.lists(st.integers(-2, 2), min_size=n_items, max_size=n_items), min_size=n_users, max_size=n_users)
    )
    pair = st.tuples(st.integers(0, n_users - 1), st.integers(0, n_items - 1))
    train = draw(st.lists(pair, max_size=12))
    held_out = draw(st.lists(pair, min_size=1, max_size=8))
    return table, rows(*train), rows(*held_out)


@pytest.mark.parametrize("model", MODELS)
@given(worlds(), st.integers(1, 9), st.integers(1, 4))
def test_the_ranking_is_that_of_sorting_by_score_and_item_id(
    model: type[Scores], world: tuple[list[list[int]], Interactions, Interactions], k: int, batch_size: int
) -> None:
    table, train, held_out = world
    found = Evaluator(held_out, [train], len(table[0])).rank(model(table), k, batch_size=batch_size)
    ranked, hits = by_hand(table, train, held_out, k)
    assert found.users.tolist() == sorted(set(held_out.users.tolist()))
    assert found.items.tolist() == ranked
    assert found.hits.tolist() == hits
    assert found.n_positives.tolist() == [int(np.sum(held_out.users == user)) for user in found.users]


@pytest.mark.parametrize("model", [Scores, DotScores])
@pytest.mark.parametrize("block", [1, 2, 3, 7, 100])
def test_the_size_of_a_block_changes_nothing(model: type[Scores], block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    table = rng.integers(0, 4, size=(7, 9)).tolist()
    train = rows(*zip(range(7), rng.integers(0, 9, size=7).tolist(), strict=True))
    held_out = rows(*((user, user) for user in range(7)))
    whole = Evaluator(held_out, [train], 9).rank(model(table), 9)
    monkeypatch.setattr(ranking, "BLOCK_BYTES", block * 9 * 4)
    monkeypatch.setattr(ranking, "BLOCK_USERS", 1)
    split = Evaluator(held_out, [train], 9).rank(model(table), 9, batch_size=block)
    assert np.array_equal(whole.items, split.items)
    assert np.array_equal(whole.hits, split.hits)


@given(st.permutations(range(7)), st.integers(0, 100))
def test_permuting_item_ids_permutes_the_ranking(order: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.permuted(np.tile(np.arange(7), (3, 1)), axis=1)  # no ties: an id would decide those
    train, held_out = rows((0, 1), (1, 2), (1, 3)), rows((0, 0), (1, 1), (2, 6))
    new_id = np.argsort(order)  # item `order[i]` is called i from now on
    renamed = [Interactions(part.users, new_id[part.items]) for part in (train, held_out)]
    before = Evaluator(held_out, [train], 7).rank(Scores(table.tolist()), 7)
    after = Evaluator(renamed[1], [renamed[0]], 7).rank(Scores(table[:, order].tolist()), 7)
    assert np.array_equal(np.where(before.items < 0, -1, new_id[before.items]), after.items)
    assert np.array_equal(before.hits, after.hits)


def test_masked_items_are_never_listed_and_where_candidates_run_out_stands_minus_one() -> None:
    train = rows((0, 0), (0, 2), (0, 3))
    found = Evaluator(rows((0, 1)), [train], 4).rank(Scores([[9.0, 1.0, 8.0, 7.0]]), 3)
    assert found.items.tolist() == [[1, -1, -1]]
    assert found.hits.tolist() == [[True, False, False]]


def test_a_user_without_any_candidate_has_an_empty_list_and_no_hit() -> None:
    train = rows((0, 0), (0, 1))
    found = Evaluator(rows((0, 1)), [train], 2).rank(DotScores([[2.0, 1.0]]), 3)
    assert found.items.tolist() == [[-1, -1, -1]]
    assert not found.hits.any()


def test_a_cutoff_beyond_the_number_of_items_is_filled_up() -> None:
    found = Evaluator(rows((0, 0)), [rows()], 2).rank(DotScores([[1.0, 2.0]]), 4)
    assert found.items.tolist() == [[1, 0, -1, -1]]


def test_several_kinds_of_interactions_are_masked_together_and_other_users_rows_do_not_matter() -> None:
    train, valid = rows((0, 0), (1, 1), (2, 2)), rows((0, 1), (1, 2), (2, 3))
    found = Evaluator(rows((0, 3), (2, 0)), [train, valid], 4).rank(Scores([[4.0, 3.0, 2.0, 1.0]] * 3), 4)
    assert found.users.tolist() == [0, 2]
    assert found.items.tolist() == [[2, 3, -1, -1], [0, 1, -1, -1]]


def test_a_pair_that_is_held_out_twice_is_one_hit_and_two_positives() -> None:
    found = Evaluator(rows((0, 1), (0, 1)), [rows()], 3).rank(Scores([[0.0, 2.0, 1.0]]), 3)
    assert found.hits.tolist() == [[True, False, False]]
    assert found.n_positives.tolist() == [2]


@given(
    st.lists(
        st.lists(st.sampled_from([-1.5, -0.0, 0.0, 2.0, np.inf, -np.inf]), min_size=6, max_size=6),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 7),
    st.integers(1, 6),
)
def test_the_best_of_groups_are_the_best_of_all_and_ties_go_to_lower_ids(
    table: list[list[float]], k: int, size: int
) -> None:
    groups = Groups(6, size)
    scores = groups.arrange(torch.tensor(table), torch.full((len(table), groups.width), -torch.inf))
    found, nan = groups.top(scores, k)
    assert not nan
    for row, best in zip(table, found.tolist(), strict=True):
        sorted_items = sorted(range(6), key=lambda item: (-row[item], item))[:k]
        assert best == [item if row[item] > -np.inf else -1 for item in sorted_items]


@pytest.mark.parametrize("model", MODELS)
def test_a_catalog_of_many_groups_is_ranked_like_a_small_one(model: type[Scores]) -> None:
    rng = np.random.default_rng(1)
    n_items = 1_003  # 15 groups of 67 at a cutoff of 4, the last one not full
    table = rng.integers(-300, 300, size=(5, n_items)).tolist()  # some ties
    train = rows(*((user, int(item)) for user in range(5) for item in rng.integers(0, n_items, size=400)))
    held_out = rows(*((user, 7 * user) for user in range(5)))
    found = Evaluator(held_out, [train], n_items).rank(model(table), 4)
    assert (found.items.tolist(), found.hits.tolist()) == by_hand(table, train, held_out, 4)


@pytest.mark.parametrize("n_items", [5, 300])
@pytest.mark.parametrize("n_finite", [0, 2])
def test_candidates_of_score_minus_infinity_come_last_and_masked_items_never(n_items: int, n_finite: int) -> None:
    table = np.full((3, n_items), -np.inf)
    table[0] = np.arange(n_items)  # an ordinary user
    table[1:, n_items - n_finite :] = 1.0
    train = rows((0, n_items - 1), (1, 0), (1, n_items - 1), (2, 1))
    held_out = rows((0, 2), (1, 2), (2, 2))
    found = Evaluator(held_out, [train], n_items).rank(Scores(table.tolist()), 4, batch_size=2)
    ranked, hits = by_hand(table.tolist(), train, held_out, 4)
    assert (found.items.tolist(), found.hits.tolist()) == (ranked, hits)
    assert (found.items >= 0).sum(axis=1).tolist() == np.minimum(4, n_items - np.array([1, 2, 1])).tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_products_that_overflow_to_minus_infinity_are_listed(dtype: torch.dtype) -> None:
    class Vast(DotScores):
        def vectors(self) -> tuple[Tensor, Tensor]:
            return torch.full((1, 1), torch.finfo(dtype).max, dtype=dtype), torch.tensor(
                [[1, 0, -2, -3]], dtype=dtype
            ).T

    top = Ranker(np.array([0]), [rows((0, 1))], 4).top(Vast([[0.0]]), 4)
    assert top.tolist() == [[0, 2, 3, -1]]


def test_a_nan_beside_scores_of_minus_infinity_is_still_an_error() -> None:
    with pytest.raises(TrainingDiverged, match="a score is NaN"):
        Evaluator(rows((0, 1), (1, 0)), [rows()], 3).rank(Scores([[-np.inf] * 3, [0.0, np.nan, 1.0]]), 2)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_score_that_is_nan_is_an_error_and_no_ranking(model: type[Scores], sign: float) -> None:
    with pytest.raises(TrainingDiverged, match="a score is NaN, so nothing can be ranked"):
        Evaluator(rows((0, 1)), [rows()], 3).rank(model([[0.0, np.copysign(np.nan, sign), 1.0]]), 2)


def test_a_nan_that_is_masked_is_no_error() -> None:
    found = Evaluator(rows((0, 1)), [rows((0, 1))], 3).rank(Scores([[0.0, np.nan, 1.0]]), 2)
    assert found.items.tolist() == [[2, 0]]


def test_ranking_leaves_the_models_own_numbers_alone() -> None:
    model, dot = Scores([[3.0, 2.0, 1.0]]), DotScores([[3.0, 2.0, 1.0]])
    for each in (model, dot):
        Evaluator(rows((0, 1)), [rows((0, 0))], 3).rank(each, 2)
        assert each.table.tolist() == [[3.0, 2.0, 1.0]]


def test_metrics_come_per_user_by_lower_case_name_and_cutoff(registry: Registry) -> None:
    table = [[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]
    found = Evaluator(rows((0, 1), (1, 2), (1, 0)), [rows()], 3).rank(Scores(table), 3)
    values = Measures(registry.metrics, ["Recall"], rows(), 2, 3).values(found, (1, 3))
    assert {name: array.tolist() for name, array in values.items()} == {"recall@1": [0, 0.5], "recall@3": [1, 1]}


def test_ranker_serves_any_users_also_those_without_training_rows() -> None:
    top = Ranker(np.array([0, 2]), [rows((0, 2), (1, 0))], 3).top(DotScores([[1.0, 2.0, 3.0]] * 3), 2)
    assert top.tolist() == [[1, 0], [2, 1]]


def test_chance_is_what_random_rankings_score_on_average() -> None:
    n_users, n_items, k = 60, 40, 5
    rng = np.random.default_rng(0)
    train = Interactions(np.arange(n_users).repeat(2), rng.integers(0, 10, 2 * n_users))
    held_out = Interactions(np.arange(n_users).repeat(3), np.tile([11, 22, 33], n_users))
    ranks = Evaluator(held_out, [train], n_items)
    scores = []
    for seed in range(400):
        table = torch.rand(n_users, n_items, generator=torch.Generator().manual_seed(seed))
        found = ranks.chance(ranks.rank(DotScores(table.tolist()), k), k)
        scores.append(found.score)
    assert np.mean(scores) == pytest.approx(found.mean, abs=4 * found.deviation / 20)
    assert np.std(scores) == pytest.approx(found.deviation, rel=0.15)


# Some items as the only candidates


@pytest.mark.parametrize("model", MODELS)
def test_only_the_candidates_are_ranked_and_counted(model: type[Scores]) -> None:
    table = [[9.0, 8, 7, 6, 5], [1, 2, 3, 4, 5]]
    train, held_out = rows((0, 0), (0, 2), (1, 1)), rows((0, 3), (1, 3), (1, 4))
    among = np.array([False, False, True, True, True])
    evaluator = Evaluator(held_out, [train], 5, among)
    found = evaluator.rank(model(table), 3)
    assert found.items.tolist() == [[3, 4, -1], [4, 3, 2]]  # user 0 has trained on item 2
    assert found.hits.tolist() == [[True, False, False], [True, True, False]]
    assert Ranker(np.array([0, 1]), [train], 5, among).candidates.tolist() == [2, 3]
    assert evaluator.chance(found, 1).mean == pytest.approx((1 / 2 + 2 / 3 / 2) / 2)
