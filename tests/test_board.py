"""Bundles, their verification and boards: an honest bundle passes all tiers, each forged one is stopped by name."""

import dataclasses
import json
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import call, plugin

from mmrec_lmm.board.bundle import (
    LISTS,
    MANIFEST,
    VERSION,
    Manifest,
    Refusal,
    load_lists,
    opened,
    pack,
    read_manifest,
    save_lists,
)
from mmrec_lmm.board.folder import BOARD, BUNDLE, SUBMISSION, SUBMISSIONS, VERIFICATION, add, check, open_board
from mmrec_lmm.board.site import CHANGES, LEADERBOARD, PAGE, build
from mmrec_lmm.board.submit import submit_run, submit_study, with_scores
from mmrec_lmm.board.tiers import NOTHING, TIERS
from mmrec_lmm.board.verify import Verification, verify
from mmrec_lmm.cache import fingerprint
from mmrec_lmm.config.settings import Settings
from mmrec_lmm.data.opening import open_dataset
from mmrec_lmm.disk.sealed import load_arrays, save_file
from mmrec_lmm.errors import ConfigError, DataError
from mmrec_lmm.evaluation.metrics import METRICS
from mmrec_lmm.plugin.registry import Registry, load_registry
from mmrec_lmm.running import run_folder
from mmrec_lmm.studies.executor import Worker, make_plan
from mmrec_lmm.studies.file import load_study
from mmrec_lmm.studies.leaderboard import read_leaderboard
from mmrec_lmm.typed_json import decode, plain
from mmrec_lmm.types import Dataset

STUDY = """
title: A small board
models: [BPR, Pop]
datasets: demo
seeds: [1, 2]
grids: {BPR: {reg_weight: [0.1, 0.001]}}
settings: {epochs: 5, embedding_size: 8, learning_rate: 0.05, min_steps: 0, threads: 1, topk: [10, 20]}
metrics: [Recall@20, NDCG@20]
"""
VBPR = ("--encoder", "basic", "--epochs=3", "--embedding_size=16", "--threads=1", "--topk=[10,20]")


@dataclasses.dataclass(frozen=True)
class World:
    """Finished runs on the demo data, and the bundles that were made of them."""

    home: Path
    data_path: str
    runs: Path
    registry: Registry
    study: Path  # a bundle of BPR's grid and Pop, two seeds each
    dataset: Dataset

    def verify(self, bundle: Path, tier: str = "recomputed", **more: Any) -> Verification:
        return verify(bundle, more.pop("registry", self.registry), tier=tier, data_path=self.data_path, **more)


