"""Replay: a run made again is identical, or the first thing that differs is told in words."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import call
from PIL import Image

from mmrec_lmm.errors import DataError
from mmrec_lmm.plugin.registry import Registry
from mmrec_lmm.running import replay as module
from mmrec_lmm.running import run_folder, runner
from mmrec_lmm.running.grid import run_grid
from mmrec_lmm.running.provenance import NUMERICS_VERSION
from mmrec_lmm.running.replay import ANOTHER, DIVERGED, IDENTICAL, WITHIN, Replay, departure, replay
from mmrec_lmm.training.resume import load_weights, save_weights
from mmrec_lmm.types import EpochReport, RunResult, RunSpec

Specs = Callable[..., tuple[RunSpec, ...]]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def finished(specs: Specs, registry: Registry, out: Path) -> RunResult:
    return run_grid(specs(learning_rate="0.1"), registry, out=out).best


@pytest.fixture
def untrained(finished: RunResult, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `finished`, nothing may be trained."""
    monkeypatch.setattr(runner, "train", None)


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file in place."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


# The same again


@pytest.mark.parametrize("change", [{}, {"control": "shuffled"}, {"save_recommended_topk": "false"}], ids=str)
def test_a_run_made_again_is_identical_and_leaves_nothing_behind(
    change: dict[str, str], specs: Specs, registry: Registry, out: Path
) -> None:
    result = run_grid(specs(**change), registry, out=out).best
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert replay(result.run_id, registry, out=out) == Replay(result.run_id, IDENTICAL, [])
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_run_is_made_again_with_the_threads_that_it_had(
    finished: RunResult, registry: Registry, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmrec_lmm.machine.TORCH_THREADS", finished.record.threads + 1)  # another machine
    assert replay(finished.run_id, registry, out=out).verdict == IDENTICAL


def test_a_data_set_that_moved_is_found_by_data_path(
    finished: RunResult, registry: Registry, out: Path, data_path: Path
) -> None:
    moved = data_path.rename(data_path.with_name("moved"))
    with pytest.raises(DataError, match="no such file"):
        replay(finished.run_id, registry, out=out)
    assert replay(finished.run_id, registry, out=out, data_path=str(moved)).verdict == IDENTICAL


@pytest.mark.slow
@pytest.mark.parametrize("paradigm", ["ft", "ete"])
def test_runs_whose_encoder_was_tuned_or_trained_are_identical_too(
    paradigm: str, data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data_path.parent)
    run = call(
        "run", "-m", "VBPR", "-d", "toy", "--encoder", "clip:tiny", "--paradigm", paradigm, "--epochs=2",
        "--embedding_size=4", "--json", *(["--ft.epochs=1", "--ft.held_out=0.2"] if paradigm == "ft" else []),
    )  # fmt: skip
    assert run.code == 0, run.err
    name = json.loads(run.out)["run_id"]
    assert call("replay", name).out == f"{name}: identical\n"
    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path / "elsewhere"))  # tuned and encoded again
    assert call("replay", name).out == f"{name}: identical\n"


# Inputs that changed


@pytest.mark.usefixtures("untrained")
def test_interactions_that_changed_are_told_by_file(
    finished: RunResult, registry: Registry, out: Path, data_path: Path
) -> None:
    with (data_path / "toy" / "toy.inter").open("a") as file:
        file.write("0\t3\t0\n")
    found = replay(finished.run_id, registry, out=out)
    assert found == Replay(finished.run_id, ANOTHER, ["data: the interactions changed (toy.inter)"])
    assert not found.reproduced


@pytest.mark.usefixtures("untrained")
def test_features_that_changed_are_told_by_modality_and_file(
    finished: RunResult, registry: Registry, out: Path, data_path: Path
) -> None:
    np.save(data_path / "toy" / "image_feat.npy", np.ones((16, 5)))
    assert replay(finished.run_id, registry, out=out).changed == ["features: image changed (image_feat.npy)"]
    (data_path / "toy" / "text_feat.npy").unlink()
    assert replay(finished.run_id, registry, out=out).changed[1] == "features: text is gone"


