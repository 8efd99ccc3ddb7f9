"""Coverage, Gini, Novelty, ILD and AUC: fractions by hand, properties, runs, tables, and faults of plugins.

Shapes: U users, I items, K ranks.
"""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import call
from hypothesis import given
from hypothesis import strategies as st
from test_ranking import MODELS, Scores, rows

from mmrec_lmm.errors import ConfigError, NotApplicable, PluginError
from mmrec_lmm.evaluation.list_metrics import auc, coverage, gini, intra_list_diversity, novelty
from mmrec_lmm.evaluation.ranking import Evaluator
from mmrec_lmm.plugin.registry import Registry, load_registry
from mmrec_lmm.running import run_folder, runner
from mmrec_lmm.running.inputs import gather
from mmrec_lmm.running.slices import slice_run
from mmrec_lmm.types import FeatureTable, Places, RankedLists, RunSpec

Specs = Callable[..., tuple[RunSpec, ...]]


def lists(
    items: list[list[int]],
    *,
    popularity: list[int] | None = None,
    n_users: int = 8,
    n_items: int = 4,
    candidates: list[bool] | None = None,
    features: dict[str, list[list[float]]] | None = None,
) -> RankedLists:
    table = np.array(items)
    return RankedLists(
        users=np.arange(len(table)),
        items=table,
        hits=np.zeros(table.shape, dtype=bool),
        n_positives=np.ones(len(table), dtype=np.int64),
        popularity=np.array(popularity or [1] * n_items),
        n_users=n_users,
        candidates=np.array(candidates or [True] * n_items),
        features={
            name: FeatureTable(name, np.array(rows, dtype=np.float32), np.any(rows, axis=1), name)
            for name, rows in (features or {}).items()
        },
    )


# By hand


def test_coverage_is_the_share_of_items_in_anybodys_list() -> None:
    ranked = lists([[0, 1], [0, 2], [0, -1]])
    assert coverage(ranked, 1) == 1 / 4
    assert coverage(ranked, 2) == 3 / 4
    assert coverage(lists([[0, 1]], candidates=[True, True, False, False]), 2) == 1


def test_gini_of_counts_1_1_2_4_by_hand() -> None:
    ranked = lists([[3, 2], [3, 2], [3, 0], [3, 1]])  # items 0 to 3 are listed 1, 1, 2 and 4 times
    assert gini(ranked, 2) == pytest.approx((-3 * 1 - 1 * 1 + 1 * 2 + 3 * 4) / (4 * 8))
    assert gini(ranked, 1) == 1 - 1 / 4  # one item alone
    assert gini(lists([[0, 1], [2, 3]]), 2) == 0
    assert gini(lists([[-1, -1]]), 2) == 0


def test_novelty_is_the_mean_of_the_bits_of_each_item() -> None:
    ranked = lists([[0, 1, 2], [3, 0, -1], [-1, -1, -1]], popularity=[8, 4, 1, 0], n_users=8)  # 0, 1, 3 and 3 bits
    assert novelty(ranked, 3).tolist() == [4 / 3, 3 / 2, 0]
    assert novelty(ranked, 1).tolist() == [0, 3, 0]


def test_ild_is_one_minus_the_mean_cosine_over_pairs() -> None:
    features = {"image": [[1.0, 0], [0, 2], [3, 3], [0, 0]]}  # the last has none
    ranked = lists([[0, 1, 2], [0, 0, 1], [3, 0, 2], [2, -1, -1]], features=features)
    root = math.sqrt(1 / 2)
    np.testing.assert_allclose(
        intra_list_diversity(ranked, 3), [1 - 2 * root / 3, 1 - 1 / 3, 1 - root / 3, 0], atol=1e-6
    )
    np.testing.assert_allclose(intra_list_diversity(ranked, 2), [1, 0, 1, 0], atol=1e-6)


def test_ild_of_two_modalities_is_the_mean_of_their_cosines() -> None:
    features = {"image": [[1.0, 0], [1, 0], [0, 0], [0, 0]], "text": [[5.0], [-5], [1], [1]]}
    assert intra_list_diversity(lists([[0, 1]], features=features), 2) == pytest.approx([1 - (1 - 1) / 2])


