"""Statistics: equal to scipy's and statsmodels' on random cases, sane on degenerate ones, and honest in simulation."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from benchmarks import null_studies
from benchmarks.null_studies import KINDS, Kind, counts
from mmrec_lmm.evaluation import statistics
from mmrec_lmm.evaluation.statistics import (
    bootstrap,
    holm,
    mean_of,
    paired,
    percentile_interval,
    permutation,
    seed_variance,
    wilcoxon,
)

SEEDS = st.integers(0, 2**32 - 1)


def rows(seed: int, users: int) -> tuple[np.ndarray, np.ndarray]:
    """Two rows of one seed, (1, U) each, of fractions, with many ties and zeros as recall has them."""
    values = np.random.default_rng(seed).integers(0, 4, (2, 1, users)) / 3
    return values[0], values[1]


# Over users, equal to others'


@given(SEEDS, st.integers(2, 40))
def test_the_test_over_users_is_scipys_paired_t_test(seed: int, users: int) -> None:
    ours, theirs = rows(seed, users)
    found = paired(ours, theirs)
    differences = np.round(ours - theirs, 12)[0]
    if np.ptp(differences) == 0:
        assert found.p == (0 if differences[0] else 1)
        assert found.interval() == pytest.approx((differences[0], differences[0]))
    else:
        expected = stats.ttest_1samp(differences, 0)
        assert found.p == pytest.approx(stats.ttest_rel(ours[0], theirs[0]).pvalue)
        assert found.p == pytest.approx(expected.pvalue)
        assert found.interval() == pytest.approx(tuple(expected.confidence_interval()))
        assert found.effect == pytest.approx(differences.mean() / differences.std(ddof=1))


@settings(max_examples=20)  # scipy tries all signs of few users
@given(SEEDS, st.sampled_from([1, 3, 8, 20, 60]))
def test_the_signed_rank_test_is_scipys(seed: int, users: int) -> None:
    ours, theirs = rows(seed, users)
    found = wilcoxon(statistics.user_differences(ours, theirs)[:, None])
    expected = stats.wilcoxon(np.round(ours - theirs, 12)[0]).pvalue if (ours != theirs).any() else 1
    assert found == pytest.approx([expected])


@settings(max_examples=20)
@given(SEEDS, st.integers(2, 8))
def test_the_sign_flip_test_of_few_users_is_scipys_exact_one(seed: int, users: int) -> None:
    differences = np.random.default_rng(seed).integers(-3, 4, users).astype(np.float64)
    expected = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert permutation(differences[:, None]) == pytest.approx([expected.pvalue])


def test_the_sign_flip_test_of_many_users_agrees_with_scipys_within_its_chance() -> None:
    differences = np.random.default_rng(3).normal(0.15, 1, (150, 1))
    found = permutation(differences, flips=9_999)
    expected = stats.permutation_test(
        (differences[:, 0],), np.mean, permutation_type="samples", n_resamples=9_999, rng=np.random.default_rng(5)
    )
    assert found == pytest.approx([expected.pvalue], abs=0.015)  # three standard errors of two such shares near 0.05


@settings(max_examples=10)  # statsmodels takes its time
@given(SEEDS, st.integers(1, 30))
def test_the_correction_is_statsmodels_holm(seed: int, family: int) -> None:
    p = np.random.default_rng(seed).integers(0, 40, family) / 400  # ties, zeros, and what is cut off at 1
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])


@given(SEEDS, st.integers(1, 30), st.integers(2, 40))
def test_the_bootstrap_interval_is_scipys_draw_by_draw(seed: int, users: int, resamples: int) -> None:
    values = np.random.default_rng(seed).random(users)
    means = bootstrap(values[:, None], resamples=resamples, seed=seed)[:, 0]
    if users == 1:
        assert np.ptp(means) == 0
        return
    expected = stats.bootstrap(  # the same generator draws the same users
        (values,), np.mean, n_resamples=resamples, method="percentile", rng=np.random.default_rng(seed)
    )
    np.testing.assert_allclose(means, expected.bootstrap_distribution)
    np.testing.assert_allclose(percentile_interval(means[:, None])[:, 0], expected.confidence_interval)


@given(SEEDS, st.integers(15, 3000), st.sampled_from([0.05, 0.001]))
def test_the_detectable_difference_is_that_of_statsmodels_power(seed: int, users: int, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    ours, theirs = rng.normal(size=(2, 1, users))
    found = paired(ours, theirs)
    expected = abs(TTestPower().solve_power(nobs=users, alpha=alpha, power=0.8)) * found.deviation  # either side's
    assert found.detectable(alpha) == pytest.approx(expected, rel=0.02 if users > 60 else 0.12)


# Edges


TESTS: list[Callable[[np.ndarray], float]] = [
    lambda differences: paired(differences[None], np.zeros((1, len(differences)))).p,
    lambda differences: float(wilcoxon(differences[:, None])[0]),
    lambda differences: float(permutation(differences[:, None])[0]),
]


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("users", [1, 2, 200])
def test_rows_that_never_differ_are_not_told_apart(test: Callable[[np.ndarray], float], users: int) -> None:
    assert test(np.zeros(users)) == 1


@pytest.mark.parametrize("test", TESTS)
def test_one_user_proves_nothing(test: Callable[[np.ndarray], float]) -> None:
    assert test(np.array([0.7])) == 1


@pytest.mark.parametrize("test", TESTS)
def test_a_constant_gain_of_many_users_is_beyond_doubt(test: Callable[[np.ndarray], float]) -> None:
    assert test(np.full(300, 0.1)) < 1e-4


def test_a_gain_that_never_varies_has_no_effect_size() -> None:
    assert paired(np.full((1, 5), 0.3), np.full((1, 5), 0.1)).effect is None
    assert paired(np.array([[0.3]]), np.array([[0.1]])).effect is None


@given(SEEDS, st.permutations(range(3)))
def test_the_order_of_seeds_makes_no_difference_between_users(seed: int, order: list[int]) -> None:
    row = np.random.default_rng(seed).integers(0, 7, (3, 20)) / 7
    assert not statistics.user_differences(row, row[order]).any()
    assert paired(row, row[order], seed_variance([row])).p == 1


def test_no_comparisons_need_no_correction() -> None:
    assert holm(np.array([])).shape == (0,)


# Seeds


def test_with_seeds_the_variance_is_what_its_formula_says() -> None:
    ours = np.array([[4.0, 8.0, 3.0], [2.0, 2.0, 5.0]])  # means 5 and 3, so that s^2 = 2
    theirs = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])  # one number whatever the seed
    # cells less user and seed: (0, 2, -2), (0, -2, 2): 16 / (1 x 2) = 8, of which a third is in s^2: g = 2 - 8/3 < 0
    assert statistics._seed_variances(ours) == pytest.approx((2 - 8 / 3, 2))
    found = seed_variance([ours, theirs])
    assert found is not None
    assert (found.own, found.seen, found.degrees) == pytest.approx((0, 1, 2**2 / 2**2))
    ours, theirs = ours + np.array([[5.0], [-5.0]]), theirs + np.array([[0.0], [8.0]])  # s^2 = 72 and 32
    own = 72 - 8 / 3, 32
    found = seed_variance([ours, theirs])
    assert found is not None
    assert (found.own, found.seen) == pytest.approx((np.mean(own), 52))
    assert found.degrees == pytest.approx((72 + 32) ** 2 / (72**2 + 32**2))
    difference = paired(ours, theirs, found)
    of_users = np.var([2, 3, 1], ddof=1) / 3  # 3 - 1, 5 - 2 and 4 - 3, each less 4
    assert difference.mean == pytest.approx(-2)
    assert difference.error**2 == pytest.approx(of_users + own[0] / 2 + found.own / 2)  # the larger of own and common
    assert difference.degrees == pytest.approx(
        difference.error**4 / (of_users**2 / 2 + (52 / 2 + 52 / 2) ** 2 / found.degrees + ((72 - 52) / 2) ** 2 / 1)
    )


def test_a_row_whose_seeds_vary_more_than_the_others_is_known_by_its_own_degrees_of_freedom() -> None:
    rng = np.random.default_rng(0)
    still = [rng.random((3, 50)) for _ in range(20)]
    wild = rng.random((3, 50)) + np.array([[-1.0], [0.0], [1.0]])
    of_all = seed_variance([wild, *still])
    assert of_all is not None
    assert paired(still[0], wild, of_all).degrees < 2.5  # 3 seeds less one, and a little of the users'
    assert paired(still[0], still[1], of_all).degrees == pytest.approx(of_all.degrees, rel=0.5)


@given(SEEDS, st.integers(1, 6), st.integers(2, 30))
def test_a_single_rows_mean_has_the_variance_of_its_users_and_seeds(seed: int, seeds: int, users: int) -> None:
    rng = np.random.default_rng(seed)
    row, others = rng.random((seeds, users)), [rng.random((3, users)) for _ in range(2)]
    of_all = seed_variance([row, *others])
    assert of_all is not None
    found = mean_of(row, of_all)
    own = statistics._seed_variances(row)[0]
    expected = row.mean(axis=0).var(ddof=1) / users + max(own, of_all.own) / seeds
    assert (found.mean, found.error**2) == pytest.approx((row.mean(), expected))
    low, high = found.interval()
    assert low <= found.mean <= high


@given(SEEDS, st.integers(2, 4), st.integers(2, 30))
def test_whatever_seeds_do_p_and_interval_are_numbers(seed: int, seeds: int, users: int) -> None:
    rng = np.random.default_rng(seed)
    study = [rng.integers(0, 2, (seeds, users)) * rng.choice([0.0, 1.0]) for _ in range(3)]
    found = paired(study[0], study[1], seed_variance(study))
    assert 0 <= found.p <= 1
    assert np.isfinite([*found.interval(), found.detectable(1e-4)]).all()


def test_without_a_second_seed_nothing_is_known_of_seeds() -> None:
    assert seed_variance([np.ones((1, 9)), np.zeros((1, 9))]) is None
    assert seed_variance([np.ones((3, 1))]) is None


def test_a_row_of_one_seed_is_judged_by_the_seeds_of_the_others() -> None:
    rng = np.random.default_rng(0)
    baseline = rng.random((3, 100)) + np.array([[0.0], [0.3], [0.6]])
    alone = rng.random((1, 100)) + 0.6
    assert paired(alone, baseline).p < 1e-6
    assert paired(alone, baseline, seed_variance([alone, baseline])).p > 0.05


def test_seeds_that_move_nothing_leave_the_test_over_users() -> None:
    ours, theirs = np.random.default_rng(1).random((2, 1, 50))
    still = [np.repeat(row, 3, axis=0) for row in (ours, theirs)]
    with_seeds, without = paired(*still, seed_variance(still)), paired(*still)
    assert (with_seeds.p, with_seeds.interval()) == (pytest.approx(without.p), pytest.approx(without.interval()))


# Work


def test_columns_share_their_resampled_users() -> None:
    values = np.random.default_rng(0).random((30, 2))
    both = bootstrap(values, resamples=50)
    difference = bootstrap(values[:, :1] - values[:, 1:], resamples=50)
    np.testing.assert_allclose(both[:, :1] - both[:, 1:], difference, atol=1e-12)


def test_how_the_work_is_cut_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(40, 2))
    whole = bootstrap(values, resamples=30), permutation(values, flips=500)
    monkeypatch.setattr(statistics, "BLOCK_BYTES", 40 * 8 * 7)
    cut = bootstrap(values, resamples=30), permutation(values, flips=500)
    np.testing.assert_allclose(cut[0], whole[0])
    np.testing.assert_array_equal(cut[1], whole[1])


@pytest.mark.slow
def test_the_bootstrap_of_63_000_users_fits_a_small_memory() -> None:
    values = np.random.default_rng(0).random((63_000, 8))
    tracemalloc.start()
    bootstrap(values, resamples=1_000)
    permutation(values - 0.5, flips=1_000)
    assert tracemalloc.get_traced_memory()[1] < 256 << 20
    tracemalloc.stop()


# The promise


def null_study(rng: np.random.Generator, *, rows: int, seeds: int, users: int, seed_sd: float) -> list[np.ndarray]:
    """Rows (S, U) of hits that are all equally good in truth: tastes differ by row and user, luck by cell, and each
    seed moves its whole row by a factor of standard deviation `seed_sd`."""
    base = rng.beta(0.4, 4, users)  # of a hit: 0.09 in the mean, most users far below
    chances = (
        base * (1 + 0.8 * rng.choice([-1, 1], users)) * (1 + seed_sd * rng.normal(size=(seeds, 1))) for _ in range(rows)
    )
    return [(rng.random((seeds, users)) < chance).astype(np.float64) for chance in chances]


def false_alarms(*, studies: int, seeds: int, seed_sd: float, rows: int, users: int = 400) -> tuple[float, float]:
    """The share of studies without any true difference in which one is found: with seeds counted, and over users."""
    rng = np.random.default_rng(7)
    found = np.zeros(2)
    for _ in range(studies):
        baseline, *others = study = null_study(rng, rows=rows, seeds=seeds, users=users, seed_sd=seed_sd)
        for place, known in enumerate((seed_variance(study), None)):
            p = holm(np.array([paired(row, baseline, known).p for row in others]))
            found[place] += (p < 0.05).any()
    return tuple(found / studies)  # type: ignore[return-value]


@pytest.mark.slow
@pytest.mark.parametrize("seed_sd", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("rows", [2, 13])
def test_where_nothing_differs_a_study_finds_something_in_5_percent_at_most(seed_sd: float, rows: int) -> None:
    studies = 600
    with_seeds, _ = false_alarms(studies=studies, seeds=3, seed_sd=seed_sd, rows=rows)
    assert with_seeds <= 0.05 + 2 * (0.05 * 0.95 / studies) ** 0.5


def excess(studies: int) -> float:
    """What the share of false alarms may lie above its level by chance alone (three deviations)."""
    return 3 * (0.05 * 0.95 / studies) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.rows == 12], ids=str)
def test_tables_of_null_studies_have_a_star_in_6_5_percent_at_most(kind: Kind) -> None:
    found = counts(kind, studies=200, seed=(1, 99))
    assert found["stars"] / 200 <= 0.065 + excess(200) / 2
    assert found["either"] / 200 <= 0.065 + excess(200)


def test_tables_of_null_studies_tell_luck_from_skill_where_a_test_over_users_does_not() -> None:
    kind = Kind(rows=4, seeds=3, seed_sd=0.3, ratio=2)
    honest, naive = (counts(kind, studies=40, seed=(2, 99), test=test) for test in ("t-test", "t-test-users"))
    assert naive["either"] > 12, "or the studies would be too easy"
    assert honest["either"] <= 6
    assert honest["stars"] + honest["losses"] >= honest["either"] >= max(honest["stars"], honest["losses"])


def test_what_is_done_of_the_null_studies_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = [Kind(rows=2, seeds=3, seed_sd=0.1, ratio=ratio) for ratio in (1, 2)]
    monkeypatch.setattr(null_studies, "KINDS", kinds)
    monkeypatch.setattr(null_studies, "BLOCK", 2)
    out = tmp_path / "null.jsonl"
    null_studies.main(["--out", str(out), "--studies", "4", "--part", "1/2"])
    half = out.read_text()
    assert half.count("\n") == 2
    null_studies.main(["--out", str(out), "--studies", "4"])
    assert out.read_text().startswith(half)
    assert sorted((place, block) for place, block, _ in null_studies.blocks(out)) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert "| 2 | 3 | 2 times as much |" in null_studies.report(out)


def test_a_test_over_users_alone_takes_the_luck_of_seeds_for_skill() -> None:
    with_seeds, over_users = false_alarms(studies=40, seeds=3, seed_sd=0.3, rows=9)
    assert over_users > 0.3
    assert with_seeds < 0.15


def test_a_difference_that_is_there_is_found() -> None:
    rng = np.random.default_rng(0)
    study = null_study(rng, rows=5, seeds=3, users=3000, seed_sd=0.03)
    study[1] = np.maximum(study[1], rng.random((3, 3000)) < 0.06)
    p = holm(np.array([paired(row, study[0], seed_variance(study)).p for row in study[1:]]))
    assert p[0] < 0.01
    assert (p[1:] > 0.05).all()
