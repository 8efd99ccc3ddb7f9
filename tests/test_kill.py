"""`kill -9`: a run that is resumed ends bit for bit where the uninterrupted one does; encoding loses one shard."""

import json
import random
from pathlib import Path

import pytest
from helpers import call, plugin, start, wait_until
from safetensors import SafetensorError, safe_open

from mmrec_lmm.disk.hashing import hash_file

EPOCHS = 400
# The rate is so low that the best epoch comes after the last kill: what is compared was made by resumed processes.
RUN = (
    "run", "-m", "VBPR", "-d", "toy", f"--epochs={EPOCHS}", f"--stopping_step={EPOCHS}", "--embedding_size=4",
    "--train_batch_size=16", "--learning_rate=1e-4", "--valid_metric=NDCG@10", "--resume",
    "--checkpoint_seconds=0",
)  # fmt: skip
SLOW_ENCODER = """
@dataclass(frozen=True)
class NoKeys:
    pass

class Slow(ItemEncoder):
    def __init__(self, config, modalities):
        super().__init__()
        self.dims = {"text": 2}

    def prepare(self, item):
        import torch
        time.sleep(0.002)
        with Path("prepared").open("a") as file:
            file.write(f"{item.item}\\n")
        return {"numbers": torch.tensor([len(item.text), sum(item.text.encode())], dtype=torch.float32)}

    def forward(self, batch):
        return {"text": batch["numbers"]}

@hookimpl
def mmrec_register_encoders():
    return [EncoderSpec("slow", cls=Slow, config=NoKeys, modalities=("text",), weights_id=lambda *which: "none")]
"""

# A process that kills itself at the moment named by MOMENT. To checkpoints, an epoch takes a second.
KILLER = """
import types
from mmrec_lmm.running import runner
from mmrec_lmm.training import resume

moment, now, save_file = os.environ["MOMENT"], [0], resume.save_file

def kill_at(this):
    if moment == this:
        os.kill(os.getpid(), signal.SIGKILL)

def save(tensors, path, **options):
    if ".state." in path.name and now[0] == 3:
        kill_at("after the best weights")
        if moment == "in a write":
            path.write_bytes(b"half a file")
        kill_at("in a write")
    save_file(tensors, path, **options)

def rank(*arguments):
    kill_at("in ranking")
    return original(*arguments)

resume.time, resume.save_file = types.SimpleNamespace(monotonic=lambda: now[0]), save
original, runner.rank = runner.rank, rank

@hookimpl
def mmrec_epoch_finished(run, epoch):
    now[0] += 1
    if moment == "never":
        Path("trained again").touch()
    if epoch.epoch == 1:
        kill_at("before the first checkpoint")
    if epoch.epoch == 4:
        kill_at("between two checkpoints")
"""


@pytest.fixture(autouse=True)
def here(data_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(data_path.parent)
    return data_path.parent


def epochs_done(model: str = "VBPR") -> int:
    """Of the model's one run in ./runs, by its checkpoint."""
    for path in Path("runs").glob(f"{model}-*/checkpoint/state.safetensors"):
        try:
            with safe_open(path, framework="numpy") as file:
                return json.loads(file.metadata()["numbers"])["epoch"]
        except (FileNotFoundError, SafetensorError):  # replaced, or removed, between finding and reading
            return 0
    return 0


def history(folder: Path) -> list[dict]:
    """A run's epochs without their seconds."""
    epochs = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{key: value for key, value in epoch.items() if "seconds" not in key} for epoch in epochs]


