"""MMRec's split rule and the k-core filter, on worlds small enough to count by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrec_lmm_data_tools.splitting import k_core, split_labels


@pytest.mark.parametrize(
    ("n", "train", "valid", "test"),
    [(1, 1, 0, 0), (2, 2, 0, 0), (3, 1, 1, 1), (9, 7, 1, 1), (10, 8, 1, 1), (15, 12, 1, 2), (35, 28, 3, 4)],
)
def test_a_user_of_n_interactions_is_split_by_mmrecs_rule(n: int, train: int, valid: int, test: int) -> None:
    labels = split_labels(np.zeros(n, dtype=int), np.random.default_rng(0))
    assert np.bincount(labels, minlength=3).tolist() == [train, valid, test]


def test_each_user_is_split_apart_from_the_others_however_the_rows_are_ordered() -> None:
    users = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [4, 10, 20]))
    labels = split_labels(users, np.random.default_rng(1))
    assert [np.bincount(labels[users == user]).tolist() for user in range(3)] == [[2, 1, 1], [8, 1, 1], [16, 2, 2]]


def test_the_same_seed_gives_the_same_split_and_another_seed_another() -> None:
    users = np.repeat(np.arange(50), 12)
    first, again, other = (split_labels(users, np.random.default_rng(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_every_interaction_of_a_user_is_held_out_equally_often() -> None:
    draws = [split_labels(np.zeros(5, dtype=int), np.random.default_rng(seed)) for seed in range(2000)]
    np.testing.assert_allclose(np.mean(np.array(draws) == 1, axis=0), 1 / 5, atol=0.04)


def test_a_core_is_found_by_removing_until_nothing_more_falls_out() -> None:
    # Item 2 has one interaction; without it user 2 has one as well, and falls out in the second round.
    users, items = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 0, 1, 0, 2])
    assert k_core(users, items, 2).tolist() == [True, True, True, True, False, False]


def test_no_core_is_left_where_nobody_has_enough() -> None:
    assert not k_core(np.array([0, 1]), np.array([0, 1]), 2).any()


pairs = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), unique=True, max_size=36)


@given(pairs, st.integers(0, 4))
def test_a_core_is_what_remains_when_weak_users_and_items_are_removed_one_by_one(
    edges: list[tuple[int, int]], k: int
) -> None:
    users, items = np.array(edges, dtype=int).reshape(-1, 2).T
    kept = {edge for edge, keep in zip(edges, k_core(users, items, k), strict=True) if keep}
    remaining = set(edges)
    while weak := [
        edge
        for edge in remaining
        if sum(e[0] == edge[0] for e in remaining) < k or sum(e[1] == edge[1] for e in remaining) < k
    ]:
        remaining.remove(weak[0])
    assert kept == remaining
