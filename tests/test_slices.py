"""Slices of test: worlds of a few items in which every share can be counted by hand."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import call

from mmrec_lmm.errors import ConfigError, DataError
from mmrec_lmm.plugin.registry import Registry
from mmrec_lmm.running import run_folder
from mmrec_lmm.running.grid import run_grid
from mmrec_lmm.running.slices import Slicer, data_slices, slice_run
from mmrec_lmm.types import UNRECORDED, Dataset, Interactions, ItemCatalog, RunResult, RunSpec

TEXT_FIELDS = ("title",)


def rows(*pairs: tuple[int, int]) -> Interactions:
    users, items = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return Interactions(users.copy(), items.copy())


@pytest.fixture
def world(tmp_path: Path) -> Dataset:
    """Ten training interactions: item 0 has five, 1 three, 2 and 3 one each, 4 and 5 none. Of the tested users 0, 1
    and 2, the first has one of them, the second four, the third five. Item 3 has no text, and 4 no image."""
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"-")
    train = rows((0, 0), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 0), (2, 1), (2, 0))
    catalog = ItemCatalog(
        fields={"title": ("a", "b", "c", "", "e", "f")},
        images=(picture, picture, picture, picture, None, picture),
        raw_ids=tuple("abcdef"),
        fingerprint="",
    )
    test = rows((0, 3), (0, 4), (1, 4), (2, 2), (2, 4), (2, 5))
    return Dataset("world", 3, 6, train, rows((0, 1)), test, catalog, {}, "of this world")


def recorded(folder: Path, lists: dict[int, list[int]], *, data: str = "of this world") -> RunResult:
    """A run of which only its lists are known."""
    run_folder.save_topk(folder, np.array(list(lists)), np.array(list(lists.values())))
    return RunResult("run", folder, {}, {}, {}, 0, 1, "epochs", replace(UNRECORDED, data=data))


@pytest.fixture
def run(tmp_path: Path) -> RunResult:
    return recorded(tmp_path / "run", {0: [3, 1, 5], 1: [5, 4, -1], 2: [5, 4, 3]})


def test_each_slice_has_the_items_and_users_that_its_words_say(world: Dataset) -> None:
    found = {part.name: part for part in data_slices(world, TEXT_FIELDS)}
    items = {name: np.flatnonzero(part.items).tolist() for name, part in found.items()}
    users = {name: np.flatnonzero(part.users).tolist() for name, part in found.items()}
    everything = list(range(6))
    assert items == {
        "all": everything,
        "cold items": [4, 5],
        "long tail": [2, 3, 4, 5],  # 0 and 1 hold 8 of 10: exactly the share
        "items without image": [4],
        "items without text": [3],
        "least active users": everything,
        "middling users": everything,
        "most active users": everything,
    }
    assert [users[name] for name in ("least active users", "middling users", "most active users")] == [[0], [1], [2]]
    assert found["middling users"].about == "more than 1, at most 4"


def test_metrics_of_a_slice_are_the_fractions_that_one_counts(
    world: Dataset, run: RunResult, registry: Registry
) -> None:
    found = Slicer(world, TEXT_FIELDS, registry).values(run, ["recall@3", "precision@1"])
    recall = {name: values["recall@3"].tolist() for name, values in found.items()}
    assert recall == {
        "all": [1 / 2, 1, 2 / 3],
        "cold items": [0, 1, 1],  # user 0 wanted 4 of them, user 1 wanted 4, user 2 both
        "long tail": [1 / 2, 1, 2 / 3],
        "items without image": [0, 1, 1],
        "items without text": [1],  # user 0 alone wanted item 3
        "least active users": [1 / 2],
        "middling users": [1],
        "most active users": [2 / 3],
    }
    assert found["cold items"]["precision@1"].tolist() == [0, 0, 1]


def test_without_a_catalog_the_feature_files_say_who_lacks_a_modality(world: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "text_feat.npy"
    np.save(path, np.array([[1.0], [0], [2], [3], [4], [5]]))
    bare = Dataset(**{**world.__dict__, "catalog": None, "feature_files": {"text": path}})
    found = {part.name: part.items for part in data_slices(bare, TEXT_FIELDS)}
    assert np.flatnonzero(found["items without text"]).tolist() == [1]
    assert "items without image" not in found


def test_a_cutoff_beyond_the_kept_lists_is_refused(world: Dataset, run: RunResult, registry: Registry) -> None:
    slicer = Slicer(world, TEXT_FIELDS, registry)
    with pytest.raises(ConfigError, match=r"metric: expected a cutoff of at most 3, .* run's lists, got recall@4; try"):
        slicer.values(run, ["recall@4"])
    with pytest.raises(ConfigError, match="metric: expected a name and a cutoff, got recall; try recall@20"):
        slicer.values(run, ["recall"])


def test_a_run_on_other_data_or_without_lists_is_refused(world: Dataset, tmp_path: Path, registry: Registry) -> None:
    slicer = Slicer(world, TEXT_FIELDS, registry)
    with pytest.raises(DataError, match="run: the data changed since this run; try running it again"):
        slicer.values(recorded(tmp_path / "other", {0: [1]}, data="others"), ["recall@1"])
    listless = recorded(tmp_path / "listless", {0: [1]})
    (tmp_path / "listless" / "topk.tsv").unlink()
    with pytest.raises(DataError, match=r"topk.tsv: expected the run.s .* no such file; try running .* --force"):
        slicer.values(listless, ["recall@1"])


def test_the_slice_of_everything_is_the_runs_own_result(
    specs: Callable[..., tuple[RunSpec, ...]], registry: Registry, tmp_path: Path
) -> None:
    result = run_grid(specs(metrics="[Recall, NDCG, MRR]"), registry, out=tmp_path / "runs").best
    whole, *parts = slice_run(result.run_id, registry, out=tmp_path / "runs")
    assert {metric: found["mean"] for metric, found in whole["metrics"].items()} == pytest.approx(dict(result.test))
    assert (whole["items"], whole["users"]) == (16, 12)
    assert {row["slice"]: row["items"] for row in parts}["items without text"] == 1
    for row in parts:
        for found in row["metrics"].values():
            assert found["low"] <= found["mean"] + 1e-12
            assert found["mean"] <= found["high"] + 1e-12


def test_the_verb_prints_a_table_and_json(
    specs: Callable[..., tuple[RunSpec, ...]], registry: Registry, tmp_path: Path
) -> None:
    run_grid(specs(), registry, out=tmp_path / "runs")
    answer = call("slices", "VBPR-toy", "--out", tmp_path / "runs")
    assert answer.code == 0, answer.err
    assert "recall@20" in answer.out
    assert "cold items: no training interaction" in answer.out
    document = json.loads(call("slices", "VBPR-toy", "--json", "--out", tmp_path / "runs").out)
    assert document[0]["slice"] == "all"
    assert {"mean", "low", "high"} == document[0]["metrics"]["recall@20"].keys()