@pytest.mark.slow
def test_a_run_killed_at_three_random_moments_and_resumed_equals_the_uninterrupted_one() -> None:
    whole = call(*RUN, "--out", "whole", "--json")
    run_id = json.loads(whole.out)["run_id"]
    moments = sorted(random.Random(20240601).sample(range(2, EPOCHS * 3 // 4), 3))
    assert json.loads(whole.out)["best_epoch"] > moments[-1]
    for moment in moments:
        process = start(*RUN)
        wait_until(lambda moment=moment: epochs_done() >= moment, process)
        process.kill()
        process.communicate()
        assert process.returncode == -9
        assert not Path("runs", run_id, "result.json").exists()
    resumed = start(*RUN, "--json")
    out, err = resumed.communicate()
    assert resumed.returncode == 0, err
    assert json.loads(out)["test"] == json.loads(whole.out)["test"]
    for name in ("best.safetensors", "per_user.safetensors", "topk.tsv"):
        assert hash_file(Path("runs", run_id, name)) == hash_file(Path("whole", run_id, name)), name
    assert history(Path("runs", run_id)) == history(Path("whole", run_id))
    assert not Path("runs", run_id, "checkpoint").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", ["LATTICE", "MMGCL", "FREEDOM", "BM3"]
)  # MMGCL and BM3 draw in their steps, FREEDOM per epoch
def test_a_run_killed_at_five_moments_between_rare_checkpoints_equals_the_uninterrupted_one(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = (
        "run", "-m", model, "-d", "toy", "--epochs=12", "--train_batch_size=16",
        "--learning_rate=1e-4", "--valid_metric=NDCG@10", "--resume", "--json",
    )  # fmt: skip
    whole = json.loads(call(*run, "--out", "whole").out)
    killing = (*run, "--checkpoint_seconds=3", "-p", plugin(Path("killer.py"), KILLER))
    for moment, saved in (
        ("before the first checkpoint", 0),
        ("between two checkpoints", 3),
        ("in a write", 3),
        ("after the best weights", 3),
        ("in ranking", 12),
    ):
        monkeypatch.setenv("MOMENT", moment)
        process = start(*killing)
        _, err = process.communicate()
        assert process.returncode == -9, err
        assert epochs_done(model) == saved, moment
    monkeypatch.setenv("MOMENT", "never")
    process = start(*killing)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert not Path("trained again").exists()
    resumed = json.loads(out)
    assert [resumed[part] for part in ("run_id", "valid", "test", "best_epoch", "epochs", "stopped")] == [
        whole[part] for part in ("run_id", "valid", "test", "best_epoch", "epochs", "stopped")
    ]
    assert resumed["record"]["chance"] == whole["record"]["chance"]
    for name in ("best.safetensors", "per_user.safetensors", "topk.tsv"):
        one, other = (Path(folder, whole["run_id"], name) for folder in ("runs", "whole"))
        assert hash_file(one) == hash_file(other), name
    assert history(Path("runs", whole["run_id"])) == history(Path("whole", whole["run_id"]))
    assert not Path("runs", whole["run_id"], "checkpoint").exists()


@pytest.mark.slow  # test_encoding.py kills a process of the library itself
def test_encoding_that_is_killed_goes_on_from_the_last_shard(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = [f"{item}\ta thing of {item * item} parts" for item in range(600)]
    (here / "data" / "toy" / "items.tsv").write_text("\n".join(["itemID\ttitle", *catalog]) + "\n")
    encode = ("encode", "-d", "toy", "-p", plugin(Path("slow.py"), SLOW_ENCODER), "--encoder", "slow")
    store = tmp_path / "killed"
    monkeypatch.setenv("MMREC_LMM_HOME", str(store))
    process = start(*encode)
    wait_until(lambda: list(store.glob("features/*.parts/*.safetensors")), process)
    process.kill()
    process.communicate()
    assert process.returncode == -9
    assert not list(store.glob("features/*.safetensors"))
    killed_at = Path("prepared").read_text().split()

    assert call(*encode).code == 0
    again = Path("prepared").read_text().split()[len(killed_at) :]
    kept = 600 - len(again)
    assert kept in (256, 512)
    assert set(killed_at[:kept]) | set(again) == {str(item) for item in range(600)}
    assert not list(store.glob("features/*.parts"))

    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path / "uninterrupted"))
    assert call(*encode).code == 0
    (one,), (other,) = (list(home.glob("features/*.safetensors")) for home in (store, tmp_path / "uninterrupted"))
    assert (one.name, hash_file(one)) == (other.name, hash_file(other))
