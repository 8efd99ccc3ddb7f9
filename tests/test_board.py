"""Bundles, their verification and boards: an honest bundle passes all tiers, each forged one is stopped by name."""

import contextlib
import dataclasses
import json
import re
import secrets
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import call, plugin
from sample_leaderboards import leaderboard as sample

from mmrec_lmm import __version__
from mmrec_lmm.board.again import fresh_inputs
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
from mmrec_lmm.board.site import CHANGES, LEADERBOARD, PAGE, build, differences
from mmrec_lmm.board.submit import submit_run, submit_study, with_scores
from mmrec_lmm.board.tiers import NOTHING, TIERS
from mmrec_lmm.board.verify import Verification, verify
from mmrec_lmm.cache import fingerprint
from mmrec_lmm.cli.text import verification_text
from mmrec_lmm.config.settings import Settings
from mmrec_lmm.data.opening import open_dataset
from mmrec_lmm.data.splitting import shipped_rule
from mmrec_lmm.disk.hashing import read_hash
from mmrec_lmm.disk.sealed import load_arrays, save_file
from mmrec_lmm.errors import ConfigError, DataError
from mmrec_lmm.evaluation.metrics import METRICS
from mmrec_lmm.plugin.registry import Registry, load_registry
from mmrec_lmm.running import run_folder
from mmrec_lmm.running.inputs import gather
from mmrec_lmm.running.provenance import run_id
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
    data_path: str  # of the demo data without images, which BPR and Pop don't need
    whole: str  # of all of it
    runs: Path
    registry: Registry
    study: Path  # a bundle of BPR's grid and Pop, two seeds each
    dataset: Dataset

    def verify(self, bundle: Path, tier: str = "recomputed", **more: Any) -> Verification:
        return verify(bundle, more.pop("registry", self.registry), tier=tier, **{"data_path": self.data_path, **more})


