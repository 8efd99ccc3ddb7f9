"""End-to-end training on two processes of torchrun, which meet over gloo on the CPU: what one process gives, and an
end for all whatever happens to one. And what marks a call that all make, without any other process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Answer, plugin
from torch import Tensor

from mmrec_lmm import distributed
from mmrec_lmm.distributed import everywhere, leading, serve
from mmrec_lmm.errors import OutOfStep
from mmrec_lmm.training.resume import load_weights

PLUGIN = """
import json
import torch
from mmrec_lmm.losses import symmetric_info_nce
from mmrec_lmm.testing import TinyEncoder

@dataclass(frozen=True)
class Keys:
    fails_on: str = ""  # the rank of the process whose passes with gradient fail

class Tiny(TinyEncoder):
    def __init__(self, config, modalities):
        super().__init__(config, modalities)
        self.fails = config.fails_on and config.fails_on == os.environ.get("RANK")

    def forward(self, batch):
        if self.fails and torch.is_grad_enabled():
            raise RuntimeError("this card is on fire")
        return super().forward(batch)

    def tuning_losses(self, batch):
        rows = self(batch)
        return {"itc": symmetric_info_nce(rows["image"], rows["text"], scale=torch.ones(()))}

@hookimpl
def mmrec_register_encoders():
    return [EncoderSpec("tiny", Tiny, Keys, ("image", "text"), lambda config, modality: "none")]

@hookimpl
def mmrec_epoch_finished(run, epoch):
    with Path("losses").open("a") as file:
        print(json.dumps([epoch.epoch, dict(epoch.losses)]), file=file)
    if epoch.epoch == 2 and Path("die").exists():
        Path("die").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
