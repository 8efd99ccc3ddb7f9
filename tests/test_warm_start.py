"""A warm start: the recommender alone until it stalls, then both; the same bits after a stop at any epoch; and the
record of what it cost."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import call, plugin, start
from safetensors import safe_open
from test_end_to_end import ENCODERS, SMALL, TRAINED, Stop, World, result_of

from mmrec_lmm.disk.hashing import hash_file
from mmrec_lmm.errors import RunError
from mmrec_lmm.studies.costs import PARTS
from mmrec_lmm.training.clock import PartClock
from mmrec_lmm.training.loop import Validation
from mmrec_lmm.training.paradigms import EndToEnd
from mmrec_lmm.training.resume import load_checkpoint, save_checkpoint
from mmrec_lmm.training.trainer import TrainerNumbers
from mmrec_lmm.types import EpochReport

AUTO = EndToEnd(learning_rate=0.01, rows=3, warm_epochs="auto")
SCORES = (0.1, 0.4, 0.3, 0.2, 0.35, 0.5, 0.45, 0.3, 0.2)  # stalls at 0.2 and, once joint, at the last
PATIENT = {"epochs": 20, "stopping_step": 1, "min_steps": 0}


def world(options: EndToEnd = AUTO, scores: Iterable[float] = SCORES, *, seed: int = 0, **settings: Any) -> World:
    """A world whose evaluations give these scores by epoch."""
    made = World(options, seed=seed, **{**PATIENT, **settings})
    known = [*scores]

    def validate() -> Validation:
        World.validate(made)
        return Validation(known[made.trainer.epoch - 1], {"recall@20": known[made.trainer.epoch - 1]})

    made.trainer._validate = validate
    return made


# When it joins, and from where


def test_when_the_recommender_stalls_the_encoder_joins_and_a_second_stall_ends_training() -> None:
    ours = world()
    start = {name: value.clone() for name, value in ours.encoder.state_dict().items()}
    fit = ours.trainer.fit()
    assert (fit.stopped, fit.best_epoch, fit.epochs) == ("patience", 5, 8)
    report = ours.callback.report()
    assert (report.joined_at, report.best_warm, report.best_joint) == (4, 0.4, 0.5)
    assert report.steps == 2 * 4  # five batches in fours, in each of four epochs
    for epoch, tables in enumerate(ours.tables):
        assert torch.equal(tables["image"], ours.tables[0]["image"]) == (epoch < 4)
    assert not torch.equal(ours.encoder.state_dict()["layers.image.weight"], start["layers.image.weight"])


def test_joint_training_continues_from_the_best_weights_and_the_optimizer_as_it_was() -> None:
    ours, weights, moments = world(), [], []
    started = ours.callback.epoch_started

    def note(epoch: int) -> None:
        weights.append({name: value.detach().clone() for name, value in ours.model.named_parameters()})
        state = ours.trainer._optimizer.state_dict()["state"]
        moments.append({key: slots["exp_avg_sq"].clone() for key, slots in state.items()})
        started(epoch)

    ours.callback.epoch_started = note  # type: ignore[method-assign]
    before: list[Any] = []
    ours.trainer.fit(
        on_checkpoint=lambda state: before.append(
            {name: value.clone() for name, value in state.tensors.items() if name.endswith("exp_avg_sq")}
        )
    )
    for name, value in weights[4].items():  # at the start of the first joint epoch: those after the second one
        assert torch.equal(value, weights[2][name])
        assert not torch.equal(value, weights[3][name])
    for key, value in moments[4].items():
        assert torch.equal(value, before[3][f"optimizer.{key}.exp_avg_sq"])


def test_where_joint_training_never_improves_the_best_epoch_is_a_warm_one() -> None:
    ours = world(scores=(0.1, 0.4, 0.3, 0.2, 0.35, 0.3))
    start = {name: value.clone() for name, value in ours.encoder.state_dict().items()}
    fit = ours.trainer.fit()
    assert (fit.stopped, fit.best_epoch, fit.epochs) == ("patience", 1, 6)
    report = ours.callback.report()
    assert (report.joined_at, report.best_warm, report.best_joint) == (4, 0.4, 0.35)
    assert report.steps > 0
    for name, value in ours.encoder.state_dict().items():
        assert torch.equal(value, start[name])


def test_each_phase_has_min_steps_of_its_own_before_patience_counts() -> None:
    """Three epochs of five steps: misses count from the third epoch on, and from the third joint one."""
    fit = world(scores=[0.5] + 19 * [0.1], min_steps=15).trainer.fit()
    assert (fit.stopped, fit.epochs) == ("patience", 4 + 4)


def test_a_stall_in_the_last_epoch_is_too_late_and_says_so() -> None:
    ours = world(scores=SCORES[:4], epochs=4)
    assert ours.trainer.fit().stopped == "epochs"
    with pytest.raises(RunError) as caught:
        ours.callback.report()
    assert str(caught.value) == (
        "training ended before encoder encoder joined: model had not stalled after 4 epochs, and ete.warm_epochs=auto "
        "waits for that; try more epochs, a lower stopping_step or min_steps, or a number for ete.warm_epochs"
    )


@pytest.mark.parametrize(
    "options",
    [
        EndToEnd(learning_rate=0.0, warm_epochs="auto"),
        EndToEnd(mode="released", warm_epochs="auto"),
        EndToEnd(learning_rate=0.01, mode="splice", warm_epochs="auto"),
    ],
    ids=["rate 0", "released", "splice"],
)
def test_the_control_and_the_other_modes_start_warm_too(options: EndToEnd) -> None:
    ours = world(options)
    assert ours.trainer.fit().epochs == 8
    report = ours.callback.report()
    assert report.joined_at == 4
    assert (report.steps > 0) == (options.mode != "released")
    assert (max(report.weight_change.values()) > 0) == (options.mode == "splice")


def test_rate_0_and_released_take_the_recommender_through_the_same_two_phases() -> None:
    ours, theirs = (
        world(options)
        for options in (
            EndToEnd(learning_rate=0.0, warm_epochs="auto"),
            EndToEnd(mode="released", warm_epochs="auto"),
        )
    )
    assert ours.trainer.fit() == theirs.trainer.fit()
    for name, value in ours.model.state_dict().items():
        assert torch.equal(value, theirs.model.state_dict()[name])


def test_numbers_of_warm_epochs_are_reported_alike() -> None:
    for warm, before in ((0, None), (2, 0.4)):
        ours = world(EndToEnd(learning_rate=0.01, warm_epochs=warm), stopping_step=9, epochs=6)
        ours.trainer.fit()
        report = ours.callback.report()
        assert (report.joined_at, report.best_warm, report.best_joint) == (warm, before, 0.5)
        assert (report.warm_epoch_seconds is None) == (warm == 0)


# Continuing


@pytest.mark.parametrize("stop_after", [2, 3, 4, 6])
def test_a_run_that_was_stopped_around_the_switch_continues_to_the_same_bits(stop_after: int, tmp_path: Path) -> None:
    """After its stop there are these epochs: before the stall, at it, after the first joint one, and later."""

    def stop(report: EpochReport) -> None:
        if report.epoch == stop_after + 1:
            raise Stop

    whole = world()
    fit = whole.trainer.fit()
    with pytest.raises(Stop):
        world().trainer.fit(on_epoch=stop, on_checkpoint=lambda state: save_checkpoint(tmp_path, state))
    state = load_checkpoint(tmp_path, TrainerNumbers)
    assert state is not None
    resumed = world(seed=99)
    resumed.trainer.restore(state)
    assert resumed.trainer.fit() == fit
    for ours, theirs in ((resumed.model, whole.model), (resumed.encoder, whole.encoder)):
        for name, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name
    assert resumed.callback.report() == whole.callback.report()


def test_a_checkpoint_that_knows_no_phases_is_continued() -> None:
    ours = world(EndToEnd(learning_rate=0.01), epochs=3)
    numbers = dict(ours.callback.state()[1])
    for name in ("joined", "warm", "joint"):
        del numbers[name]
    ours.callback.restore(ours.callback.state()[0], numbers)
    ours.trainer.fit()
    assert ours.callback.report().joined_at == 0


# What it costs


def test_the_clocks_parts_add_up_and_nothing_is_measured_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([1.0, 2.0, 4.0, 8.0, 16.0])
    monkeypatch.setattr("mmrec_lmm.training.clock.time.perf_counter", lambda: next(now))
    clock = PartClock(torch.device("cpu"))
    clock.lap("forward")
    assert clock.take() == {}
    clock.start()
    for part in ("loading", "forward", "loading"):
        clock.lap(part)
    assert clock.take() == {"loading": 1 + 4, "forward": 2}
    assert clock.take() == {}


def test_seconds_of_a_stopped_epoch_are_not_counted_and_those_of_each_phase_are_apart() -> None:
    ours = world()
    ours.trainer.fit()
    numbers = ours.callback.state()[1]
    assert (numbers["warm"]["epochs"], numbers["joint"]["epochs"]) == (4, 4)
    assert set(numbers["warm"]["seconds"]) == {"recommender", "loading", "refresh", "evaluation"}
    assert set(numbers["joint"]["seconds"]) == set(PARTS)
    ours.callback.epoch_started(8)
    assert ours.callback.state()[1] == numbers


def test_what_items_are_encoded_from_is_counted_in_bytes() -> None:
    assert World(AUTO).callback._worker.cached_bytes == 15 * (3 + 1) * 4


# Whole runs

KILLER = """
@hookimpl
def mmrec_epoch_finished(run, epoch):
    if os.environ.get("DIES_IN") == str(epoch.epoch):
        os.kill(os.getpid(), signal.SIGKILL)