def test_auc_counts_ties_as_halves() -> None:
    table = [[5.0, 4.0, 4.0, 1.0, 9.0], [1.0, 1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0, 5.0]]
    train, held_out = rows((0, 4)), rows((0, 1), (0, 3), (1, 2), (2, 0), (2, 1), (2, 2), (2, 3), (2, 4))
    for model in MODELS:
        found = Evaluator(held_out, [train], 5).rank(model(table), 2, places=True)
        assert found.places is not None
        # user 0: of the others, 0 and 2, item 1 is below one and ties with one, item 3 is below both; user 1: all tie;
        # user 2 has no other item
        assert found.places.above.tolist() == [1.5, 2, 2, 0, 0, 0, 0, 0]
        assert found.places.others.tolist() == [2, 4, 0]
        ranked = lists([[0, 1]] * 3)
        values = auc(_with_places(ranked, found.places), 1)
        assert values.tolist() == [1 - 3.5 / 4, 1 / 2, 1 / 2]


def _with_places(ranked: RankedLists, places: Places) -> RankedLists:
    return RankedLists(
        ranked.users, ranked.items, ranked.hits, ranked.n_positives, ranked.popularity, ranked.n_users,
        ranked.candidates, ranked.features, places,
    )  # fmt: skip


# Properties


@given(st.data())
def test_auc_is_that_of_all_pairs_one_by_one(data: Any) -> None:
    n_users, n_items = data.draw(st.integers(1, 4)), data.draw(st.integers(2, 9))
    score = st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 0.5, 2.0])
    table = [[data.draw(score) for _ in range(n_items)] for _ in range(n_users)]
    cells = list(itertools.product(range(n_users), range(n_items)))
    train = data.draw(st.lists(st.sampled_from(cells), unique=True))
    held_out = data.draw(st.lists(st.sampled_from(cells), min_size=1))
    among = np.array(data.draw(st.lists(st.booleans(), min_size=n_items, max_size=n_items)))
    found = Evaluator(rows(*held_out), [rows(*train)], n_items, among).rank(Scores(table), 1, places=True, batch_size=2)
    assert found.places is not None
    values = auc(_with_places(lists([[0]] * len(found.users)), found.places), 1)
    for user, value in zip(found.users.tolist(), values.tolist(), strict=True):
        open_items = [item for item in range(n_items) if among[item] and (user, item) not in train]
        wanted = [item for item in open_items if (user, item) in held_out]
        others = [item for item in open_items if (user, item) not in held_out]
        scores = np.maximum(table[user], np.finfo(np.float32).min)
        wins = [
            (scores[one] > scores[other]) + (scores[one] == scores[other]) / 2 for one in wanted for other in others
        ]
        assert value == pytest.approx(np.mean(wins) if wins else 1 / 2)


@st.composite
def any_lists(draw: Any) -> RankedLists:
    n_items, k = draw(st.integers(2, 8)), draw(st.integers(1, 6))
    length = st.lists(st.integers(0, n_items - 1), max_size=min(k, n_items), unique=True)
    made = [(own + [-1] * k)[:k] for own in draw(st.lists(length, min_size=1, max_size=5))]
    number = st.floats(-4, 4, width=32)
    width = draw(st.integers(1, 3))
    features = [[draw(number) for _ in range(width)] for _ in range(n_items)]
    popularity = [draw(st.integers(0, 8)) for _ in range(n_items)]
    return lists(made, n_items=n_items, popularity=popularity, n_users=8, features={"image": features})


