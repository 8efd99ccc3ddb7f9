"""The k-core filter, on worlds small enough to count by hand."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mmrec_lmm_data_tools.filtering import k_core


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