@pytest.fixture(scope="module")
def world(tmp_path_factory: "pytest.TempPathFactory") -> Iterator[World]:
    folder = tmp_path_factory.mktemp("board")
    (folder / "small.yaml").write_text(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMREC_LMM_HOME", str(folder / "home"))
        patch.chdir(folder)
        registry = load_registry()
        file = load_study(Path("small.yaml"), overrides={"data_path": str(folder / "data")})
        plan = make_plan(file, registry, out=folder / "runs", threads=1)
        Worker(plan, registry, since=0.0).work()
        submit_study(plan, registry, folder / "study.zip")
        dataset = open_dataset("demo", Settings(data_path=str(folder / "data")), registry)
    yield World(folder / "home", str(folder / "data"), folder / "runs", registry, folder / "study.zip", dataset)


@pytest.fixture(autouse=True)
def _home(world: World, monkeypatch: pytest.MonkeyPatch, _own_home: None) -> None:
    """What the module's fixture has encoded and hashed is known to its tests."""
    monkeypatch.setenv("MMREC_LMM_HOME", str(world.home))


class Forger:
    """An unpacked bundle to be changed. It is packed with hashes, scores and attempts that fit the change."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        self.folder = folder / "forged"
        with opened(bundle) as whole:
            shutil.copytree(whole.folder, self.folder)
        self.manifest = json.loads((self.folder / MANIFEST).read_text())
        (self.folder / MANIFEST).unlink()
        self.row = next(row for row in self.manifest["rows"] if row["model"] == "BPR")
        self.run, self.other = self.row["runs"]
        self.renews = True

    def path(self, name: str, run: str | None = None) -> Path:
        return self.folder / "runs" / (run or self.run) / name

    def edit(self, name: str, change: Callable[[Any], Any], run: str | None = None) -> None:
        """Change a JSON file in place."""
        document = json.loads(self.path(name, run).read_text())
        change(document)
        self.path(name, run).write_text(json.dumps(document))

    def result(self, change: Callable[[Any], Any], run: str | None = None) -> None:
        self.edit(run_folder.RESULT, change, run)

    def config(self, change: Callable[[Any], Any]) -> None:
        """Change a run's values in its configuration, its record and their hash."""
        self.edit(run_folder.CONFIG, change)
        resolved = json.loads(self.path(run_folder.CONFIG).read_text())
        self.result(lambda result: result["record"].update(resolved=resolved, config=fingerprint(resolved)))

    def history(self, change: Callable[[list[Any]], Any]) -> None:
        path = self.path(run_folder.HISTORY)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        change(lines)
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    def per_user(self, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
        arrays, about = load_arrays(self.path(run_folder.PER_USER))
        arrays = {name: values.copy() for name, values in arrays.items()}
        change(arrays)
        save_file(arrays, self.path(run_folder.PER_USER), {name: about[name] for name in about if name != "sha256"})

    def lists(self, change: Callable[[np.ndarray, np.ndarray], Any], *, measured: bool = True) -> None:
        """Change users and their lists in place, or return others; metrics of test become those of the lists."""
        users, items = load_lists(self.path(LISTS))
        users, items = change(users, items) or (users, items)
        save_lists(self.path(LISTS), users, items)
        if measured:
            self.measure(users, items)

    def measure(self, users: np.ndarray, items: np.ndarray) -> None:
        """Make metrics of test from lists as somebody would who masks and checks nothing."""
        keys = {*zip(DATASET.test.users.tolist(), DATASET.test.items.tolist(), strict=True)}
        hits = np.array([[(user, item) in keys for item in row] for user, row in zip(users, items.tolist(), strict=True)])
        positives = np.maximum(1, np.bincount(DATASET.test.users, minlength=int(users.max()) + 1)[users])
        found = {
            f"{spec.name.lower()}@{k}": spec.fn(hits, positives, k)
            for spec in METRICS
            if spec.name in ("Recall", "NDCG", "Precision", "MAP")
            for k in (10, 20)
        }
        self.per_user(lambda arrays: arrays.update({f"test/{name}": values for name, values in found.items()}))
        self.per_user(lambda arrays: arrays.update({"test/users": users}))
        self.result(lambda result: result.update(test={name: float(value.mean()) for name, value in found.items()}))

    def pack(self, output: Path) -> Path:
        manifest = decode(Manifest, self.manifest, where="forged", cure="")
        if self.renews:
            manifest = self.renewed(manifest)
        return pack(self.folder, manifest, output)

    def renewed(self, manifest: Manifest) -> Manifest:
        """The manifest with the numbers that its runs have now."""
        results = {run: run_folder.load_result(self.folder / "runs" / run) for run in manifest.run_ids}

        def attempt(one: Any) -> Any:
            now = results.get(one.run)
            if now is None:
                return one
            valid, config = now.valid, now.record.config
            return dataclasses.replace(
                one, valid=valid, config=config, best_epoch=now.best_epoch, epochs=now.epochs, seed=now.record.seed
            )

        rows = [
            dataclasses.replace(row, attempts=tuple(map(attempt, row.attempts))) for row in manifest.rows
        ]
        try:
            rows = with_scores(rows, results, manifest.method, load_registry())  # type: ignore[arg-type]
        except (ConfigError, DataError):  # rows that can't be compared
            pass
        return dataclasses.replace(manifest, rows=tuple(rows))


DATASET: Dataset  # that of the module's world, for forgers


@pytest.fixture
def forge(world: World, tmp_path: Path) -> Callable[..., Path]:
    """The study's bundle after a trick."""
    global DATASET
    DATASET = world.dataset

    def forge(trick: Callable[[Forger], Any], bundle: Path | None = None) -> Path:
        forger = Forger(bundle or world.study, tmp_path)
        trick(forger)
        return forger.pack(tmp_path / "forged.zip")

    return forge


# Tricks, each with the check that names it


def edited_mean(f: Forger) -> None:
    f.result(lambda result: result["test"].update({"recall@20": 0.5}))


def edited_user(f: Forger) -> None:
    """The number of one user, with the mean that follows."""

    def change(arrays: dict[str, np.ndarray]) -> None:
        values = arrays["test/recall@20"]
        values[int(np.argmin(values))] = 1.0
        f.result(lambda result: result["test"].update({"recall@20": float(values.mean())}))

    f.per_user(change)


def swapped_lists(f: Forger) -> None:
    """Two users' lists, neither with a training item of the other."""
    trained = {*zip(DATASET.train.users.tolist(), DATASET.train.items.tolist(), strict=True)}
    hits = load_arrays(f.path(run_folder.PER_USER))[0]["test/recall@20"]

    def change(users: np.ndarray, items: np.ndarray) -> None:
        def fits(user: int, row: int) -> bool:
            return not any((int(users[user]), int(item)) in trained for item in items[row])

        pairs = ((a, b) for a in range(100) for b in range(a) if hits[a] and not hits[b])
        a, b = next((a, b) for a, b in pairs if fits(a, b) and fits(b, a))
        items[[a, b]] = items[[b, a]]

    f.lists(change, measured=False)


def lists_of_another_run(f: Forger) -> None:
    shutil.copy(f.path(LISTS, f.other), f.path(LISTS))


def training_item(f: Forger) -> None:
    def change(users: np.ndarray, items: np.ndarray) -> None:
        items[0, 0] = DATASET.train.items[DATASET.train.users == users[0]][0]

    f.lists(change)


def hit_twice(f: Forger) -> None:
    """A held-out item in two places of its user's list."""

    def change(users: np.ndarray, items: np.ndarray) -> None:
        items[0, :2] = DATASET.test.items[DATASET.test.users == users[0]][0]

    f.lists(change)


def unknown_item(f: Forger) -> None:
    def change(users: np.ndarray, items: np.ndarray) -> None:
        items[0, 0] = DATASET.n_items

    f.lists(change)


def unknown_user(f: Forger) -> None:
    def change(users: np.ndarray, items: np.ndarray) -> None:
        users[-1] = DATASET.n_users + 7

    f.lists(change)


def hard_users_left_out(f: Forger) -> None:
    def change(users: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        arrays, _ = load_arrays(f.path(run_folder.PER_USER))
        easy = arrays["test/recall@20"] > 0
        return users[easy], items[easy]

    f.lists(change)


def short_lists(f: Forger) -> None:
    def change(users: np.ndarray, items: np.ndarray) -> None:
        items[0, -1] = -1

    f.lists(change)


def another_split(f: Forger) -> None:
    """The lists and numbers of a run that had other rows in training and test, as if they were of this split."""

    def change(users: np.ndarray, items: np.ndarray) -> None:
        items[:] = (items + 1) % DATASET.n_items  # what it has no reason to avoid: others' training items

    f.lists(change)


def epoch_chosen_on_test(f: Forger) -> None:
    f.result(lambda result: result.update(best_epoch=(result["best_epoch"] + 1) % result["epochs"]))


def epoch_chosen_on_test_with_its_numbers(f: Forger) -> None:
    """Another epoch, with its own numbers of validation."""

    def change(lines: list[Any]) -> None:
        best = max(lines, key=lambda line: line["valid"]["recall@20"])["epoch"]
        chosen = lines[(best + 1) % len(lines)]
        f.result(lambda result: result.update(best_epoch=chosen["epoch"], valid=chosen["valid"]))

    f.history(change)
    f.per_user(lambda arrays: [arrays.pop(name) for name in [*arrays] if name.startswith("valid/") and "@" in name])


def cut_history(f: Forger) -> None:
    def change(lines: list[Any]) -> None:
        del lines[-1]

    f.history(change)
    f.result(lambda result: result.update(epochs=result["epochs"] - 1))


def epochs_left_out(f: Forger) -> None:
    f.history(lambda lines: lines.pop(1))


def point_chosen_on_test(f: Forger) -> None:
    """The other point of the grid is called better on validation."""
    for one in f.row["attempts"]:
        if one["parameters"] != f.row["parameters"]:
            one["valid"]["recall@20"] = 0.9


def worst_seed_left_out(f: Forger) -> None:
    shutil.rmtree(f.path("").parent / f.other)
    f.row["runs"] = [f.run]


def seeds_own_attempt_left_out(f: Forger) -> None:
    f.row["attempts"] = [one for one in f.row["attempts"] if one["run"] != f.run]


def inflated_star(f: Forger) -> None:
    f.renews = False
    f.row["scores"]["recall@20"].update(star=True, p=0.0001)


def narrow_interval(f: Forger) -> None:
    f.renews = False
    interval = f.row["scores"]["recall@20"]["interval"]
    interval.update(low=interval["mean"] - 1e-5, high=interval["mean"] + 1e-5)


def raised_validation(f: Forger) -> None:
    """All numbers of validation a tenth higher, in every place."""

    def scale(values: dict[str, float]) -> dict[str, float]:
        return {name: 1.1 * value for name, value in values.items()}

    f.history(lambda lines: [line.update(valid=scale(line["valid"])) for line in lines])
    f.result(lambda result: result.update(valid=scale(result["valid"])))
    f.per_user(
        lambda arrays: arrays.update(
            {name: 1.1 * arrays[name] for name in arrays if name.startswith("valid/") and "@" in name}
        )
    )


def another_plugins_hash(f: Forger) -> None:
    for one in f.manifest["plugins"]:
        if one["part"] == "model":
            one["code"] = 64 * "0"


def another_model(f: Forger) -> None:
    f.row["model"] = "LightGCN"


def edited_configuration(f: Forger) -> None:
    f.edit(run_folder.CONFIG, lambda config: config["model_config"].update(reg_weight=0.5))


def edited_values(f: Forger) -> None:
    """Values in both places, but not their hash."""
    for name, place in ((run_folder.CONFIG, lambda document: document), (run_folder.RESULT, in_record)):
        f.edit(name, lambda document, place=place: place(document)["model_config"].update(reg_weight=0.5))


def in_record(document: Any) -> Any:
    return document["record"]["resolved"]


def lower_chance(f: Forger) -> None:
    f.result(lambda result: result["record"]["chance"]["test"].update(mean=0.0001, deviation=0.0))


def other_data(f: Forger) -> None:
    """A run on other interactions under this data set's name."""
    f.result(lambda result: result["record"].update(data=32 * "0"))


def other_data_everywhere(f: Forger) -> None:
    for run in (run for row in f.manifest["rows"] for run in row["runs"]):
        f.result(lambda result: result["record"].update(data=32 * "0"), run)
    f.manifest["data"]["demo"]["fingerprint"] = 32 * "0"


RECOMPUTED = {  # trick -> the check that stops it, before anything is trained
    edited_mean: "metrics",
    edited_user: "metrics",
    swapped_lists: "metrics",
    lists_of_another_run: "metrics",
    training_item: "mask",
    hit_twice: "duplicates",
    unknown_item: "items",
    unknown_user: "users",
    hard_users_left_out: "users",
    short_lists: "lists",
    another_split: "mask",
    epoch_chosen_on_test: "history",
    epoch_chosen_on_test_with_its_numbers: "history",
    cut_history: "history",
    epochs_left_out: "history",
    point_chosen_on_test: "selection",
    worst_seed_left_out: "seeds",
    seeds_own_attempt_left_out: "attempts",
    inflated_star: "statistics",
    narrow_interval: "statistics",
    raised_validation: "validation",
    another_plugins_hash: "plugins",
    edited_values: "configuration",
    lower_chance: "chance",
    other_data_everywhere: "data",
}
REPORTED = {another_model: "rows", edited_configuration: "record", other_data: "data"}


def test_an_honest_bundle_gives_its_numbers(world: World) -> None:
    found = world.verify(world.study)
    assert (found.tier, found.stopped, found.rows, found.runs, found.passed) == ("recomputed", None, 2, 4, True)


@pytest.mark.parametrize("trick", RECOMPUTED, ids=lambda trick: trick.__name__)
def test_a_trick_is_stopped_by_name_before_anything_is_trained(
    trick: Callable[[Forger], None], world: World, forge: Callable[..., Path]
) -> None:
    found = world.verify(forge(trick), "fresh")
    assert found.stopped is not None
    assert (found.tier, found.stopped.tier, found.stopped.check) == ("reported", "recomputed", RECOMPUTED[trick]), found
    assert not found.passed


@pytest.mark.parametrize("trick", REPORTED, ids=lambda trick: trick.__name__)
def test_a_bundle_that_contradicts_itself_reaches_no_tier(
    trick: Callable[[Forger], None], world: World, forge: Callable[..., Path]
) -> None:
    found = world.verify(forge(trick))
    assert found.stopped is not None
    assert (found.tier, found.stopped.check) == (NOTHING, REPORTED[trick]), found
