"""The command line as a user meets it: verbs, flags, stdout, exit codes, the log; and its documentation."""

import argparse
import importlib.metadata
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import Answer, call, plugin, start

from mmrec_lmm.cli import build_parser, main
from mmrec_lmm.config.settings import Settings
from mmrec_lmm.plugin.registry import Registry
from mmrec_lmm.studies.file import find_study, load_study

ROOT = Path(__file__).resolve().parents[1]
RUN = ("run", "-m", "VBPR", "-d", "toy", "--epochs=2", "--embedding_size=4")
BROKEN_ENCODER = """
@dataclass(frozen=True)
class NoKeys:
    pass

@hookimpl
def mmrec_register_encoders():
    return [EncoderSpec("wreck", cls="no_such_library:Wreck", config=NoKeys, modalities=("text",), weights_id={})]
"""


@pytest.fixture(autouse=True)
def here(data_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of a user: it has data/toy, and nothing else."""
    monkeypatch.chdir(data_path.parent)
    return data_path.parent


def verbs(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Each verb and the verbs below it, with its parser; the command itself has the empty name."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb, below in action.choices.items():
                yield from verbs(below, f"{name} {verb}".strip())


VERBS = dict(verbs(build_parser()))
GROUPS = ("board", "config", "data", "results", "study", "plugin", "weights")  # verbs that have only verbs of their own


def document(answer: Answer) -> dict:
    assert answer.code == 0, answer.err
    return json.loads(answer.out)


# Quick answers


def test_help_of_every_verb_and_each_list_import_no_torch_and_take_under_a_second() -> None:
    questions = [[*name.split(), "--help"] for name in VERBS]
    questions += [["list", kind] for kind in ("models", "encoders", "datasets", "metrics", "plugins", "runs")]
    questions += [["info", "demo"], ["--version"], []]
    ask = (
        "import contextlib, io, json, sys, time\n"
        "from mmrec_lmm.cli import main\n"
        "for question in json.loads(sys.argv[1]):\n"
        "    started = time.process_time()\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):\n"
        "        assert main(question) == 0, question\n"
        "    print(json.dumps([len(out.getvalue()), 'torch' in sys.modules, time.process_time() - started]))\n"
    )
    done = subprocess.run([sys.executable, "-c", ask, json.dumps(questions)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(questions)
    for question, (length, torch, seconds) in zip(questions, answers, strict=True):
        assert length > 0, question
        assert not torch, question
        assert seconds < 1, question


def test_without_arguments_the_help_is_printed() -> None:
    answer = call()
    assert answer.code == 0
    assert answer.out.startswith("usage: mmrec-lmm")


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_without_its_verb_is_a_usage_error_that_leaves_stdout_empty(group: str) -> None:
    answer = call(group)
    assert (answer.code, answer.out) == (2, "")
    assert f"usage: mmrec-lmm {group}" in answer.err


# One run


def test_the_installed_command_is_main() -> None:
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="mmrec-lmm")
    assert entry.load() is main


def test_run_py_without_a_verb_is_the_same_as_the_command_with_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = document(call(*RUN, "--json"))
    monkeypatch.setattr(sys, "argv", ["run.py", *RUN[1:], "--out", "others", "--json"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
    theirs = json.loads(capsys.readouterr().out)
    assert theirs["run_id"] == ours["run_id"]
    assert (theirs["valid"], theirs["test"]) == (ours["valid"], ours["test"])


def test_json_of_one_run_is_one_document_with_metrics_by_split(here: Path) -> None:
    result = document(call(*RUN, "--topk=[10,20]", "--json"))
    names = {f"{metric}@{k}" for metric in ("recall", "ndcg", "precision", "map") for k in (10, 20)}
    assert set(result["valid"]) == set(result["test"]) == names
    assert all(0 <= value <= 1 for split in ("valid", "test") for value in result[split].values())
    assert result["run_id"].startswith("VBPR-toy-")
    assert result["parameters"] == {"seed": 999}
    assert json.loads((here / result["path"] / "result.json").read_text())["test"] == result["test"]


def test_a_run_leaves_what_its_folder_is_documented_to_hold(here: Path) -> None:
    result = document(call(*RUN, "--json"))
    folder = here / "runs" / result["run_id"]
    names = {path.name for path in folder.iterdir()} - {"checkpoint", ".lock"}
    assert names == {
        "config.json", "best.safetensors", "per_user.safetensors", "history.jsonl", "topk.tsv", "result.json",
    }  # fmt: skip
    assert not list(folder.glob("checkpoint/*"))
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in names)


def test_a_run_prints_its_table_and_where_it_and_its_log_lie(here: Path) -> None:
    answer = call(*RUN)
    assert (answer.code, answer.err) == (0, "")
    assert re.search(r"^VBPR-toy-[0-9a-f]{8}: ran all 2 epochs; best epoch \d$", answer.out, re.MULTILINE)
    assert re.search(r"^split +K +recall +ndcg +precision +map$", answer.out, re.MULTILINE)
    assert len(re.findall(r"^(valid|test) +\d+( +\d\.\d{4}){4}$", answer.out, re.MULTILINE)) == 8
    folder, log = re.findall(r"^(runs/VBPR-toy-\w+)/  log: (runs/log/VBPR-toy-\S+\.log)$", answer.out, re.MULTILINE)[0]
    assert (here / folder).is_dir()
    assert (here / log).is_file()


def test_a_finished_run_is_told_rather_than_run_again_unless_forced(here: Path) -> None:
    call(*RUN)
    (path,) = here.glob("runs/VBPR*/result.json")
    record = json.loads(path.read_text())
    record["record"]["finished"] = "2020-01-01T00:00:00+00:00"
    path.write_text(json.dumps(record))
    assert call(*RUN).err == "note: 1 of 1 finished before; --force runs them again\n"
    assert json.loads(path.read_text())["record"]["finished"].startswith("2020")
    assert call(*RUN, "--force").code == 0
    assert not json.loads(path.read_text())["record"]["finished"].startswith("2020")


def test_verbose_shows_the_log_on_stderr_and_nothing_more_on_stdout() -> None:
    quiet, loud = call(*RUN, "--json"), call(*RUN, "--json", "--force", "-v")
    assert "epoch 1 training [time: " in loud.err
    assert json.loads(loud.out)["test"] == json.loads(quiet.out)["test"]


def test_a_plugin_that_is_not_installed_runs_by_p() -> None:
    example = ROOT / "tests" / "plugin_example" / "mmrec_lmm_popular.py"
    answer = call(
        "run", "-p", example, "-p", "no:mmrec-lmm:models", "-m", "popular", "-d", "toy", "--epochs=1", "--json"
    )
    assert document(answer)["run_id"].startswith("Popular-toy-")


def test_seed_modalities_features_control_and_data_path_reach_the_run(here: Path) -> None:
    (here / "data").rename(here / "elsewhere")
    flags = ["--data-path", "elsewhere", "--seed", "7", "--modalities", "audio", "--control", "shuffled"]
    np.save("audio.npy", np.random.default_rng(0).random((16, 3)))
    record = document(call(*RUN, *flags, "--features", "audio=audio.npy", "--json"))["record"]
    assert (record["seed"], record["modalities"], record["control"]) == (7, ["audio"], "shuffled")


@pytest.mark.parametrize(("name", "meant"), [("imgae", "image"), ("texts", "text"), ("audio", None)])
def test_a_modality_whose_name_is_nearly_a_known_one_is_pointed_out(name: str, meant: str | None, here: Path) -> None:
    answer = call(*RUN, "--features", f"{name}={here}/data/toy/image_feat.npy")
    assert answer.code == 0, answer.err
    note = f"--features: {name} is read as a modality of its own; did you mean {meant}?"
    assert answer.err.count(note) == (meant is not None)
    assert ("did you mean" in answer.err) == (meant is not None)


# Grids


def test_a_list_makes_an_axis_and_a_scalar_of_an_axis_one_point(here: Path) -> None:
    grid = document(call(*RUN, "--learning_rate=[1e-5,0.1]", "--seed=3", "--valid_metric=NDCG@5", "--json"))
    assert [point["parameters"] for point in grid["points"]] == [
        {"seed": 3, "learning_rate": 1e-5},
        {"seed": 3, "learning_rate": 0.1},
    ]
    assert grid["failures"] == []
    first, second = grid["points"]
    assert second["valid"]["ndcg@5"] > first["valid"]["ndcg@5"]
    assert grid["winner"]["run_id"] == second["run_id"]


def test_seeds_alone_give_mean_and_deviation_and_no_winner() -> None:
    found = document(call(*RUN, "--seed=[1,2,3]", "--json"))
    assert found["seeds"] == [1, 2, 3]
    assert "winner" not in found
    scores = [run["test"]["ndcg@20"] for run in found["runs"]]
    assert found["mean"]["test"]["ndcg@20"] == pytest.approx(sum(scores) / 3)
    mean = sum(scores) / 3
    deviation = (sum((score - mean) ** 2 for score in scores) / 2) ** 0.5
    assert found["deviation"]["test"]["ndcg@20"] == pytest.approx(deviation)
    assert deviation > 0
    text = call(*RUN, "--seed=[1,2,3]").out
    assert "mean ± standard deviation over 3 seeds: " in text
    assert "best on validation" not in text
    assert "*" not in text
    flags = ("--seed=[1,2,3]", "--learning_rate=[1e-5,0.1]", "--valid_metric=NDCG@5")
    both = document(call(*RUN, *flags, "--json"))
    first, second = both["points"]
    assert [point["parameters"] for point in (first, second)] == [{"learning_rate": 1e-5}, {"learning_rate": 0.1}]
    assert second["mean"]["valid"]["ndcg@5"] > first["mean"]["valid"]["ndcg@5"]
    assert both["winner"]["parameters"] == second["parameters"]
    assert "* best on validation (ndcg@5, mean over seeds):" in call(*RUN, *flags).out


def test_the_grid_table_marks_the_winner_and_writes_values_as_they_were_typed() -> None:
    answer = call(*RUN, "--reg_weight=[0.1,1e-5]")
    rows = [line.split() for line in answer.out.splitlines()[:4]]
    assert rows[0] == ["seed", "reg_weight", "valid", "recall@20", "test", "recall@20", "run"]
    assert {row[-5] for row in rows[2:]} == {"999"}
    assert {row[-4] for row in rows[2:]} == {"0.1", "1.0e-05"}
    assert sum(row[0] == "*" for row in rows[2:]) == 1


def test_a_finished_run_can_be_a_point_of_a_later_grid() -> None:
    single = document(call(*RUN, "--reg_weight=0.1", "--json"))
    assert single["parameters"] == {"seed": 999}
    points = document(call(*RUN, "--reg_weight=[0.2,0.1]", "--json"))["points"]
    assert points[1]["run_id"] == single["run_id"]
    assert [point["parameters"]["reg_weight"] for point in points] == [0.2, 0.1]
    assert call(*RUN, "--reg_weight=[0.2,0.1]").code == 0


def test_a_point_that_fails_is_told_and_the_others_count() -> None:
    answer = call(*RUN, "--train_batch_size=8", "--learning_rate=[0.001,1e38]", "--json")
    grid = json.loads(answer.out)
    assert answer.code == 1
    assert [point["parameters"]["learning_rate"] for point in grid["points"]] == [0.001]
    (failure,) = grid["failures"]
    assert failure["parameters"]["learning_rate"] == 1e38
    assert "; try a smaller learning_rate" in failure["error"]
    assert answer.err.count("error: ") == 1


def test_mmrecs_protocol_shows_what_it_selects_on_test_beside_the_winner() -> None:
    flags = ("--learning_rate=[1e-5,0.1]", "--valid_metric=NDCG@5")
    grid = document(call(*RUN, *flags, "--protocol", "mmrec", "--json"))
    first, second = sorted(grid["points"], key=lambda point: round(point["test"]["ndcg@5"], 4))
    assert second["test"]["ndcg@5"] > first["test"]["ndcg@5"]
    assert grid["best_on_test"]["run_id"] == second["run_id"]
    answer = call(*RUN, *flags, "--protocol=mmrec")
    head, _, tail = answer.out.partition("MMRec's protocol, selected on TEST (ndcg@5):\n")
    assert "* best on validation (ndcg@5):\n" in head
    assert tail.startswith(second["run_id"])
    assert "selected on TEST" not in call(*RUN, *flags).out


def test_presets_and_grids_of_ones_own_run_by_name(here: Path) -> None:
    for place, text in {
        "configs/preset/mine.yaml": "embedding_size: 3\n",
        "configs/preset/notes.txt": "",
        "others/preset/theirs/vbpr.yaml": "embedding_size: 5\n",
        "configs/grid/wide/vbpr.yaml": "reg_weight: [1, 2]\nhyper_parameters: [reg_weight]\n",
    }.items():
        (here / place).parent.mkdir(parents=True, exist_ok=True)
        (here / place).write_text(text)
    ask = ["config", "show", "-m", "VBPR", "-d", "toy"]
    assert re.search(r"^embedding_size +3 +configs/preset/mine.yaml:1$", call(*ask, "--preset", "mine").out, re.M)
    theirs = call(*ask, "--configs", "others", "--preset", "theirs").out
    assert re.search(r"^embedding_size +5 +others/preset/theirs/vbpr.yaml:1$", theirs, re.M)
    assert re.search(r"^reg_weight +1.0 \| 2.0 +configs/grid/wide/", call(*ask, "--grid", "wide").out, re.M)
    answer = call(*ask, "--preset", "mien")
    assert answer.code == 2
    assert "unknown preset: mien; did you mean mine? known: lmm, mine, mmrec, paper\n" in answer.err


def test_a_published_grid_runs_by_name() -> None:
    grid = document(
        call("run", "-m", "VBPR", "-d", "toy", "--epochs=1", "--embedding_size=4", "--grid", "mmrec", "--json")
    )
    assert len(grid["points"]) == len({point["run_id"] for point in grid["points"]}) == 7


# A folder of MMRec's

MMREC = {
    "overall.yaml": (
        "gpu_id: 0\nuse_gpu: False\nseed: [999]\nepochs: 2\nstopping_step: 20\ntrain_batch_size: 2048\n"
        "learner: adam\nlearning_rate: 1e-3\nNEG_PREFIX: neg__\nuse_neg_sampling: True\neval_type: full\n"
        "topk: [5, 10, 20, 50]\nvalid_metric: Recall@20\nend2end: False\nhyper_parameters: ['seed']\n"
        "USER_ID_FIELD: user_id:token\nITEM_ID_FIELD: item_id:token\n"
    ),
    "dataset/toy.yaml": (
        "TIME_FIELD: timestamp\ninter_file_name: 'toy.inter'\n"
        "vision_feature_file: 'image_feat.npy'\nuser_graph_dict_file: 'user_graph_dict.npy'\nfield_separator: \"\\t\"\n"
    ),
    "model/VBPR.yaml": "embedding_size: 4\nreg_weight: [0.1, 1e-04]\nhyper_parameters: ['reg_weight']\n",
}
UNUSED = {"NEG_PREFIX", "use_neg_sampling", "eval_type", "end2end", "user_graph_dict_file"}


@pytest.mark.parametrize("folder", ["configs", "mmrec/configs"])
def test_a_configs_folder_of_mmrec_gives_its_grid_and_its_unread_keys_are_listed(here: Path, folder: str) -> None:
    for name, text in MMREC.items():
        path = here / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    chosen = () if folder == "configs" else ("--configs", folder)
    answer = call("run", "-m", "VBPR", "-d", "toy", "--json", *chosen)
    grid = document(answer)
    assert [point["parameters"] for point in grid["points"]] == [
        {"seed": 999, "reg_weight": 0.1},
        {"seed": 999, "reg_weight": 0.0001},
    ]
    assert grid["winner"]["run_id"] in {point["run_id"] for point in grid["points"]}
    notes = dict(re.findall(r"^note: (\S+): keys of MMRec that nothing here reads: (.*)$", answer.err, re.MULTILINE))
    assert {key for keys in notes.values() for key in keys.split(", ")} == UNUSED
    assert "user_graph_dict_file" in notes[f"{folder}/dataset/toy.yaml"].split(", ")
    shown = call("config", "show", "-m", "VBPR", "-d", "toy", *chosen).out
    assert f"{folder}/model/VBPR.yaml:2" in shown
    assert all(re.search(rf"^{key} +\(unused\) +{folder}/", shown, re.MULTILINE) for key in UNUSED)


def test_the_log_of_a_grid_has_mmrecs_lines_in_mmrecs_order(here: Path) -> None:
    assert call(*RUN, "--reg_weight=[0.1,0.2]").code == 0
    (log,) = here.glob("runs/log/VBPR-toy-*.log")
    text = log.read_text(encoding="utf-8")
    stamp = r"(?:\w{3} \d\d \w{3} \d{4} \d\d:\d\d:\d\d INFO )?"
    metrics = r"recall@5: \d\.\d{4}    recall@10: \d\.\d{4}    .*map@50: \d\.\d{4}"
    statistics = [
        "toy", r"The number of users: \d+", r"Average actions of users: [\d.]+", r"The number of items: \d+",
        r"Average actions of items: [\d.]+", r"The number of inters: \d+", r"The sparsity of the dataset: [\d.]+%",
    ]  # fmt: skip
    epoch = [r"epoch {} training \[time: \d+\.\d\ds, train loss: \d+\.\d{{4}}\]",
             r"epoch {} evaluating \[time: \d+\.\d\ds, valid_score: \d\.\d{{6}}\]"]  # fmt: skip

    def point(number: int, weight: float) -> list[str]:
        return [
            rf"========={number}/2: Parameters:\['seed', 'reg_weight'\]=\(999, {weight}\)=======",
            r"VBPR\(", r"Trainable parameters: \d+",
            *(line.format(0) for line in epoch), "valid result: ", metrics,
            "██ VBPR--Best validation results updated!!!",
            *(line.format(1) for line in epoch), "valid result: ", metrics,
            r"\+\+\+\+\+Finished training, best eval result in epoch [01]",
            "best valid result: ", metrics, "test result: ", metrics,
            "████Current BEST████:", r"Parameters: \['seed', 'reg_weight'\]=\(999, 0\.[12]\),",
            f"Valid: {metrics},", f"Test: {metrics}",
        ]  # fmt: skip

    wanted = [
        "██Server: \t.+", "██Dir: \t.+", "model=VBPR", "dataset=toy", "epochs=2", r"reg_weight=\[0\.1, 0\.2\]",
        *statistics, "====Training====", *statistics, "====Validation====", *statistics, "====Testing====", *statistics,
        *point(1, 0.1), *point(2, 0.2),
        "============All Over=====================",
        r"Parameters: \['seed', 'reg_weight'\]=\(999, 0\.1\),", f"best valid: {metrics},", f"best test: {metrics}",
        r"Parameters: \['seed', 'reg_weight'\]=\(999, 0\.2\),", f"best valid: {metrics},", f"best test: {metrics}",
        "█████████████ BEST ████████████████", r"Parameters: \['seed', 'reg_weight'\]=\(999, 0\.[12]\),",
        f"Valid: {metrics},", f"Test: {metrics}",
    ]  # fmt: skip
    lines = iter(text.splitlines())
    for pattern in wanted:
        assert any(re.fullmatch(stamp + pattern, line) for line in lines), f"missing, or too early: {pattern}"
    assert text.count("test result: ") == 2  # test is ranked once per point, and not per epoch


# Questions


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("models", "VBPR"),
        ("encoders", "basic"),
        ("datasets", "demo"),
        ("metrics", "Recall"),
        ("plugins", "mmrec-lmm:models"),
    ],
)
def test_list_shows_each_kind_as_a_table_and_as_json(kind: str, name: str) -> None:
    rows = json.loads(call("list", kind, "--json").out)
    assert name in {row.get("name", row.get("plugin")) for row in rows}
    table = call("list", kind)
    assert table.code == 0
    assert len(table.out.splitlines()) == len(rows) + 2
    assert name in table.out


def test_list_runs_shows_finished_runs_by_id() -> None:
    assert call("list", "runs").out == "no runs\n"
    run_id = document(call(*RUN, "--json"))["run_id"]
    (row,) = json.loads(call("list", "runs", "--json").out)
    assert row["run"] == run_id
    assert run_id in call("list", "runs").out
    assert "differs" not in call("list", "runs").out
    assert row["parameters"] == row["differs"] == ""
    call(*RUN, "--reg_weight=[0.1,1e-5]", "--epochs=1")
    parameters = {row["parameters"] for row in json.loads(call("list", "runs", "--json").out)}
    assert parameters == {"", "reg_weight=0.1", "reg_weight=1.0e-05"}
    call(*RUN, "--modalities=text", "--epochs=1")
    rows = {row["run"]: row["differs"] for row in json.loads(call("list", "runs", "--json").out)}
    assert sorted(rows.values())[-1] == "modalities=[text]", rows
    assert "  differs" in call("list", "runs").out
    assert call("list", "runs", "--out", "elsewhere").out == "no runs\n"


def test_info_tells_keys_with_type_and_default_as_one_would_type_them() -> None:
    answer = call("info", "vbpr")
    assert answer.code == 0
    assert re.search(r"^  --reg_weight=0.1 +a number$", answer.out, re.MULTILINE)
    assert "plugin: mmrec-lmm:models" in answer.out
    assert "--encoder.ngrams=[3, 4, 5] " in call("info", "basic").out
    assert "--popularity.power=0.75 " in call("info", "popularity").out
    assert call("info", "recall").out.startswith("metric Recall: ")


def test_config_show_prints_each_value_in_its_type_with_where_it_comes_from() -> None:
    typed = ["--learning_rate=1e-4", "--topk=[20,50]", "--clip_grad_norm={max_norm: 5}", "--use_gpu=false"]
    answer = call("config", "show", *RUN[1:5], "--encoder", "basic", *typed)
    assert answer.code == 0
    shown = dict(re.findall(r"^(\S+) +(.*?) +command line$", answer.out, re.MULTILINE))
    values = {key: yaml.safe_load(value) for key, value in shown.items() if key in ("topk", "clip_grad_norm")}
    assert values == {"topk": [20, 50], "clip_grad_norm": {"max_norm": 5}}
    assert float(shown["learning_rate"]) == 1e-4
    assert shown["use_gpu"] == "false"
    assert re.search(r"^stopping_step +20 +\S+configs/overall.yaml:\d+$", answer.out, re.MULTILINE)
    assert re.search(r"^encoder.text_dim +1024 ", answer.out, re.MULTILINE)


def test_doctor_is_content_here_and_names_libraries_devices_plugins_encoders_data_and_cache() -> None:
    answer = call("doctor")
    assert answer.code == 0, answer.out
    for part in (
        "torch 2",
        "cpu: ",
        "mmrec-lmm:models: ok",
        "basic: ready",
        "  toy\n",
        f"cache: {os.environ['MMREC_LMM_HOME']}",
    ):
        assert part in answer.out


def test_doctor_says_how_encoders_run_on_each_gpu(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"Card {device.index}")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(4), raising=False)
    told = "encodes 256 items at once, prepared by 3 processes, in float32 (--encode_dtype=bfloat16 is faster)"
    lines = call("doctor").out.splitlines()
    assert [line for line in lines if "cuda" in line] == [f"  cuda:{n}: Card {n}; {told}" for n in range(2)]


@pytest.mark.parametrize(
    ("weights_id", "reason"),
    [
        ("'no_such_library:weights'", "weights_id of encoder wreck, no_such_library:weights, can't be imported"),
        ("{}, files=lambda config, modality: 1 / 0", "raised ZeroDivisionError"),
    ],
)
def test_doctor_names_the_plugin_of_an_encoder_that_cannot_work(here: Path, weights_id: str, reason: str) -> None:
    file = plugin(here / "wreck.py", BROKEN_ENCODER.format(weights_id))
    answer = call("doctor", "-p", file)
    assert answer.code == 4
    assert f"plugin {file}" in answer.out
    assert reason in answer.out
    assert "basic: ready" in answer.out


def test_an_encoder_whose_library_is_missing_names_its_plugin(here: Path) -> None:
    file = plugin(here / "wreck.py", BROKEN_ENCODER.format("lambda config, modality: 'none'"))
    answer = call(*RUN, "-p", file, "--encoder", "wreck")
    assert answer.code == 2
    assert answer.err.splitlines()[-1] == (
        f"error: plugin {file}: cls of encoder wreck, no_such_library:Wreck, can't be imported: "
        "ModuleNotFoundError: No module named 'no_such_library'"
    )


def test_data_check_counts_what_a_data_set_has_and_lacks() -> None:
    answer = call("data", "check", "-d", "toy")
    assert answer.code == 0
    assert answer.out.startswith("toy: nothing is wrong\n12 users, 16 items, 96 interactions, density 0.5\n")
    for line in ("images: 15 of 16 items", "title: 15 of 16 items", "features of text: 15 items, width 6"):
        assert line in answer.out


def test_data_check_reads_feature_files(here: Path) -> None:
    np.save(here / "data" / "toy" / "text_feat.npy", np.full((16, 2), np.nan))
    answer = call("data", "check", "-d", "toy")
    assert answer.code == 4
    assert "text_feat.npy: expected finite numbers, got NaN or infinity in 16 of 16 rows" in answer.err


def test_data_check_names_a_feature_file_of_poor_scale_until_it_is_normalized(here: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((16, 40)) + 4
    np.save(path := here / "data" / "toy" / "text_feat.npy", rows)
    answer = call("data", "check", "-d", "toy")
    assert answer.code == 0
    assert "warning scale: 16 of 16 rows differ little (mean cosine 0.9" in answer.out
    assert f"where: {path.name}\n    what to do: try --normalize=centered" in answer.out
    assert "--normalize" not in call("data", "check", "-d", "toy", "--normalize=centered").out


def test_a_data_set_that_a_plugin_makes_has_the_plugins_spelling_of_its_name(here: Path) -> None:
    assert call("data", "check", "-d", "DEMO").out.startswith("demo: ")
    assert (here / "data" / "demo" / "demo.inter").is_file()


def test_encode_keeps_features_and_uses_them_again(here: Path) -> None:
    first = call("encode", "-d", "toy", "--encoder", "basic", "--encoder.text_dim=32")
    assert first.code == 0, first.err
    assert re.search(r"^image +16 +15 +384 +[0-9a-f]{32}$", first.out, re.MULTILINE)
    assert re.search(r"^text +16 +15 +32 +[0-9a-f]{32}$", first.out, re.MULTILINE)
    store = Path(os.environ["MMREC_LMM_HOME"]) / "features"
    before = {path: path.stat().st_mtime_ns for path in store.glob("*.safetensors")}
    assert len(before) == 2
    assert call("encode", "-d", "toy", "--encoder", "basic", "--encoder.text_dim=32").out == first.out
    assert call(*RUN, "--encoder", "basic", "--encoder.text_dim=32").code == 0
    assert {path: path.stat().st_mtime_ns for path in store.glob("*.safetensors")} == before


def test_recommend_ranks_as_the_run_did_and_leaves_out_training_items() -> None:
    run_id = document(call(*RUN, "--json"))["run_id"]
    top = pd.read_csv(f"runs/{run_id}/topk.tsv", sep="\t", index_col="id")
    answer = call("recommend", run_id[:-3], "--users", "3,0,3", "-k", "2", "--json", "--internal-ids")
    rows = json.loads(answer.out)
    assert [(row["user"], row["rank"]) for row in rows] == [(3, 1), (3, 2), (0, 1), (0, 2)]
    assert [row["item"] for row in rows] == [*top.loc[3, ["top_0", "top_1"]], *top.loc[0, ["top_0", "top_1"]]]
    inter = pd.read_csv("data/toy/toy.inter", sep="\t")
    trained = set(inter.itemID[(inter.userID == 3) & (inter.x_label == 0)])
    everything = json.loads(call("recommend", run_id, "--users", "3", "-k", "99", "--json").out)
    assert {row["item"] for row in everything} == {f"T{item:02d}" for item in set(range(16)) - trained}


def test_recommend_takes_and_shows_the_shops_own_ids_in_each_format() -> None:
    run_id = document(call(*RUN, "--json"))["run_id"]
    names = [f"U,{user}" if user == 5 else f"u-{user:02d}" for user in range(12)]
    mapping = pd.DataFrame({"user_id": names, "userID": range(12)})
    mapping.to_csv("data/toy/u_id_mapping.csv", sep="\t", index=False)
    assert call("replay", run_id).code == 0, "a mapping is no part of the data's fingerprint"
    numbers = json.loads(call("recommend", run_id, "--users", "3,0", "-k", "2", "--json", "--internal-ids").out)
    wanted = [(names[row["user"]], row["rank"], f"T{row['item']:02d}", row["title"]) for row in numbers]

    asked = ("recommend", run_id, "--users", " u-03, u-00,u-03", "-k", "2")
    assert [tuple(row.values()) for row in json.loads(call(*asked, "--format", "json").out)] == wanted
    for form, separator in (("csv", ","), ("tsv", "\t")):
        assert call(*asked, "--format", form, "-o", "made.table").out == ""
        table = pd.read_csv("made.table", sep=separator)
        assert list(table.columns) == ["user", "rank", "item", "title"]
        assert [tuple(row) for row in table.itertuples(index=False)] == wanted
    head, _, first, *_ = call(*asked).out.splitlines()
    assert (head.split(), first.split()[:3]) == (["user", "rank", "item", "title"], ["u-03", "1", wanted[0][2]])

    everyone = pd.read_csv(StringIO(call("recommend", run_id, "--users", "all", "-k", "1", "--format", "csv").out))
    assert everyone["user"].tolist() == names
    Path("who.txt").write_text("\ufeffu-03\r\n\nU,5\nu-03\n", encoding="utf-8")
    listed = json.loads(call("recommend", run_id, "--users", "@who.txt", "-k", "1", "--json").out)
    assert [row["user"] for row in listed] == ["u-03", "U,5"]
    Path("who.txt").write_text("\n \n")
    answer = call("recommend", run_id, "--users", "@who.txt")
    assert (answer.code, "@who.txt: expected ids, one a line, got none" in answer.err) == (2, True)


def test_recommend_names_an_unknown_id_and_the_one_that_may_be_meant() -> None:
    run_id = document(call(*RUN, "--json"))["run_id"]
    mapping = pd.DataFrame({"user_id": [f"u-{user:02d}" for user in range(12)], "userID": range(12)})
    mapping.to_csv("data/toy/u_id_mapping.csv", sep="\t", index=False)
    Path("who.txt").write_text("u-03\nu-004\n7\n")
    begin = "expected ids of data/toy/u_id_mapping.csv such as u-00, u-01, got"
    for users, text in {
        "u-03,U-04": f"--users: {begin} U-04; did you mean u-04?",
        "x": f"--users: {begin} x",
        "3": f"--users: {begin} 3; user number 3 is u-03 (--internal-ids takes numbers)",
        "@who.txt": f"who.txt, line 2: {begin} u-004; did you mean u-04? (2 of 3 ids are unknown)",
    }.items():
        answer = call("recommend", run_id, "--users", users)
        assert (answer.code, answer.out, answer.err) == (2, "", f"error: {text}\n")


def test_recommend_refuses_when_the_data_changed_since() -> None:
    run_id = document(call(*RUN, "--json"))["run_id"]
    features = np.load("data/toy/text_feat.npy")
    np.save("data/toy/text_feat.npy", features + 1)
    answer = call("recommend", run_id, "--users", "0")
    assert (answer.code, answer.err) == (
        4,
        f"error: {run_id}: the features changed since this run; try running it again\n",
    )


def test_output_that_nobody_reads_on_is_no_error() -> None:
    process = start("list", "metrics")
    process.stdout.close()
    assert process.wait() == 0
    assert process.stderr.read() == ""


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "-m", "VBPX", "-d", "toy"], "unknown model VBPX; did you mean VBPR? known: "),
        ([*RUN, "--encoder", "basik"], "unknown encoder basik; did you mean basic?"),
        ([*RUN, "--lerning_rate=0.1"], "command line: unknown key lerning_rate; did you mean learning_rate?"),
        ([*RUN, "--learning_rate=fast"], "command line: learning_rate must be a number, got 'fast'"),
        ([*RUN, "--jsno"], ", got --jsno; did you mean --json?"),
        ([*RUN, "--epochs", "3"], "expected a flag of mmrec-lmm run, or a configuration key as --epochs=VALUE, "),
        ([*RUN, "stray"], ", or a configuration key as --KEY=VALUE, got stray"),
        (["run", "-m", "notes/freedom.ipynb", "-d", "toy"], "; the path of a model file ends in .py; known: "),
        (["study", "run", "x.yaml", "--threads=1"], "--threads=1; try settings: {threads: 1} in the study's file"),
        (["list", "models", "--epochs=3"], "unknown argument: expected a flag of mmrec-lmm list, got --epochs=3"),
        ([*RUN, "--paradigm", "ft"], "--paradigm ft: expected an encoder to tune, got none; try --encoder NAME"),
        ([*RUN, "--paradigm=ete"], "--paradigm ete: expected an encoder to train, got none; try --encoder NAME"),
        ([*RUN, "--metrics=[Recall,Recal]"], "command line: unknown metric Recal; did you mean Recall?"),
        ([*RUN, "--grid", "mmrek"], "command line: unknown grid of model VBPR: mmrek; did you mean mmrec? known: lmm,"),
        ([*RUN, "--preset", "mmrek"], "command line: unknown preset: mmrek; did you mean mmrec? known: lmm, mmrec, "),
        ([*RUN, "--preset", ""], "command line: unknown preset: ; known: lmm, mmrec, "),
        ([*RUN, "--topk=[5,10]"], "command line --topk: valid_metric Recall@20 is not computed with metrics ["),
        ([*RUN, "--configs", "nowhere"], "--configs nowhere: expected a folder with one of overall.yaml"),
        ([*RUN, "--device", "toaster"], "device must be auto, cpu, mps, cuda or cuda:N, got 'toaster'"),
        ([*RUN, "-p", "nosuch.py"], "-p nosuch.py: expected a Python file"),
        (["info", "models/mine.py"], "try `info -p mmrec_lmm.bridge:models/mine.py mine.py` for a model file"),
        (["info", "vbp"], "data set, split or metric, got vbp; did you mean VBPR?"),
        (["encode", "-d", "toy", "--encoder", "basic", "--encoder.txt_dim=9"], "did you mean encoder.text_dim?"),
        (["encode", "-d", "toy", "--encoder", "basic", "--modalities", "audio"], "expected audio features for data"),
        (["run", "-m", "VBPR"], "the following arguments are required: -d/--dataset"),
        (["frob"], "invalid choice: 'frob'"),
        (["run", "-m", "VBPR", "-d", "../toy"], "expected a data set's name, got '../toy'; try --data-path"),
        (["run", "-m", "VBPR", "-d", ".."], "expected a data set's name, got '..'"),
        ([*RUN, "--modalities", ","], "expected names separated by commas, got ','"),
        ([*RUN, "--features", "image"], "expected MODALITY=FILE.npy, got 'image'"),
        (["recommend", "x", "--users", "a,,b"], "expected ids separated by commas, `all` or @FILE, got 'a,,b'"),
        (["recommend", "x", "--users", "@gone"], "@gone: expected a text file of ids, one a line: No such file"),
        (["recommend", "x", "--users", "0", "-k", "0"], "expected a whole number from 1 to 2,147,483,647, got '0'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_message_on_stderr_and_exit_code_2(arguments: list[str], message: str) -> None:
    answer = call(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err
    assert answer.err.count("error: ") == 1
    assert "Traceback" not in answer.err


def test_recommend_for_an_unknown_user_or_run_says_so() -> None:
    run_id = document(call(*RUN, "--json"))["run_id"]
    answer = call("recommend", run_id, "--users", "0,12")
    assert (answer.code, answer.err) == (
        2,
        "error: --users: expected ids from 0 to 11, as the data set has no u_id_mapping.csv, got 12\n",
    )
    assert (
        "VBPX: expected a finished run in runs, got none of that name" in call("recommend", "VBPX", "--users", "0").err
    )
    assert call("recommend", "VBPX", "--users", "0").code == 4


def test_a_run_that_fails_has_exit_code_1() -> None:
    answer = call(*RUN, "--train_batch_size=8", "--learning_rate=1e38")
    assert (answer.code, answer.out) == (1, "")
    assert re.search(
        r"^error: plugin mmrec-lmm:models: model VBPR: loss term '\w+' became nan in epoch 0, before any evaluation",
        answer.err,
        re.MULTILINE,
    )


def test_a_place_that_cannot_be_written_is_one_line(here: Path) -> None:
    (here / "file").write_text("")
    answer = call(*RUN, "--out", "file")
    assert (answer.code, answer.err) == (1, "error: file/log: expected a folder, got a file there; try another name\n")


# Documentation

CLI = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## `(?:mmrec-lmm )?([^`]+)`\n(.*?)(?=^## |\Z)", CLI, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("", *GROUPS)])
def test_every_flag_of_every_verb_is_documented_in_its_section(verb: str) -> None:
    text = SECTIONS[verb]
    for action in VERBS[verb]._actions:
        for flag in action.option_strings or [action.dest.upper()]:
            common = flag in ("-h", "--help", "-p") and f"`{flag}" in CLI.partition("\n## ")[0]
            assert common or re.search(rf"`{re.escape(flag)}[` =]", text), f"{verb}: {flag}"


def test_no_flag_is_documented_that_does_not_exist() -> None:
    found = set()
    for verb, text in SECTIONS.items():
        known = {flag for action in VERBS[verb]._actions for flag in action.option_strings}
        table = re.findall(r"^\| ((?:`[^`]+`(?:, )?)+) \|", text, re.MULTILINE)
        documented = {flag.split()[0] for cell in table for flag in re.findall(r"`(-[^`]+)`", cell)}
        assert documented - {"--key=value"} <= known, f"{verb}: {documented - known}"
        found |= documented
    assert {"--grid", "--export", "--jobs"} <= found


def test_exit_codes_and_environment_variables_are_documented() -> None:
    from mmrec_lmm import errors
    from mmrec_lmm.running import runner

    codes = {
        error.exit_code for error in vars(errors).values() if isinstance(error, type) and hasattr(error, "exit_code")
    }
    for code in {0, *codes, runner.Interrupted.exit_code}:
        assert re.search(rf"^\| {code} \|", CLI, re.MULTILINE), code
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "mmrec_lmm").rglob("*.py"))
    variables = {
        *re.findall(r"environ(?:\.get\(|\[)\"(\w+)\"", sources),
        *re.findall(r"\bMMREC_LMM_[A-Z_]+\b", sources),
    }
    assert {"MMREC_LMM_HOME", "MMREC_LMM_OFFLINE"} <= variables
    for variable in variables - {"MMREC_LMM_API"}:  # which a plugin's module defines
        assert f"`{variable}`" in CLI, variable


def test_every_key_of_the_host_is_documented_with_its_default() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \|", text, re.MULTILINE))
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in Settings().__dict__.items()}
    assert {name: yaml.safe_load(default) for name, default in rows.items()} == plain
    assert len(rows) == len(fields(Settings))


# What a result is a result of


def test_a_stored_result_of_a_plugin_whose_code_changed_is_made_again(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    path = tmp_path / "my_bpr.py"
    path.write_text(re.findall(r"```python\n(.*?)```", readme, re.DOTALL)[0])

    def said() -> str:
        answer = call("run", "-p", path, "-m", "MyBPR", "-d", "toy", "--epochs=1")
        assert answer.code == 0, answer.err
        return answer.err

    assert "changed since" not in said()
    assert "changed since" not in said()
    path.write_text(path.read_text().replace("(-margin)", "(-2 * margin)"))
    assert "the code of its model changed since its result was made: it is run again" in said()
    assert "changed since" not in said()


def test_flags_on_features_mean_nothing_to_a_model_without_and_are_no_part_of_its_run() -> None:
    plain = document(call("run", "-m", "BPR", "-d", "toy", "--epochs=1", "--json"))
    flagged = call(
        "run", "-m", "BPR", "-d", "toy", "--epochs=1", "--control", "shuffled", "--modalities", "text", "--json",
        "--encoder", "clip:tiny", "--weights", "w.pt",
    )  # fmt: skip
    assert "note: BPR uses no item features: --encoder, --modalities, --control, --encoder.weights left" in flagged.err
    assert document(flagged)["run_id"] == plain["run_id"]
    assert document(flagged)["record"]["control"] is None


# Finished runs


def test_results_are_exported_queried_and_indexed(here: Path) -> None:
    run_id = document(call(*RUN, "--json"))["run_id"]
    call(*RUN, "--control", "shuffled")
    exported = call("results", "export", "--where", "control=", "model=vbpr", "--where", "dataset=toy")
    assert [json.loads(line)["run"] for line in exported.out.splitlines()] == [run_id]
    assert call("results", "export", "--format", "csv", "-o", "all.csv").out == ""
    table = pd.read_csv("all.csv")
    assert len(table) == 2
    sql = f"SELECT value FROM metrics WHERE run = '{run_id}' AND split = 'test' AND metric = 'recall@20'"
    assert json.loads(call("results", "query", sql, "--json").out) == [
        {"value": table.set_index("run").loc[run_id, "test/recall@20"]}
    ]
    assert call("results", "query", "SELECT count(*) AS runs FROM runs").out == "runs\n----\n   2\n"
    assert call("results", "query", "SELECT run FROM runs WHERE seed = 7").out == "no rows\n"
    (here / "runs" / run_id / "result.json").write_text("{")
    answer = call("results", "index")
    assert (answer.code, answer.out) == (0, "1 runs in runs/index.sqlite\n")
    assert f"left out of the index: runs/{run_id}/result.json: expected JSON" in answer.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["export", "--where", "sed=1"], 2, ", stamp), got sed; did you mean seed?"),
        (["export", "--where", "seed"], 2, "expected KEY=VALUE, got 'seed'"),
        (["query", "DROP TABLE runs"], 2, "query: expected one SELECT over runs (run, model, "),
        (["index", "--out", "nowhere"], 4, "--out: expected a folder of runs, got nowhere, which doesn't exist"),
    ],
)
def test_questions_that_have_no_answer_are_refused(arguments: list[str], code: int, message: str) -> None:
    Path("runs").mkdir()
    answer = call("results", *arguments)
    assert (answer.code, answer.out) == (code, "")
    assert message in answer.err


def test_recommend_finds_a_data_set_that_moved(here: Path, tmp_path: Path) -> None:
    run_id = document(call(*RUN, "--json"))["run_id"]
    moved = tmp_path / "elsewhere"
    (here / "data").rename(moved)
    assert call("recommend", run_id, "--users", "0").code == 4
    assert call("recommend", run_id, "--users", "0", "--data-path", moved).code == 0


def test_the_demo_makes_its_data_compares_the_very_runs_that_run_makes_and_says_what_failed() -> None:
    answer = call("demo", "--epochs=1", "--seed=1")
    assert answer.code == 0, answer.err
    title, _, _, header, _, none, shuffled, *marked = answer.out.splitlines()
    assert title.startswith("VBPR on the demo data: recall@20 on test with the items' own features, and of twins")
    columns = ["twin", "own features", "of twin", "gain", "difference", "95 % interval", "best epochs"]
    assert re.split(r"  +", header) == columns
    assert "marked: own features: best epoch is the last: still rising when the budget ended" in marked
    made = {path.name for path in Path("runs").glob("VBPR-demo-*")}
    assert len(made) == 3
    for control, line in ((None, ""), ("none", none), ("shuffled", shuffled)):
        asked = ["--control", control] if control else []
        again = call("run", "-m", "VBPR", "-d", "demo", "--epochs=1", "--seed=1", *asked, "--json")
        assert document(again)["run_id"] in made
        found = document(again)["test"]["recall@20"]
        if control is None:
            own = found
        else:
            values = [own, found, f"{100 * (own / found - 1):+.0f} %", own - found, "needs two seeds", 0]
            shown = [f"{value:.4f}" if isinstance(value, float) else str(value) for value in values]
            assert re.split(r"  +", line) == [control, *shown]
    failed = call("demo", "--epochs=1", "--seed=1", "--learning_rate=1e38", "--train_batch_size=64")
    assert (failed.code, failed.out) == (1, "")
    assert "3 cells: 3 failed; 0 of 3 runs are done" in failed.err


def test_the_demo_is_the_shipped_study_of_content(registry: Registry) -> None:
    cells = load_study(find_study("content")).cells(registry)
    assert [(cell.axes.model, cell.axes.dataset, cell.axes.control) for cell in cells] == [
        ("VBPR", "demo", control) for control in (None, "none", "shuffled")
    ]
    assert [[run.settings.seed for run in cell.runs] for cell in cells] == 3 * [[1, 2, 3]]


def test_the_demo_refuses_what_its_table_could_not_show() -> None:
    answer = call("demo", "--topk=[10]", "--valid_metric=Recall@10")
    assert answer.code == 2
    assert "content.yaml:10: metrics: expected a metric that runs of VBPR measure, got Recall@20" in answer.err


def test_help_imports_neither_numpy_nor_torch() -> None:
    code = (
        "import sys\nfrom mmrec_lmm.cli import main\n"
        "try: main(['run', '--help'])\nexcept SystemExit: pass\n"
        "sys.exit(sorted({'numpy', 'pandas', 'scipy', 'torch'} & {*sys.modules}) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
