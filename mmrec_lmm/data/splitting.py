"""Who goes where: the rules that label each interaction as training, validation or test.

Those that ship are functions of users, items, times and a generator, as a plugin's (SplitSpec). All are array
operations over all interactions; none loops over users or items. Equal times have no order of their own, and that of a
file's rows may follow items or users, so a user's interactions at one time are ordered by the seed.

Shapes: N interactions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..cache import fingerprint
from ..config.choices import SPLIT_RULES, SplitRule
from ..errors import PluginError
from .arrays import blaming_changes, read_only

TRAIN, VALID, TEST = 0, 1, 2  # MMRec's x_label
TIMED: frozenset[SplitRule] = frozenset({"leave-one-out", "user-time", "global-time"})  # rules that need times
HELD_OUT = 0.1  # share of the rows that `global-time` tries to give to validation, and to test
COLD = 0.2  # share of the items that `cold-item` keeps out of training

UNITS = ("seconds", "milliseconds", "microseconds", "nanoseconds")
UNIX = (1e8, 1e11, 1e14, 1e17)  # the least time since 1970 in each unit: March 1973; smaller numbers have no known unit


@dataclass(frozen=True)
class Rule:
    """A rule that draws splits: its name, its function, and how messages call it."""

    name: str
    draw: Callable[..., Any]
    needs_times: bool
    owner: str

    def labels(self, users: np.ndarray, items: np.ndarray, times: np.ndarray | None, seed: int) -> np.ndarray:
        """The label of each interaction, (N,) int64: the same for the same arrays and seed.

        `users`, `items` (N,) are internal ids; `times` (N,) numbers of any unit, where the rule needs them. PluginError
        for what isn't labels.
        """
        read = read_only(times) if self.needs_times and times is not None else None
        with blaming_changes(self.owner):
            found = np.asarray(self.draw(read_only(users), read_only(items), read, np.random.default_rng(seed)))
        if found.shape != users.shape or found.dtype.kind not in "iu":
            raise PluginError(
                f"{self.owner}: expected a whole number for each of {len(users):,} rows, {users.shape}, got "
                f"{found.dtype} {found.shape}"
            )
        if len(found) and not TRAIN <= found.min() <= found.max() <= TEST:
            strange = found[(found < TRAIN) | (found > TEST)][0]
            raise PluginError(f"{self.owner}: expected labels 0 (train), 1 (valid) and 2 (test), got {strange}")
        return found.astype(np.int64, copy=False)


def shipped_rule(name: str) -> Rule:
    """A rule of SPLIT_RULES."""
    drawing: Mapping[str, Callable[..., np.ndarray]] = {
        "ratio": by_ratio, "leave-one-out": leave_one_out, "user-time": by_user_time, "global-time": by_global_time,
        "cold-item": by_cold_items,
    }  # fmt: skip
    assert drawing.keys() == {*SPLIT_RULES}
    return Rule(name, drawing[name], name in TIMED, f"split {name}")


def draw_labels(
    rule: SplitRule, users: np.ndarray, items: np.ndarray, times: np.ndarray | None, seed: int
) -> np.ndarray:
    """`Rule.labels` of a rule that ships."""
    return shipped_rule(rule).labels(users, items, times, seed)


def by_ratio(users: np.ndarray, items: np.ndarray, times: None, rng: np.random.Generator) -> np.ndarray:
    """MMRec's rule: a random tenth of a user's interactions each for validation and test."""
    return split_labels(users, rng)


def leave_one_out(users: np.ndarray, items: np.ndarray, times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A user's last interaction is test, the one before validation."""
    return _last_of_each_user(users, _in_time(times, rng), one=True)