def test_what_an_encoder_read_is_told_by_file_and_else_the_encoder_is_named(
    specs: Specs, registry: Registry, out: Path, data_path: Path
) -> None:
    result = run_grid(specs(encoder="basic"), registry, out=out).best
    Image.new("RGB", (9, 9), "green").save(data_path / "toy" / "images" / "3.png")
    assert replay(result.run_id, registry, out=out).changed == ["features: image changed (images)"]
    edit(result.path / "config.json", lambda config: config["encoder_config"].update(text_dim=64))
    assert replay(result.run_id, registry, out=out).changed == [
        "features: image changed (images)",
        "features: text changed (images)",
        "configuration: encoder.text_dim was 1024, is 64",
    ]


@pytest.mark.usefixtures("untrained")
def test_values_of_the_configuration_that_changed_are_told_key_by_key(
    finished: RunResult, registry: Registry, out: Path
) -> None:
    def touch(config: dict[str, Any]) -> None:
        config["settings"].update(learning_rate=0.2, seed=5)
        config["model_config"].update(reg_weight=0.5)

    edit(finished.path / "config.json", touch)
    assert replay(finished.run_id, registry, out=out) == Replay(
        finished.run_id,
        ANOTHER,
        [
            "configuration: seed was 999, is 5",
            "configuration: learning_rate was 0.1, is 0.2",
            "configuration: reg_weight was 0.1, is 0.5",
        ],
    )


def test_a_value_that_changes_no_number_is_told_and_the_run_is_identical(
    finished: RunResult, registry: Registry, out: Path
) -> None:
    edit(finished.path / "config.json", lambda config: config["settings"].update(eval_batch_size=3))
    found = replay(finished.run_id, registry, out=out)
    assert found == Replay(finished.run_id, IDENTICAL, ["configuration: eval_batch_size was 4096, is 3"])


def test_code_and_versions_that_changed_are_told_and_the_run_is_made_all_the_same(
    finished: RunResult, registry: Registry, out: Path
) -> None:
    def touch(result: dict[str, Any]) -> None:
        result["record"]["code"].update(host="0", model="0")
        result["record"]["versions"].update(numpy="1.0", torch="1.13")

    edit(finished.path / "result.json", touch)
    assert replay(finished.run_id, registry, out=out) == Replay(
        finished.run_id,
        IDENTICAL,
        [
            "code: that of the host changed",
            "code: that of the model changed",
            f"versions: numpy was '1.0', is {np.__version__}",
            f"versions: torch was '1.13', is {torch.__version__}",
        ],
    )


