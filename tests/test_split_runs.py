"""Runs and studies under drawn splits: their identity, their records, cold items alone, and the axis of studies."""

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import call, plugin

from mmrec_lmm.config.choices import SPLIT_RULES
from mmrec_lmm.config.settings import Settings
from mmrec_lmm.data.opening import open_dataset
from mmrec_lmm.errors import ConfigError, DataError, PluginError
from mmrec_lmm.plugin.registry import Registry, load_registry
from mmrec_lmm.report.page import page
from mmrec_lmm.report.tables import render
from mmrec_lmm.running import provenance, run_folder
from mmrec_lmm.running.grid import run_grid
from mmrec_lmm.running.index import find_runs
from mmrec_lmm.running.inputs import gather, shared_keys
from mmrec_lmm.running.provenance import run_id
from mmrec_lmm.running.replay import replay
from mmrec_lmm.running.slices import COLD_ALONE, slice_run
from mmrec_lmm.studies import executor
from mmrec_lmm.studies.comparison import Entry, Method, compare
from mmrec_lmm.studies.executor import Plan, Worker, make_plan
from mmrec_lmm.studies.file import load_study
from mmrec_lmm.studies.findings import find
from mmrec_lmm.studies.leaderboard import Leaderboard
from mmrec_lmm.testing.conformance import checks_of, outcome
from mmrec_lmm.types import RunResult, RunSpec

Specs = Callable[..., tuple[RunSpec, ...]]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def timed(data_path: Path) -> Path:
    """The folder of data sets, whose `toy` has times: a user's items one after the other."""
    path = data_path / "toy" / "toy.inter"
    table = pd.read_csv(path, sep="\t")
    table["timestamp"] = 10**9 + 100 * table.userID + np.arange(len(table)) % 8
    table.to_csv(path, sep="\t", index=False)
    return data_path


# Identity


