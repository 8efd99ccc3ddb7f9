"""From runs to a Leaderboard: small worlds in which it is known what is better than what, and what isn't."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mmrec_lmm.data.opening import open_dataset
from mmrec_lmm.disk.writing import write_json
from mmrec_lmm.errors import ConfigError, DataError
from mmrec_lmm.evaluation.statistics import TESTS, bootstrap, holm, percentile_interval
from mmrec_lmm.plugin.registry import Registry
from mmrec_lmm.running import run_folder
from mmrec_lmm.running.grid import run_grid
from mmrec_lmm.running.slices import Slicer
from mmrec_lmm.studies.comparison import Entry, Method, compare
from mmrec_lmm.studies.leaderboard import FAILED, NOT_APPLICABLE, Leaderboard, from_document
from mmrec_lmm.types import UNRECORDED, Axes, EncoderName, RunResult, RunSeconds, RunSpec

Make = Callable[..., Entry]
METRIC = "recall@20"
USERS = 200
SETTINGS = {"epochs": 100, "eval_step": 1}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Entries whose runs, one for each row of `values` (S, U), hold those values; `axes` differ from VBPR on demo.
    `valid` is what each run scored on validation, and `run` what its result says otherwise."""

    def make(
        values: Any,
        *,
        users: Sequence[int] | None = None,
        data: str = "d",
        valid: float = 0.0,
        valid_metric: str = "Recall@20",
        run: Mapping[str, Any] | None = None,
        **axes: Any,
    ) -> Entry:
        place: dict[str, Any] = {"model": "VBPR", "dataset": "demo", "encoder": "basic", "paradigm": "pt"}
        place |= {"modalities": ("image", "text"), **axes}
        place["encoder"] = EncoderName.parse(place["encoder"]) if place["encoder"] else None
        runs = []
        for seed, row in enumerate(np.atleast_2d(np.asarray(values, np.float64)), start=1):
            folder = tmp_path / "-".join(map(str, [*place.values(), data, seed, len(list(tmp_path.iterdir()))]))
            folder.mkdir()
            ids = np.arange(len(row)) if users is None else np.array(users)
            run_folder.save_per_user(folder, {"test": {"users": ids, METRIC: row, "ndcg@20": row / 2}})
            write_json(
                folder / run_folder.CONFIG,
                {"model": place["model"], "settings": {"seed": seed, "valid_metric": valid_metric, **SETTINGS}},
            )
            record = dataclasses.replace(
                UNRECORDED,
                axes=Axes("", "", modalities=("image", "text")),
                seed=seed,
                data=data,
                features={"image": "f"},
                code={"host": "c"},
                versions={"torch": "2"},
                device="cpu",
                threads=1,
                seconds=RunSeconds(encode=0.1, encoder=3.0, train=10.0 * seed),
                peak_memory_bytes=100 * seed,
                parameters_trained=7,
            )
            parameters = {"reg_weight": 0.1, "seed": seed}
            done = RunResult(
                folder.name, folder, parameters, {valid_metric.lower(): valid}, {}, 10, 31, "patience", record
            )
            runs.append(dataclasses.replace(done, **(run or {})))
        return Entry(Axes(**place), runs=runs)

    return make


def board(*entries: Entry, **options: Any) -> Leaderboard:
    options = {"metrics": ["Recall@20"], "baseline": {"encoder": "basic"}} | options
    names = {field.name for field in dataclasses.fields(Method)}
    method = Method(**{name: value for name, value in options.items() if name in names})
    rest = {name: value for name, value in options.items() if name not in names}
    return compare(entries, method, **{"study": "small", **rest})


def noise(seed: int, seeds: int = 3, users: int = USERS) -> np.ndarray:
    return np.random.default_rng(seed).random((seeds, users))


# One row


