"""Negative sampling and batches: exactly MMRec's rule, in whatever order the rows come."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mmrec_lmm.data.sampling import NegativeSampler, TrainingRows
from mmrec_lmm.errors import DataError
from mmrec_lmm.types import Interactions

# User 0 has items 2 and 5, user 1 item 9 twice, user 2 nothing; items 3, 4, 6, 7, 8 never occur in training
USERS, ITEMS = np.array([1, 0, 1, 0, 3, 3]), np.array([9, 5, 9, 2, 0, 1])
FREE = {0: {0, 1, 9}, 1: {0, 1, 2, 5}, 2: {0, 1, 2, 5, 9}, 3: {2, 5, 9}}
DRAWS = 6000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Interactions, int]:
    """Training rows, some of them twice, in which every user lacks some training item; and the number of users."""
    n_users, n_items = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    pairs = draw(st.lists(st.tuples(st.integers(0, n_users - 1), st.integers(0, n_items - 1)), min_size=1, max_size=30))
    lonely = [(n_users, n_items), (n_users + 1, n_items + 1)]  # two users and items of their own
    users, items = np.array(pairs + lonely).T
    return Interactions(users.copy(), items.copy()), n_users + 2


@given(worlds(), st.integers(0, 1000))
def test_a_negative_is_a_training_item_and_never_one_of_the_users_own(
    world: tuple[Interactions, int], seed: int
) -> None:
    train, n_users = world
    users = torch.arange(n_users).repeat(20)
    drawn = NegativeSampler(train, n_users).draw(users, generator(seed)).tolist()
    own = set(zip(train.users.tolist(), train.items.tolist(), strict=True))
    assert not own & set(zip(users.tolist(), drawn, strict=True))
    assert set(drawn) <= set(train.items.tolist())


@pytest.mark.parametrize("user", FREE)
def test_a_users_negatives_are_uniform_over_exactly_the_allowed_items(user: int) -> None:
    sampler = NegativeSampler(Interactions(USERS, ITEMS), 4)
    counts = Counter(sampler.draw(torch.full((DRAWS,), user), generator()).tolist())
    assert set(counts) == FREE[user]
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


@given(worlds())
def test_every_allowed_item_is_reached(world: tuple[Interactions, int]) -> None:
    train, n_users = world
    sampler = NegativeSampler(train, n_users)
    for user in range(n_users):
        allowed = set(train.items.tolist()) - set(train.items[train.users == user].tolist())
        # 400 draws miss one of at most 10 items once in 10^18
        assert set(sampler.draw(torch.full((400,), user), generator(user)).tolist()) == allowed


def test_users_may_come_in_any_order_and_any_number_of_times() -> None:
    sampler = NegativeSampler(Interactions(USERS, ITEMS), 4)
    users = torch.tensor([3, 0, 2, 1, 0, 3]).repeat(50)
    for user, item in zip(users.tolist(), sampler.draw(users, generator()).tolist(), strict=True):
        assert item in FREE[user]


def test_a_user_with_every_training_item_is_an_error_that_names_and_counts_such_users() -> None:
    train = Interactions(np.array([0, 0, 1, 2, 2]), np.array([0, 1, 0, 0, 1]))
    expected = r"user 0 has all 2 training items, so no negative item exists for them; drop such users \(2 of 3\)"
    with pytest.raises(DataError, match=expected):
        NegativeSampler(train, 3)


def test_an_epoch_visits_each_training_row_once_and_the_last_batch_is_short() -> None:
    rows = TrainingRows(Interactions(USERS, ITEMS), 4, batch_size=4)
    batches = list(rows.epoch(generator()))
    assert len(rows) == 2
    assert [len(batch) for batch in batches] == [4, 2]
    visited = [pair for batch in batches for pair in zip(batch.users.tolist(), batch.positives.tolist(), strict=True)]
    assert Counter(visited) == Counter(zip(USERS.tolist(), ITEMS.tolist(), strict=True))
    for batch in batches:
        for user, negative in zip(batch.users.tolist(), batch.negatives.tolist(), strict=True):
            assert negative in FREE[user]


@given(st.integers(1, 10))
def test_the_number_of_batches_is_the_number_that_an_epoch_gives(batch_size: int) -> None:
    rows = TrainingRows(Interactions(USERS, ITEMS), 4, batch_size)
    assert len(list(rows.epoch(generator()))) == len(rows)


def test_the_generator_alone_decides_and_each_epoch_goes_on_with_it() -> None:
    def epochs(seed: int) -> list[list[int]]:
        rows, source = TrainingRows(Interactions(USERS, ITEMS), 4, batch_size=6), generator(seed)
        torch.manual_seed(seed + 100)  # torch's default generator has no say
        return [next(rows.epoch(source)).users.tolist() + next(rows.epoch(source)).negatives.tolist() for _ in "ab"]

    assert epochs(1) == epochs(1)
    assert epochs(1) != epochs(2)
    assert epochs(1)[0] != epochs(1)[1]


def test_the_batch_size_changes_neither_the_order_nor_the_negatives() -> None:
    def columns(batch_size: int) -> list[list[int]]:
        batches = list(TrainingRows(Interactions(USERS, ITEMS), 4, batch_size).epoch(generator()))
        return [
            torch.cat(parts).tolist()
            for parts in zip(*((b.users, b.positives, b.negatives) for b in batches), strict=True)
        ]

    assert columns(1) == columns(4) == columns(100)
