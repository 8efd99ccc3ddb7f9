"""The fuzzer (tests/fuzz/): some of its inputs, and that it sees each fault that it is there to see."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fuzz import judge, typed
from fuzz.__main__ import ORDER, Report, try_input
from fuzz.damage import damage
from fuzz.kinds import KINDS
from fuzz.workspace import Workspace, wrongs


@pytest.mark.slow
def test_damaged_files_and_odd_values_are_refused_or_taken_and_harm_nothing(tmp_path: Path) -> None:
    judge.import_all()
    workspace, report = Workspace(tmp_path), Report()
    for number in range(100):
        try_input(1, number, workspace, report)
        workspace.restore()
    assert not report.faults, report.summary()


def test_every_verb_is_tried_with_odd_flags_and_every_key_with_odd_values() -> None:
    assert set(typed.BASES) == {name for name, _ in typed.all_verbs()}
    names = {key.name for key in typed.all_keys()}
    assert {"epochs", "n_layers", "encoder.image_size", "ft.learning_rate"} <= names
    assert set(KINDS) < set(ORDER)
    for number in range(200):
        assert typed.key_command(random.Random(number)) == typed.key_command(random.Random(number))
        assert typed.flag_command(random.Random(number)) == typed.flag_command(random.Random(number))


@pytest.mark.parametrize("name", KINDS)
def test_files_are_damaged_alike_by_the_same_number(name: str, tmp_path: Path) -> None:
    content = b'{\n"a": [1, 2.5],\n"b": "x: y"\n}\n'
    kind = KINDS[name].format if KINDS[name].format in ("bytes", "json", "table", "text") else "bytes"
    damaged = []
    for copy in ("one", "other"):
        (tmp_path / copy).mkdir()
        (tmp_path / copy / "file").write_bytes(content)
        damaged.append(damage(tmp_path / copy / "file", kind, random.Random(name)))
    assert damaged[0] == damaged[1]


FAULTY: dict[str, Callable[[], object]] = {
    "traceback": lambda: 1 / 0,
    "exit code": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "memory": lambda: np.ones(260 << 20),
    "hang": lambda: time.sleep(60),
    "silence": lambda: os._exit(1),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_a_command_at_fault_is_seen(fault: str, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    outcome = judge.run(["--version"], tmp_path / "work", seconds=1 if fault == "hang" else 30, prepare=FAULTY[fault])
    assert fault in outcome.faults()
    assert not judge.run(["--version"], tmp_path / "work").faults()


def test_files_that_a_command_should_not_touch_are_seen_and_others_not() -> None:
    before = {"data/toy.inter": (1,), "runs/index.sqlite": (1,), "runs/a/result.json": (1,)}
    after = {"data/toy.inter": (2,), "runs/index.sqlite": (2,), "runs/a/.result.json.9.tmp": (1,), "runs/b": (1,)}
    found = wrongs(before, after)
    assert found == ["changed data/toy.inter", "changed runs/a/result.json", "left runs/a/.result.json.9.tmp"]
    assert wrongs(before, after, may_change=("data/*", "runs/*")) == found[2:]
