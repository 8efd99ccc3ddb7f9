"""`kill -9`: a run that is resumed ends bit for bit where the uninterrupted one does; encoding loses one shard."""

import json
import random
from pathlib import Path

import pytest
from helpers import call, plugin, start, wait_until
from safetensors import SafetensorError, safe_open

from mmrec_lmm.cache import hash_file

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


@pytest.fixture(autouse=True)
def here(data_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(data_path.parent)
    return data_path.parent


def epochs_done() -> int:
    """Of the one run in ./runs, by its checkpoint."""
    for path in Path("runs").glob("VBPR-*/checkpoint/state.safetensors"):
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
    assert not list(Path("runs", run_id, "checkpoint").iterdir())


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
