"""Runs of plugins in development: changed code trains again, and a run remembers the files that it was made with."""

import json
from pathlib import Path

import pytest
from helpers import Answer, call, plugin

from mmrec_lmm.running.run_folder import list_results

MODEL = """
import torch

class Steady(DotProduct):
    def __init__(self, data, features, config):
        super().__init__(data, features, config)
        self.users = torch.nn.Parameter(torch.randn(data.n_users, 4))
        self.items = torch.nn.Parameter(torch.randn(data.n_items, 4))

    def vectors(self):
        return self.users, self.items

    def training_loss(self, batch):
        return {"norm": FACTOR * self.users.square().mean()}

@hookimpl
def mmrec_register_models():
    return [ModelSpec("Steady", cls=Steady, uses_features=False)]
"""
RAISES = MODEL.replace("return {", "raise ValueError('of the plugin')\n        return {")
METRIC = """
import numpy as np

def half(hits, n_positives, k):
    return hits[:, :k].any(axis=1) * VALUE

@hookimpl
def mmrec_register_metrics():
    return [MetricSpec("Half", half)]
"""
SAMPLER = """
import torch

class OneItem(Sampler):
    def draw(self, users, generator):
        return torch.full_like(users, ITEM)

@hookimpl
def mmrec_register_samplers():
    return [SamplerSpec("one_item", OneItem)]
"""
ENCODER = """
import torch

class Lengths(ItemEncoder):
    def __init__(self, config, modalities):
        super().__init__()
        self.dims = {"text": 2}

    def prepare(self, item):
        return {"text": torch.tensor([FACTOR, float(len(item.text))])}

    def forward(self, batch):
        return {"text": batch["text"]}

@dataclass(frozen=True)
class Config:
    pass

@hookimpl
def mmrec_register_encoders():
    return [EncoderSpec("lengths", cls=Lengths, config=Config, modalities=("text",), weights_id=lambda *_: "none")]
"""


@pytest.fixture(autouse=True)
def _in_the_folder(data_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data_path.parent)


def steady(*more: object) -> Answer:
    answer = call("run", "-m", "Steady", "-d", "toy", "--epochs=2", "--json", *more)
    assert answer.code == 0, answer.err
    return answer


def test_a_changed_model_trains_again_under_its_name_and_an_unchanged_one_does_not() -> None:
    file = plugin(Path("mine.py"), MODEL.replace("FACTOR", "1.0"))
    first = json.loads(steady("-p", file).out)
    again = steady("-p", file)
    assert "changed since" not in again.err
    assert json.loads(again.out) == first
    plugin(file, MODEL.replace("FACTOR", "3.0"))
    changed = steady("-p", file)
    assert changed.err.count("the code of its model changed since its result was made: it is run again") == 1
    second = json.loads(changed.out)
    assert second["run_id"] == first["run_id"]
    assert second["record"]["code"]["model"] != first["record"]["code"]["model"]
    losses = [json.loads(line)["losses"]["norm"] for line in (Path(second["path"]) / "history.jsonl").open()]
    assert losses[0] > 2  # of the new code, in the same process: it was about 1
    assert json.loads(steady("-p", file).out) == second


def test_a_changed_metric_is_counted_again() -> None:
    model = plugin(Path("mine.py"), MODEL.replace("FACTOR", "1.0"))
    metric = plugin(Path("half.py"), METRIC.replace("VALUE", "0.5"))
    asked = ("-p", model, "-p", metric, "--metrics=[Recall,Half]")
    first = json.loads(steady(*asked).out)["test"]["half@20"]
    plugin(metric, METRIC.replace("VALUE", "0.25"))
    answer = steady(*asked)
    assert "the code of its metric Half changed" in answer.err
    assert json.loads(answer.out)["test"]["half@20"] == first / 2


def test_a_changed_sampler_trains_again() -> None:
    file = plugin(Path("mine.py"), SAMPLER.replace("ITEM", "1"))
    run = ("run", "-m", "BPR", "-d", "toy", "--epochs=1", "--sampler", "one_item", "-p", file, "--json")
    first = call(*run)
    assert call(*run).out == first.out
    plugin(file, SAMPLER.replace("ITEM", "2"))
    changed = call(*run)
    assert "the code of its sampler changed since its result was made: it is run again" in changed.err
    one, other = json.loads(first.out), json.loads(changed.out)
    assert one["run_id"] == other["run_id"]
    assert one["record"]["code"]["sampler"] != other["record"]["code"]["sampler"]