@given(any_lists(), st.integers(1, 6))
def test_values_are_in_range_and_do_not_depend_on_item_ids_or_the_order_of_users(ranked: RankedLists, k: int) -> None:
    n_items = len(ranked.candidates)
    assert 0 <= coverage(ranked, k) <= 1
    assert 0 <= gini(ranked, k) <= 1 - 1 / n_items + 1e-12
    assert (novelty(ranked, k) >= 0).all()
    assert (novelty(ranked, k) <= 3 + 1e-12).all()  # at most log2 of 8 users
    assert (intra_list_diversity(ranked, k) >= -1e-5).all()
    assert (intra_list_diversity(ranked, k) <= 2 + 1e-5).all()
    assert coverage(ranked, k) <= coverage(ranked, k + 1)
    other = np.random.default_rng(0).permutation(n_items)  # item i becomes other[i]
    back = np.argsort(other)
    table = ranked.features["image"]
    renamed = RankedLists(
        ranked.users, np.where(ranked.items >= 0, other[ranked.items], -1)[::-1], ranked.hits, ranked.n_positives,
        ranked.popularity[back], ranked.n_users, ranked.candidates,
        {"image": FeatureTable("image", table.values[back], table.present[back], "renamed")},
    )  # fmt: skip
    assert coverage(renamed, k) == coverage(ranked, k)
    assert gini(renamed, k) == pytest.approx(gini(ranked, k))
    np.testing.assert_allclose(novelty(renamed, k), novelty(ranked, k)[::-1], atol=1e-12)
    np.testing.assert_allclose(intra_list_diversity(renamed, k), intra_list_diversity(ranked, k)[::-1], atol=1e-4)


@given(any_lists())
def test_ild_is_the_mean_over_pairs_one_by_one(ranked: RankedLists) -> None:
    values = ranked.features["image"].values.astype(np.float64)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    unit = values / np.where(lengths > 0, lengths, 1)
    for row, value in zip(ranked.items, intra_list_diversity(ranked, ranked.items.shape[1]), strict=True):
        pairs = list(itertools.combinations(row[row >= 0], 2))
        assert value == pytest.approx(1 - np.mean([unit[a] @ unit[b] for a, b in pairs]) if pairs else 0, abs=1e-4)


# In runs, tables and slices

ALL = "[Recall,Coverage,Gini,Novelty,ILD,AUC]"


def test_a_run_keeps_all_of_them_and_resumes_to_the_same(specs: Specs, registry: Registry, tmp_path: Path) -> None:
    [spec] = specs(encoder="basic", metrics=ALL, topk="[5,20]", checkpoint_seconds="0")
    result = runner.run(spec, registry, out=tmp_path / "whole")
    assert set(result.test) == {
        f"{name}@{k}" for name in ("recall", "coverage", "gini", "novelty", "ild", "auc") for k in (5, 20)
    }
    users = run_folder.load_per_user(result.path)
    assert "test/novelty@5" in users
    assert "test/coverage@5" not in users
    assert result.test["novelty@5"] == pytest.approx(users["test/novelty@5"].mean())
    _, items = run_folder.load_topk(result.path, n_users=12, n_items=gather(spec, registry).dataset.n_items)
    listed = items[:, :5]
    assert result.test["coverage@5"] == len(np.unique(listed[listed >= 0])) / result.record.n_items

    class Stops:
        def notify_start(self, run: RunSpec, folder: Path) -> None: ...

        def notify_epoch(self, run: RunSpec, epoch: Any) -> None:
            if epoch.epoch == 1:
                raise KeyboardInterrupt

        def notify_run(self, run: RunSpec, result: Any) -> None: ...

    with pytest.raises(runner.Interrupted):
        runner.run(spec, registry, out=tmp_path / "parts", observers=Stops())
    parts = runner.run(spec, registry, out=tmp_path / "parts", resume=True)
    assert (parts.valid, parts.test) == (result.valid, result.test)


def test_slices_have_the_metrics_of_hits_alone(specs: Specs, registry: Registry, tmp_path: Path) -> None:
    [spec] = specs(encoder="basic", metrics=ALL)
    result = runner.run(spec, registry, out=tmp_path)
    found = slice_run(result.run_id, registry, out=tmp_path)
    assert {name.partition("@")[0] for name in found[0]["metrics"]} == {"recall"}