"""
#: A rate at which validation on the toy data rises, and then stalls.
RUN = (
    "run", "-m", "VBPR", "-d", "toy", *SMALL[1:], "--epochs=60", "--stopping_step=2", "--min_steps=4", *TRAINED,
    "--ete.warm_epochs=auto", "--ete.rows=9", "--threads=1", "--json", "--checkpoint_seconds=0",
)  # fmt: skip


@pytest.fixture
def here(data_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of its own with the toy data, and its plugin."""
    monkeypatch.chdir(data_path.parent)
    return plugin(Path("encoders.py"), ENCODERS + KILLER)


def test_a_warm_runs_record_says_when_the_encoder_joined_and_its_parts_add_up_to_its_epochs(here: str) -> None:
    result = result_of(call(*RUN, "-p", here))
    record = result["record"]
    ete, epochs = record["ete"], result["epochs"]
    assert 0 < ete["joined_at"] < epochs
    assert (ete["best_warm"] < ete["best_joint"]) == (result["best_epoch"] >= ete["joined_at"])
    assert result["valid"]["ndcg@10"] == pytest.approx(max(ete["best_warm"], ete["best_joint"]))
    joint, warm = ete["epoch_seconds"], ete["warm_epoch_seconds"]
    assert set(joint) == set(PARTS)
    parts = (epochs - ete["joined_at"]) * sum(joint.values()) + ete["joined_at"] * sum(warm.values())
    assert 0.6 * record["seconds"]["train"] < parts <= record["seconds"]["train"]
    assert record["encoder_cost"]["epoch_seconds"] == joint
    assert record["encoder_cost"]["cached_bytes"] == ete["cached_bytes"] > 0