def by_user_time(users: np.ndarray, items: np.ndarray, times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A user's last tenth is test, the tenth before validation."""
    return _last_of_each_user(users, _in_time(times, rng))


def _in_time(times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The rows (N,) from the earliest to the latest, those of one time in random order."""
    order = rng.permutation(len(times))
    return order[np.argsort(times[order], kind="stable")]


def split_labels(users: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The x_label of each interaction, (N,) int64, by MMRec's rule, drawn with `rng`.

    A user's n interactions are shuffled; the last t are held out, floor(t/2) of them for validation and the rest for
    test, where t = 2 for n < 10 and floor(0.2 n) from 10 on. Users with fewer than 3 interactions keep all in
    training, since n - 2 would leave nothing to train on. `users` (N,) are internal ids.
    """
    return _last_of_each_user(users, np.argsort(rng.random(len(users)), kind="stable"))


def _last_of_each_user(users: np.ndarray, order: np.ndarray, *, one: bool = False) -> np.ndarray:
    """Labels (N,) that hold out the last of each user's interactions in `order` (N,).

    As many as MMRec's rule, or just one each for validation and test. Users with fewer than 3 only train.
    """
    order = _by_user(users, order)
    counts = np.bincount(users)  # (n_users,)
    n = counts[users[order]]
    rank = np.arange(len(users)) - (np.cumsum(counts) - counts)[users[order]]  # place within the user, from 0
    held_out = np.where(n < 3, 0, 2 if one else np.where(n < 10, 2, n // 5))
    first_valid = n - held_out
    first_test = first_valid + held_out // 2
    labels = np.empty(len(users), dtype=np.int64)
    labels[order] = np.where(rank < first_valid, TRAIN, np.where(rank < first_test, VALID, TEST))
    return labels


def _by_user(users: np.ndarray, order: np.ndarray) -> np.ndarray:
    """`order` (N,) user by user, each user's interactions as before: a radix sort, since NumPy has one for 16 bits."""
    for shift in range(0, int(users.max(initial=0)).bit_length(), 16):
        order = order[np.argsort((users[order] >> shift).astype(np.uint16), kind="stable")]
    return order


def by_global_time(users: np.ndarray, items: np.ndarray, times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels (N,) by two cut times, each where the rows before it come nearest to 80 and 90 %.

    Rows of one time stay together. All rows train if there are fewer than three times.
    """
    distinct, counts = np.unique(times, return_counts=True)
    if len(distinct) < 3:
        return np.full(len(times), TRAIN, dtype=np.int64)
    before = np.cumsum(counts) - counts  # rows before each time
    valid = 1 + int(np.argmin(np.abs(before[1:-1] - (1 - 2 * HELD_OUT) * len(times))))
    test = valid + 1 + int(np.argmin(np.abs(before[valid + 1 :] - (1 - HELD_OUT) * len(times))))
    return np.searchsorted(distinct[[valid, test]], times, side="right").astype(np.int64)


def by_cold_items(users: np.ndarray, items: np.ndarray, times: None, rng: np.random.Generator) -> np.ndarray:
    """Labels (N,) that hold out all interactions of a share COLD of the items: half of these items for validation."""
    drawn = rng.permutation(np.flatnonzero(np.bincount(items)))
    drawn = drawn[: round(COLD * len(drawn))]
    of_item = np.full(items.max(initial=-1) + 1, TRAIN, dtype=np.int64)
    of_item[drawn[: len(drawn) // 2]] = VALID
    of_item[drawn[len(drawn) // 2 :]] = TEST
    return of_item[items]


def hash_labels(rule: str, labels: np.ndarray) -> str:
    """A hash of a rule and its labels (N,): it names the split, and is the same on any machine."""
    return fingerprint([rule, labels.astype(np.int8)])


def in_seconds(times: np.ndarray) -> np.ndarray:
    """Times (N,) float64 in seconds since 1970, by their likely unit; in their own where that isn't known."""
    return np.asarray(times / 1000.0 ** max(0, int(time_units(times).max(initial=-1))), dtype=np.float64)


def time_units(times: np.ndarray) -> np.ndarray:
    """The place (N,) in UNITS of each time's likely unit; -1 for times that are small in any unit."""
    return np.digitize(np.abs(times), UNIX) - 1