"""
ETE = (
    "run", "-p", "tiny.py", "-m", "MMGCN", "-d", "toy", "--encoder", "tiny", "--paradigm", "ete", "--epochs=4",
    "--embedding_size=4", "--train_batch_size=16", "--ete.learning_rate=0.01", "--ete.rows=9", "--ete.micro_batch=2",
    "--ete.encoder_every=2", "--ete.itc=0.1", "--ete.warmup_steps=3", "--encode_batch_size=3", "--threads=1", "--json",
    "--checkpoint_seconds=0",
)  # fmt: skip


@pytest.fixture
def launch(data_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """`mmrec-lmm ARGUMENTS` on so many processes, in a folder of its own."""
    monkeypatch.chdir(data_path.parent)
    plugin(Path("tiny.py"), PLUGIN)

    def launch(processes: int, *arguments: str) -> Answer:
        by = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        done = subprocess.run(
            [sys.executable, *(by if processes > 1 else ()), "-m", "mmrec_lmm", *arguments],
            env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    return launch


def losses() -> list[dict[str, float]]:
    """Of the epochs, in order, of what was written last."""
    rows = [json.loads(line) for line in Path("losses").read_text().splitlines()]
    Path("losses").unlink()
    return [*dict(rows).values()]


def close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_two_processes_end_where_one_does_also_after_a_kill(launch: Callable[..., Answer]) -> None:
    alone = json.loads(launch(1, *ETE, "--out", "alone").out)
    expected = losses()
    Path("die").touch()
    killed = launch(2, *ETE)
    assert killed.code != 0
    assert len(losses()) == 3
    answer = launch(2, *ETE, "--resume")
    assert answer.code == 0, answer.err
    together = json.loads(answer.out)  # and so the first process alone speaks
    close(losses(), expected[2:])
    assert together["run_id"] == alone["run_id"]
    assert (alone["record"]["processes"], together["record"]["processes"]) == (1, 2)
    for key in ("valid", "test"):
        close(together[key], alone[key])
    ours, theirs = (each["record"]["ete"] for each in (together, alone))
    assert ours["steps"] == theirs["steps"] > 8
    assert ours["rows_per_step"] == theirs["rows_per_step"] > 4  # several micro-batches, of no more than the budget
    close(ours["gradient_norm"], theirs["gradient_norm"])
    assert min(theirs["weight_change"].values()) > 1e-3
    for file in ("best", "encoder", "features"):
        mine, other = (load_weights(Path(out, alone["run_id"], f"{file}.safetensors")) for out in ("runs", "alone"))
        close(mine, other)
    again = launch(2, *ETE)
    assert again.code == 0, again.err
    assert "finished before" in again.err


@pytest.mark.slow
def test_two_processes_start_warm_as_one_does(launch: Callable[..., Answer]) -> None:
    warm = (*ETE, "--epochs=60", "--stopping_step=1", "--min_steps=0", "--ete.warm_epochs=auto")
    first = launch(1, *warm, "--out", "alone")
    assert first.code == 0, first.err
    alone = json.loads(first.out)
    expected = losses()
    answer = launch(2, *warm)
    assert answer.code == 0, answer.err
    together = json.loads(answer.out)
    close(losses(), expected)
    ours, theirs = (each["record"]["ete"] for each in (together, alone))
    assert 0 < ours["joined_at"] == theirs["joined_at"] < together["epochs"] == alone["epochs"]
    close([ours["best_warm"], ours["best_joint"]], [theirs["best_warm"], theirs["best_joint"]])
    assert ours["epoch_seconds"].keys() == theirs["epoch_seconds"].keys()
    for file in ("best", "encoder", "features"):
        mine, other = (load_weights(Path(out, alone["run_id"], f"{file}.safetensors")) for out in ("runs", "alone"))
        close(mine, other)


@pytest.mark.slow
def test_the_processes_go_on_together_after_a_run_that_fails(launch: Callable[..., Answer]) -> None:
    answer = launch(2, *ETE, "--learning_rate=[1e38, 0.01]", "--hyper_parameters=[learning_rate]")
    grid = json.loads(answer.out)
    assert [point["parameters"]["learning_rate"] for point in grid["points"]] == [0.01]
    assert "before any evaluation" in grid["failures"][0]["error"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_all_processes_end_when_one_fails_amid_a_step(rank: int, launch: Callable[..., Answer]) -> None:
    points = ("--learning_rate=[0.01, 0.02]", "--hyper_parameters=[learning_rate]")
    answer = launch(2, *ETE, *points, f"--encoder.fails_on='{rank}'")
    assert answer.code != 0
    assert answer.out == ""
    assert "this card is on fire" in answer.err
    if rank == 0:
        assert "error: this card is on fire (in a step that 2 processes share, so all end here)" in answer.err


# Without other processes


class Copy:
    """Remembers what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    @everywhere
    def double(self, values: Tensor, *, name: str) -> Tensor:
        if name == "bad":
            raise RuntimeError("out of memory")
        self.asked.append(name)
        return 2 * values


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What this process, as the first of two, tells the other."""
    sent: list[Any] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "join", lambda device: None)
    monkeypatch.setattr(distributed, "broadcast", sent.append)
    monkeypatch.setattr(distributed, "_amid_call", type(distributed._amid_call)("amid_call", default=False))
    return sent


CPU = torch.device("cpu")


def test_one_process_tells_nobody_and_gets_what_the_method_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "broadcast", None)
    with leading(CPU):
        assert Copy().double(torch.tensor(2.0), name="a") == 4


def test_what_the_first_process_asks_the_others_do_on_their_copies(
    wire: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with leading(CPU):
        Copy().double(torch.tensor(2.0), name="a")
    assert [asked if asked is None else asked[0] for asked in wire] == ["double", None]
    monkeypatch.setenv("RANK", "1")
    answers, built = iter(wire), []
    monkeypatch.setattr(distributed, "broadcast", lambda value: next(answers))
    serve(CPU, lambda: built.append(Copy()) or built[0])
    assert [copy.asked for copy in built] == [["a"]]


def test_others_that_nothing_is_asked_of_build_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "broadcast", lambda value: None)
    serve(CPU, lambda: pytest.fail("built"))


def test_an_error_between_calls_lets_the_others_go_and_one_within_a_call_does_not(wire: list[Any]) -> None:
    with pytest.raises(RuntimeError, match="its own"), leading(CPU):
        raise RuntimeError("its own")
    assert wire == [None]
    with pytest.raises(OutOfStep, match="out of memory"), leading(CPU):
        Copy().double(torch.tensor(2.0), name="bad")
    assert wire[1:] == [("double", (torch.tensor(2.0),), {"name": "bad"})]