def test_a_row_has_its_axes_its_cost_and_its_reproducibility_record(make: Make) -> None:
    (row,) = board(make([[0, 1.0], [1, 1]])).rows
    assert (row.key, row.seeds, row.seconds, row.encoder_seconds) == ("VBPR/demo/basic/pt/image+text", (1, 2), 15, 3)
    assert (row.memory, row.parameters_trained, dict(row.parameters)) == (200, 7, {"reg_weight": 0.1})
    record = row.reproducibility
    assert record is not None
    assert record.replay == tuple(f"mmrec-lmm replay {run}" for run in row.runs)
    assert record.config == {
        "model": "VBPR",
        "settings": {"seed": 1, "valid_metric": "Recall@20", **SETTINGS},
    }
    assert (record.data, record.versions) == ("d", {"torch": "2"})


def test_a_score_is_the_mean_over_users_of_their_means_over_seeds(make: Make) -> None:
    (row,) = board(make([[0, 1.0, 0.5], [1, 1, 0]])).rows
    score = row.scores[METRIC]
    assert score.mean == pytest.approx((1 / 2 + 1 + 1 / 4) / 3)
    assert score.seeds == pytest.approx((1 / 2, 2 / 3))
    assert score.interval.mean == score.mean
    assert score.interval.low < score.mean < score.interval.high
    assert (score.against, score.p, score.star) == (None, None, False)


def test_a_rows_interval_counts_its_seeds_where_it_has_several(make: Make) -> None:
    values = np.array([[0.2, 0.6, 0.1], [0.4, 0.4, 0.7]])  # means 0.3 and 0.5
    (row,) = board(make(values)).rows
    # cells less user and seed: (0, .2, -.2), (0, -.2, .2): .16 / (1 x 2), of which a third is taken off seeds' .02
    g = max(0, 0.02 - 0.08 / 3)
    of_users = np.var([0.3, 0.5, 0.4], ddof=1) / 3
    degrees = (of_users + g / 2) ** 2 / (of_users**2 / 2 + (0.02 / 2) ** 2 / 1)
    half = stats.t.ppf(0.975, max(1, degrees)) * (of_users + g / 2) ** 0.5
    interval = row.scores[METRIC].interval
    assert dataclasses.astuple(interval) == pytest.approx((0.4, 0.4 - half, 0.4 + half))
    (moved,) = board(make(values + np.array([[0.0], [0.3]]))).rows  # means 0.3 and 0.8: s^2 = .125
    g = 0.125 - 0.08 / 3
    degrees = (of_users + g / 2) ** 2 / (of_users**2 / 2 + (0.125 / 2) ** 2 / 1)
    half = stats.t.ppf(0.975, max(1, degrees)) * (of_users + g / 2) ** 0.5
    assert dataclasses.astuple(moved.scores[METRIC].interval) == pytest.approx((0.55, 0.55 - half, 0.55 + half))


def test_a_row_of_one_seed_has_an_interval_over_users_alone(make: Make) -> None:
    values = noise(1, seeds=1)
    found = board(make(values))
    low, high = percentile_interval(bootstrap(values.T))[:, 0]
    assert dataclasses.astuple(found.rows[0].scores[METRIC].interval) == (values.mean(), low, high)
    assert "demo: its only row has one seed: intervals are over users only" in " ".join(found.notes)


def test_rows_that_failed_or_are_not_applicable_stay_in_their_place_with_their_reason(make: Make) -> None:
    failed = Entry(Axes("MMGCL", "demo", EncoderName("basic"), "ft"), state=FAILED, reason="the loss was NaN")
    barred = Entry(Axes("BPR", "demo", None, "ete", ()), state=NOT_APPLICABLE, reason="it uses no item features")
    found = board(failed, make(noise(1)), barred)
    assert [(row.axes.model, row.reason) for row in found.rows] == [
        ("MMGCL", "the loss was NaN"),
        ("VBPR", ""),
        ("BPR", "it uses no item features"),
    ]
    assert not found.rows[0].scores
    assert "Of 3 rows, 1 failed, 1 not applicable; each says why." in found.notes


# Differences