def test_ids_of_runs_and_of_a_studys_records_are_those_from_before_splits(
    specs: Specs, registry: Registry, data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (provenance, executor):
        monkeypatch.setattr(module, "NUMERICS_VERSION", 3)  # of that time
    found = []
    for model in ("BPR", "VBPR"):
        [spec] = specs(model, threads="1", train_batch_size="2048", embedding_size="64")
        found.append(run_id(spec, gather(spec, registry), registry))
    assert found == ["BPR-toy-a1edc7e7", "VBPR-toy-640a4d65"]
    file = tmp_path / "study.yaml"
    file.write_text(
        "models: [BPR, VBPR]\ndatasets: [toy]\nseeds: [1]\n"
        f"settings: {{epochs: 3, threads: 1, data_path: {data_path}}}\n"
    )
    keys = list(make_plan(load_study(file), registry, out=tmp_path).jobs)
    assert keys == ["14db7b2c6ad8bf2a", "3566ff58f26da33e"]


def test_another_split_is_another_run_and_the_same_split_the_same(
    specs: Specs, registry: Registry, timed: Path, tmp_path: Path
) -> None:
    def name(**settings: str) -> str:
        [spec] = specs(**settings)
        return run_id(spec, gather(spec, registry), registry)

    elsewhere = tmp_path / "elsewhere"
    timed.rename(elsewhere)
    names = [name(data_path=str(elsewhere))]
    names += [
        name(split=rule, split_seed=seed, data_path=str(elsewhere))
        for rule, seed in [
            ("ratio", "0"),
            ("ratio", "1"),
            ("leave-one-out", "0"),
            ("user-time", "0"),
            ("cold-item", "0"),
        ]
    ]
    assert len(set(names)) == len(names)
    elsewhere.rename(timed)
    assert name(split="ratio", split_seed="1") == names[2]
    assert name(split="leave-one-out", split_seed="1") == names[3]  # no equal times: nothing is drawn


def test_the_record_has_the_split_and_replay_makes_it_again(
    specs: Specs, registry: Registry, timed: Path, out: Path
) -> None:
    result = run_grid(specs(split="leave-one-out", split_seed="3"), registry, out=out).best
    record = json.loads((result.path / "result.json").read_text())["record"]
    assert record["split"] == "leave-one-out"
    drawn = record["drawn"]
    assert (drawn["rule"], drawn["seed"], drawn["left_out"]) == ("leave-one-out", 3, {})
    assert drawn["rows"] == {"train": 72, "valid": 12, "test": 12}
    assert run_folder.load_result(result.path) == result
    assert replay(result.run_id, registry, out=out).verdict == "identical"
    own = run_grid(specs(), registry, out=out).best
    assert {"split", "drawn", "cold_items"}.isdisjoint(json.loads((own.path / "result.json").read_text())["record"])
    assert [row["run"] for row in find_runs(out, {"split_rule": "leave-one-out"})] == [result.run_id]
    assert [row["run"] for row in find_runs(out, {"split_rule": ""})] == [own.run_id]


def test_runs_that_differ_in_the_split_share_an_encoders_files_but_no_inputs(specs: Specs, registry: Registry) -> None:
    one, other = (shared_keys(specs(encoder="basic", **split)[0], registry) for split in ({}, {"split": "ratio"}))
    assert one.encoded == other.encoded
    assert one.files != other.files
    assert one.inputs != other.inputs


# Cold items


def test_a_cold_item_run_is_measured_against_all_items_and_against_cold_ones_alone(
    specs: Specs, registry: Registry, out: Path
) -> None:
    [spec] = specs(split="cold-item", topk="[2, 3]", valid_metric="Recall@2")
    result = run_grid([spec], registry, out=out).best
    dataset = gather(spec, registry).dataset
    cold = result.record.cold_items
    assert cold is not None
    assert cold.candidates == 3  # a fifth of 16 items: one of validation and two of test
    assert set(np.unique(dataset.test.items)).isdisjoint(dataset.train.items.tolist())
    assert cold.test["recall@3"] == 1.0  # nothing else is ranked
    assert cold.test["recall@2"] >= result.test["recall@2"]
    assert cold.chance.mean == pytest.approx(2 / 3)
    per_user = run_folder.load_per_user(result.path)
    assert per_user["cold/users"].tolist() == per_user["test/users"].tolist()
    assert per_user["cold/recall@2"].mean() == pytest.approx(cold.test["recall@2"])
    row = slice_run(result.run_id, registry, out=out)[-1]
    assert (row["slice"], row["items"], row["users"]) == (COLD_ALONE, 3, len(per_user["cold/users"]))
    assert row["metrics"]["recall@2"]["mean"] == pytest.approx(cold.test["recall@2"])
    answer = call("slices", result.run_id, "--out", out)
    assert (
        "cold items alone: all of test, but only the 3 cold items are ranked (recall@2 by chance 0.6667)" in answer.out
    )


def test_other_splits_have_no_cold_items_alone(specs: Specs, registry: Registry, out: Path) -> None:
    result = run_grid(specs(split="ratio"), registry, out=out).best
    assert result.record.cold_items is None
    assert COLD_ALONE not in {row["slice"] for row in slice_run(result.run_id, registry, out=out)}


# Rules of plugins

RULES = """
import numpy as np

def thirds(users, items, times, rng):
    return (items + SHIFT) % 3

def latest(users, items, times, rng):
    return np.searchsorted(np.quantile(times, [0.8, 0.9]), times, side="left")

def short(users, items, times, rng):
    return np.zeros(3, dtype=int)

def four(users, items, times, rng):
    return items % 4

@hookimpl
def mmrec_register_splits():
    return [
        SplitSpec("thirds", thirds), SplitSpec("latest", latest, needs_times=True), SplitSpec("short", short),
        SplitSpec("four", four),
    ]
"""


def test_a_plugins_rule_splits_and_other_labels_make_another_run(specs: Specs, out: Path, tmp_path: Path) -> None:
    def made(shift: int) -> RunResult:
        known = load_registry([str(plugin(tmp_path / "rules.py", RULES.replace("SHIFT", str(shift))))])
        [spec] = specs(model="BPR", split="THIRDS", known=known)
        assert spec.settings.split == "thirds"
        result: RunResult = run_grid([spec], known, out=out).best
        return result

    one, other = made(0), made(1)
    assert one.record.drawn is not None
    assert one.record.drawn.rows == {"train": 36, "valid": 30, "test": 30}
    assert list(one.record.plugins or {}) == [str(tmp_path / "rules.py")]
    assert one.run_id != other.run_id
    assert made(0).run_id == one.run_id


def test_a_plugins_rule_that_needs_times_gets_them_or_names_the_column(
    specs: Specs, data_path: Path, out: Path, tmp_path: Path
) -> None:
    known = load_registry([str(plugin(tmp_path / "rules.py", RULES.replace("SHIFT", "0")))])
    [spec] = specs(model="BPR", split="latest", known=known)
    with pytest.raises(DataError, match="--split latest: expected the column 'timestamp'"):
        run_grid([spec], known, out=out)
    file = data_path / "toy" / "toy.inter"
    header, *rows = file.read_text().splitlines()
    file.write_text("\n".join([f"{header}\ttimestamp", *(f"{row}\t{at * 7 % 97}" for at, row in enumerate(rows))]))
    drawn = run_grid([spec], known, out=out).best.record.drawn
    assert drawn is not None
    assert drawn.rows["train"] > drawn.rows["test"] > 0


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("short", r"split short: expected a whole number for each of 96 rows, \(96,\), got int64 \(3,\)"),
        ("four", r"split four: expected labels 0 \(train\), 1 \(valid\) and 2 \(test\), got 3"),
    ],
)
def test_a_plugins_rule_that_gives_no_labels_is_named(
    rule: str, message: str, specs: Specs, out: Path, tmp_path: Path
) -> None:
    file = plugin(tmp_path / "rules.py", RULES.replace("SHIFT", "0"))
    known = load_registry([str(file)])
    with pytest.raises(PluginError, match=f"plugin {file}: {message}"):
        run_grid(specs(model="BPR", split=rule, known=known), known, out=out)
    [check] = [one for one in checks_of([str(file)], only={"split": [rule]}) if str(one) == f"split {rule}: labels"]
    state, reason = outcome(check)
    assert state == "failed"
    assert re.search(message.replace("96 rows", "2,400 rows").replace("96", "2400"), reason)


