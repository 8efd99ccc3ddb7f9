"""The Python door: runs, grids, studies and features from a program, with the numbers and words of the command line."""

import json
import logging
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import call, plugin

import mmrec_lmm
from mmrec_lmm import datasets, encode, grid, recommend, run, runs, study
from mmrec_lmm.errors import ConfigError, DataError, MMRecError, NotApplicable, RunError

SMALL = {"epochs": 2, "embedding_size": 4}
RUN = ("run", "-m", "VBPR", "-d", "toy", "--epochs=2", "--embedding_size=4")
STUDY = "models: [BPR, VBPR]\ndatasets: [toy]\nseeds: [1, 2]\nsettings: {epochs: 2, embedding_size: 4}\n"


@pytest.fixture(autouse=True)
def here(data_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with data/toy, whose users are u-00 to u-11."""
    monkeypatch.chdir(data_path.parent)
    mapping = pd.DataFrame({"user_id": [f"u-{user:02d}" for user in range(12)], "userID": range(12)})
    mapping.to_csv("data/toy/u_id_mapping.csv", sep="\t", index=False)
    return data_path.parent


def test_importing_the_package_imports_no_torch_and_offers_the_door() -> None:
    code = "import sys, mmrec_lmm; print('torch' in sys.modules, 'numpy' in sys.modules, *dir(mmrec_lmm))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert out[:2] == ["False", "False"]
    assert {"run", "grid", "study", "runs", "recommend", "encode", "datasets"} < set(out)
    with pytest.raises(AttributeError, match="mmrec_lmm has no 'rnu'; it offers"):
        _ = mmrec_lmm.rnu


def test_a_run_is_that_of_the_command_line_with_its_files_as_tables() -> None:
    printed = json.loads(call(*RUN, "--json").out)
    found = run("VBPR", "toy", **SMALL)
    assert (found.id, found.folder, found.best_epoch) == (printed["run_id"], Path(printed["path"]), 0)
    assert (found.valid, found.test) == (printed["valid"], printed["test"])
    assert found.marks[0] == "best epoch is the first evaluated"
    assert found.record.axes.model == "VBPR"
    lines = [json.loads(line) for line in (found.folder / "history.jsonl").read_text().splitlines()]
    assert found.history["epoch"].tolist() == [0, 1]
    assert found.history["loss/bpr"].tolist() == [line["losses"]["bpr"] for line in lines]
    assert found.history["valid/recall@5"].tolist() == [line["valid"]["recall@5"] for line in lines]
    assert list(found.per_user) == ["valid", "test"]
    assert found.per_user["test"].index.tolist() == [f"u-{user:02d}" for user in range(12)]
    for name, mean in found.test.items():
        assert found.per_user["test"][name].mean() == pytest.approx(mean)
    assert repr(found) == f"<Run {found.id}: recall@20 {found.test['recall@20']:.4f} on test, best epoch 0>"
    assert f"{found.test['ndcg@5']:.4f}" in found._repr_html_()
    assert "marked: best epoch is the first" in found._repr_html_()


def test_keys_have_pythons_values_and_text_stays_text() -> None:
    found = run(
        "VBPR", "toy", **SMALL, learning_rate=np.float32(0.5), topk=(5, 10), valid_metric="Recall@5", seed=np.int64(7),
        data_path=Path("data"), modalities="text",
    )  # fmt: skip
    assert found.record.resolved is not None
    settings = found.record.resolved["settings"]
    assert (settings["learning_rate"], settings["topk"], settings["seed"]) == (0.5, [5, 10], 7)
    assert found.record.axes.modalities == ("text",)
    with pytest.raises(ConfigError, match=r"^command line: seed must be a whole number, got '\[1, 2\]'$"):
        run("VBPR", "toy", seed="[1, 2]")


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        ({"learning_rat": 1}, ["--learning_rat=1"]),
        ({"epochs": -1, "topk": []}, ["--epochs=-1", "--topk=[]"]),
        ({"settings": {"ft.epochs": 3}}, ["--ft.epochs=3"]),
        ({"encoder": "bsic"}, ["--encoder", "bsic"]),
        ({"preset": "papr"}, ["--preset", "papr"]),
        ({"metrics": ["Recal"], "valid_metric": "Recal@20"}, ["--metrics=[Recal]", "--valid_metric=Recal@20"]),
        ({"modalities": ["audio"]}, ["--modalities", "audio"]),
        ({"data_path": "nowhere"}, ["--data-path", "nowhere"]),
        ({"learning_rate": 1e38, "train_batch_size": 8}, ["--learning_rate=1e38", "--train_batch_size=8"]),
    ],
)
def test_an_error_has_the_words_of_the_command_line(arguments: dict, flags: list[str]) -> None:
    answer = call(*RUN, *flags)
    with pytest.raises(MMRecError) as caught:
        run("VBPR", "toy", **{**SMALL, **arguments})
    assert answer.err.endswith(f"error: {caught.value}\n")
    assert answer.code == caught.value.exit_code


def test_a_list_of_values_is_a_grid_and_run_says_so() -> None:
    with pytest.raises(ConfigError, match=r"got a grid of seed \(2 values\); try grid\(\.\.\.\), which runs all$"):
        run("VBPR", "toy", **SMALL, seed=[1, 2])
    assert run("VBPR", "toy", **SMALL, seed=[1]).record.seed == 1
    found = grid("VBPR", "toy", **SMALL, reg_weight=[0.1, 0.001], learning_rate=(0.01,))
    printed = json.loads(call(*RUN, "--reg_weight=[0.1, 0.001]", "--learning_rate=[0.01]", "--json").out)
    assert [one.id for one in found.runs] == [point["run_id"] for point in printed["points"]]
    assert found.best.id == printed["winner"]["run_id"]
    assert found.best in found.runs
    frame = found.to_frame()
    assert frame["reg_weight"].tolist() == [0.1, 0.001]
    assert frame["test/recall@5"].tolist() == [one.test["recall@5"] for one in found.runs]
    assert found.failures == []


def test_torchruns_processes_are_sent_to_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"run: expected one process, got torchrun; try torchrun -m mmrec_lmm run"):
        run("VBPR", "toy")


def test_a_program_keeps_its_random_state_threads_and_log(
    here: Path, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    package = logging.getLogger("mmrec_lmm")
    request.addfinalizer(partial(package.setLevel, package.level))
    package.setLevel(logging.NOTSET)  # as in a new program, whatever tests before have left
    before = (list(package.handlers), package.level, package.propagate, torch.get_num_threads())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    found = run("BPR", "toy", encoder="basic", threads=2, **SMALL)
    assert torch.equal(torch.rand(3), expected)
    assert (list(package.handlers), package.level, package.propagate, torch.get_num_threads()) == before
    note = "BPR uses no item features: --encoder left out"
    assert [record.getMessage() for record in caplog.records].count(note) == 1
    assert all(record.levelno >= logging.WARNING for record in caplog.records)
    (log,) = (here / "runs" / "log").iterdir()
    text = log.read_text()
    assert text.count(note) == 1
    assert "epoch 1 training" in text
    assert found.folder.is_dir()


def test_runs_are_a_sequence_with_a_table_and_conditions() -> None:
    first, second = run("VBPR", "toy", **SMALL), run("BPR", "toy", **SMALL)
    found = runs()
    assert list(found) == [second, first]
    assert (len(found), found[-1], found[:1]) == (2, first, [second])
    assert list(found.where(model="vbpr")) == [first]
    assert list(found.where(model="VBPR").where(seed=998)) == []
    assert list(found.where(modalities=("text", "image"))) == list(found.where(modalities="image,text")) == [first]
    assert list(found.where(modalities=None, control=None)) == [second]
    frame = found.to_frame()
    pd.testing.assert_frame_equal(
        frame, pd.concat([one.to_frame() for one in found], ignore_index=True), check_dtype=False
    )
    assert frame["test/recall@20"].tolist() == [second.test["recall@20"], first.test["recall@20"]]
    assert "run" in found.where(model="MMGCN").to_frame().columns
    with pytest.raises(ConfigError, match=r"--where: expected a column .*, got modl; did you mean model\?"):
        found.where(modl="VBPR")
    with pytest.raises(DataError, match="expected a folder of runs, got nowhere"):
        runs("nowhere")


def test_recommendations_are_those_of_the_command_line() -> None:
    found = run("VBPR", "toy", **SMALL)
    asked = json.loads(call("recommend", found.id, "--users", "u-03,u-00", "-k", "2", "--json").out)
    assert found.recommend(["u-03", "u-00"], k=2).to_dict("records") == asked
    assert recommend(found.id[:-3], "u-03", 2).to_dict("records") == asked[:2]
    assert recommend(found, ["u-03"], 2).to_dict("records") == asked[:2]
    numbers = found.recommend([3], 2, internal_ids=True)
    assert [f"T{item:02d}" for item in numbers["item"]] == [row["item"] for row in asked[:2]]
    assert found.recommend(k=1)["user"].tolist() == [f"u-{user:02d}" for user in range(12)]
    answer = call("recommend", found.id, "--users", "u-3")
    with pytest.raises(ConfigError) as caught:
        found.recommend("u-3")
    assert answer.err == f"error: {caught.value}\n"
    for k in (0, 1.5, True):
        with pytest.raises(ConfigError, match="k: expected a whole number from 1 on"):
            found.recommend("u-03", k)
    with pytest.raises(ConfigError, match="expected at least one id, got none"):
        found.recommend([])


def test_the_latest_run_of_a_model_and_a_data_set_is_taken_and_said(caplog: pytest.LogCaptureFixture) -> None:
    old, new = run("VBPR", "toy", **SMALL, seed=1), run("VBPR", "toy", **SMALL, seed=2)
    for one, year in ((old, "2031"), (new, "2030")):
        path = one.folder / "result.json"
        path.write_text(path.read_text().replace(one.record.finished, f"{year}-01-01T00:00:00+00:00"))
    answer = call("recommend", "vbpr-TOY", "--users", "u-03", "--json")
    assert answer.err == f"note: vbpr-TOY: the latest of 2 runs: {old.id}\n"
    assert json.loads(answer.out) == json.loads(call("recommend", old.id, "--users", "u-03", "--json").out)
    assert recommend("VBPR-toy", "u-03").equals(old.recommend("u-03"))
    assert caplog.messages[-1] == f"VBPR-toy: the latest of 2 runs: {old.id}"
    assert "expected the start of one run's id, got that of 2" in call("recommend", "VBPR", "--users", "u-03").err
    assert call("replay", "VBPR-toy").code == 2, "a verdict needs the very run"
    (new.folder / "result.json").unlink()
    assert call("recommend", "VBPR-toy", "--users", "u-03", "--json").err == ""


def test_of_several_runs_a_control_or_a_worse_point_of_a_grid_is_never_taken_for_the_model() -> None:
    def taken() -> str:
        return call("recommend", "VBPR-toy", "--users", "u-03", "--json").err.removeprefix("note: VBPR-toy: ")

    control = run("VBPR", "toy", **SMALL, control="shuffled")
    assert taken() == f"the latest of 1 run, all with a control (shuffled): {control.id}\n"
    first = run("VBPR", "toy", **SMALL)
    run("VBPR", "toy", **SMALL, control="none")
    assert taken() == f"the latest of 1 run without a control: {first.id}\n"
    for values in ([0.1, 1e-9], [1e-9, 0.1]):
        found = grid("VBPR", "toy", **SMALL, topk=[2], valid_metric="NDCG@2", learning_rate=values, force=True)
        assert found.runs[0].valid["ndcg@2"] != found.runs[1].valid["ndcg@2"]
        assert taken() == f"the best on validation of the latest grid's 2 points: {found.best.id}\n"


def test_embeddings_give_the_scores_of_the_best_weights_and_are_copies() -> None:
    found = run("VBPR", "toy", **SMALL)
    users, items = found.user_embeddings(), found.item_embeddings()
    assert (users.shape, items.shape, items.dtype) == ((12, 8), (16, 8), np.float32)
    for user in range(12):
        listed = found.recommend([user], k=16, internal_ids=True)["item"].to_numpy()
        scores = users[user] @ items.T
        assert (np.diff(scores[listed]) <= 0).all()
    items[:] = 0
    assert found.item_embeddings().any()


SCORERS = """
import torch

class Popular(Recommender):
    def __init__(self, data, features, config):
        super().__init__(data, features, config)
        self.weight = torch.nn.Parameter(torch.ones(data.n_items))
    def training_loss(self, batch):
        return {"bpr": (self.weight[batch.negatives] - self.weight[batch.positives]).mean()}
    def scorer(self):
        return lambda users: self.weight.expand(len(users), -1)

class Holes(DotProduct):
    calls = 0
    def __init__(self, data, features, config):
        super().__init__(data, features, config)
        self.u, self.i = (torch.nn.Parameter(torch.randn(n, 4)) for n in (data.n_users, data.n_items))
    def vectors(self):
        items = self.i.clone()
        if os.environ.get("HOLES"):
            items[[3, 5]] = torch.nan
        return self.u, items
    def training_loss(self, batch):
        return {"bpr": (self.u[batch.users] * (self.i[batch.negatives] - self.i[batch.positives])).sum(1).exp().mean()}

@hookimpl
def mmrec_register_models():
    return [ModelSpec(cls.__name__, cls=cls, uses_features=False) for cls in (Popular, Holes)]
"""


def test_a_model_without_vectors_and_one_with_nan_are_named_with_their_plugin(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = plugin(here / "scorers.py", SCORERS)
    popular = run("Popular", "toy", epochs=1, plugins=[path])
    with pytest.raises(NotApplicable) as caught:
        popular.item_embeddings()
    assert str(caught.value) == (
        f"{popular.id}: model Popular (plugin {path}): expected scores that are dot products of vectors, got a scorer "
        "of its own; try `recommend`, which ranks with it"
    )
    assert len(popular.recommend("u-03", 3)) == 3
    holes = run("Holes", "toy", epochs=1, plugins=[path])
    monkeypatch.setenv("HOLES", "1")
    with pytest.raises(RunError) as nan:
        holes.export_embeddings("holes.npy")
    assert str(nan.value) == (
        f"{holes.id}: model Holes (plugin {path}): expected finite embeddings, got NaN or infinity for items T03, T05; "
        "try --force, which runs it again"
    )
    answer = call("embeddings", "-p", path, holes.id, "-o", "holes.npy")
    assert (answer.code, answer.out, answer.err) == (1, "", f"error: {nan.value}\n")
    for name in ("all.parquet", "all.csv", "all.jsonl"):
        answer = call("recommend", "-p", path, holes.id, "--users", "all", "-o", name)
        assert (answer.code, "model Holes (plugin" in answer.err, "got NaN" in answer.err) == (1, True, True)
    assert {entry.name for entry in here.iterdir()} == {"data", "runs", "scorers.py"}


def test_a_study_is_run_and_shown(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    (here / "s.yaml").write_text(STUDY)
    asked = study("s.yaml")
    assert asked.status()["state"].tolist() == ["pending", "pending"]
    assert asked.run() is asked
    assert asked.status()[["state", "runs", "done"]].to_numpy().tolist() == [["finished", 2, 2]] * 2
    assert asked.table() == call("study", "table", "s.yaml").out
    assert (
        asked.table("efficiency", "csv")
        == call("study", "table", "s.yaml", "--layout", "efficiency", "--format", "csv").out
    )
    frame = asked.to_frame()
    assert set(frame["model"]) == {"BPR", "VBPR"}
    assert len(frame) == 8
    assert asked.page("made.html").read_text().startswith("<!doctype html>")
    with pytest.raises(ConfigError, match=r"--layout: expected plain, .*, got 'plane'; did you mean plain\?"):
        asked.table("plane")
    with pytest.raises(ConfigError, match="jobs: expected a whole number from 1 to 1,024, got 0"):
        asked.run(jobs=0)
    with pytest.raises(ConfigError) as caught:
        study("sx.yaml")
    assert call("study", "status", "sx.yaml").err == f"error: {caught.value}\n"
    (here / "bad.yaml").write_text(STUDY.replace("epochs: 2", "learning_rate: 1e38, train_batch_size: 8"))
    assert set(study("bad.yaml").run().status()["state"]) == {"failed"}
    assert "bad: 2 of 2 cells aren't finished: BPR/toy/-/pt/- (" in caplog.messages[-1]


SCRIPT = """
import os
from mmrec_lmm import study
os.mkdir("deeper")
os.chdir("deeper")
found = study("../s.yaml", data_path="../data", out="../runs").run(jobs=2)
print(found.status()["state"].tolist())
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["a script without a guard", "stdin"])
def test_a_study_has_processes_from_any_main_module(how: str, here: Path) -> None:
    (here / "s.yaml").write_text(STUDY)
    (here / "script.py").write_text(SCRIPT)
    command, text = ([sys.executable, "script.py"], None) if "script" in how else ([sys.executable, "-"], SCRIPT)
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (0, "['finished', 'finished']\n"), done.stderr
    assert len(list((here / "runs" / "log").glob("s-[12]-*.log"))) == 2, "two processes"


def test_encode_gives_tables_and_the_cache_is_the_command_lines() -> None:
    tables = encode("toy", "basic", settings={"encoder.text_dim": 32}, progress=False)
    assert {name: table.values.shape[0] for name, table in tables.items()} == {"image": 16, "text": 16}
    assert tables["text"].dim == 32
    assert tables["image"].present.tolist() == [True] * 15 + [False]
    printed = json.loads(call("encode", "-d", "toy", "--encoder", "basic", "--encoder.text_dim=32", "--json").out)
    assert [row["features"] for row in printed["features"]] == [table.fingerprint for table in tables.values()]
    with pytest.raises(ConfigError) as caught:
        encode("toy", "basic", settings={"encoder.txt_dim": 32})
    assert call("encode", "-d", "toy", "--encoder", "basic", "--encoder.txt_dim=32").err == f"error: {caught.value}\n"


def test_datasets_are_listed() -> None:
    printed = json.loads(call("list", "datasets", "--json").out)
    frame = datasets()
    assert frame["name"].tolist() == [row["name"] for row in printed]
    assert frame.set_index("name").loc["toy", ["users", "items"]].tolist() == [12, 16]