def test_a_difference_comes_with_its_interval_effect_and_p(make: Make) -> None:
    base = noise(1)
    better = base + 0.1 + 0.1 * noise(2)
    found = board(make(base), make(better, encoder="clip"), test="t-test-users")
    score = found.rows[1].scores[METRIC]
    differences = (better - base).mean(axis=0)
    assert score.against == found.rows[0].key
    assert score.difference is not None
    assert score.difference.mean == pytest.approx(differences.mean())
    assert score.difference.low < differences.mean() < score.difference.high
    assert score.effect == pytest.approx(differences.mean() / differences.std(ddof=1))
    assert score.p == pytest.approx(stats.ttest_rel(better.mean(axis=0), base.mean(axis=0)).pvalue)
    assert score.star
    assert found.comparisons == 1
    assert found.rows[0].scores[METRIC].p is None


@pytest.mark.parametrize("test", ["t-test", "t-test-users", "wilcoxon", "permutation"])
def test_equal_rows_get_no_star_and_better_ones_do_by_each_test(make: Make, test: str) -> None:
    base = noise(1, users=60)
    equal, better, worse = make(base, encoder="a"), make(base + 0.2, encoder="b"), make(base - 0.2, encoder="c")
    rows = board(make(base), equal, better, worse, test=test).rows
    scores = [row.scores[METRIC] for row in rows[1:]]
    assert [score.star for score in scores] == [False, True, False]
    assert scores[0].p == 1
    assert scores[2].p is not None
    assert scores[2].p < 0.01  # worse for sure, which is no star