FAULTY = """
import numpy as np

def unseeded(users, items, times, rng):
    return np.random.default_rng().integers(0, 3, len(users))

def writes(users, items, times, rng):
    rng.shuffle(items)
    return items % 3

def no_test(users, items, times, rng):
    return items % 2

@hookimpl
def mmrec_register_splits():
    return [SplitSpec(rule.__name__, rule) for rule in (unseeded, writes, no_test)]
"""


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("unseeded", "split unseeded: two draws of one seed differ: draw from `rng` alone"),
        ("writes", "split writes: expected it to leave its arguments as they are, got a change; try a copy"),
        ("no_test", r"split no_test: expected rows of each split, of 2,400 of 200 users, got train .*, test 0"),
    ],
)
def test_the_kit_names_a_faulty_rule(rule: str, message: str, tmp_path: Path) -> None:
    file = str(plugin(tmp_path / "rules.py", FAULTY))
    [check] = [one for one in checks_of([file]) if str(one) == f"split {rule}: labels"]
    state, reason = outcome(check)
    assert state == "failed"
    assert re.search(message, reason), reason


def test_the_rules_that_ship_pass_the_kit() -> None:
    for check in checks_of(names=SPLIT_RULES):
        assert outcome(check) == ("ok", ""), str(check)


# Where a split can't be drawn