@pytest.fixture(scope="module")
def world(tmp_path_factory: "pytest.TempPathFactory") -> World:
    folder = tmp_path_factory.mktemp("board")
    (folder / "small.yaml").write_text(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMREC_LMM_HOME", str(folder / "home"))
        patch.chdir(folder)
        registry = load_registry()
        open_dataset("demo", Settings(data_path=str(folder / "whole")), registry)  # makes it
        whole, slim = folder / "whole" / "demo", folder / "data" / "demo"
        slim.mkdir(parents=True)
        shutil.copy(whole / "demo.inter", slim)
        items = pd.read_csv(whole / "items.tsv", sep="\t", dtype=str, keep_default_na=False)
        items[["itemID", "title"]].to_csv(slim / "items.tsv", sep="\t", index=False)
        file = load_study(Path("small.yaml"), overrides={"data_path": str(folder / "data")})
        plan = make_plan(file, registry, out=folder / "runs", threads=1)
        Worker(plan, registry, since=0.0).work()
        submit_study(plan, registry, folder / "study.zip")
        dataset = open_dataset("demo", Settings(data_path=str(folder / "data")), registry)
    return World(
        home=folder / "home",
        data_path=str(folder / "data"),
        whole=str(folder / "whole"),
        runs=folder / "runs",
        registry=registry,
        study=folder / "study.zip",
        dataset=dataset,
    )


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
        self.row = next(row for row in self.manifest["rows"] if row["model"] in ("BPR", "VBPR"))
        self.run, self.other = self.row["runs"][0], self.row["runs"][-1]
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
        hits = np.array(
            [[(user, item) in keys for item in row] for user, row in zip(users, items.tolist(), strict=True)]
        )
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

        rows = [dataclasses.replace(row, attempts=tuple(map(attempt, row.attempts))) for row in manifest.rows]
        with contextlib.suppress(ConfigError, DataError):  # rows that can't be compared
            rows = with_scores(rows, results, manifest.method, load_registry())  # type: ignore[arg-type]
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


def endless_history(f: Forger) -> None:
    """More epochs than a list of their numbers would fit into memory."""
    f.result(lambda result: result.update(epochs=2**40))


def no_history(f: Forger) -> None:
    f.result(lambda result: result.update(epochs=0, best_epoch=-1, stopped="epochs"))
    f.history(lambda lines: lines.clear())


def one_number_as_lists(f: Forger) -> None:
    users, _ = load_lists(f.path(LISTS))
    save_file({"users": users, "items": np.array(3, np.uint8)}, f.path(LISTS))


def point_with_its_seed(f: Forger) -> None:
    """A point with a seed, which no grid has."""
    f.row["parameters"]["seed"] = 1
    for attempt in f.row["attempts"]:
        attempt["parameters"]["seed"] = 1


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
    endless_history: "history",
    no_history: "history",
    one_number_as_lists: "lists",
    point_with_its_seed: "attempts",
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


# What only training shows


@pytest.mark.slow
def test_an_honest_bundle_is_replayed_and_stands_in_a_fresh_world(world: World, content: Path) -> None:
    found = world.verify(content, "fresh", seed=3, data_path=world.whole)
    assert (found.tier, found.stopped, found.seed, found.baseline) == ("fresh", None, 3, "Pop")
    assert [one.identical for one in found.replayed.values()] == [True]
    (fresh,) = found.fresh.values()
    assert fresh.fresh > 2 * fresh.chance
    assert fresh.fresh_lead == pytest.approx(fresh.fresh - fresh.baseline_fresh)


@pytest.fixture(scope="module")
def content(world: World) -> Path:
    """A bundle of one run of VBPR with the features of an encoder."""
    runs, output = world.runs.parent / "content", world.runs.parent / "content.zip"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMREC_LMM_HOME", str(world.home))
        answer = call("run", "-m", "VBPR", "-d", "demo", "--data-path", world.whole, "--out", runs, *VBPR, "--json")
    assert answer.code == 0, answer.err
    return submit_run(runs / json.loads(answer.out)["run_id"], world.registry, output)


def perfect_lists(f: Forger) -> None:
    """Every held-out item at the top of its user's list, with the numbers that follow."""
    keys = {*zip(DATASET.train.users.tolist(), DATASET.train.items.tolist(), strict=True)}

    def change(users: np.ndarray, items: np.ndarray) -> None:
        for row, user in enumerate(users.tolist()):
            wanted = [
                item for item in DATASET.test.items[DATASET.test.users == user].tolist() if (user, item) not in keys
            ]
            rest = [item for item in items[row].tolist() if item not in wanted]
            items[row] = [*wanted, *rest][: items.shape[1]]

    f.lists(change)
    f.result(lambda result: result["record"]["chance"]["test"].update(score=result["test"]["recall@20"]))


def other_features(f: Forger) -> None:
    f.result(lambda result: result["record"]["features"].update(image=32 * "0"))


def other_code(f: Forger) -> None:
    """A model of another hash, in the manifest and in the record."""
    for one in f.manifest["plugins"]:
        if one["part"] == "model":
            one["code"] = 64 * "0"
    f.result(lambda result: result["record"]["code"].update(model=64 * "0"))


def other_values(f: Forger) -> None:
    """Values that weren't trained with, in all places and with their hash."""
    f.config(lambda config: config["model_config"].update(reg_weight=0.5))


def epoch_chosen_on_test_with_its_history(f: Forger) -> None:
    """The last epoch, with a history in which it is the best one, and hits of validation that are possible."""
    path, about = f.path(run_folder.PER_USER), {}

    def change(lines: list[Any]) -> None:
        arrays, _ = load_arrays(path)
        raised = {name: np.maximum(values, 0) for name, values in arrays.items() if name.startswith("valid/")}
        missed = np.flatnonzero(raised["valid/recall@20"] == 0)[:40]
        positives = np.bincount(DATASET.valid.users, minlength=DATASET.n_users)[arrays["valid/users"]]
        for k in (10, 20):  # one hit more of some users, at rank 1
            raised[f"valid/recall@{k}"][missed] = 1 / positives[missed]
            raised[f"valid/precision@{k}"][missed] = 1 / k
        means = {name.removeprefix("valid/"): float(raised[name].mean()) for name in raised if "@" in name}
        for line in lines[:-1]:
            line["valid"] = {**line["valid"], "recall@20": min(line["valid"]["recall@20"], means["recall@20"] - 1e-4)}
        best = -1.0
        for line in lines[:-1]:
            line["improved"] = line["valid"]["recall@20"] > best
            best = max(best, line["valid"]["recall@20"])
        lines[-1].update(valid=means, improved=True)
        save_file({**arrays, **raised}, path, {"run": json.dumps(f.run)})
        about.update(means)
        f.result(lambda result: result.update(best_epoch=len(lines) - 1, valid=means))

    f.history(change)


REPLAYED = {
    perfect_lists: "replay",
    other_features: "features",
    other_code: "code",
    other_values: "identity",
    epoch_chosen_on_test_with_its_history: "replay",
}


@pytest.mark.slow
@pytest.mark.parametrize("trick", REPLAYED, ids=lambda trick: trick.__name__)
def test_a_trick_that_lists_do_not_show_is_stopped_where_the_run_is_made_again(
    trick: Callable[[Forger], None], world: World, forge: Callable[..., Path], content: Path
) -> None:
    found = world.verify(forge(trick, content), "fresh", data_path=world.whole)
    assert found.stopped is not None
    assert (found.tier, found.stopped.tier, found.stopped.check) == ("recomputed", "replayed", REPLAYED[trick]), found


@pytest.mark.slow
def test_code_of_another_version_is_noted_and_the_numbers_decide(
    world: World, forge: Callable[..., Path], content: Path
) -> None:
    def trick(f: Forger) -> None:
        other_code(f)
        f.result(lambda result: result["record"]["versions"].update(mmrec_lmm="0.0.9"))

    found = world.verify(forge(trick, content), "replayed", data_path=world.whole)
    assert (found.tier, found.stopped) == ("replayed", None)
    assert found.notes == (f"made with mmrec-lmm 0.0.9, trained again with {__version__}",)


MEMORIZED = '''
import torch

@dataclass(frozen=True)
class MemoConfig:
    """No keys."""

class Memo(ParameterFree):
    """The pairs of users and items that its author had looked up in test, above POPULAR times popularity."""

    def __init__(self, data, features, config):
        super().__init__(data, features, config)
        counts = torch.bincount(torch.as_tensor(data.train.items), minlength=data.n_items).float()
        scores = POPULAR * counts.repeat(data.n_users, 1)
        scores[USERS, ITEMS] += 1e6
        self.register_buffer("scores", scores, persistent=False)

    def scorer(self):
        return lambda users: self.scores[users]

@hookimpl
def mmrec_register_models():
    return [ModelSpec("Memo", Memo, MemoConfig, summary="knows the answers", uses_features=False)]
'''


@pytest.fixture(scope="module")
def memorized(world: World) -> tuple[Path, Path]:
    """A plugin that knows half of test by heart and nothing else, and a bundle of its run."""
    return memorizer(world, 0)


def memorizer(world: World, popular: int) -> tuple[Path, Path]:
    users, items = world.dataset.test.users[::2].tolist(), world.dataset.test.items[::2].tolist()
    body = f"USERS, ITEMS, POPULAR = {users}, {items}, {popular}\n{MEMORIZED}"
    folder = world.runs.parent / f"memo{popular}"
    folder.mkdir()
    file, output = plugin(folder / "memo.py", body), folder / "memo.zip"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMREC_LMM_HOME", str(world.home))
        keys = ("--data-path", world.data_path, "--out", folder, "--topk=[10,20]", "--threads=1")
        answer = call("run", "-p", file, "-m", "Memo", "-d", "demo", *keys, "--json")
        assert answer.code == 0, answer.err
        run = folder / json.loads(answer.out)["run_id"]
        return file, submit_run(run, load_registry([str(file)]), output)


def test_a_model_that_memorized_test_leads_until_its_world_is_fresh(world: World, memorized: tuple[Path, Path]) -> None:
    file, bundle = memorized
    found = world.verify(bundle, "fresh", registry=load_registry([str(file)]), seed=3)
    assert found.stopped is not None
    assert (found.tier, found.stopped.check) == ("replayed", "fresh")
    (fresh,) = found.fresh.values()
    best = max(result.test["recall@20"] for result in run_folder.list_results(world.runs))
    assert fresh.claim > 3 * best
    assert "expected more than chance" in found.stopped.reason
    assert fresh.fresh < 2 * fresh.chance < best
    assert fresh.fresh_lead < 0


@pytest.mark.slow
def test_a_model_that_also_knows_what_is_popular_loses_its_lead(world: World) -> None:
    file, bundle = memorizer(world, 1)
    found = world.verify(bundle, "fresh", registry=load_registry([str(file)]), seed=3)
    assert found.stopped is not None
    assert (found.tier, found.stopped.check) == ("replayed", "fresh")
    assert "expected to keep its lead of 0.4" in found.stopped.reason
    (fresh,) = found.fresh.values()
    assert fresh.fresh == pytest.approx(fresh.baseline_fresh, abs=0.01)


def test_a_bundle_of_a_plugin_that_is_not_here_stops_where_it_would_be_trained(
    world: World, memorized: tuple[Path, Path]
) -> None:
    found = world.verify(memorized[1], "replayed")
    assert found.stopped is not None
    assert (found.tier, found.stopped.check) == ("recomputed", "plugin")
    assert "unknown model Memo" in found.stopped.reason
    assert "memo.py" in found.stopped.reason


SAMPLER = """
import torch

class Even(Sampler):
    redraws = True

    def draw(self, users, generator):
        return torch.randint(self.data.n_items, users.shape, generator=generator) // 2 * 2

@hookimpl
def mmrec_register_samplers():
    return [SamplerSpec("even", Even)]
"""


def test_the_sampler_of_a_plugin_is_among_the_plugins_of_a_bundle(world: World, tmp_path: Path) -> None:
    file = plugin(tmp_path / "even.py", SAMPLER)
    keys = ("--data-path", world.data_path, "--epochs=1", "--threads=1", "--topk=[20]")
    answer = call("run", "-p", file, "-m", "BPR", "--sampler", "even", "-d", "demo", "--out", tmp_path, *keys, "--json")
    assert answer.code == 0, answer.err
    registry = load_registry([str(file)])
    bundle = submit_run(tmp_path / json.loads(answer.out)["run_id"], registry, tmp_path / "even.zip")
    named = {one.part: one.name for one in read_manifest(bundle).plugins}
    assert named == {"host": "mmrec-lmm", "model": "mmrec-lmm:models", "sampler": "even.py"}


def test_a_run_that_another_kind_of_metric_selects_is_not_compared_in_a_fresh_world(
    world: World, tmp_path: Path
) -> None:
    keys = ("--data-path", world.data_path, "--threads=1", "--topk=[20]", "--metrics=[Recall,Coverage]")
    more = ("--out", tmp_path, "--valid_metric=Coverage@20", "--json")
    answer = call("run", "-m", "Pop", "-d", "demo", *keys, *more)
    assert answer.code == 0, answer.err
    bundle = submit_run(tmp_path / json.loads(answer.out)["run_id"], world.registry, tmp_path / "pop.zip")
    found = world.verify(bundle, "fresh")
    assert found.stopped is not None
    assert (found.tier, found.stopped.check) == ("replayed", "fresh")
    assert "expected a metric of each user that lists give as the one that selects, got Coverage@20" in str(found)


def pairs(dataset: Dataset) -> np.ndarray:
    """All interactions (N, 2)."""
    splits = (dataset.train, dataset.valid, dataset.test)
    return np.concatenate([np.stack([rows.users, rows.items], axis=1) for rows in splits])


def test_a_fresh_world_is_the_same_one_under_other_numbers(specs: Callable[..., Any], registry: Registry) -> None:
    """On the checkerboard: even users have the even items, and an item's features tell its color."""
    (spec,) = specs()
    inputs = gather(spec, registry)
    timed = shipped_rule("user-time")
    worlds = [fresh_inputs(inputs, rule, seed) for rule, seed in ((None, 1), (None, 1), (None, 2), (timed, 3))]
    one, same, other, _ = worlds
    assert np.array_equal(pairs(one.dataset), pairs(same.dataset))
    assert one.dataset.fingerprint == same.dataset.fingerprint != other.dataset.fingerprint
    assert not np.array_equal(pairs(one.dataset), pairs(other.dataset))
    for world in worlds:
        dataset = world.dataset
        found = pairs(dataset)
        assert len(found) == len(np.unique(found, axis=0)) == len(pairs(inputs.dataset))
        assert dataset.split is not None
        assert dataset.split.rule == "ratio"
        assert {*found[:, 0].tolist()} == {*range(12)}
        assert not {*map(tuple, found.tolist())} <= {*map(tuple, pairs(inputs.dataset).tolist())}
        before, after = inputs.tables["text"], world.tables["text"]
        assert sorted(map(tuple, after.values.tolist())) == sorted(map(tuple, before.values.tolist()))
        assert after.fingerprint != before.fingerprint
        assert dataset.catalog is not None
        for user in range(12):  # a user's items have one color, in features and in the catalog
            items = found[found[:, 0] == user, 1]
            items = items[after.present[items]]
            assert len(np.unique(after.values[items, 0] > 0)) == 1
            titles = {dataset.catalog.fields["title"][item].split(" ")[0] for item in items}
            assert len(titles - {""}) == 1
    cold = fresh_inputs(inputs, shipped_rule("cold-item"), 1).dataset
    assert not {*cold.train.items.tolist()} & {*cold.test.items.tolist()}


@pytest.mark.slow
@pytest.mark.parametrize("paradigm", ["ft", "ete"])
def test_encoders_that_were_tuned_or_trained_are_verified_in_all_tiers(
    paradigm: str, data_path: Path, tmp_path: Path, registry: Registry
) -> None:
    answer = call(
        "run", "-m", "VBPR", "-d", "toy", "--data-path", data_path, "--out", tmp_path / "runs",
        "--encoder", "clip:tiny", "--paradigm", paradigm, "--epochs=8", "--embedding_size=4",
        "--learning_rate=0.1", "--topk=[2,4]",
        "--valid_metric=Recall@4", "--threads=1", "--json",
        *(["--ft.epochs=1", "--ft.held_out=0.2"] if paradigm == "ft" else []),
    )  # fmt: skip
    assert answer.code == 0, answer.err
    run = tmp_path / "runs" / json.loads(answer.out)["run_id"]
    bundle = submit_run(run, registry, tmp_path / "toy.zip")
    found = verify(bundle, registry, tier="fresh", data_path=str(data_path), seed=1)
    assert [one.identical for one in found.replayed.values()] == [True]
    assert [*found.fresh] == [f"VBPR/toy/clip:tiny/{paradigm}/image+text"]
    assert found.tier in ("replayed", "fresh"), found.stopped  # twelve users say little


# Files that aren't bundles


def test_the_same_run_gives_the_same_bytes(world: World, tmp_path: Path) -> None:
    run = next(world.runs.glob("BPR-*"))
    result = run_folder.load_result(run)
    assert result is not None
    with pytest.raises(ConfigError, match="expected the point of its grid that is best on validation"):
        submit_run(worse(world), world.registry, tmp_path / "worse.zip")
    paths = [submit_run(better(world), world.registry, tmp_path / name) for name in ("a.zip", "b.zip")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].stat().st_size < 250_000


def better(world: World) -> Path:
    """The first run of the winner of BPR's grid."""
    (row,) = (row for row in read_manifest(world.study).rows if row.axes.model == "BPR")
    return world.runs / row.runs[0]


def worse(world: World) -> Path:
    """A run of the other point."""
    (row,) = (row for row in read_manifest(world.study).rows if row.axes.model == "BPR")
    return world.runs / next(one.run for one in row.attempts if one.parameters != row.parameters)


def test_a_bundle_holds_the_attempts_and_no_path_of_its_machine(world: World) -> None:
    manifest = read_manifest(world.study)
    (row,) = (row for row in manifest.rows if row.axes.model == "BPR")
    assert row.counts() == {"runs": 4, "points": 2, "seeds": 2, "earlier": 0, "failed": 0}
    assert {plugin.part for plugin in manifest.plugins} == {"host", "model"}
    with opened(world.study) as bundle:
        text = "".join(path.read_text(errors="replace") for path in bundle.folder.rglob("*.json"))
    assert str(world.runs.parent) not in text
    assert '"data_path": "data"' in text


def repacked(source: Path, target: Path, change: Callable[[str, bytes], dict[str, bytes]]) -> Path:
    """The archive with each file as `change` makes it: name -> content."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            for other, content in change(name, old.read(name)).items():
                new.writestr(other, content)
    return target


def manifest_with(**values: Any) -> Callable[[str, bytes], dict[str, bytes]]:
    def change(name: str, content: bytes) -> dict[str, bytes]:
        return {name: json.dumps({**json.loads(content), **values}).encode() if name == MANIFEST else content}

    return change


def _flipped(name: str, content: bytes) -> dict[str, bytes]:
    return {name: content[:-1] + bytes([content[-1] ^ 1]) if name.endswith(LISTS) else content}


BROKEN: dict[str, tuple[Callable[[str, bytes], dict[str, bytes]], str, str]] = {
    "a later version": (manifest_with(version=VERSION + 1), "version", "try a later mmrec-lmm"),
    "another format": (manifest_with(format="zip"), "manifest", "expected 'mmrec-lmm bundle'"),
    "no rows": (manifest_with(rows=[]), "files", "difference in its manifest"),
    "rows that are none": (manifest_with(rows=[3]), "manifest", "rows.0: expected an object, got 3"),
    "a name that is a path": (manifest_with(name="../up"), "manifest", "name: expected at most"),
    "a manifest that is no JSON": (
        lambda name, content: {name: b"{" if name == MANIFEST else content},
        "manifest",
        "damaged",
    ),
    "an edited file": (_flipped, "hash", "expected the file of hash"),
    "a file beside": (lambda name, content: {name: content, f"{name}.pkl": b""}, "archive", r"got 'manifest.json.pkl'"),
    "a path that leads out": (
        lambda name, content: {name: content, "runs/../../evil/config.json": b""},
        "archive",
        "got 'runs/../../evil",
    ),
    "a run that lacks a file": (
        lambda name, content: {} if name.endswith(run_folder.HISTORY) else {name: content},
        "files",
        "difference in its archive",
    ),
    "no manifest": (lambda name, content: {} if name == MANIFEST else {name: content}, "archive", "other files"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_bundle_that_is_not_well_formed_is_one_message(fault: str, world: World, tmp_path: Path) -> None:
    change, name, words = BROKEN[fault]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of a name that comes twice
        bundle = repacked(world.study, tmp_path / "broken.zip", change)
    found = world.verify(bundle)
    assert found.stopped is not None
    assert (found.tier, found.stopped.check) == (NOTHING, name), found.stopped
    assert words in found.stopped.reason
    assert not (tmp_path.parent / "evil").exists()


VALUES: tuple[Any, ...] = (None, True, -1, 3, 2**40, 1e300, float("nan"), "", "x", "../x", [], {}, [[]], {"a": None})


def scrambled(value: Any, rng: np.random.Generator) -> Any:
    """A JSON value in which one part, drawn at any depth, is another."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        return VALUES[rng.integers(len(VALUES))]
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[rng.integers(len(keys))]
    made = dict(value) if isinstance(value, dict) else list(value)
    if rng.random() < 0.1:
        del made[key]
    else:
        made[key] = scrambled(value[key], rng)
    return made


@pytest.mark.parametrize("name", [MANIFEST, run_folder.RESULT, run_folder.CONFIG, run_folder.HISTORY])
def test_whatever_a_bundle_says_it_is_verified_or_refused(
    name: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    monkeypatch.setattr("mmrec_lmm.board.recompute.with_scores", lambda rows, *others: rows)  # has its own tests
    refused = 0
    for number in range(8):
        with opened(world.study) as whole:
            folder = tmp_path / f"{name}-{number}"
            shutil.copytree(whole.folder, folder)
        document = json.loads((folder / MANIFEST).read_text())
        if name == MANIFEST:
            content = scrambled(document, rng)
        else:
            path = folder / "runs" / document["rows"][0]["runs"][0] / name
            lines = path.read_text().splitlines() if name == run_folder.HISTORY else [path.read_text()]
            lines[0] = json.dumps(scrambled(json.loads(lines[0]), rng))
            path.write_text("\n".join(lines))
            content = document
            if name == run_folder.CONFIG:  # as its record says, and with the hash of that
                resolved, beside = json.loads(path.read_text()), path.with_name(run_folder.RESULT)
                result = json.loads(beside.read_text())
                result["record"].update(resolved=resolved, config=fingerprint(resolved))
                beside.write_text(json.dumps(result))
            for file in content["files"]:
                content["files"][file]["sha256"] = read_hash(folder / file)
        (folder / MANIFEST).write_text(json.dumps(content))
        bundle = tmp_path / f"{number}.zip"
        with zipfile.ZipFile(bundle, "w") as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    archive.write(path, path.relative_to(folder).as_posix())
        found = world.verify(bundle)
        refused += found.stopped is not None
        assert found.stopped is None or found.stopped.reason
    assert refused > 3


def test_a_file_that_comes_twice_and_one_that_is_larger_than_it_says_are_refused(world: World, tmp_path: Path) -> None:
    twice = tmp_path / "twice.zip"
    shutil.copy(world.study, twice)
    with warnings.catch_warnings(), zipfile.ZipFile(twice, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(MANIFEST, b"{}")
    with pytest.raises(Refusal, match=r"got manifest.json twice"), opened(twice):
        pass


def test_a_bundle_packed_by_another_method_is_refused(world: World, tmp_path: Path) -> None:
    with zipfile.ZipFile(world.study) as old, zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_LZMA) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(Refusal, match="expected it packed by deflate, or not packed"), opened(tmp_path / "b.zip"):
        pass


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_bundle_is_one_message(share: float, world: World, tmp_path: Path) -> None:
    content = world.study.read_bytes()
    (tmp_path / "cut.zip").write_bytes(content[: int(share * len(content))])
    answer = call("verify", tmp_path / "cut.zip", "--data-path", world.data_path)
    assert answer.code == 4
    assert re.search(r"stopped at reported by the check archive: .*damaged or truncated archive", answer.out)


def test_a_file_or_a_data_set_that_is_not_here_is_an_error(world: World, tmp_path: Path) -> None:
    answer = call("verify", tmp_path / "none.zip")
    assert (answer.code, answer.err) == (4, f"error: {tmp_path / 'none.zip'}: no such file\n")
    (tmp_path / "empty" / "demo").mkdir(parents=True)
    answer = call("verify", world.study, "--data-path", tmp_path / "empty")
    assert answer.code == 4
    assert "demo.inter: no such file" in answer.err


def test_the_command_prints_the_tier_and_the_code_says_if_it_was_reached(
    world: World, forge: Callable[..., Path]
) -> None:
    answer = call("verify", world.study, "--data-path", world.data_path)
    assert (answer.code, answer.out) == (0, "small: recomputed, of 2 rows and 4 runs\n")
    answer = call("verify", forge(training_item), "--data-path", world.data_path, "--json")
    assert answer.code == 1
    document = json.loads(answer.out)
    assert (document["tier"], document["passed"], document["stopped"]["check"]) == ("reported", False, "mask")


def test_the_first_line_of_a_verification_counts_what_was_read(world: World, tmp_path: Path) -> None:
    found = dataclasses.replace(verify(world.study, world.registry, data_path=world.data_path), rows=1, runs=1)
    assert verification_text(found) == "small: recomputed, of 1 row and 1 run"
    (tmp_path / "cut.zip").write_bytes(world.study.read_bytes()[:500])
    answer = call("verify", tmp_path / "cut.zip")
    assert (answer.code, answer.out.splitlines()[0]) == (4, "cut.zip: nothing")


def test_the_seed_of_a_recorded_fresh_world_can_be_given_again(
    world: World, board: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = 2**62 - 1
    monkeypatch.setattr(secrets, "randbits", lambda bits: 2**bits - 1)
    drawn = call("verify", world.study, "--tier", "fresh", "--data-path", world.data_path, "--json")
    assert json.loads(drawn.out)["seed"] == largest
    answer = call("verify", world.study, "--seed", largest, "--data-path", world.data_path)
    assert (answer.code, answer.out) == (0, "small: recomputed, of 2 rows and 4 runs\n"), answer.err
    assert call("board", "add", board, world.study, "--seed", largest, "--data-path", world.data_path).code == 0
    assert call("verify", world.study, "--seed", largest + 1, "--data-path", world.data_path).code == 2


@pytest.mark.parametrize("tier", ["recomputed", "replayed"])
def test_a_device_that_is_not_here_is_the_verifiers_fault(world: World, board: Path, tier: str) -> None:
    more = ("--tier", tier, "--device", "tpu", "--data-path", world.data_path)
    for words in (("verify", world.study), ("board", "add", board, world.study)):
        answer = call(*words, *more)
        assert (answer.code, answer.out) == (2, "")
        assert "device: expected one of this machine, got tpu" in answer.err
    assert not list((board / SUBMISSIONS).glob("*"))


def test_the_commands_pack_a_run_and_a_study(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.runs.parent)
    answer = call("submit", better(world).name, "-o", tmp_path / "run.zip")
    assert (answer.code, answer.out) == (0, f"{tmp_path / 'run.zip'}\n"), answer.err
    assert len(read_manifest(tmp_path / "run.zip").run_ids) == 2  # both seeds
    answer = call("submit", "small.yaml", "-o", tmp_path / "study.zip", "--data-path", world.data_path)
    assert answer.code == 0, answer.err
    answer = call("submit", better(world).name, "--where", "model=Pop", "-o", tmp_path / "no.zip")
    assert answer.code == 2
    assert "--where: expected a study, whose rows it picks, got BPR" in answer.err
    assert not (tmp_path / "no.zip").exists()
    answer = call("submit", "nothing", "-o", tmp_path / "no.zip")
    assert answer.code == 4
    assert "nothing: expected a finished run in runs, got none of that name" in answer.err


# Boards


@pytest.fixture
def board(world: World, tmp_path: Path) -> Path:
    """A new board of the demo data."""
    folder = tmp_path / "board"
    answer = call("board", "new", folder, "-d", "demo", "--name", "demo-own", "--data-path", world.data_path)
    assert (answer.code, answer.out) == (0, f"{folder / BOARD}\n"), answer.err
    return folder


def put(world: World, board: Path, bundle: Path, **more: Any) -> str:
    registry = more.pop("registry", world.registry)
    entered = add(open_board(board, registry), bundle, registry, data_path=world.data_path, **more)
    return entered.submission.id


def test_a_board_is_built_from_bundles_alone_and_says_what_changed(
    world: World, board: Path, memorized: tuple[Path, Path], tmp_path: Path
) -> None:
    first = put(world, board, world.study)
    with pytest.raises(ConfigError, match="expected a bundle that isn't on the board"):
        put(world, board, world.study)
    built = build(open_board(board, world.registry), world.registry)
    assert built.changes == ("the first state: 2 rows",)
    again = [path.read_bytes() for path in sorted(built.folder.iterdir())]
    assert build(open_board(board, world.registry), world.registry).changes == ("nothing",)
    assert {path.name for path in built.folder.iterdir()} == {
        PAGE, LEADERBOARD, CHANGES, "table.md", "table.tex", "results.csv",
    }  # fmt: skip
    assert [p.read_bytes() for p in sorted(built.folder.iterdir()) if p.name != CHANGES] == [
        content for content, path in zip(again, sorted(built.folder.iterdir()), strict=True) if path.name != CHANGES
    ]

    file, memo = memorized
    put(world, board, memo, tier="fresh", registry=load_registry([str(file)]), seed=3)
    shutil.copytree(board, tmp_path / "elsewhere")  # where there are neither runs nor data
    built = build(open_board(tmp_path / "elsewhere", world.registry), world.registry)
    rows = {row.axes.model: row for row in built.board.rows}
    assert {name: row.tier for name, row in rows.items()} == {
        "BPR": "recomputed", "Pop": "recomputed", "Memo": "replayed",
    }  # fmt: skip
    assert any(mark.startswith("stopped at fresh (fresh): ") for mark in rows["Memo"].marks)
    assert rows["BPR"].attempts == {"runs": 4, "points": 2, "seeds": 2, "earlier": 0, "failed": 0}
    assert rows["BPR"].submission == first
    assert rows["BPR"].scores["recall@20"].against == rows["Pop"].key
    assert built.board.head is not None
    assert built.board.head["protocol"].startswith("demo-own, version 1 (")
    assert any(line.startswith("new: Memo/demo") and line.endswith("rank 1") for line in built.changes)
    assert read_leaderboard(built.folder / LEADERBOARD).rows == built.board.rows
    for name in ("table.md", "table.tex", "results.csv"):
        assert first in (built.folder / name).read_text().replace("\\_", "_").replace("\\", "")


@pytest.mark.slow
def test_a_board_declares_what_trained_its_encoders(world: World, board: Path, content: Path) -> None:
    answer = call("board", "add", board, content, "--data-path", world.whole)
    assert answer.code == 4
    assert "expected an encoder whose training data board.yaml declares (none yet), got basic; try" in answer.err
    (board / BOARD).write_text((board / BOARD).read_text().replace("encoders: {}", "encoders: {basic: nothing}"))
    assert call("board", "add", board, content, "--data-path", world.whole).code == 0
    built = build(open_board(board, world.registry), world.registry)
    assert built.board.head is not None
    assert built.board.head["encoder basic, trained on"] == "nothing"


def test_a_correction_supersedes_and_deletes_nothing(world: World, board: Path, tmp_path: Path) -> None:
    old = put(world, board, world.study)
    build(open_board(board, world.registry), world.registry)
    corrected = submit_run(better(world), world.registry, tmp_path / "one.zip", note="corrected")
    with pytest.raises(ConfigError, match="--supersedes: expected a submission of this board, got small-x"):
        put(world, board, corrected, supersedes="small-x")
    assert [path.name for path in (board / SUBMISSIONS).iterdir()] == [old]
    new = put(world, board, corrected, supersedes=old, note="without Pop")
    built = build(open_board(board, world.registry), world.registry)
    assert [row.submission for row in built.board.rows] == [new]
    assert f"{old} is superseded by {new}: without Pop." in built.board.notes
    assert any(line.startswith("gone: Pop/demo") and line.endswith(f"superseded by {new}") for line in built.changes)
    assert (board / SUBMISSIONS / old / BUNDLE).is_file()


def test_a_forged_bundle_is_not_added_and_leaves_nothing(world: World, board: Path, forge: Callable[..., Path]) -> None:
    answer = call("board", "add", board, forge(training_item), "--data-path", world.data_path)
    assert answer.code == 4
    assert "forged.zip: not added, as the check mask of the tier recomputed stops it: " in answer.err
    assert not list((board / SUBMISSIONS).glob("*"))


def test_a_run_of_another_protocol_is_refused(world: World, board: Path) -> None:
    text = (board / BOARD).read_text()
    for old, new, words in (
        (r"^data: .*$", f"data: '{32 * '0'}'", "got another data set or split"),
        (r"mask_valid_in_test: false", "mask_valid_in_test: true", "mask_valid_in_test: expected True"),
        (r"valid_metric: Recall@20", "valid_metric: NDCG@20", "valid_metric: expected NDCG@20"),
        (r"- NDCG@20", "- MRR@20", "expected MRR@20, which the board shows"),
    ):
        (board / BOARD).write_text(re.sub(old, new, text, flags=re.MULTILINE))
        with pytest.raises(Refusal, match=re.escape(words)):
            put(world, board, world.study)


def test_a_board_takes_its_settings_as_configuration_does(world: World, board: Path) -> None:
    text = (board / BOARD).read_text()
    as_typed = "mask_valid_in_test: 'no'\n  topk: ['10', 20]"
    (board / BOARD).write_text(text.replace("mask_valid_in_test: false", as_typed))
    put(world, board, world.study)


def test_damaged_settings_in_a_bundle_are_its_own_fault(world: World, board: Path, forge: Callable[..., Path]) -> None:
    bundle = forge(lambda f: f.config(lambda config: config["settings"].update(topk="x")))
    with pytest.raises(Refusal, match=r"the check record of .* stops it: BPR-demo-\w+: config.json: settings"):
        put(world, board, bundle)


def test_what_changed_on_a_board_is_said_in_the_order_of_its_rows() -> None:
    board = sample()
    gone = [line.removeprefix("gone: ") for line in differences(board, dataclasses.replace(board, rows=[]), [])]
    assert gone == [row.key for row in board.rows]
    assert len(gone) > 5


def test_a_changed_protocol_is_another_board(world: World, board: Path) -> None:
    put(world, board, world.study)
    text = (board / BOARD).read_text()
    (board / BOARD).write_text(text.replace("version: 1", "version: 2"))
    for verb in (("build", board), ("check", board, "--data-path", world.data_path)):
        answer = call("board", *verb)
        assert answer.code == 2
        assert "a changed protocol is a board of its own" in answer.err
    (board / BOARD).write_text(f"{text}title: Another title\n")
    assert call("board", "build", board).code == 0


def test_check_finds_what_changed_on_a_board(world: World, board: Path) -> None:
    name = put(world, board, world.study)
    answer = call("board", "check", board, "--data-path", world.data_path)
    assert (answer.code, answer.out) == (0, f"{name}: as recorded, recomputed\n1 submissions, 0 with a problem\n")
    bundle = board / SUBMISSIONS / name / BUNDLE
    content = bundle.read_bytes()
    bundle.write_bytes(content[:-1])
    (found,) = check(open_board(board, world.registry), world.registry, data_path=world.data_path)
    assert "expected the bundle of hash" in found.problem
    assert call("board", "check", board, "--data-path", world.data_path).code == 1
    site = sorted(path.name for path in board.iterdir())
    answer = call("board", "build", board)
    assert answer.code == 4
    assert sorted(path.name for path in board.iterdir()) == site, "nothing half-built"
    bundle.unlink()
    (found,) = check(open_board(board, world.registry), world.registry, data_path=world.data_path)
    assert found.problem == "expected bundle.zip, got none"


def test_the_best_setting_of_a_board_is_a_study_whose_runs_are_those_verified(
    world: World, board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(world, board, world.study)
    file = tmp_path / "best.yaml"
    answer = call("best", "-m", "bpr", "-d", "demo", "--board", board, "-o", file)
    assert answer.code == 0, answer.err
    assert "verified: recomputed" in file.read_text()
    plan = make_plan(
        load_study(file, overrides={"data_path": world.data_path}), world.registry, out=tmp_path / "runs", threads=1
    )
    (row,) = (row for row in read_manifest(world.study).rows if row.axes.model == "BPR")
    names = {run_id(job.spec, gather(job.spec, world.registry), world.registry) for job in plan.jobs.values()}
    assert names == {*row.runs}
    answer = call("best", "-m", "VBPR", "-d", "demo", "--board", board)
    assert (answer.code, "expected a verified row of VBPR, got none" in answer.err) == (2, True)
    monkeypatch.chdir(tmp_path)
    assert "expected a board of demo, got none" in call("best", "-m", "BPR", "-d", "demo").err
    shutil.copytree(board, tmp_path / "boards" / "one")
    assert call("best", "-m", "BPR", "-d", "demo").out == file.read_text()
    assert "of toy, got none; there are boards of demo" in call("best", "-m", "BPR", "-d", "toy").err
    shutil.copytree(board, tmp_path / "boards" / "two")
    assert "expected one board of demo, got boards/one, boards/two" in call("best", "-m", "BPR", "-d", "demo").err


def test_some_rows_of_a_study_are_packed(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.runs.parent)
    common = ("submit", "small.yaml", "-o", tmp_path / "some.zip", "--data-path", world.data_path, "--where")
    assert call(*common, "model=Pop").code == 0
    assert [row.axes.model for row in read_manifest(tmp_path / "some.zip").rows] == ["Pop"]
    assert "expected a finished row of model VBPR, got none" in call(*common, "model=VBPR").err
    assert "--where: expected one of model, dataset" in call(*common, "modle=Pop").err


def test_two_submissions_of_one_id_and_a_renamed_folder_are_one_message(world: World, board: Path) -> None:
    name = put(world, board, world.study)
    shutil.copytree(board / SUBMISSIONS / name, board / SUBMISSIONS / "copy")
    with pytest.raises(DataError, match=f"expected submissions of different ids, got {name}"):
        open_board(board, world.registry).submissions()
    shutil.rmtree(board / SUBMISSIONS / name)
    with pytest.raises(DataError, match=f"expected the folder of its submission, {name}"):
        open_board(board, world.registry).submissions()


def test_a_record_that_says_more_than_was_verified_is_found(
    world: World, board: Path, forge: Callable[..., Path]
) -> None:
    name = put(world, board, world.study)
    folder = board / SUBMISSIONS / name
    forged = forge(edited_mean)
    shutil.copy(forged, folder / BUNDLE)
    with opened(forged) as bundle:
        digest = bundle.sha256
    for file in (SUBMISSION, VERIFICATION):
        document = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**document, "bundle": digest}))
    (found,) = check(open_board(board, world.registry), world.registry, data_path=world.data_path)
    assert found.problem.startswith("recomputed: metrics: ")


def test_faults_of_board_yaml_are_named_with_their_line(world: World, board: Path) -> None:
    text = (board / BOARD).read_text()
    for old, new, words in (
        ("tier: recomputed", "teir: fresh", "unknown key teir; did you mean tier?"),
        ("tier: recomputed", "tier: gold", "tier must be one of"),
        ("tier: recomputed", "alpha: 5", "alpha must be above 0 and below 1, got 5"),
        ("version: 1", "version: 0", "version: expected 1 or more, got 0"),
        ("model: Pop", "model: Popp", "baseline: model: expected one of"),
        (
            "model: Pop",
            "model: BPR\n  embeding_size: 4",
            "baseline: unknown key embeding_size; did you mean embedding_",
        ),
        (
            "model: Pop",
            "model: BPR\n  n_negatives: [1, 2]",
            "baseline: expected one value of each key, got a grid of 2",
        ),
        ("- Recall@20", "- Recal@20", "metrics: expected METRIC@K, got Recal@20; did you mean Recall?"),
        ("- Recall@20", "- AUC@20", "metrics: expected metrics that lists give, got AUC@20"),
        ("mask_valid_in_test: false", "mask_valid: false", "settings: unknown key mask_valid"),
        ("encoders: {}", "encoders: {basic: ...}", "encoders: basic: expected the data that trained it, got '...'"),
        ("encoders: {}", "encoders: {basic: }", "encoders: basic: expected the data that trained it, got None"),
        ("name: demo-own\n", "", "name: expected a value, got none"),
    ):
        assert old in text
        (board / BOARD).write_text(text.replace(old, new))
        answer = call("board", "build", board)
        assert answer.code == 2
        assert words in answer.err
        assert str(board / BOARD) in answer.err
    (board / BOARD).unlink()
    assert "no such file; try `board new`" in call("board", "build", board).err


def test_an_empty_board_is_not_built_and_a_board_is_begun_once(world: World, board: Path) -> None:
    assert "expected a board with submissions, got none; try `board add`" in call("board", "build", board).err
    answer = call("board", "new", board, "-d", "demo", "--name", "b", "--data-path", world.data_path)
    assert answer.code == 2
    assert "expected a folder without a board" in answer.err


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("Recal@20", "expected METRIC@K, got Recal@20; did you mean Recall?"),
        ("Recall", "expected METRIC@K, got Recall"),
        ("AUC@20", "expected metrics that lists give, got AUC@20"),
    ],
)
def test_a_board_of_metrics_that_it_could_not_show_is_not_begun(
    metric: str, words: str, world: World, tmp_path: Path
) -> None:
    more = ("--metrics", f"NDCG@20,{metric}", "--data-path", world.data_path)
    answer = call("board", "new", tmp_path / "b", "-d", "demo", "--name", "b", *more)
    assert answer.code == 2
    assert f"--metrics: {words}" in answer.err
    assert not (tmp_path / "b").exists()


def test_tiers_are_a_choice_of_the_command_line() -> None:
    assert call("verify", "x.zip", "--tier", "gold").code == 2
    assert TIERS == ("reported", "recomputed", "replayed", "fresh")


def test_plain_records_come_back(world: World) -> None:
    found = world.verify(world.study)
    assert decode(Verification, plain(found), where="record", cure="") == found