def test_names_of_runs_depend_on_auto_and_those_of_numbers_stay(here: str) -> None:
    def name(*more: str) -> str:
        arguments = [argument for argument in RUN if not argument.startswith("--ete.")]
        return str(result_of(call(*arguments, "--epochs=5", "--ete.learning_rate=0", "-p", here, *more))["run_id"])

    assert name() == name("--ete.warm_epochs=0", "--ete.layer_decay=1")
    assert len({name(), name("--ete.warm_epochs=1"), name("--ete.warm_epochs=auto")}) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--epochs=4",),
            "ete.warm_epochs: auto: expected more than 4 epochs, before which the recommender can't stall "
            "(stopping_step 2, min_steps 4, 5 steps an epoch), got 4; try more epochs, a lower stopping_step",
        ),
        (("--ete.warm_epochs=soon",), "ete.warm_epochs must be a whole number or one of auto, got 'soon'"),
        (("--ete.warm_epochs=-1",), "ete.warm_epochs must be at least 0, or auto, got -1"),
        (("--ete.layer_decay=0",), "ete.layer_decay must be above 0 and at most 1, got 0"),
        (("--ete.layer_decay=0.5",), "ete.layer_decay: expected an encoder with blocks, got one that has none"),
    ],
)
def test_what_can_not_be_is_refused_before_training(arguments: tuple[str, ...], message: str, here: str) -> None:
    answer = call(*RUN, "-p", here, *arguments)
    assert answer.code == 2
    assert message in answer.err


@pytest.mark.slow
def test_a_run_killed_around_the_switch_and_resumed_equals_the_uninterrupted_one(
    here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = result_of(call(*RUN, "-p", here, "--out", "whole"))
    joined = whole["record"]["ete"]["joined_at"]
    for epoch in (joined - 1, joined, joined + 1):
        monkeypatch.setenv("DIES_IN", str(epoch))
        process = start(*RUN, "-p", here, "--resume")
        process.communicate()
        assert process.returncode == -9
        (checkpoint,) = Path("runs").glob("*/checkpoint/state.safetensors")
        with safe_open(checkpoint, framework="numpy") as file:
            assert json.loads(file.metadata()["numbers"])["epoch"] == epoch  # done: the kill precedes the write
    monkeypatch.delenv("DIES_IN")
    process = start(*RUN, "-p", here, "--resume")
    out, err = process.communicate()
    assert process.returncode == 0, err
    resumed = json.loads(out)
    for key in ("run_id", "valid", "test", "best_epoch", "epochs", "stopped"):
        assert resumed[key] == whole[key]
    for key in ("joined_at", "best_warm", "best_joint", "steps", "weight_change", "gradient_norm"):
        assert resumed["record"]["ete"][key] == whole["record"]["ete"][key]
    for name in ("best", "encoder", "features"):
        one, other = (Path(out, whole["run_id"], f"{name}.safetensors") for out in ("runs", "whole"))
        assert hash_file(one) == hash_file(other), name