def test_a_changed_encoder_encodes_again() -> None:
    file = plugin(Path("mine.py"), ENCODER.replace("FACTOR", "1.0"))
    run = ("run", "-m", "VBPR", "-d", "toy", "--epochs=1", "--encoder", "lengths", "-p", file, "--json")
    first, again = (json.loads(call(*run).out) for _ in range(2))
    assert first == again
    plugin(file, ENCODER.replace("FACTOR", "2.0"))
    assert json.loads(call(*run).out)["record"]["features"] != first["record"]["features"]


def test_a_study_makes_the_runs_of_a_changed_plugin_again() -> None:
    Path("s.yaml").write_text("{models: Steady, datasets: toy, settings: {epochs: 1}}")
    file = plugin(Path("mine.py"), MODEL.replace("FACTOR", "1.0"))
    study = ("study", "run", "s.yaml", "-p", file)
    assert "[1]" in call(*study).err
    assert "[1]" not in call(*study).err
    plugin(file, MODEL.replace("FACTOR", "3.0"))
    assert "[1] " in call(*study).err
    assert len(list_results(Path("runs"))) == 1


def test_a_study_makes_the_runs_of_a_changed_sampler_again() -> None:
    Path("s.yaml").write_text("{models: BPR, datasets: toy, settings: {epochs: 1, sampler: one_item}}")
    file = plugin(Path("mine.py"), SAMPLER.replace("ITEM", "1"))
    study = ("study", "run", "s.yaml", "-p", file)
    assert "[1] " in call(*study).err
    assert "[1] " not in call(*study).err
    plugin(file, SAMPLER.replace("ITEM", "2"))
    assert "[1] " in call(*study).err


def test_a_run_remembers_its_plugin_for_recommend_replay_and_tickets() -> None:
    file = plugin(Path("mine.py"), MODEL.replace("FACTOR", "1.0"))
    result = json.loads(steady("-p", file).out)
    run = result["run_id"]
    assert list(result["record"]["plugins"]) == [str(file.resolve())]
    assert call("recommend", run, "--users", "all", "--internal-ids").code == 0
    assert call("replay", run).out.startswith(f"{run}: identical")
    plugin(file, MODEL.replace("FACTOR", "1.0") + "\n# more")
    answer = call("recommend", run, "--users", "all", "--internal-ids")
    assert f"note: {file.resolve()} changed since {run} was made" in answer.err
    moved = file.rename(Path("elsewhere.py"))
    answer = call("recommend", run, "--users", "all", "--internal-ids")
    assert answer.code == 4
    assert "got no such file; try -p with its new path" in answer.err
    Path("new").mkdir()
    moved.rename("new/mine.py")
    assert call("recommend", run, "--users", "all", "--internal-ids", "-p", "new/mine.py").code == 0


def test_a_recorded_plugin_that_this_user_never_ran_is_not_loaded(tmp_path: Path) -> None:
    file = plugin(Path("mine.py"), MODEL.replace("FACTOR", "1.0"))
    run = json.loads(steady("-p", file).out)["run_id"]
    stranger = plugin(tmp_path / "harm.py", "Path('harmed').touch()")
    path = Path("runs") / run / "result.json"
    content = json.loads(path.read_text())
    content["record"]["plugins"] = {str(stranger): "0"}
    path.write_text(json.dumps(content))
    answer = call("recommend", run, "--users", "all", "--internal-ids")
    assert answer.code == 2
    assert "as code is only loaded unasked if you ran it before; try -p" in answer.err
    assert not Path("harmed").exists()


def test_a_shipped_models_runs_record_no_plugins() -> None:
    answer = call("run", "-m", "BPR", "-d", "toy", "--epochs=1", "--json")
    record = json.loads(answer.out)["record"]
    assert "plugins" not in record
    assert set(record["code"]) == {"host", "model"}


def test_a_failing_run_of_a_study_is_one_line_and_its_traceback_is_in_the_log() -> None:
    Path("s.yaml").write_text("{models: [Steady, BPR], datasets: toy, settings: {epochs: 1}}")
    file = plugin(Path("mine.py"), RAISES.replace("FACTOR", "1.0"))
    answer = call("study", "run", "s.yaml", "-p", file)
    assert answer.code == 1
    [line] = [line for line in answer.err.splitlines() if "of the plugin" in line]
    assert line.endswith("failed: ValueError: of the plugin")
    assert "Traceback" not in answer.err
    [log] = Path("runs/log").glob("s-*.log")
    assert "Traceback" in log.read_text()
    assert "mine.py" in log.read_text()
