"""Doing studies: nothing is done twice, whatever fails or is killed is told and tried again, and how it is done, alone,
by several processes or on Ray, changes no number."""

import json
import os
import random
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import Answer, call, start, wait_until

from mmrec_lmm.disk.hashing import hash_file
from mmrec_lmm.disk.locks import Claims
from mmrec_lmm.errors import NotApplicable
from mmrec_lmm.plugin.registry import Registry
from mmrec_lmm.studies import estimate, executor
from mmrec_lmm.studies.executor import Job, Plan, Record, Worker, make_plan
from mmrec_lmm.studies.file import load_study, winner
from mmrec_lmm.studies.leaderboard import FAILED, FINISHED, NOT_APPLICABLE, PARTIAL, PENDING
from mmrec_lmm.types import RunSpec

TOYS = Path(__file__).with_name("plugin_toys.py")
SMALL = """
models: [VBPR, LightGCN]
datasets: [toy]
encoders: [basic, null]
seeds: [1, 2]
settings: {epochs: 2, embedding_size: 4, threads: 1}
"""


@pytest.fixture(autouse=True)
def here(data_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of a user: it has data/toy and a study of six runs."""
    monkeypatch.chdir(data_path.parent)
    Path("small.yaml").write_text(SMALL)
    return data_path.parent


@pytest.fixture
def plan(registry: Registry) -> Callable[..., Plan]:
    """The plan of ./small.yaml, as it is now."""
    return lambda: make_plan(load_study(Path("small.yaml")), registry, out=Path("runs"))


def work(plan: Plan, registry: Registry, *, since: float = 0.0) -> list[tuple[Job, Record]]:
    reported: list[tuple[Job, Record]] = []
    Worker(plan, registry, since=since, on_progress=lambda *what: reported.append(what)).work()
    return reported


def states(plan: Plan) -> dict[str, str]:
    return {outcome.cell.key: outcome.state for outcome in plan.outcomes()}


def status(*arguments: object) -> dict[str, dict]:
    answer = call("study", "status", *arguments, "--json")
    assert answer.code == 0, answer.err
    return {row["cell"]: row for row in json.loads(answer.out)}


def finished_at() -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in Path("runs").glob("*/result.json")}


def test_a_study_does_all_its_runs_and_the_same_command_does_none_again() -> None:
    answer = call("study", "run", "small.yaml")
    assert answer.code == 0, answer.err
    assert answer.err.count(": finished in ") == 6
    assert "3 cells: 3 finished; 6 of 6 runs are done" in answer.out
    before = finished_at()
    assert len(before) == 6
    again = call("study", "run", "small.yaml")
    assert (again.code, again.err) == (0, "")
    assert finished_at() == before


def test_status_tells_cells_and_counts_before_and_after() -> None:
    assert {row["state"] for row in status("small.yaml").values()} == {PENDING}
    assert "3 cells: 3 pending; 0 of 6 runs are done" in call("study", "status", "small.yaml").out
    call("study", "run", "small.yaml")
    assert {(row["state"], row["runs"], row["done"]) for row in status("small.yaml").values()} == {(FINISHED, 2, 2)}


def test_a_run_that_fails_is_recorded_with_its_reason_the_rest_goes_on_and_it_is_tried_again() -> None:
    Path("mixed.yaml").write_text("{models: [Fragile, Favorite], datasets: toy, seeds: [1, 2], settings: {epochs: 1}}")
    answer = call("study", "run", "mixed.yaml", "-p", TOYS)
    assert answer.code == 1
    found = status("mixed.yaml", "-p", TOYS)
    assert (found["Fragile/toy/-/pt/-"]["state"], found["Favorite/toy/-/pt/-"]["state"]) == (FAILED, FINISHED)
    assert "became nan in epoch 0" in found["Fragile/toy/-/pt/-"]["reason"]
    again = call("study", "run", "mixed.yaml", "-p", TOYS)
    assert (again.code, again.err.count("Fragile/toy/-/pt/- seed="), again.err.count("Favorite")) == (1, 2, 0)


def test_what_a_plugin_raises_is_the_reason_and_stops_nothing_else(
    plan: Callable[..., Plan], registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = executor.run

    def run(spec: RunSpec, *rest: object, **options: object) -> object:
        if spec.model == "VBPR" and spec.settings.seed == 2:
            raise KeyError("weight")
        return real(spec, *rest, **options)

    monkeypatch.setattr(executor, "run", run)
    work(plan(), registry)
    outcomes = {outcome.cell.key: outcome for outcome in plan().outcomes()}
    assert (outcomes["VBPR/toy/basic/pt/-"].state, outcomes["VBPR/toy/basic/pt/-"].reason) == (
        PARTIAL,
        "KeyError: 'weight'",
    )
    assert [result is None for result in outcomes["VBPR/toy/basic/pt/-"].results] == [False, True]
    assert outcomes["LightGCN/toy/-/pt/-"].state == FINISHED


def test_inputs_that_cannot_be_made_are_tried_once_for_all_runs_that_need_them(
    plan: Callable[..., Plan], registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = executor.gather, []

    def gather(spec: RunSpec, *rest: object, **options: object) -> object:
        asked.append((spec.model, spec.encoder))
        if spec.encoder == "basic":
            raise NotApplicable("no image anywhere")
        return real(spec, *rest, **options)

    monkeypatch.setattr(executor, "gather", gather)
    work(plan(), registry)
    assert sorted(asked, key=str) == [("LightGCN", None), ("VBPR", "basic"), ("VBPR", None)]
    assert states(plan())["VBPR/toy/basic/pt/-"] == NOT_APPLICABLE


def test_a_record_whose_run_is_gone_and_one_of_other_data_count_as_pending(
    plan: Callable[..., Plan], registry: Registry
) -> None:
    work(plan(), registry)
    gone = next(path.parent for path in Path("runs").glob("LightGCN-*/result.json"))
    gone.joinpath("result.json").unlink()
    assert states(plan()) == {
        "VBPR/toy/basic/pt/-": FINISHED, "VBPR/toy/-/pt/-": FINISHED, "LightGCN/toy/-/pt/-": PARTIAL,
    }  # fmt: skip
    np.save("data/toy/text_feat.npy", np.ones((16, 3), np.float32))
    work(plan(), registry)
    np.save("data/toy/text_feat.npy", np.zeros((16, 3), np.float32))
    assert states(plan()) == {
        "VBPR/toy/basic/pt/-": FINISHED, "VBPR/toy/-/pt/-": PENDING, "LightGCN/toy/-/pt/-": FINISHED,
    }, "of other features only those that read them"  # fmt: skip
    inter = Path("data/toy/toy.inter")
    inter.write_text(inter.read_text().replace("\t1\n", "\t0\n", 1))
    assert set(states(plan()).values()) == {PENDING}


def test_a_result_that_is_no_file_is_named_by_status_and_by_the_list_of_runs(
    plan: Callable[..., Plan], registry: Registry
) -> None:
    work(plan(), registry)
    result = next(Path("runs").glob("VBPR-*/result.json"))
    result.unlink()
    result.mkdir()
    assert any("result.json: expected a file, got a folder" in outcome.reason for outcome in plan().outcomes())
    assert "result.json: expected a file, got a folder" in call("list", "runs").err


def test_a_file_in_the_place_of_a_folder_is_named_in_a_record_as_by_a_command(
    plan: Callable[..., Plan], registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def occupied(*_: object, **__: object) -> None:
        Path("data/toy/toy.inter/within").mkdir()

    monkeypatch.setattr(executor, "gather", occupied)
    work(plan(), registry)
    reasons = {outcome.reason for outcome in plan().outcomes()}
    assert reasons == {"data/toy/toy.inter/within: expected a folder, got a file there; try another name"}


def test_a_runs_record_is_named_by_all_that_can_change_it_and_nothing_else(plan: Callable[..., Plan]) -> None:
    before = set(plan().jobs)
    Path("small.yaml").write_text(SMALL.replace("threads: 1", "threads: 1, device: cpu, workers: 1, state: ERROR"))
    assert set(plan().jobs) == before
    for change in ("threads: 1, missing: mean", "threads: 2", "threads: 1, learning_rate: 0.1"):
        Path("small.yaml").write_text(SMALL.replace("threads: 1", change))
        assert not set(plan().jobs) & before, change


def test_another_text_or_image_makes_other_runs_of_those_that_encode_it(plan: Callable[..., Plan]) -> None:
    def anew() -> Iterator[None]:
        items = pd.read_csv("data/toy/items.tsv", sep="\t")
        items.loc[0, "title"] = "another title"
        items.to_csv("data/toy/items.tsv", sep="\t", index=False)
        yield
        Path("data/toy/images/0.png").write_bytes(b"another image")
        yield

    before = plan()
    for _ in anew():
        after = plan()
        kept = [cell.key for cell, old, new in zip(before.cells, before.keys, after.keys, strict=True) if old == new]
        assert kept == ["VBPR/toy/-/pt/-", "LightGCN/toy/-/pt/-"]
        before = after


@pytest.mark.parametrize(
    ("encoder", "setting", "file"),
    [
        ("clip:tiny", "encoder.weights: given/my.pt", "my.pt"),
        ("vlmo", "encoder.weights: given", "vlmo_base_plus_patch16_224.pt"),
        ("precomputed", "encoder.folder: given", "text_feat.npy"),
    ],
)
def test_a_file_of_weights_or_features_that_is_replaced_makes_other_runs(
    encoder: str, setting: str, file: str, plan: Callable[..., Plan]
) -> None:
    Path("given").mkdir()
    Path("given", file).write_bytes(b"first")
    Path("small.yaml").write_text(
        f"{{models: [VBPR, LightGCN], datasets: toy, encoders: ['{encoder}'], settings: {{{setting}}}}}"
    )
    before = plan()
    Path("given", file).write_bytes(b"second")
    after = plan()
    assert [set(before.keys[n]) & set(after.keys[n]) for n in (0, 1)] == [set(), set(before.keys[1])]


def test_runs_that_share_inputs_follow_each_other(plan: Callable[..., Plan]) -> None:
    Path("small.yaml").write_text("{models: [VBPR, LATTICE], datasets: toy, encoders: [basic, null], seeds: [1, 2]}")
    done = [(job.spec.encoder, job.spec.model) for job in plan().jobs.values()]
    assert done == [(encoder, model) for encoder in ("basic", None) for model in ("VBPR", "LATTICE") for _ in range(2)]


@pytest.fixture
def holder() -> Iterator[Callable[[Path, str], Callable[[], None]]]:
    """Has another process claim a piece; gives what ends that process."""
    ends: list[Callable[[], None]] = []

    def hold(path: Path, key: str) -> Callable[[], None]:
        ready, stop = os.pipe(), os.pipe()
        child = os.fork()
        if not child:
            claims = Claims(path)
            claims.claim(int(key[:15], 16))
            os.write(ready[1], b".")
            os.read(stop[0], 1)
            os._exit(0)
        os.read(ready[0], 1)

        def end() -> None:
            if end in ends:
                ends.remove(end)
                os.write(stop[1], b".")
                os.waitpid(child, 0)

        ends.append(end)
        return end

    yield hold
    for end in list(ends):
        end()


@pytest.mark.parametrize("held", ["key", "encoded"])
def test_what_another_process_is_at_is_left_for_last(
    held: str,
    plan: Callable[..., Plan],
    registry: Registry,
    holder: Callable[[Path, str], Callable[[], None]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    jobs = list(plan().jobs.values())
    first = [job for job in jobs if getattr(job, held) == getattr(jobs[0], held)]
    free = holder(plan().folder / "runs", getattr(jobs[0], held))
    done: list[str] = []

    def reported(job: Job, _: Record) -> None:
        done.append(job.key)
        if len(done) == len(jobs) - len(first):
            free()

    monkeypatch.setattr(executor, "PAUSE", 0.01)
    with caplog.at_level("INFO", logger="mmrec_lmm"):
        Worker(plan(), registry, since=0, on_progress=reported).work()
    in_order = [job for job in jobs if job not in first] + first
    assert done == [job.key for job in in_order]
    titles = [line.removeprefix("========= ") for line in caplog.messages if line.startswith("========= ")]
    assert titles == [job.title for job in in_order]  # each once, when it begins


def test_a_mistake_in_a_study_is_told_with_its_line_and_exit_code_2() -> None:
    Path("wrong.yaml").write_text("models: VBPR\ndatasets: toy\nsettings:\n  epohcs: 3")
    answer = call("study", "run", "wrong.yaml")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == "error: wrong.yaml:4: unknown key epohcs; did you mean epochs?\n"


# Twins of winners

TWINS = """
models: [VBPR, LightGCN]
datasets: [toy]
encoders: [basic]
seeds: [1, 2]
grids: {VBPR: {reg_weight: [0.1, 0.01]}}
controls: [shuffled, none]
controls_at: winner
settings: {epochs: 2, embedding_size: 4, threads: 1}
"""
VBPR, SHUFFLED, NONE = "VBPR/toy/basic/pt/-", "VBPR/toy/basic/pt/-/shuffled", "VBPR/toy/-/pt/image+text/none"


def test_twins_of_winners_wait_for_the_grid_and_then_run_at_its_winner_alone(
    plan: Callable[..., Plan], registry: Registry
) -> None:
    Path("small.yaml").write_text(TWINS)
    before = plan()
    assert {job.spec.control for job in before.jobs.values()} == {None}
    assert [len(keys) for keys in before.keys] == [4, 2, 2, 2]  # VBPR's own, its twins at one point, LightGCN's
    assert states(before) == dict.fromkeys([VBPR, SHUFFLED, NONE, "LightGCN/toy/-/pt/-"], PENDING)
    *most, last = [job for job in before.jobs.values() if job.spec.model == "VBPR"]
    Worker(before, registry, since=0.0).work(most)
    assert set(plan().waiting) == set(before.waiting)
    Worker(before, registry, since=0.0).work([last])
    after = plan()
    best = winner(after.cells[0], after.outcomes()[0].results)[0].parameters["reg_weight"]
    twins = [after.jobs[key].spec for keys in after.keys[1:3] for key in keys]
    assert [(spec.control, spec.point) for spec in twins] == [
        (control, {"seed": seed, "reg_weight": best}) for control in ("shuffled", "none") for seed in (1, 2)
    ]
    assert not after.waiting


def test_a_grid_has_the_first_seed_and_its_winner_all(plan: Callable[..., Plan], registry: Registry) -> None:
    Path("small.yaml").write_text(TWINS.replace("seeds: [1, 2]", "seeds: [3, 1, 2]\nseeds_at: winner"))
    before = plan()
    asked = [job.spec.point for job in before.jobs.values() if job.spec.model == "VBPR"]
    assert asked == [{"seed": 3, "reg_weight": 0.1}, {"seed": 3, "reg_weight": 0.01}]
    assert len(before.expected) == 4 + 2 * 3 + 3
    answer = call("study", "run", "small.yaml")
    assert answer.code == 0, answer.err
    assert "4 cells: 4 finished; 13 of 13 runs are done" in answer.out
    after = plan()
    assert not after.waiting
    own = winner(after.cells[0], after.outcomes()[0].results)
    assert [run.record.seed for run in own] == [3, 1, 2]
    of_first = {r.parameters["reg_weight"]: r.valid["recall@20"] for r in after.outcomes()[0].results[:2]}
    assert of_first[own[0].parameters["reg_weight"]] == max(of_first.values())


@pytest.mark.parametrize("more", [[], pytest.param(["--jobs", "2"], marks=pytest.mark.slow)])
def test_one_command_does_the_grid_and_then_the_twins_of_its_winner(more: list[str]) -> None:
    Path("small.yaml").write_text(TWINS)
    assert "4 cells: 4 pending; 0 of 10 runs are done" in call("study", "status", "small.yaml").out
    answer = finish(start("study", "run", "small.yaml", *more)) if more else call("study", "run", "small.yaml")
    assert answer.code == 0, answer.err
    assert "4 cells: 4 finished; 10 of 10 runs are done" in answer.out
    assert re.findall(r"^\[(\d+)\]", answer.err, re.MULTILINE) == [str(number) for number in range(1, 11)]
    assert "over shuffled, over none: content gain" in call("study", "table", "small.yaml").out


def test_twins_of_a_grid_that_has_failed_say_so_until_it_is_tried_again(
    plan: Callable[..., Plan], registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, **__: object) -> object:
        raise KeyError("weight")

    monkeypatch.setattr(executor, "run", run)
    Path("small.yaml").write_text(TWINS)
    work(plan(), registry)
    lost = dict.fromkeys([SHUFFLED, NONE], NOT_APPLICABLE)
    assert states(plan()) == {VBPR: FAILED, "LightGCN/toy/-/pt/-": FAILED, **lost}
    assert {outcome.reason for outcome in plan().outcomes()[1:3]} == {f"{VBPR} has no winner: KeyError: 'weight'"}
    again = make_plan(plan().study, registry, out=Path("runs"), since=time.time())
    assert [*states(again).values()] == [FAILED, PENDING, PENDING, FAILED], "that is tried again may have one"


def test_one_command_gives_twins_to_the_winner_that_its_second_try_of_a_run_brings(
    plan: Callable[..., Plan], registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("small.yaml").write_text(TWINS)
    whole = make_plan(plan().study, registry, out=Path("whole"))
    work(whole, registry)
    best = winner(whole.cells[0], whole.outcomes()[0].results)[0].parameters["reg_weight"]
    real, broken = executor.run, True

    def run(spec: RunSpec, *rest: object, **options: object) -> object:
        if broken and spec.point.get("reg_weight") == best:
            raise KeyError("weight")
        return real(spec, *rest, **options)

    monkeypatch.setattr(executor, "run", run)
    assert call("study", "run", "small.yaml").code == 1
    assert {plan().jobs[key].spec.point["reg_weight"] for key in plan().keys[1]} == {0.1, 0.01} - {best}
    broken = False
    assert call("study", "run", "small.yaml").code == 0
    assert {plan().jobs[key].spec.point["reg_weight"] for key in plan().keys[1]} == {best}
    assert set(states(plan()).values()) == {FINISHED}


# Processes

HOW = ("pre-trained", "tuned")
LONGER = SMALL.replace("epochs: 2", "epochs: 60, stopping_step: 60, checkpoint_seconds: 0")


def same_runs(folder: str, other: str) -> bool:
    runs = {path.parent.name: path.parent for path in Path(folder).glob("*/result.json")}
    files = ("best.safetensors", "per_user.safetensors")
    return len(runs) == 6 and all(
        hash_file(path / name) == hash_file(Path(other, run, name)) for run, path in runs.items() for name in files
    )


@pytest.mark.slow
def test_a_study_killed_twice_and_continued_by_two_processes_ends_as_the_uninterrupted_one() -> None:
    Path("small.yaml").write_text(LONGER)
    assert call("study", "run", "small.yaml", "--out", "whole").code == 0
    for runs in (1, 3):
        process = start("study", "run", "small.yaml")
        wait_until(lambda runs=runs: len(finished_at()) >= runs and list(Path("runs").glob("*/checkpoint/*")), process)
        process.kill()
        process.communicate()
    before = finished_at()
    assert 3 <= len(before) < 6
    answer = finish(start("study", "run", "small.yaml", "--jobs", "2"))
    assert answer.code == 0, answer.err
    assert same_runs("runs", "whole")
    assert {run: finished_at()[run] for run in before} == before


@pytest.mark.slow
def test_two_commands_on_one_study_do_no_run_twice() -> None:
    Path("small.yaml").write_text(LONGER)
    commands = [start("study", "run", "small.yaml") for _ in range(2)]
    answers = [finish(command) for command in commands]
    assert [answer.code for answer in answers] == [0, 0]
    assert sum(answer.err.count(": finished in ") for answer in answers) == 6
    assert all("6 of 6 runs are done" in answer.out for answer in answers)


@pytest.mark.slow
def test_processes_of_jobs_print_nothing_are_replaced_when_killed_and_end_with_their_command() -> None:
    Path("small.yaml").write_text(LONGER)
    process = start("study", "run", "small.yaml", "--jobs", "2")
    wait_until(lambda: len(finished_at()) >= 1, process)
    victim = random.Random(0).choice(workers_of(process.pid))
    os.kill(victim, 9)
    answer = finish(process)
    assert answer.code == 0, answer.err
    assert len(finished_at()) == 6
    assert len(re.findall(r"^\[\d\] ", answer.err, re.MULTILINE)) == 6

    Path("small.yaml").write_text(LONGER.replace("60", "4000"))
    process = start("study", "run", "small.yaml", "--jobs", "2", "--out", "other")
    wait_until(lambda: list(Path("other").glob("*/checkpoint/*")), process)
    workers = workers_of(process.pid)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while any(b"forkserver" in command_of(worker) for worker in workers):
        assert time.monotonic() < deadline, "the command's processes are still at work"
        time.sleep(0.1)


@pytest.mark.slow
def test_a_local_ray_of_two_workers_gives_the_same_runs_and_a_killed_worker_loses_nothing() -> None:
    pytest.importorskip("ray", reason="the extra [ray] isn't installed")
    Path("small.yaml").write_text(LONGER)
    assert call("study", "run", "small.yaml", "--out", "whole").code == 0
    process = start("study", "run", "small.yaml", "--on", "ray")
    wait_until(lambda: list(Path("runs").glob("*/checkpoint/state.safetensors")), process)
    tasks = [pid for pid in children_of(process.pid) if command_of(pid).startswith(b"ray::_do")]
    assert len(tasks) in (1, 2)
    os.kill(tasks[0], 9)
    answer = finish(process)
    assert answer.code == 0, answer.err
    assert same_runs("runs", "whole")


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


def children_of(pid: int) -> list[int]:
    """All processes that a process started, and those that these did."""
    lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    own = [int(child) for text in lists for child in text.split()]
    return own + [grandchild for child in own for grandchild in children_of(child)]


def workers_of(pid: int) -> list[int]:
    """The processes of `--jobs` that a command started: the children of the one that they are forked from."""
    server = next(child for child in children_of(pid) if b"forkserver" in command_of(child))
    return children_of(server)


def finish(process: "subprocess.Popen[str]") -> Answer:
    out, err = process.communicate(timeout=600)
    return Answer(process.returncode, out, err)


# What a study would take


def test_one_cell_and_one_run_are_counted_in_the_singular() -> None:
    Path("small.yaml").write_text("{models: BPR, datasets: toy, seeds: [1], settings: {epochs: 1}}")
    planned = call("study", "run", "small.yaml", "--dry-run", "--no-probe").out
    assert "\n1 cell: 1 pending; 0 of 1 run is done" in planned
    assert call("study", "run", "small.yaml").code == 0
    assert "\n1 cell: 1 finished; 1 of 1 run is done" in call("study", "status", "small.yaml").out


def test_a_dry_run_lists_cells_and_artifacts_and_does_nothing() -> None:
    Path("small.yaml").write_text(SMALL.replace("[basic, null]", '["clip:tiny", basic]') + "paradigms: [pt, ft]\n")
    assert call("encode", "-d", "toy", "--encoder", "basic").code == 0
    answer = call("study", "run", "small.yaml", "--dry-run", "--no-probe")
    assert answer.code == 0, answer.err
    assert "5 cells: 4 pending, 1 not applicable; 0 of 8 runs are done" in answer.out
    shared = dict(re.findall(r"^(\S.*?)  +(there|to be made)$", answer.out, re.MULTILINE))
    assert shared == {
        **{f"{modality} of toy by clip:tiny, {how}": "to be made" for modality in ("image", "text") for how in HOW},
        **{f"{modality} of toy by basic, pre-trained": "there" for modality in ("image", "text")},
        "clip:tiny tuned on toy": "to be made",
    }
    assert not Path("runs").exists()


@pytest.mark.slow
def test_the_estimate_counts_each_kind_of_run_and_a_probe_leaves_nothing_behind() -> None:
    Path("small.yaml").write_text(SMALL.replace("epochs: 2", "epochs: 50"))
    answer = call("study", "run", "small.yaml", "--dry-run")
    assert answer.code == 0, answer.err
    assert answer.err.count("s an epoch") == 3
    rows = re.findall(r"^(\S+) seed=1 +2 +(\d+\.\d+) +at most 50 +at most (\S+)", answer.out, re.MULTILINE)
    assert {cell for cell, *_ in rows} == {"VBPR/toy/basic/pt/-", "VBPR/toy/-/pt/-", "LightGCN/toy/-/pt/-"}
    assert all(abs(float(minutes) - 2 * 50 * float(seconds) / 60) < 0.06 for _, seconds, minutes in rows)
    assert "training: at most" in answer.out
    made = re.findall(r"^(\S+) of toy by basic, pre-trained +15 +\d+\.\d+ +1 +0\.\d$", answer.out, re.MULTILINE)
    assert made == ["image", "text"]
    assert [path.name for path in Path("runs").rglob("*") if path.is_file()] == ["memory.json"]


@pytest.mark.slow
def test_the_estimate_tells_what_tuning_takes_and_why_it_can_not_tell() -> None:
    Path("small.yaml").write_text(
        "{models: VBPR, datasets: toy, encoders: ['clip:tiny', clip], paradigms: [ft], "
        "settings: {epochs: 2, threads: 1, ft: {epochs: 3}}}"
    )
    answer = call("study", "run", "small.yaml", "--dry-run")
    assert answer.code == 0, answer.err
    [(items, each, minutes)] = re.findall(
        r"^clip:tiny tuned on toy +(\d+) +(\d+\.\d) +at most 3 +(\d+\.\d)$", answer.out, re.MULTILINE
    )
    assert items == "14", "that have both image and text"
    assert float(each) > 0
    assert abs(float(minutes) - 14 * 3 * float(each) / 60_000) <= 0.06
    assert len(re.findall(r"^(image|text) of toy by clip:tiny, tuned +15 .* 1 +0\.\d$", answer.out, re.MULTILINE)) == 2
    assert "encoding and tuning: at most 0 minutes with --jobs 1" in answer.out
    assert "clip on toy, ft" in answer.out


def test_the_probe_of_a_model_that_is_not_trained_has_no_epoch(plan: Callable[..., Plan], registry: Registry) -> None:
    Path("small.yaml").write_text("{models: [Pop, BPR], datasets: toy, settings: {epochs: 9, threads: 1}}")
    made = plan()
    costs = [estimate._probe(made, registry, Path("probes"), key) for key in made.jobs]
    assert costs[0].seconds_per_epoch == 0 < costs[1].seconds_per_epoch
    assert costs[0].disk > 0


def test_a_study_under_torchrun_is_refused_before_its_processes_wait_for_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    answer = call("study", "run", "small.yaml")
    assert (answer.code, answer.out) == (2, "")
    assert "expected one process, got torchrun; try --jobs N or --on ray" in answer.err