def test_a_table_has_them_untested_where_they_are_one_value_and_marks_the_smaller_gini(
    tmp_path: Path, data_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data_path.parent)
    (tmp_path / "wide.yaml").write_text(
        "{models: [BPR, VBPR], datasets: toy, encoders: basic, seeds: [1, 2], baseline: {model: BPR}, metrics: "
        "[Recall@5, Coverage@5, Gini@5, Novelty@5], settings: {epochs: 2, min_steps: 0, train_batch_size: 32, "
        "metrics: [Recall, Coverage, Gini, Novelty], topk: [5], valid_metric: Recall@5}}"
    )
    assert call("study", "run", tmp_path / "wide.yaml", "--out", tmp_path / "runs").code == 0
    text = call("study", "table", tmp_path / "wide.yaml", "--out", tmp_path / "runs").out
    assert "coverage@5" in text.lower()
    [file] = (tmp_path / "runs").rglob("leaderboard.json")
    board = json.loads(file.read_text())
    scores = {row["model"]: row["scores"] for row in board["rows"]}
    ginis = {model: score["gini@5"]["mean"] for model, score in scores.items()}
    assert [model for model, score in scores.items() if score["gini@5"]["best"]] == [min(ginis, key=ginis.__getitem__)]
    assert scores["VBPR"]["gini@5"]["p"] is None
    assert scores["VBPR"]["coverage@5"]["interval"]["low"] is None
    assert scores["VBPR"]["novelty@5"]["p"] is not None
    assert any("without intervals and tests: coverage@5, gini@5" in note for note in board["notes"])
    assert any("Smaller is better: gini@5" in note for note in board["notes"])


def test_without_item_features_ild_is_not_applicable(specs: Specs, registry: Registry, tmp_path: Path) -> None:
    [spec] = specs(model="BPR", metrics="[Recall,ILD]")
    with pytest.raises(NotApplicable, match="metrics: expected item features for ILD, got model BPR, which uses none"):
        runner.run(spec, registry, out=tmp_path)
    [spec] = specs(encoder="basic", metrics="[Recall,ILD]", control="none")
    with pytest.raises(NotApplicable, match="for ILD, got --control none; try leaving ILD out"):
        runner.run(spec, registry, out=tmp_path)


def test_a_metric_of_which_smaller_is_better_selects_no_epoch(specs: Specs, registry: Registry, tmp_path: Path) -> None:
    [spec] = specs(model="BPR", metrics="[Gini]", valid_metric="Gini@20")
    with pytest.raises(ConfigError, match="valid_metric: expected a metric of which larger is better, got Gini@20"):
        runner.run(spec, registry, out=tmp_path)


# Faults of plugins

PLUGIN = """
import numpy as np
from mmrec_lmm.api import MetricSpec, hookimpl

@hookimpl
def mmrec_register_metrics():
    return [
        MetricSpec("Wide", lambda hits, n_positives, k: hits),
        MetricSpec("Nan", lambda hits, n_positives, k: np.full(len(hits), np.nan)),
        MetricSpec("Many", lambda ranked, k: np.ones(len(ranked.users)), context=True, per_user=False),
        MetricSpec("Words", lambda ranked, k: ["a"] * len(ranked.users), context=True),
    ]
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Wide", r"metric Wide at \d+: expected a number for each of \d+ users, \(\d+,\), got bool \(\d+, \d+\)"),
        ("Nan", r"metric Nan at \d+: expected finite numbers, got NaN or infinity"),
        ("Many", r"metric Many at \d+: expected one number, got float64 \(\d+,\)"),
        ("Words", r"metric Words at \d+: expected a number for each of \d+ users, \(\d+,\), got <U1 \(\d+,\)"),
    ],
)
def test_a_plugins_wrong_metric_is_one_error_that_names_it(
    specs: Specs, tmp_path: Path, name: str, message: str
) -> None:
    file = tmp_path / "wrong_metrics.py"
    file.write_text(PLUGIN)
    registry = load_registry([str(file)])
    [spec] = specs(known=registry, model="BPR", metrics=f"[Recall,{name}]")
    with pytest.raises(PluginError, match=f"plugin {file}: {message}"):
        runner.run(spec, registry, out=tmp_path / "runs")