def test_the_command_line_takes_a_rule_and_names_the_known_ones(data_path: Path) -> None:
    command = ("data", "check", "-d", "toy", "--data-path", data_path)
    answer = call(*command, "--split", "cold-item")
    assert "split: cold-item-" in answer.out
    wrong = call(*command, "--split", "globaltime")
    assert wrong.code == 2
    assert wrong.err == (
        "error: command line: unknown split globaltime; did you mean global-time? known: cold-item, global-time, "
        "leave-one-out, ratio, user-time\n"
    )
    timeless = call(*command, "--split", "user-time")
    assert timeless.code == 4
    assert "--split user-time: expected the column 'timestamp'" in timeless.err


@pytest.mark.parametrize("key", ["split", "split_seed"])
def test_a_split_is_no_axis_of_a_grid(key: str, specs: Specs) -> None:
    values = {"split": "[ratio, cold-item]", "split_seed": "[1, 2]"}
    with pytest.raises(ConfigError, match=f"{key}: expected one value, got an axis of a grid.*try splits: in a study"):
        specs(**{key: values[key]})


def test_a_data_set_that_its_plugin_reads_keeps_its_own_split(data_path: Path, tmp_path: Path) -> None:
    body = (
        "from dataclasses import replace\nfrom mmrec_lmm.data.loading import load_dataset\n"
        "def load(folder, name, settings):\n"
        "    return load_dataset(folder.with_name('toy'), 'toy', replace(settings, split=None))\n"
        "@hookimpl\ndef mmrec_register_datasets():\n    return [DatasetSpec('theirs', load=load)]\n"
    )
    theirs = load_registry([str(plugin(tmp_path / "theirs.py", body))])
    own = open_dataset("theirs", Settings(data_path=str(data_path)), theirs)
    assert own.split is None
    with pytest.raises(ConfigError, match=r"--split ratio: expected a data set whose table .*, got theirs, which its"):
        open_dataset("theirs", Settings(data_path=str(data_path), split="ratio"), theirs)


# Studies

STUDY = """
models: [VBPR, BPR]
datasets: [toy]
splits: [null, ratio, cold-item]
seeds: [1, 2]
controls: [none]
slices: true
metrics: [Recall@5]
settings: {epochs: 2, embedding_size: 4, threads: 1, topk: [5], valid_metric: Recall@5}
"""


@pytest.fixture
def plan(registry: Registry, data_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Plan]:
    """Makes the plan of a study's text, in a working folder that has data/toy."""
    monkeypatch.chdir(data_path.parent)

    def plan(text: str) -> Plan:
        Path("mine.yaml").write_text(text)
        return make_plan(load_study(Path("mine.yaml")), registry, out=Path("runs"))

    return plan


def test_the_splits_of_a_study_are_an_axis(plan: Callable[[str], Plan]) -> None:
    made = plan(STUDY)
    assert [cell.key for cell in made.cells] == [
        *("VBPR/toy/-/pt/-", "VBPR/toy/-/pt/-/none", "VBPR/toy/-/pt/-/ratio", "VBPR/toy/-/pt/-/none/ratio"),
        *("VBPR/toy/-/pt/-/cold-item", "VBPR/toy/-/pt/-/none/cold-item"),
        *("BPR/toy/-/pt/-", "BPR/toy/-/pt/-/ratio", "BPR/toy/-/pt/-/cold-item"),
    ]
    assert len(made.jobs) == 18
    for cell in made.cells:
        assert {run.settings.split for run in cell.runs} == {cell.axes.split}
    narrowed = plan(STUDY + "for: [{split: ratio, set: {epochs: 3}}]\n")
    assert {cell.axes.split: cell.runs[0].settings.epochs for cell in narrowed.cells} == {
        **{None: 2, "cold-item": 2},
        "ratio": 3,
    }