def test_a_star_appears_only_after_correction(make: Make) -> None:
    base, ours = noise(1), noise(1)
    shift = np.tile([0.3, -0.3], USERS // 2)
    ours += shift + 0.05  # t = 0.05 / (0.3 / sqrt(200)) = 2.35
    options = {"test": "t-test-users"}
    alone = board(make(base), make(ours, encoder="a"), **options).rows[1].scores[METRIC]
    assert alone.p == pytest.approx(stats.ttest_1samp(shift + 0.05, 0).pvalue)
    assert alone.star
    others = [make(base + np.roll(shift, k % 2), encoder=f"e{k}") for k in range(3)]
    found = board(make(base), make(ours, encoder="a"), *others, **options)
    among = found.rows[1].scores[METRIC]
    assert among.p is not None
    assert among.p == pytest.approx(4 * (alone.p or 0))
    assert (found.comparisons, among.star) == (4, False)


def test_the_family_is_all_rows_and_metrics_unless_the_study_narrows_it(make: Make) -> None:
    base = noise(1)
    entries = [make(base), *(make(noise(k), encoder=f"e{k}", paradigm="pt") for k in (2, 3))]
    entries += [make(noise(4), model="BPR"), make(noise(5), model="BPR", encoder="e2")]
    whole = board(*entries, metrics=["recall@20", "NDCG@20"])
    assert (whole.metrics, whole.comparisons) == ((METRIC, "ndcg@20"), 6)
    narrowed = board(*entries, metrics=["recall@20", "NDCG@20"], family=["model"], test="t-test-users")
    assert narrowed.comparisons == 4
    assert "p is corrected within 2 families of up to 4 comparisons." in narrowed.notes
    raw = [stats.ttest_rel(entry.mean(0), base.mean(0)).pvalue for entry in (noise(2), noise(3)) for _ in range(2)]
    scores = [row.scores[metric].p for row in narrowed.rows[1:3] for metric in narrowed.metrics]
    assert scores == pytest.approx(holm(np.array(raw)))


def test_seeds_that_differ_as_much_as_rows_do_cost_the_star(make: Make) -> None:
    shifts = np.array([[-0.1], [0.0], [0.1]])
    base, ours = 0.2 * noise(1) + shifts, 0.2 * noise(2) + shifts + 0.06
    over_users = board(make(base), make(ours, encoder="a"), test="t-test-users")
    with_seeds = board(make(base), make(ours, encoder="a"))
    assert over_users.rows[1].scores[METRIC].star
    assert "the test `t-test` counts seeds too" in " ".join(over_users.notes)
    score = with_seeds.rows[1].scores[METRIC]
    assert not score.star
    assert score.difference is not None
    assert score.difference.low < 0 < score.difference.high


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize(("ours", "theirs"), [(1, 1), (1, 3), (3, 1), (2, 3), (3, 2), (3, 3), (5, 4)])
def test_a_star_needs_three_seeds_on_both_sides_two_give_p_one_neither(
    make: Make, test: str, ours: int, theirs: int
) -> None:
    base, better = noise(1, seeds=theirs), noise(2, seeds=ours) + 0.5
    found = board(make(base), make(better, encoder="a"), make(better, encoder="a", control="none"), test=test)
    row, fewest = found.rows[1], min(ours, theirs)
    score = row.scores[METRIC]
    assert score.difference is not None
    assert score.difference.mean == pytest.approx(better.mean() - base.mean())
    assert (score.p is not None, score.star) == (fewest > 1, fewest > 2)
    assert (score.difference.low is not None, score.difference.high is not None) == (fewest > 1, fewest > 1)
    assert (row.content_gain["none"][METRIC].low is not None) == (ours > 1)
    assert (found.comparisons, bool(found.detectable)) == (fewest > 1, fewest > 1)
    assert found.untested == (
        "" if fewest > 1 else "Nothing was tested: every difference has a side with a single seed."
    )
    notes = " ".join(found.notes)
    assert ("A star needs three seeds on both sides." in notes) == (fewest < 3)
    assert ("have one seed" in notes, "have two seeds" in notes) == (1 in (ours, theirs), 2 in (ours, theirs))
    assert from_document(json.loads(json.dumps(found.document()))).document() == found.document()


def test_differences_of_one_seed_do_not_enlarge_the_family(make: Make) -> None:
    base = noise(1)
    alone = board(make(base), make(noise(2), encoder="a")).rows[1].scores[METRIC]
    found = board(make(base), make(noise(2), encoder="a"), make(noise(3, seeds=1), encoder="b"), test="t-test-users")
    assert found.comparisons == 1
    assert found.rows[1].scores[METRIC].p == pytest.approx(
        stats.ttest_rel(noise(2).mean(axis=0), base.mean(axis=0)).pvalue
    )
    assert alone.p is not None
    assert "demo: 1 of 3 rows have one seed" in " ".join(found.notes)


def test_the_detectable_difference_is_at_the_corrected_level(make: Make) -> None:
    rng = np.random.default_rng(0)
    base = np.tile(rng.random((1, 1000)), (3, 1))
    ours = base + rng.normal(0, 0.2, 1000)
    options = {"test": "t-test-users"}
    (alone,) = board(make(base), make(ours, encoder="a"), **options).detectable["demo"].values()
    z = stats.norm.ppf
    assert alone == pytest.approx((z(1 - 0.05 / 2) + z(0.8)) * 0.2 / 1000**0.5, rel=0.08)
    entries = [make(ours, encoder=f"e{k}") for k in range(10)]
    among = board(make(base), *entries, **options).detectable["demo"][METRIC]
    assert among == pytest.approx((z(1 - 0.005 / 2) + z(0.8)) * 0.2 / 1000**0.5, rel=0.08)


# What is compared with what


def test_a_baseline_agrees_with_its_row_on_the_axes_that_it_does_not_name(make: Make) -> None:
    entries = [
        make(noise(k), model=model, encoder=encoder, paradigm=paradigm)
        for k, (model, encoder, paradigm) in enumerate(
            [(model, *rest) for model in ("VBPR", "LATTICE") for rest in (("CNN", "pt"), ("clip:tiny", "ft"))]
        )
    ]
    rows = board(*entries, baseline={"encoder": "cnn", "paradigm": "pt"}).rows
    against = {row.key: row.scores[METRIC].against for row in rows}
    assert against == {
        "VBPR/demo/CNN/pt/image+text": None,
        "VBPR/demo/clip:tiny/ft/image+text": "VBPR/demo/CNN/pt/image+text",
        "LATTICE/demo/CNN/pt/image+text": None,
        "LATTICE/demo/clip:tiny/ft/image+text": "LATTICE/demo/CNN/pt/image+text",
    }


IDS = {"encoder": None, "modalities": ()}


def test_a_study_without_a_baseline_takes_its_id_only_model(make: Make) -> None:
    found = board(make(noise(1)), make(noise(2), model="BPR", **IDS), baseline={})
    assert found.rows[0].scores[METRIC].against == found.rows[1].key
    assert (found.baseline, found.untested) == ("model BPR", "")
    assert "The study names no baseline: rows are tested against BPR, its only ID-only model." in found.notes


def test_of_several_id_only_models_it_is_the_best_on_validation_whatever_they_do_on_test(make: Make) -> None:
    entries = [
        make(noise(1)),
        make(noise(2) + 0.5, model="BPR", valid=0.1, **IDS),
        make(noise(3), model="LightGCN", valid=0.2, **IDS),
    ]
    found = board(*entries, baseline={})
    assert [row.scores[METRIC].against for row in found.rows] == ["LightGCN/demo/-/pt/-"] * 2 + [None]
    assert "tested against LightGCN, of its ID-only models the best on validation (BPR 0.1000, LightGCN 0.2000" in (
        " ".join(found.notes)
    )


def test_over_data_sets_the_id_only_model_is_best_in_the_mean_of_all(make: Make) -> None:
    valid = {("BPR", "demo"): 0.5, ("BPR", "baby"): 0.1, ("LightGCN", "demo"): 0.4, ("LightGCN", "baby"): 0.3}
    entries = [
        make(noise(1), model=model, dataset=dataset, data=dataset, valid=score, **IDS)
        for (model, dataset), score in valid.items()
    ]
    entries.append(make(noise(2), model="MF", dataset="demo", data="demo", valid=0.9, **IDS))  # on one of two alone
    assert board(*entries, baseline={}).baseline == "model LightGCN"


def test_controls_and_unfinished_rows_are_no_id_only_baseline(make: Make) -> None:
    pending = Entry(Axes("BPR", "demo", modalities=()), state="pending")
    found = board(make(noise(1)), make(noise(2), control="none", encoder=None), pending, baseline={})
    assert found.baseline == ""
    assert found.untested == (
        "Nothing was tested: the study names no baseline, and no ID-only model of it is finished (BPR)."
    )


def test_without_any_baseline_the_board_says_that_nothing_was_tested(make: Make) -> None:
    found = board(make(noise(1)), make(noise(2) + 1, encoder="a"), baseline={})
    assert (found.baseline, found.comparisons) == ("", 0)
    assert found.untested == (
        "Nothing was tested: the study names no baseline and has no ID-only model; `baseline: {axis: value}` in its "
        "file names one."
    )
    assert board(Entry(Axes("BPR", "demo", modalities=()), state="pending"), baseline={}).untested == (
        "Nothing was tested: no row is finished yet."
    )


def test_a_baseline_that_no_row_matches_is_an_error_that_says_what_there_is(make: Make) -> None:
    entries = [make(noise(1)), make(noise(2), encoder="clip:tiny")]
    with pytest.raises(
        ConfigError,
        match=r"small: baseline: expected values that a row of the study has, got encoder cnn; try encoder basic, clip",
    ):
        board(*entries, baseline={"encoder": "cnn"})
    entries.append(make(noise(3), model="BPR", **IDS))
    with pytest.raises(
        ConfigError, match=r"that a row of the study has together, got model BPR, encoder clip; try VBPR/"
    ):
        board(*entries, baseline={"model": "BPR", "encoder": "clip"})
    with pytest.raises(ConfigError, match=r"got control random; try control -"):
        board(*entries, baseline={"control": "random"})


def test_a_baseline_that_is_still_pending_is_said_first(make: Make) -> None:
    pending = Entry(Axes("VBPR", "demo", EncoderName("cnn")), state="pending")
    found = board(make(noise(1)), pending, baseline={"encoder": "cnn"})
    assert found.untested == "Nothing was tested: no row that is the baseline (encoder cnn) is finished."
    assert found.baseline == "encoder cnn"


def test_a_model_without_features_is_a_baseline_of_any_row(make: Make) -> None:
    plain = make(noise(1), model="BPR", encoder=None, modalities=())
    rows = board(plain, make(noise(2)), make(noise(3), encoder="clip"), baseline={"model": "BPR"}).rows
    assert [row.scores[METRIC].against for row in rows] == [None, "BPR/demo/-/pt/-", "BPR/demo/-/pt/-"]


def test_a_model_without_features_stands_in_for_no_baseline_that_names_neither_model_nor_encoder(make: Make) -> None:
    ids_alone, tuned = make(noise(1), model="LightGCN", encoder=None, modalities=()), make(noise(2), paradigm="ft")
    found = board(ids_alone, tuned, baseline={"paradigm": "pt"})
    assert found.rows[1].scores[METRIC].against is None
    assert "Not tested, as no row of their data set is their baseline: VBPR/demo/basic/ft/image+text." in found.notes


def test_a_baseline_that_is_several_rows_is_refused(make: Make) -> None:
    entries = [make(noise(n), encoder=encoder) for n, encoder in enumerate(("clip:tiny", "clip:ViT-L-14", "basic"))]
    with pytest.raises(
        ConfigError, match=r"baseline: expected .* one row, got encoder clip, .* VBPR/demo/clip:tiny.*ViT-L-14"
    ):
        board(*entries, baseline={"encoder": "clip"})


def test_a_star_of_signed_ranks_wants_these_and_the_mean_to_be_above(make: Make) -> None:
    base = np.full((3, 100), 0.5)
    many_below_few_far_above = base + np.r_[np.full(80, -0.1), np.full(20, 0.5)] + noise(0, users=100)[:1] / 1e6
    above = base + 0.1 + noise(0, users=100)[:1] / 1e6
    rows = board(
        make(base), make(many_below_few_far_above, encoder="a"), make(above, encoder="b"), test="wilcoxon"
    ).rows
    scores = [row.scores[METRIC] for row in rows[1:]]
    assert [(score.p < 0.05, score.difference.mean > 0, score.star) for score in scores] == [
        (True, True, False), (True, True, True),
    ]  # fmt: skip


def test_a_row_whose_baseline_is_missing_is_not_tested_and_named(make: Make) -> None:
    found = board(make(noise(1)), make(noise(2), encoder="a"), make(noise(3), model="LATTICE", encoder="a"))
    assert found.rows[2].scores[METRIC].p is None
    assert "Not tested, as no row of their data set is their baseline: LATTICE/demo/a/pt/image+text." in found.notes


def test_rows_of_different_data_sets_are_never_compared(make: Make) -> None:
    found = board(make(noise(1)), make(noise(2, users=9) + 9, encoder="a", dataset="baby", data="b"))
    assert found.rows[1].scores[METRIC].against is None
    assert found.users == {"demo": USERS, "baby": 9}


def test_the_best_is_marked_within_its_group_and_controls_do_not_compete(make: Make) -> None:
    entries = [
        make(noise(1)),
        make(noise(1) + 0.1, encoder="a"),
        make(noise(1) + 0.2, encoder="a", control="random"),
        make(noise(1) - 0.1, model="BPR"),
    ]
    best = [row.scores[METRIC].best for row in board(*entries).rows]
    assert best == [False, True, False, False]
    best = [row.scores[METRIC].best for row in board(*entries, best_within=["dataset", "model"]).rows]
    assert best == [False, True, False, True]


def test_content_gain_is_a_rows_difference_to_its_own_twins(make: Make) -> None:
    own = noise(1)
    entries = [
        make(own),
        make(own - 0.25, control="none"),
        make(own - 0.5 + 0.1 * noise(2), control="shuffled"),
        make(own - 9, control="none", encoder="another"),
    ]
    found = board(*entries, test="t-test-users")
    gains = found.rows[0].content_gain
    assert gains.keys() == {"none", "shuffled"}
    assert dataclasses.astuple(gains["none"][METRIC]) == pytest.approx((0.25, 0.25, 0.25))
    shuffled = gains["shuffled"][METRIC]
    assert 0.4 < shuffled.low < shuffled.mean < shuffled.high < 0.5
    assert found.rows[0].twins == {"none": found.rows[1].key, "shuffled": found.rows[2].key}
    assert all(not row.content_gain and row.scores[METRIC].p is None for row in found.rows[1:])


def test_one_twin_without_features_is_that_of_every_encoder_and_paradigm(make: Make) -> None:
    none = {"control": "none", "encoder": None}
    entries = [
        make(noise(1)),
        make(noise(2), encoder="clip", paradigm="ft"),
        make(noise(3), **none),
        make(noise(4), encoder="clip", modalities=("image",)),
        make(noise(5), modalities=("image",), **none),
        make(noise(6), model="LATTICE"),
        make(noise(7), control="constant"),
    ]
    rows = board(*entries).rows
    assert [row.twins for row in rows] == [
        {"none": rows[2].key, "constant": rows[6].key}, {"none": rows[2].key}, {}, {"none": rows[4].key}, {}, {}, {},
    ]  # fmt: skip
    assert rows[2].key == "VBPR/demo/-/pt/image+text/none"
    gain = rows[1].content_gain["none"][METRIC]
    assert gain.mean == pytest.approx(noise(2).mean() - noise(3).mean())


def test_a_twin_of_ones_own_comes_before_the_shared_one_in_either_order(make: Make) -> None:
    shared, own = make(noise(2), control="none", encoder=None), make(noise(3), control="none")
    for entries in ([make(noise(1)), shared, own], [make(noise(1)), own, shared]):
        assert board(*entries).rows[0].twins == {"none": own.key}


# How rows rank, and their marks


def test_rows_rank_by_the_metric_that_selected_their_runs(make: Make) -> None:
    entries = [make(noise(k), encoder=f"e{k}", valid_metric="NDCG@20") for k in range(3)]
    both = {"metrics": ["Recall@20", "NDCG@20"], "baseline": {"encoder": "e0"}}
    found = board(*entries, **both)
    assert (found.ranked_by, found.main_metric, found.metrics[0]) == ("ndcg@20", "ndcg@20", METRIC)
    assert not any("rank by" in note for note in found.notes)
    lacking = board(*entries, baseline={"encoder": "e0"})
    assert lacking.main_metric == METRIC
    assert (
        "Runs were selected on validation by ndcg@20 (3 of 3 rows); ndcg@20 isn't among the study's metrics: rows rank "
        "by recall@20."
    ) in lacking.notes
    mixed = board(*entries, make(noise(4)), **both)
    assert mixed.main_metric == "ndcg@20"
    assert (
        "Runs were selected on validation by ndcg@20 (3 of 4 rows), recall@20 (1 of 4 rows): rows rank by ndcg@20."
        in (" ".join(mixed.notes))
    )


def test_rows_never_rank_by_a_metric_of_which_smaller_is_better_while_there_is_another(make: Make) -> None:
    entries = [make(noise(k), encoder=f"e{k}", valid_metric="MRR@20") for k in range(2)]
    both = {"metrics": ["Recall@20", "NDCG@20"], "baseline": {"encoder": "e0"}}
    found = board(*entries, **both, smaller=frozenset({"recall"}))
    assert (found.smaller, found.sign("recall@20"), found.sign("ndcg@20")) == (("recall@20",), -1, 1)
    assert found.main_metric == "ndcg@20"
    assert any(note.endswith("rows rank by ndcg@20.") for note in found.notes)
    assert board(*entries, **both).main_metric == METRIC


def test_a_row_has_the_marks_of_its_runs(make: Make) -> None:
    first = {"best_epoch": 0}
    marked, fine = board(make(noise(1), run=first), make(noise(2), encoder="a")).rows
    assert (marked.marks, fine.marks) == (("best epoch is the first evaluated",), ())
    found = board(make(noise(1), run=first), make(noise(2), encoder="a"))
    assert found.marked() == {marked.key: marked.marks}
    assert from_document(json.loads(json.dumps(found.document()))).marked() == found.marked()


def test_an_earlier_leaderboard_is_still_read(make: Make) -> None:
    document = json.loads(json.dumps(board(make(noise(1)), make(noise(2), encoder="a")).document()))
    for name in ("ranked_by", "untested"):
        del document[name]
    for row in document["rows"]:
        del row["marks"], row["twins"]
    found = from_document(document)
    assert (found.main_metric, found.untested, found.marked()) == (METRIC, "", {})
    assert [row.twins for row in found.rows] == [{}, {}]


@pytest.mark.parametrize("content", [None, "{", '{"settings": {"epochs": -1}}'])
def test_a_damaged_configuration_costs_nothing_that_the_record_has(make: Make, content: str | None) -> None:
    entry = make([[0, 1.0], [1, 1]], valid_metric="NDCG@20")
    for run in entry.runs:
        path = run.path / run_folder.CONFIG
        path.unlink() if content is None else path.write_text(content)
    resolved = {"model": "VBPR", "settings": {"valid_metric": "NDCG@20", **SETTINGS}}
    runs = [dataclasses.replace(run, record=dataclasses.replace(run.record, resolved=resolved)) for run in entry.runs]
    found = board(dataclasses.replace(entry, runs=runs), metrics=["Recall@20", "NDCG@20"])
    assert found.ranked_by == "ndcg@20"
    if content:  # of an earlier run, whose record has no copy
        with pytest.raises(DataError, match=run_folder.CONFIG):
            board(entry)


# What can't be compared


def test_rows_tested_on_other_users_or_data_are_refused(make: Make) -> None:
    base = make(noise(1), data="d")
    with pytest.raises(DataError, match=r"expected the test split of VBPR-demo.*, got other users \(199, not 200\)"):
        board(base, make(noise(2, users=199), encoder="a"))
    with pytest.raises(DataError, match=r"got other users \(200, not 200\)"):
        board(base, make(noise(2), users=range(1, 201), encoder="a"))
    with pytest.raises(DataError, match="got other data"):
        board(base, make(noise(2), data="another", encoder="a"))


def test_an_unknown_metric_test_or_axis_is_named_with_what_there_is(make: Make) -> None:
    entry = make(noise(1))
    with pytest.raises(ConfigError, match=r"measured \(ndcg@20, recall@20\), got recall@30; did you mean recall@20\?"):
        board(entry, metrics=["Recall@30"])
    with pytest.raises(ConfigError, match=r"test: expected one of t-test, .*, got wilcox; did you mean wilcoxon\?"):
        board(entry, test="wilcox")
    with pytest.raises(ConfigError, match=r"axis: expected one of model, .*, got encoders; did you mean encoder\?"):
        board(entry, best_within=["encoders"])


# Real runs


def test_real_runs_make_a_leaderboard_with_slices_that_survives_as_json(
    specs: Callable[..., tuple[RunSpec, ...]], registry: Registry, tmp_path: Path
) -> None:
    def entry(**change: str) -> Entry:
        runs = run_grid(specs(seed="[1, 2]", **change), registry, out=tmp_path / "runs").results
        encoder = EncoderName(change["encoder"]) if "encoder" in change else None
        return Entry(Axes("VBPR", "toy", encoder, control=change.get("control")), runs)

    entries = [entry(), entry(encoder="basic"), entry(control="none")]
    [spec] = specs()
    slicer = Slicer(open_dataset("toy", spec.settings, registry), spec.settings.text_fields, registry)
    method = Method(metrics=["Recall@5", "NDCG@5"], baseline={"encoder": None})
    found = compare(entries, method, study="toy", slicers={"toy": slicer})
    for row, one in zip(found.rows, entries, strict=True):
        for metric, score in row.scores.items():
            assert score.mean == pytest.approx(np.mean([run.test[metric] for run in one.runs]))
            assert score.seeds == pytest.approx([run.test[metric] for run in one.runs])
    first = found.rows[0]
    assert "all" not in first.slices
    assert "items without text" not in first.slices  # no user of test wants that one
    tail = first.slices["long tail"]["recall@5"]
    assert tail.low <= tail.mean <= tail.high
    assert tail.mean == pytest.approx(
        np.mean([slicer.values(run, ["recall@5"])["long tail"]["recall@5"].mean() for run in entries[0].runs])
    )
    assert first.content_gain["none"]["ndcg@5"].mean == pytest.approx(
        first.scores["ndcg@5"].mean - found.rows[2].scores["ndcg@5"].mean
    )
    assert found.rows[1].scores["recall@5"].against == first.key
    document = json.loads(json.dumps(found.document(), allow_nan=False))
    assert from_document(document).document() == found.document()
