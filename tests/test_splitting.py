"""The rules that draw splits: on worlds small enough to count by hand, by their properties, and at load."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrec_lmm.config.choices import SPLIT_RULES, SplitRule
from mmrec_lmm.config.settings import Settings
from mmrec_lmm.data.loading import load_dataset
from mmrec_lmm.data.splitting import TEST, TIMED, TRAIN, VALID, draw_labels, hash_labels, split_labels
from mmrec_lmm.errors import DataError
from mmrec_lmm.types import Dataset, DrawnSplit


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


GOLDEN: dict[SplitRule, list[int]] = {
    "ratio": [0, 2, 1, 0, 0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
    "user-time": [0, 0, 2, 1, 0, 0, 0, 0, 0, 1, 0, 2, 0, 0, 0, 0],
    "cold-item": [0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 0, 0],
}


@pytest.mark.parametrize("rule", GOLDEN)
def test_a_seed_draws_the_same_labels_on_any_machine(rule: SplitRule) -> None:
    users, times = np.repeat([0, 1], [4, 12]), np.array([1, 1, 2, 2] + [3] * 12)
    assert draw_labels(rule, users, np.arange(16), times, 7).tolist() == GOLDEN[rule]


@given(st.lists(st.integers(0, 300_000), max_size=40), st.integers(0, 9))
def test_mmrecs_rule_takes_users_of_any_number(users: list[int], seed: int) -> None:
    labels = split_labels(np.array(users, dtype=np.int64), np.random.default_rng(seed))
    _, dense = np.unique(np.array(users, dtype=np.int64), return_inverse=True)
    np.testing.assert_array_equal(labels, split_labels(dense, np.random.default_rng(seed)))


# Rules of time


def labels_of(rule: SplitRule, users: Any, times: Any, items: Any = None, seed: int = 0) -> list[int]:
    users, times = np.array(users), np.array(times)
    return draw_labels(rule, users, np.arange(len(users)) if items is None else np.array(items), times, seed).tolist()


def test_leave_one_out_holds_out_the_last_two_interactions_of_each_user() -> None:
    #        user 0: times 5 1 9 3        user 1: 2 8 4   user 2 has only two
    users = [0, 0, 0, 0, 1, 1, 1, 2, 2]
    times = [5, 1, 9, 3, 2, 8, 4, 7, 6]
    assert labels_of("leave-one-out", users, times) == [VALID, 0, TEST, 0, 0, TEST, VALID, 0, 0]


def test_user_time_holds_out_mmrecs_counts_of_each_users_last_interactions() -> None:
    users, times = [0] * 12 + [1] * 4, [*range(12, 0, -1), 40, 10, 30, 20]
    assert labels_of("user-time", users, times) == [TEST, VALID, *[0] * 10, TEST, 0, VALID, 0]


def test_global_time_cuts_all_rows_at_two_times() -> None:
    times = [7, 3, 10, 1, 9, 5, 2, 8, 4, 6]
    labels = labels_of("global-time", range(10), times)
    assert dict(zip(times, labels, strict=True)) == {**dict.fromkeys(range(1, 9), TRAIN), 9: VALID, 10: TEST}


def test_rows_of_one_time_are_on_one_side_of_a_cut() -> None:
    # The rows before the times 1, 2, 3, 4 are 0, 1, 7, 9 of 10: those nearest to 8 are 7 and 9, and of these the first.
    assert labels_of("global-time", range(10), [1, 2, 2, 2, 2, 2, 2, 3, 3, 4]) == [*[TRAIN] * 7, VALID, VALID, TEST]
    assert labels_of("global-time", range(10), [1] * 5 + [2] * 5) == [TRAIN] * 10  # no two cuts
    assert labels_of("global-time", range(4), [1, 2, 3, 3]) == [TRAIN, VALID, TEST, TEST]


def test_cold_item_keeps_a_fifth_of_the_items_out_of_training() -> None:
    items = np.repeat(np.arange(20), 3)
    labels = draw_labels("cold-item", np.tile([0, 1, 2], 20), items, None, 4)
    of_item = {item: set(labels[items == item].tolist()) for item in range(20)}
    assert all(len(found) == 1 for found in of_item.values())
    assert [sum(found == {label} for found in of_item.values()) for label in (TRAIN, VALID, TEST)] == [16, 2, 2]


def test_equal_times_are_ordered_by_the_seed() -> None:
    users, times = np.zeros(40, int), np.ones(40)
    first, again, other = (labels_of("user-time", users, times, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    last = [labels_of("leave-one-out", users[:4], times[:4], seed=seed).index(TEST) for seed in range(400)]
    assert np.bincount(last).min() > 60  # whatever the place in the file


rows = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9), st.integers(0, 12)), min_size=1, max_size=60)


def drawn_from(found: list[tuple[int, int, int]], rule: SplitRule, seed: int = 3) -> np.ndarray:
    users, items, times = np.array(found).T
    return draw_labels(rule, users, items, times if rule in TIMED else None, seed)


@given(rows, st.sampled_from(SPLIT_RULES), st.integers(0, 5))
def test_a_rule_labels_every_row_and_the_same_seed_the_same_way(
    found: list[tuple[int, int, int]], rule: SplitRule, seed: int
) -> None:
    labels = drawn_from(found, rule, seed)
    assert labels.shape == (len(found),)
    assert set(labels.tolist()) <= {TRAIN, VALID, TEST}
    np.testing.assert_array_equal(labels, drawn_from(found, rule, seed))
    assert hash_labels(rule, labels) == hash_labels(rule, labels.astype(np.int32))


@given(rows)
def test_under_global_time_no_held_out_row_is_earlier_than_one_before_it(found: list[tuple[int, int, int]]) -> None:
    labels, times = drawn_from(found, "global-time"), np.array(found)[:, 2]
    spans = [(times[labels == label].min(), times[labels == label].max()) for label in np.unique(labels)]
    assert all(earlier[1] < later[0] for earlier, later in itertools.pairwise(spans))
    assert len(spans) == (3 if len(np.unique(times)) >= 3 else 1)


@given(rows, st.sampled_from(["leave-one-out", "user-time"]))
def test_no_user_trains_on_a_row_later_than_a_held_out_one(found: list[tuple[int, int, int]], rule: SplitRule) -> None:
    labels, (users, _, times) = drawn_from(found, rule), np.array(found).T
    for user in np.unique(users):
        own, when = labels[users == user], times[users == user]
        in_order = own[np.lexsort((own, when))]
        assert (np.diff(in_order) >= 0).all()
        held_out = np.bincount(own, minlength=3)[1:].tolist()
        if rule == "leave-one-out" or len(own) < 15:
            assert held_out == ([0, 0] if len(own) < 3 else [1, 1])


@given(rows, st.integers(0, 99))
def test_global_time_does_not_depend_on_the_order_of_rows(found: list[tuple[int, int, int]], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(found))
    shuffled = [found[place] for place in order]
    np.testing.assert_array_equal(drawn_from(found, "global-time")[order], drawn_from(shuffled, "global-time"))


@given(rows)
def test_a_cold_item_has_no_training_row(found: list[tuple[int, int, int]]) -> None:
    labels, items = drawn_from(found, "cold-item"), np.array(found)[:, 1]
    held_out = set(items[labels != TRAIN].tolist())
    assert held_out.isdisjoint(items[labels == TRAIN].tolist())
    assert set(items[labels == VALID].tolist()).isdisjoint(items[labels == TEST].tolist())
    assert len(held_out) == round(0.2 * len(np.unique(items)))


# At load


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Dataset]:
    """Loads 8 users with 5 of 20 items each, in seconds one after the other, or at `times`; None: without times."""

    def load(times: Any = range(10**9, 10**9 + 40), *, labels: bool = True, **settings: Any) -> Dataset:
        folder = tmp_path / "toy"
        folder.mkdir(exist_ok=True)
        columns: dict[str, Any] = {"userID": [place % 8 for place in range(40)]}
        columns["itemID"] = [place * 3 % 20 for place in range(40)]
        columns |= {"timestamp": times} if times is not None else {}
        columns |= {"x_label": [(0, 0, 0, 1, 2)[place // 8] for place in range(40)]} if labels else {}
        lines = ["\t".join(columns), *("\t".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
        (folder / "toy.inter").write_text("\n".join(lines) + "\n")
        return load_dataset(folder, "toy", Settings(**settings))

    return load


def refusal(load: Callable[..., Dataset], *arguments: Any, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(*arguments, **settings)
    return str(caught.value)


def test_without_a_rule_the_labels_of_the_file_are_used_whatever_the_seed(load: Callable[..., Dataset]) -> None:
    own = load()
    assert own.split is None
    assert (len(own.train), len(own.valid), len(own.test)) == (24, 8, 8)
    assert load(split_seed=5, TIME_FIELD="none").fingerprint == own.fingerprint


@pytest.mark.parametrize("rule", SPLIT_RULES)
def test_a_drawn_split_is_recorded_and_named_by_its_hash(rule: SplitRule, load: Callable[..., Dataset]) -> None:
    dataset = load(split=rule)
    split = dataset.split
    assert split is not None
    assert (split.rule, split.seed, str(split)) == (rule, 0, f"{rule}-{split.hash[:8]}")
    assert split.rows == {"train": len(dataset.train), "valid": len(dataset.valid), "test": len(dataset.test)}
    assert sum(split.rows.values()) + sum(split.left_out.get(name, 0) for name in ("valid", "test")) == 40
    assert dataset.fingerprint == load(split=rule).fingerprint != load().fingerprint


def test_another_seed_is_another_split_if_its_labels_differ(load: Callable[..., Dataset]) -> None:
    def found(rule: str, seed: int) -> tuple[str, DrawnSplit | None]:
        dataset = load(split=rule, split_seed=seed)
        return dataset.fingerprint, dataset.split

    assert len({found(rule, 0)[0] for rule in SPLIT_RULES}) == len(SPLIT_RULES)
    for rule in ("ratio", "cold-item"):
        assert found(rule, 0)[0] != found(rule, 1)[0]
    for rule in TIMED:  # no two times are equal: nothing is drawn
        assert found(rule, 0)[0] == found(rule, 1)[0]


def test_users_without_training_rows_are_reported_and_left_out(load: Callable[..., Dataset]) -> None:
    late = iter([35.1, 35.2, 36.1, 36.2, 37.1])  # of user 7; the cuts are before 35.1 and 36.2
    dataset = load([next(late) if place % 8 == 7 else place for place in range(40)], split="global-time")
    assert dataset.valid.users.tolist() == [4]
    assert dataset.test.users.tolist() == [5, 6]
    assert dataset.split is not None
    assert dataset.split.rows == {"train": 32, "valid": 1, "test": 2}
    assert dataset.split.left_out == {"users": 1, "valid": 3, "test": 2}
    assert dataset.notes == (
        "valid: dropped 3 rows of users without a training row (1 of 8 users have none)",
        "test: dropped 2 rows of users without a training row (1 of 8 users have none)",
    )


@pytest.mark.parametrize("rule", SPLIT_RULES)
def test_a_drawn_split_needs_no_labels_and_times_only_for_rules_of_time(
    rule: SplitRule, load: Callable[..., Dataset], tmp_path: Path
) -> None:
    assert len(load(labels=False, split=rule).test)
    if rule not in TIMED:
        assert len(load(None, labels=False, split=rule).test)
        return
    assert refusal(load, None, split=rule) == (
        f"{tmp_path / 'toy' / 'toy.inter'}: --split {rule}: expected the column 'timestamp' with the time of each "
        "interaction, got userID, itemID, x_label; try --TIME_FIELD=COLUMN if it has another name, --split ratio, "
        "--split cold-item, which need no times, or `data import` from a table that has them"
    )


SECONDS = [10**9 + place for place in range(40)]
TIME_FAULTS: dict[str, tuple[list[Any], str]] = {
    "a word": (
        [*SECONDS[:3], "May", *SECONDS[4:]],
        ", line 5: timestamp: expected a number, such as seconds since 1970, got 'May' (1 such rows of 40)",
    ),
    "none": (
        [*SECONDS[:3], "", *SECONDS[4:]],
        ", line 5: timestamp: expected a number, such as seconds since 1970, got '' (1 such rows of 40); is the file "
        "truncated?",
    ),
    "endless": (
        ["inf", *SECONDS[1:]],
        ", line 2: timestamp: expected a number, such as seconds since 1970, got 'inf' (1 such rows of 40)",
    ),
    "seconds and milliseconds": (
        [*SECONDS[:38], 1000 * SECONDS[38], 1000 * SECONDS[39]],
        ": timestamp: expected times in one unit, got what looks like 38 in seconds (line 2: 1000000000) and 2 in "
        "milliseconds (line 40: 1000000038000); try converting them to one, or another column with --TIME_FIELD=COLUMN",
    ),
    "two times": (
        [1] * 20 + [2] * 20,
        ": expected rows in each split, got none for valid (train 40, valid 0, test 0); --split global-time: there are "
        "fewer than three times, or its users have no earlier interaction; try --split ratio or --split leave-one-out "
        "or --split user-time or --split cold-item",
    ),
}


@pytest.mark.parametrize("fault", TIME_FAULTS)
def test_times_are_refused_with_the_line_and_the_reason(
    fault: str, load: Callable[..., Dataset], tmp_path: Path
) -> None:
    times, expected = TIME_FAULTS[fault]
    assert refusal(load, times, split="global-time") == f"{tmp_path / 'toy' / 'toy.inter'}{expected}"
    load(times, split="ratio")  # reads no times


@pytest.mark.parametrize("unit", [1, 10**3, 10**6, 10**9])
def test_times_may_be_in_any_one_unit_and_before_1970(unit: int, load: Callable[..., Dataset]) -> None:
    dataset = load([time * unit for time in SECONDS], split="global-time")
    assert (dataset.test.users.tolist(), dataset.notes) == ([4, 5, 6, 7], ())
    assert load([-time * unit for time in reversed(SECONDS)], split="global-time").notes == ()
    assert load(range(40), split="global-time").notes == ()  # no unit of time at all


def test_a_missing_time_written_as_zero_is_noted(load: Callable[..., Dataset]) -> None:
    assert load([0, *SECONDS[1:]], split="global-time").notes == (
        "timestamp: 1 rows lie before 1973 (line 2: 0), while the others are seconds since 1970: is 0 a missing time? "
        "They count as the earliest",
    )


def test_another_column_of_times_can_be_named(load: Callable[..., Dataset]) -> None:
    assert len(load(split="global-time", TIME_FIELD="itemID").test)
    assert len(load(split="global-time", TIME_FIELD="timestamp:float").test)  # as in MMRec's overall.yaml


# Real data


def test_mmrecs_rule_on_amazon_baby_gives_the_published_counts(shared: Path) -> None:
    baby = shared / "data" / "baby"
    drawn = [load_dataset(baby, "baby", Settings(split="ratio", split_seed=seed)) for seed in (0, 0, 1)]
    for dataset in drawn:
        assert (len(dataset.train), len(dataset.valid), len(dataset.test)) == (118_551, 20_559, 21_682)
    hashes = [dataset.split.hash for dataset in drawn if dataset.split]
    assert hashes[0] == hashes[1] != hashes[2]
    assert str(drawn[0].split) == "ratio-ebcccc7a"
    assert load_dataset(baby, "baby", Settings()).fingerprint == "b72288b7b5ba6be61ca358218d4665a1"  # as before splits