def test_a_split_that_configuration_names_is_that_of_all_cells(plan: Callable[[str], Plan], data_path: Path) -> None:
    (data_path.parent / "configs" / "dataset").mkdir(parents=True)
    (data_path.parent / "configs" / "dataset" / "toy.yaml").write_text("split: ratio\n")
    made = plan("models: [BPR]\ndatasets: [toy]\nsettings: {epochs: 1, threads: 1}\n")
    assert [cell.key for cell in made.cells] == ["BPR/toy/-/pt/-/ratio"]
    assert [cell.key for cell in plan("models: [BPR]\ndatasets: [toy]\nsplits: [null]\n").cells] == ["BPR/toy/-/pt/-"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("splits: [ratio, leave-one]", "mine.yaml:3: unknown split leave-one; did you mean leave-one-out?"),
        ("settings: {split: ratio}", "got the axis split; try splits: [ratio] beside settings"),
        (
            "for: [{model: BPR, set: {split: ratio}}]",
            "split: expected a configuration key, got an axis of the whole study; try splits: [ratio] beside models",
        ),
        ("for: [{split: ratio, set: {epochs: 2}}]", "expected an entry that selects a cell, got one that selects none"),
    ],
)
def test_a_split_in_the_wrong_place_is_refused_with_the_right_one(
    line: str, message: str, plan: Callable[[str], Plan]
) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(f"models: [BPR]\ndatasets: [toy]\n{line}\n")
    assert message in str(caught.value)
    assert "mine.yaml:3" in str(caught.value)


@pytest.fixture
def board(plan: Callable[[str], Plan], registry: Registry) -> Leaderboard:
    """The leaderboard of STUDY."""
    made = plan(STUDY)
    Worker(made, registry, since=0.0).work()
    return find(made, registry)


def test_rows_are_compared_within_their_split_alone(board: Leaderboard) -> None:
    rows = {row.key: row for row in board.rows}
    assert set(board.users) == {"toy", "toy/ratio", "toy/cold-item"}
    assert sum(row.scores["recall@5"].best for row in board.rows) >= 3  # one of each split
    for row in board.rows:
        against = row.scores["recall@5"].against
        assert against is None or rows[against].axes.split == row.axes.split
        assert all(rows[twin].axes.split == row.axes.split for twin in row.twins.values())
        assert (COLD_ALONE in row.slices) == (row.axes.split == "cold-item")
    tested = {row.axes.split: row.scores["recall@5"].against for row in board.rows if row.axes.control is None}
    assert tested  # each VBPR row has the BPR row of its split
    assert rows["VBPR/toy/-/pt/image+text/ratio"].scores["recall@5"].against == "BPR/toy/-/pt/-/ratio"
    assert rows["VBPR/toy/-/pt/image+text/ratio"].twins == {"none": "VBPR/toy/-/pt/image+text/none/ratio"}


def test_tables_and_the_page_name_the_split_where_there_is_one(board: Leaderboard) -> None:
    head = render(board).splitlines()[2]
    assert [name.strip() for name in head.strip("|").split("|")][:3] == ["dataset", "split", "model"]
    lines = list(csv.DictReader(io.StringIO(render(board, format="csv"))))
    assert {line["split"] for line in lines} == {"", "ratio", "cold-item"}
    assert all(int(line["users"]) for line in lines)
    assert COLD_ALONE in render(board, layout="slices")
    assert '"split":"ratio"' in page(board)
    own = replace(board, rows=[row for row in board.rows if not row.axes.split])
    assert "split" not in render(own).splitlines()[2]
    assert "split" not in render(own, format="csv").splitlines()[0].split(",")
    assert all("split" not in row for row in own.document()["rows"])


def test_runs_of_one_split_but_other_labels_are_refused(specs: Specs, registry: Registry, out: Path) -> None:
    found = [
        run_grid(specs(split="ratio", split_seed=seed, model="VBPR"), registry, out=out).best for seed in ("0", "1")
    ]
    entries = [Entry(replace(run.record.axes, model=name), (run,)) for name, run in zip(("A", "B"), found, strict=True)]
    with pytest.raises(DataError, match=r"expected the test split of .*, got other"):
        compare(entries, Method(metrics=["Recall@20"]), study="mine")