@pytest.mark.usefixtures("untrained")
def test_another_numerics_version_is_another_run(
    finished: RunResult, registry: Registry, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmrec_lmm.running.provenance.NUMERICS_VERSION", 99)
    monkeypatch.setattr(module, "NUMERICS_VERSION", 99)
    found = replay(finished.run_id, registry, out=out)
    assert (found.verdict, found.changed) == (ANOTHER, [f"code: numerics version was {NUMERICS_VERSION}, is 99"])


# Results that changed


def nudge(result: RunResult, by: float) -> None:
    """Change a stored run's weights and the history that goes with them."""
    weights = {name: value + by for name, value in load_weights(result.path / run_folder.WEIGHTS).items()}
    save_weights(result.path / run_folder.WEIGHTS, weights)
    lines = (result.path / run_folder.HISTORY).read_text().splitlines()
    lines[1] = re.sub(r'"bpr": [\d.]+', '"bpr": 0.5', lines[1])
    (result.path / run_folder.HISTORY).write_text("\n".join(lines))


def test_the_first_epoch_and_loss_term_that_departs_is_told(finished: RunResult, registry: Registry, out: Path) -> None:
    nudge(finished, 0.5)
    found = replay(finished.run_id, registry, out=out)
    assert (found.verdict, found.changed) == (DIVERGED, [])
    assert found.departs is not None
    assert re.fullmatch(r"epoch 1: loss term bpr was 0.5, is [\d.]+", found.departs)
    assert found.differences == {"best.safetensors": pytest.approx(0.5), "means": 0}


@pytest.mark.parametrize(("key", "value"), [("device", "NVIDIA H200"), ("threads", 3), ("versions", {"torch": "1.13"})])
def test_on_another_machine_rounding_is_within_tolerance_and_the_machine_is_named(
    key: str, value: Any, finished: RunResult, registry: Registry, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nudge(finished, 1e-6)
    if key == "threads":
        edit(finished.path / "config.json", lambda config: config["settings"].update(threads=3))
        line = f"machine: threads was {finished.record.threads}, is 3"
    else:
        edit(
            finished.path / "result.json",
            lambda result: result["record"].update(
                {key: {**result["record"][key], **value} if key == "versions" else value}
            ),
        )
        line = {"device": "machine: device was NVIDIA H200, is cpu", "versions": "versions: torch was '1.13', is"}[key]
    before = torch.get_num_threads()
    found = replay(finished.run_id, registry, out=out)
    torch.set_num_threads(before)
    assert found.verdict == WITHIN
    assert found.reproduced
    assert found.changed[-1].startswith(line)
    assert found.differences["best.safetensors"] == pytest.approx(1e-6, rel=0.5)


def test_on_another_machine_a_metric_that_moved_is_no_rounding(
    finished: RunResult, registry: Registry, out: Path
) -> None:
    def touch(result: dict[str, Any]) -> None:
        result["record"]["device"] = "NVIDIA H200"
        result["test"]["recall@5"] += 0.1

    edit(finished.path / "result.json", touch)
    nudge(finished, 1e-6)
    found = replay(finished.run_id, registry, out=out)
    assert (found.verdict, found.differences["means"]) == (DIVERGED, pytest.approx(0.1))


def test_files_that_differ_under_one_history_are_told(finished: RunResult, registry: Registry, out: Path) -> None:
    lists = finished.path / run_folder.TOPK
    lines = lists.read_text().splitlines()
    lists.write_text("\n".join([lines[0], lines[2], lines[1], *lines[3:]]) + "\n")
    found = replay(finished.run_id, registry, out=out)
    assert (found.verdict, found.differences) == (DIVERGED, {"topk.tsv": 2, "means": 0})
    assert found.departs == "after training: the history is the same, and topk.tsv differs"
    lists.unlink()
    assert replay(finished.run_id, registry, out=out).differences == {"topk.tsv": None, "means": 0}


def test_the_departure_of_two_histories_is_the_first_in_time() -> None:
    def epoch(number: int, loss: float, recall: float | None = None) -> EpochReport:
        return EpochReport(number, {"bpr": loss}, 1.0, None if recall is None else {"recall@20": recall}, 2.0)

    run = [epoch(0, 0.5), epoch(1, 0.4, 0.1), epoch(2, 0.3)]
    assert departure(run, run) is None
    assert departure(run, [epoch(0, 0.5), epoch(1, 0.4, 0.2), epoch(2, 0.2)]) == (
        "epoch 1: valid recall@20 was 0.1, is 0.2"
    )
    assert departure(run, [epoch(0, 0.5), epoch(1, 0.3, 0.2)]) == "epoch 1: loss term bpr was 0.4, is 0.3"
    assert departure(run, run[:2]) == "epoch 2: the run had 3 epochs, its replay 2"


# On the command line


def test_the_verb_prints_the_verdict_or_a_document_and_exits_by_it(
    finished: RunResult, out: Path, data_path: Path
) -> None:
    answer = call("replay", finished.run_id[:-2], "--out", out)
    assert (answer.code, answer.out) == (0, f"{finished.run_id}: identical\n")
    nudge(finished, 0.5)
    answer = call("replay", finished.run_id, "--out", out)
    assert answer.code == 1
    assert re.search(r"^  first divergence: epoch 1: loss term bpr was 0\.5, is", answer.out, re.MULTILINE)
    assert "  best.safetensors: differs by 0.5 at most\n" in answer.out
    np.save(data_path / "toy" / "image_feat.npy", np.ones((16, 5)))
    answer = call("replay", finished.run_id, "--out", out, "--json")
    assert answer.code == 1
    assert json.loads(answer.out) == {
        "run_id": finished.run_id,
        "verdict": "another run",
        "changed": ["features: image changed (image_feat.npy)"],
        "differences": {},
        "departs": None,
        "reproduced": False,
    }


def test_a_config_that_cannot_be_read_back_is_named(finished: RunResult, registry: Registry, out: Path) -> None:
    edit(finished.path / "config.json", lambda config: config["settings"].update(lerning_rate=1))
    with pytest.raises(
        DataError, match=r"config.json: settings: expected a run of this version, got .*lerning_rate.*; try"
    ):
        replay(finished.run_id, registry, out=out)
