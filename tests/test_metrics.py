"""The metrics: MMRec's worked example, fractions to redo by hand, and what must hold of any ranking."""

from math import log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrec_lmm.evaluation.metrics import METRICS
from mmrec_lmm.plugin.specs import resolve

FN = {spec.name: resolve(spec.fn) for spec in METRICS if not spec.context}

# MMRec's own code on three users with m = 2, 1, 7 (conventions.md, section 5), at k = 1, 2, 3, 4, 5
GOLDEN_HITS = np.array([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [0, 1, 1, 0, 1]], dtype=bool)
GOLDEN_POSITIVES = np.array([2, 1, 7])
GOLDEN = {
    "Recall": [0.166667, 0.214286, 0.261905, 0.428571, 0.476190],
    "NDCG": [0.333333, 0.333333, 0.381289, 0.439569, 0.463996],
    "Precision": [0.333333, 0.333333, 0.333333, 0.333333, 0.333333],
    "MAP": [0.333333, 0.250000, 0.296296, 0.347222, 0.367778],
}

# One user: hits at ranks 2 and 4 of 5, three held-out rows
HITS = np.array([[False, True, False, True, False]])
BY_HAND = [
    ("Recall", 1, 0),
    ("Recall", 2, 1 / 3),
    ("Recall", 5, 2 / 3),
    ("Precision", 2, 1 / 2),
    ("Precision", 5, 2 / 5),
    ("NDCG", 2, (1 / log2(3)) / (1 + 1 / log2(3))),
    ("NDCG", 5, (1 / log2(3) + 1 / log2(5)) / (1 + 1 / log2(3) + 1 / log2(4))),
    ("MAP", 2, (1 / 2) / 2),
    ("MAP", 5, (1 / 2 + 2 / 4) / 3),
    ("Hit", 1, 0),
    ("Hit", 2, 1),
    ("MRR", 1, 0),
    ("MRR", 4, 1 / 2),
]


@pytest.mark.parametrize("name", GOLDEN)
def test_a_metric_gives_the_figures_of_mmrec_on_its_worked_example(name: str) -> None:
    means = [FN[name](GOLDEN_HITS, GOLDEN_POSITIVES, k).mean() for k in (1, 2, 3, 4, 5)]
    np.testing.assert_allclose(means, GOLDEN[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "k", "expected"), BY_HAND)
def test_a_metric_is_the_fraction_that_its_formula_says(name: str, k: int, expected: float) -> None:
    assert FN[name](HITS, np.array([3]), k) == pytest.approx([expected])


def test_a_pair_that_is_held_out_twice_counts_twice_among_the_positives() -> None:
    once, twice = FN["Recall"](np.array([[True], [True]]), np.array([1, 2]), 1)
    assert (once, twice) == (1, 1 / 2)


def test_a_user_without_any_hit_scores_zero_everywhere() -> None:
    for name, fn in FN.items():
        assert fn(np.zeros((1, 3), dtype=bool), np.array([2]), 3) == [0], name


@st.composite
def rankings(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Users' hits, and numbers of positives that are at least their hits."""
    users, ranks = draw(st.integers(1, 6)), draw(st.integers(1, 60))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    hits = random.random((users, ranks)) < draw(st.sampled_from([0.05, 0.5, 1.0]))
    return hits, np.maximum(1, hits.sum(axis=1) + random.integers(0, 4, users))


@given(rankings())
def test_every_metric_is_one_float64_per_user_between_0_and_1(ranking: tuple[np.ndarray, np.ndarray]) -> None:
    hits, positives = ranking
    for name, fn in FN.items():
        values = fn(hits, positives, hits.shape[1])
        assert values.shape == positives.shape, name
        assert values.dtype == np.float64, name
        assert ((values >= 0) & (values <= 1)).all(), name


@given(rankings())
def test_recall_hit_and_mrr_never_fall_as_k_grows(ranking: tuple[np.ndarray, np.ndarray]) -> None:
    hits, positives = ranking
    for name in ("Recall", "Hit", "MRR"):
        by_k = np.array([FN[name](hits, positives, k) for k in range(1, hits.shape[1] + 1)])
        assert (np.diff(by_k, axis=0) >= 0).all(), name


@given(rankings(), st.randoms(use_true_random=False))
def test_a_users_value_depends_on_no_other_user(ranking: tuple[np.ndarray, np.ndarray], random: object) -> None:
    hits, positives = ranking
    order = list(range(len(positives)))
    random.shuffle(order)  # type: ignore[attr-defined]
    for name, fn in FN.items():
        k = hits.shape[1]
        np.testing.assert_array_equal(fn(hits[order], positives[order], k), fn(hits, positives, k)[order], name)


@given(st.integers(1, 60), st.integers(1, 80))
def test_ndcg_of_an_ideal_ranking_is_exactly_1(k: int, positives: int) -> None:
    ideal = np.arange(60)[None, :] < positives
    assert FN["NDCG"](ideal, np.array([positives]), k) == [1.0]
