"""docs/plugins.md: each listing is run as a reader would, and each signature is the real one."""

import ast
import json
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import call
from PIL import Image
from safetensors.numpy import load_file

from mmrec_lmm import testing
from mmrec_lmm.api import Batch, Interactions, ItemFeatures, RankedLists, RawItem, RunResult, TrainingData
from mmrec_lmm.config.settings import Settings
from mmrec_lmm.data.loading import load_dataset
from mmrec_lmm.data.sampling import Checked
from mmrec_lmm.plugin.registry import HOOKS, Registry, load_registry
from mmrec_lmm.running.run_folder import list_results

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
LISTINGS = dict(re.findall(r"^```\w+ (\S+)\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL))
TESTED = {
    "whole_catalog.py",
    "mean_color.py",
    "free_features.py",
    "parity.py",
    "random_rows.py",
    "f1.py",
    "arp.py",
    "diary.py",
    "test_my_plugins.py",
}
SHIPPED = {"mmrec_lmm_popular.py", "pyproject.toml"}  # files of tests/plugin_example


def load(tmp_path: Path, name: str) -> Registry:
    """A registry with the listing of that name as its one plugin."""
    file = tmp_path / name
    file.write_text(LISTINGS[name])
    return load_registry(["no:mmrec-lmm", str(file)])


def test_every_listing_has_a_test() -> None:
    assert set(LISTINGS) == TESTED | SHIPPED
    assert TEXT.count("```") == 2 * len(LISTINGS)


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_the_example_plugin_is_printed_as_it_is(name: str) -> None:
    assert LISTINGS[name] == (ROOT / "tests" / "plugin_example" / name).read_text(encoding="utf-8")


def test_the_signatures_are_those_of_the_hooks() -> None:
    tree = ast.parse((ROOT / "mmrec_lmm" / "plugin" / "hookspecs.py").read_text(encoding="utf-8"))
    hooks = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in HOOKS]
    assert sorted(hook.name for hook in hooks) == list(HOOKS)
    for hook in hooks:
        assert hook.returns is not None
        assert f"| `{hook.name}({ast.unparse(hook.args)}) -> {ast.unparse(hook.returns)}` |" in TEXT


def test_the_model_learns_its_weight_and_ranks_by_popularity(tmp_path: Path) -> None:
    models = load(tmp_path, "mmrec_lmm_popular.py").models
    train = Interactions(users=np.array([0, 1, 1]), items=np.array([2, 2, 1]))
    model = models.load("popular", "cls")(
        TrainingData(2, 3, train), ItemFeatures({}, {}), models.load("popular", "config")()
    )
    model.training_loss(Batch(torch.tensor([0]), torch.tensor([2]), torch.tensor([0])))["bpr"].backward()
    assert model.weight.grad < 0
    assert model.scorer()(torch.tensor([0, 1])).argsort(dim=1, descending=True).tolist() == [[2, 1, 0], [2, 1, 0]]


def test_the_sampler_draws_all_items_that_the_user_lacks_also_unseen_ones(tmp_path: Path) -> None:
    samplers = load(tmp_path, "whole_catalog.py").samplers
    data = TrainingData(2, 4, Interactions(users=np.array([0, 1, 1]), items=np.array([2, 2, 1])))
    sampler = Checked(samplers.load("whole_catalog", "cls")(data, None), data, name="whole_catalog")
    drawn = sampler.draw(torch.ones(200, dtype=torch.int64), torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == {0, 3}


def test_the_split_gives_a_tenth_of_all_rows_to_validation_and_to_test(tmp_path: Path) -> None:
    draw = load(tmp_path, "random_rows.py").splits.load("random_rows", "draw")
    labels = draw(np.zeros(10_000), np.zeros(10_000), None, np.random.default_rng(0))
    assert (np.bincount(labels) / 10_000).round(2).tolist() == [0.8, 0.1, 0.1]


def test_the_encoder_gives_the_average_colour_and_takes_a_missing_image(tmp_path: Path) -> None:
    encoders = load(tmp_path, "mean_color.py").encoders
    config = encoders.load("mean_color", "config")()
    encoder = encoders.load("mean_color", "cls")(config, ("image",))
    assert encoders.load("mean_color", "weights_id")(config, "image") == "none"
    items = [RawItem(0, Image.new("RGB", (8, 8), (255, 0, 0)), ""), RawItem(1, None, "")]
    batch = {"color": torch.stack([encoder.prepare(item)["color"] for item in items])}
    assert encoder(batch)["image"].tolist() == [[1, 0, 0], [0, 0, 0]]


def test_the_paradigm_runs_is_a_studys_axis_and_stands_in_its_table(
    tmp_path: Path, data_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features move by the model's gradient, and a rate of 0 gives what pre-trained features give, to the last bit."""
    monkeypatch.chdir(data_path.parent)
    plugin = tmp_path / "free_features.py"
    plugin.write_text(LISTINGS[plugin.name])
    assert len([line for line in LISTINGS[plugin.name].splitlines() if line.strip()]) < 60
    (tmp_path / "free.yaml").write_text(
        "{models: VBPR, datasets: toy, encoders: basic, paradigms: [pt, free], settings: {epochs: 3, min_steps: 0, "
        "train_batch_size: 32, free: {learning_rate: 10}}, seeds: [1, 2], baseline: {paradigm: pt}}"
    )
    study = ("-p", plugin, "--out", tmp_path / "runs")
    assert call("study", "run", tmp_path / "free.yaml", *study).code == 0
    table = call("study", "table", tmp_path / "free.yaml", *study, "--layout", "table4").out
    assert re.findall(r"\| (pt|free) +\|", table) == ["pt", "free"]
    results = list_results(tmp_path / "runs")
    free = [one for one in results if one.record.axes.paradigm == "free"]
    assert len(results) == 4
    assert len({one.run_id for one in free}) == 2
    run = ("run", "-m", "VBPR", "-d", "toy", "--encoder", "basic", "--epochs=3", "--min_steps=0", "--seed=1")
    still = call(*run, "-p", plugin, "--paradigm", "free", "--free.learning_rate=0", "--train_batch_size=32", "--json")
    pt = call(*run, "--train_batch_size=32", "--json")
    assert json.loads(still.out)["test"] == json.loads(pt.out)["test"]
    assert json.loads(still.out)["run_id"] != json.loads(pt.out)["run_id"]
    moved = load_file(free[0].path / "features.safetensors")
    held = load_file(
        next(iter((data_path.parent / "runs").glob(f"{json.loads(still.out)['run_id']}"))) / "features.safetensors"
    )
    assert moved.keys() == held.keys() == {"image", "text"}
    assert not any(np.array_equal(moved[name], held[name]) for name in moved)


def test_the_data_set_is_made_and_loads(tmp_path: Path) -> None:
    datasets = load(tmp_path, "parity.py").datasets
    datasets.load("parity", "make")(tmp_path / "data" / "parity")
    dataset = load_dataset(tmp_path / "data" / "parity", "parity", Settings())
    assert (dataset.n_users, dataset.n_items) == (20, 20)
    assert [len(split) for split in (dataset.train, dataset.valid, dataset.test)] == [160, 20, 20]
    assert dataset.notes == ()


def test_the_metric_is_the_harmonic_mean_of_precision_and_recall(tmp_path: Path) -> None:
    f1 = load(tmp_path, "f1.py").metrics.load("f1", "fn")
    precision, recall = 1 / 2, 1 / 3  # one hit among the first two, of three held-out items
    assert f1(np.array([[True, False, True]]), np.array([3]), 2) == pytest.approx(
        [2 * precision * recall / (precision + recall)]
    )


def test_the_metric_with_a_context_is_the_mean_popularity_of_the_listed_items(tmp_path: Path) -> None:
    arp = load(tmp_path, "arp.py").metrics.load("arp", "fn")
    items, nothing = np.array([[0, 1], [2, -1]]), np.zeros((2, 2), dtype=bool)
    ranked = RankedLists(np.arange(2), items, nothing, np.ones(2), np.array([4, 1, 3]), 4, np.ones(3, dtype=bool))
    assert arp(ranked, 2).tolist() == [(1 + 1 / 4) / 2, 3 / 4]


def test_the_observers_log_epochs_and_write_one_line_per_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    registry = load(tmp_path, "diary.py")
    result = RunResult("VBPR-demo-1", tmp_path / "VBPR-demo-1", {}, {}, {"recall@20": 0.5}, 3, 5, "patience")
    run: Any = SimpleNamespace(model="VBPR", dataset="demo")
    epoch: Any = SimpleNamespace(epoch=4, losses={"bpr": 0.5})
    with caplog.at_level("INFO"):
        registry.notify_epoch(run, epoch)
    registry.notify_run(run, result)
    assert caplog.messages == ["VBPR on demo, epoch 4: {'bpr': 0.5}"]
    assert json.loads((tmp_path / "diary.jsonl").read_text()) == {"run": "VBPR-demo-1", "test": {"recall@20": 0.5}}


def test_the_tests_of_plugins_pass_and_fail_with_the_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listings = LISTINGS | {"my_bpr.py": re.findall(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)[0]}
    names = ("mean_color", "mmrec_lmm_popular", "my_bpr")
    for name in names:
        (tmp_path / f"{name}.py").write_text(listings[f"{name}.py"])
    file = tmp_path / "test_my_plugins.py"
    file.write_text(listings[file.name])
    monkeypatch.syspath_prepend(tmp_path)
    try:
        listing = runpy.run_path(str(file))
    finally:
        for name in names:
            sys.modules.pop(name, None)
    tests = {name: test for name, test in listing.items() if name.startswith("test_")}
    assert len(tests) == 4
    for test in tests.values():
        test()
    monkeypatch.setattr(
        listing["Popular"], "scorer", lambda self: lambda users: torch.full((len(users), 16), torch.nan)
    )
    with pytest.raises(AssertionError, match="Popular: a score isn't finite"):
        tests["test_popular_keeps_the_contract"]()


def test_every_name_of_the_kit_for_tests_is_documented() -> None:
    section = TEXT.partition("\n## Testing a plugin\n")[2].partition("\n## ")[0]
    kit = {name for name, thing in vars(testing).items() if getattr(thing, "__module__", "") == testing.__name__}
    assert set(re.findall(r"^\| `(\w+)", section, re.MULTILINE)) == {name for name in kit if not name.startswith("_")}
