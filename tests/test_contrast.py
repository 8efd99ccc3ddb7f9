"""Two runs compared: what differs is named by kind, and only a difference above noise is called one."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import call

from mmrec_lmm.plugin.registry import Registry
from mmrec_lmm.running import run_folder
from mmrec_lmm.running.grid import run_grid
from mmrec_lmm.studies.contrast import contrast, with_other_seeds
from mmrec_lmm.types import RunResult, RunSpec

Made = Callable[..., list[RunResult]]


@pytest.fixture
def made(specs: Callable[..., tuple[RunSpec, ...]], registry: Registry, tmp_path: Path) -> Made:
    """Finished runs on `toy`, by seed."""
    return lambda **values: [*run_grid(specs(**values), registry, out=tmp_path / "runs").results]


def test_what_differs_is_named_by_kind_and_places_do_not_count(made: Made, tmp_path: Path) -> None:
    one = made(seed="1", reg_weight="0.1")[0]
    other = made(seed="2", reg_weight="0.2", checkpoint_seconds="1")[0]
    assert contrast(one, other).differences == {"configuration": ["reg_weight: 0.1 | 0.2"], "seed": ["seed: 1 | 2"]}
    path = other.path / run_folder.RESULT
    document = json.loads(path.read_text())
    document["record"]["versions"]["torch"] = "1.0"
    document["record"]["code"]["model"] = 64 * "0"
    document["record"]["features"]["text"] = 32 * "1"
    path.write_text(json.dumps(document))
    changed = run_folder.load_result(other.path)
    assert changed is not None
    found = contrast(one, changed).differences
    assert [*found] == ["features", "code", "configuration", "seed", "library"]
    assert found["features"] == [f"text: {one.record.features['text'][:12]}... | 111111111111..."]
    assert found["library"] == [f"torch: {one.record.versions['torch']} | '1.0'"]


def test_a_run_has_the_seeds_beside_it_and_none_of_another_configuration(made: Made) -> None:
    runs = made(seed="[1, 2, 3]", reg_weight="[0.1, 0.2]")
    own = [run for run in runs if run.parameters["reg_weight"] == 0.1]
    assert [run.run_id for run in with_other_seeds(own[1])] == [run.run_id for run in own]
    found = contrast(own[0], own[1])
    assert found.one == found.other
    assert [one.difference for one in found.numbers] == [0.0] * len(found.numbers)
    assert not any(one.exceeds for one in found.numbers)
    assert found.noise == "users and seeds"


@pytest.mark.parametrize(("shift", "exceeds"), [(0.0, False), (0.5, True)])
def test_only_a_difference_above_noise_is_called_one(shift: float, exceeds: bool, made: Made) -> None:
    one, other = made(seed="1", reg_weight="0.1")[0], made(seed="1", reg_weight="0.2")[0]
    rng = np.random.default_rng(0)
    users = np.arange(12)
    for run, add in ((one, 0.0), (other, shift)):
        values = {"users": users, "recall@20": 0.2 + 0.1 * rng.random(12) + add}
        run_folder.save_per_user(run.path, {"test": values}, {"run": json.dumps(run.run_id)})
    found = contrast(one, other)
    (number,) = found.numbers
    assert number.exceeds is exceeds
    assert number.low < number.difference < number.high
    assert (number.low > 0) is exceeds
    assert found.noise.startswith("users alone")


def test_runs_on_different_splits_are_not_compared_in_numbers(made: Made) -> None:
    found = contrast(made()[0], made(split="ratio")[0])
    assert found.numbers == ()
    assert "different splits" in found.why
    assert [line.partition(":")[0] for line in found.differences["split"]] == ["data", "rule"]


def test_the_command_prints_both_and_json(made: Made, tmp_path: Path) -> None:
    one, other = made(seed="1")[0], made(seed="2", reg_weight="0.5")[0]
    answer = call("compare", one.run_id, other.run_id, "--out", tmp_path / "runs")
    assert answer.code == 0, answer.err
    assert answer.out.startswith(f"one: {one.run_id}\nother: {other.run_id}\n\nconfiguration: reg_weight: ")
    assert "seed: 1 | 2" in answer.out
    assert "other less one, with its 95 % interval" in answer.out
    document = json.loads(call("compare", one.path, other.path, "--json").out)
    assert {*document} == {"one", "other", "differences", "numbers", "noise", "why"}
    assert call("compare", one.run_id, "nothing", "--out", tmp_path / "runs").code == 4
