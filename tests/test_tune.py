"""What of an encoder is trained: its last blocks, or low-rank updates of its matrices, for each family of encoders."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Answer, call, plugin, start, wait_until
from PIL import Image
from torch import Tensor, nn

from mmrec_lmm.data.items import pad_and_stack
from mmrec_lmm.disk.hashing import hash_file
from mmrec_lmm.errors import ConfigError, DataError, PluginError
from mmrec_lmm.features.encoding import build_encoder
from mmrec_lmm.features.prepared import PreparedItems
from mmrec_lmm.plugin.contracts import ItemEncoder
from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.testing import TinyEncoder
from mmrec_lmm.training.encoder_side import EncoderWorker, choose_trained
from mmrec_lmm.training.fine_tuning import load_record, trained_part
from mmrec_lmm.training.optim import recompute_blocks
from mmrec_lmm.training.paradigms import EndToEnd, FineTuning
from mmrec_lmm.training.resume import load_weights, save_weights
from mmrec_lmm.training.tune import grouped, merge_file, merged, state_hash, weighted_sum
from mmrec_lmm.typed_json import plain
from mmrec_lmm.types import RawItem

REGISTRY = load_registry()
FAMILIES = {
    "clip": {"variant": "tiny"},
    "vlmo": {"variant": "tiny"},
    "beit3": {"variant": "tiny"},
    "hf": {"variant": "tiny"},
    "st": {"variant": "tiny"},
    "cnn_sbert": {"variant": "projected-tiny", "train_towers": True},
}
ITEMS = [
    RawItem(0, Image.new("RGB", (64, 64), "red"), "a red box"),
    RawItem(1, Image.new("RGB", (40, 80), "blue"), "a tall blue tower"),
    RawItem(2, Image.new("RGB", (90, 50), "green"), "grass and very much of it"),
]
PRESENT = dict.fromkeys(("image", "text"), torch.ones(3, dtype=torch.bool))


def build(name: str, **keys: Any) -> ItemEncoder:
    load = REGISTRY.encoders.load
    spec = dataclasses.replace(REGISTRY.encoders.get(name), cls=load(name, "cls"), weights_id=load(name, "weights_id"))
    return build_encoder(spec, load(name, "config")(**{**FAMILIES[name], **keys}), ("image", "text"))


def worker_of(encoder: ItemEncoder, **keys: Any) -> EncoderWorker:
    batch = pad_and_stack([encoder.prepare(item) for item in ITEMS], padding=encoder.padding, encoder="")
    items = PreparedItems({key: rows.numpy() for key, rows in batch.items()}, {})
    return EncoderWorker(encoder, items, PRESENT, EndToEnd(weight_decay=0.1, **keys), name="this", seed=7)


def step(worker: EncoderWorker, times: int = 3) -> None:
    for _ in range(times):
        gradients = {modality: rows.sign() for modality, rows in worker.encode(torch.arange(3)).items()}
        assert worker.step(torch.arange(3), gradients, 1e-2) > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_lora_starts_at_the_encoders_own_features_and_never_writes_its_weights(name: str) -> None:
    base = worker_of(build(name))
    start, before = base.encode(torch.arange(3)), {key: value.clone() for key, value in base.weights().items()}
    encoder = build(name)
    worker = worker_of(encoder, tune="lora")
    for modality, rows in worker.encode(torch.arange(3)).items():
        assert torch.equal(rows, start[modality]), "to the last bit"
    part = worker.part
    trained = {key for key, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert len(trained) == len(worker.weights()) > 8
    step(worker)
    for key, parameter in encoder.named_parameters():
        assert (parameter.grad is not None) == (key in trained), key
        if key in trained and not key.startswith("cnn.network"):  # new residual branches of timm end in zeros
            assert parameter.any(), f"{key} is trained"
    after = part._base_state()
    assert state_hash(after) == state_hash(before) == part.base
    moved = worker.encode(torch.arange(3))
    assert all((moved[modality] - start[modality]).abs().max() > 1e-3 for modality in moved)

    whole = build(name)
    whole.load_state_dict(part.state())
    for modality, rows in worker_of(whole).encode(torch.arange(3)).items():
        torch.testing.assert_close(rows, moved[modality], rtol=0, atol=1e-6 * rows.abs().max().item())
    assert worker.parameters().keys() == dict(whole.named_parameters()).keys()


def test_a_is_drawn_from_the_seed_alone_and_leaves_torchs_generator_as_it_was() -> None:
    drawn = []
    for seed, others in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(others)
        state, encoder = torch.get_rng_state(), build("clip")
        part = trained_part(encoder, FineTuning(tune="lora", seed=seed), name="clip")
        assert torch.equal(torch.get_rng_state(), state)
        drawn.append(part.tensors())
    assert all(torch.equal(value, drawn[1][name]) for name, value in drawn[0].items())
    for name, value in drawn[0].items():
        assert torch.equal(value, drawn[2][name]) == name.endswith(".B")
        assert value.any() != name.endswith(".B")


def test_the_last_block_of_clip_is_what_a_hand_made_list_says() -> None:
    layer = [
        "ln_1.weight", "ln_1.bias", "attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight",
        "attn.out_proj.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight",
        "mlp.c_proj.bias",
    ]  # fmt: skip
    expected = {"image_projection", "text_projection", "model.ln_final.weight", "model.ln_final.bias"}
    expected |= {"model.visual.ln_post.weight", "model.visual.ln_post.bias"}
    for tower in ("model.visual.transformer", "model.transformer"):
        expected |= {f"{tower}.resblocks.2.{name}" for name in layer}
    assert {*choose_trained(build("clip"), EndToEnd(tune="last:1"), name="clip").names} == expected
    assert {*trained_part(build("clip"), FineTuning(tune="last:1"), name="clip").tensors()} == {
        *expected, "model.logit_scale",
    }  # fmt: skip
    expected |= {
        f"{tower}.resblocks.1.{name}" for tower in ("model.visual.transformer", "model.transformer") for name in layer
    }
    worker = worker_of(build("clip"), tune="last:2", freeze=("model.visual.*",))
    assert {*worker.weights()} == {name for name in expected if not name.startswith("model.visual.")}


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "cnn_sbert"])
def test_last_blocks_start_at_the_same_bits_and_only_they_are_trained(name: str) -> None:
    start = worker_of(build(name)).encode(torch.arange(3))
    encoder = build(name)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    worker = worker_of(encoder, tune="last:1")
    assert all(torch.equal(rows, start[modality]) for modality, rows in worker.encode(torch.arange(3)).items())
    step(worker)
    trained = worker.weights()
    assert 0 < len(trained) < len(before)
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, before[key]) == (key not in trained), key
    state = merged(before, trained, worker.part.about())
    assert state.keys() == before.keys()
    assert all(torch.equal(value, encoder.state_dict()[key]) for key, value in state.items())


def test_a_table_that_all_blocks_share_stays_frozen() -> None:
    class Shared(TinyEncoder):
        """Two towers of three layers, which all add a common bias to what comes in."""

        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleDict({name: nn.ModuleList(Layer() for _ in range(3)) for name in ("image", "text")})
            self.bias = nn.Parameter(torch.zeros(4))

        def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            found = super().forward(batch)
            for name, layers in self.blocks.items():
                for layer in layers:
                    found[name] = layer(found[name], self.bias)
            return found

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor, bias: Tensor) -> Tensor:
            return self.linear(x) + bias

    encoder = Shared()
    names = choose_trained(encoder, EndToEnd(tune="last:2"), name="").names
    assert {*names} == {
        f"blocks.{name}.{at}.linear.{part}"
        for name in ("image", "text") for at in (1, 2) for part in ("weight", "bias")
    }  # fmt: skip


def test_torchs_fused_layer_computes_with_the_updates_too() -> None:
    class Fused(TinyEncoder):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0)
            self.stack = nn.TransformerEncoder(layer, 2)

        def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: self.stack(rows[:, None])[:, 0] for name, rows in super().forward(batch).items()}

    torch.manual_seed(0)
    encoder = Fused()
    worker = worker_of(encoder, tune="lora")
    assert {name.rpartition("layers.0-1.")[2] for name in worker.part.names} == {
        "self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight",
    }  # fmt: skip
    step(worker)
    whole = Fused()
    whole.load_state_dict(worker.part.state())
    fused, theirs = worker.encode(torch.arange(3)), worker_of(whole).encode(torch.arange(3))
    batch = worker._batch(torch.arange(3))
    for modality, rows in encoder(batch).items():  # with gradient, which torch doesn't fuse
        torch.testing.assert_close(rows.detach(), fused[modality], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(theirs[modality], fused[modality], rtol=1e-6, atol=1e-6)


def test_recomputed_blocks_give_the_same_updates() -> None:
    ends = []
    for again in (False, True):
        encoder = build("clip")
        if again:
            recompute_blocks(encoder)
        worker = worker_of(encoder, tune="lora")
        step(worker)
        ends.append(worker.weights())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.parametrize("choice", ["lora", "last:1"])
def test_what_is_saved_restores_and_nothing_else_fits(choice: str) -> None:
    first, second = (worker_of(build("clip"), tune=choice) for _ in range(2))
    step(first)
    second.load_weights({name: value.clone() for name, value in first.weights().items()})
    ours, theirs = (each.encode(torch.arange(3)) for each in (first, second))
    assert all(torch.equal(rows, theirs[modality]) for modality, rows in ours.items())
    name = next(iter(first.weights()))
    for wrong in ({}, {**first.weights(), name: torch.zeros(3)}, {**first.weights(), "more": torch.zeros(3)}):
        with pytest.raises(ValueError, match="expected tensors of what is trained, got others"):
            second.load_weights(wrong)


@pytest.mark.parametrize("kind", [FineTuning, EndToEnd])
def test_runs_and_tuned_encoders_of_before_keep_their_names(kind: type) -> None:
    written = plain(kind())
    assert {name for name in written if "tune" in name or "lora" in name} == set()
    assert plain(kind(tune="lora", lora_rank=4))["lora_rank"] == 4


def test_norms_of_batches_that_are_frozen_keep_their_statistics() -> None:
    class Normed(TinyEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(2))

        def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            found = super().forward(batch)
            for block in self.blocks:
                found = {name: block(rows) for name, rows in found.items()}
            return found

        def tuning_losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"itc": weighted_sum(self(batch))}

    for choice, moving in (("full", {"0", "1"}), ("last:1", {"1"}), ("lora", set())):
        encoder = Normed()
        part = trained_part(encoder, FineTuning(tune=choice), name="normed")
        before = {key: value.clone() for key, value in encoder.named_buffers()}
        part.train()
        encoder.tuning_losses({"pixels": torch.rand(5, 3), "length": torch.rand(5, 1)})
        moved = {key.split(".")[-3] for key, value in encoder.named_buffers() if not torch.equal(value, before[key])}
        saved = {key.split(".")[1] for key in part.tensors() if "running" in key}
        assert moved == moving
        assert saved == moving


@pytest.mark.parametrize(
    ("name", "keys", "options", "message"),
    [
        (
            "clip", {}, {"tune": "last:99"},
            "encoder E: ete.tune: expected at most last:3, the blocks of the smallest tower (image 3, text 3), "
            "got last:99",
        ),
        (
            "cnn_sbert", {}, {"tune": "last:1"},
            "expected an encoder with repeated blocks in each tower for last:1, got none in that of image "
            "(blocks: image 0, text 6); try full",
        ),
        (
            "cnn_sbert", {"train_towers": False}, {"tune": "lora"},
            "got one whose towers are frozen by encoder.train_towers; try --encoder.train_towers=true, or full",
        ),
        (
            "clip", {}, {"tune": "lora", "lora_targets": ("model.visual.transformer.resblocks.0.atn.in_proj_weight",)},
            "which matches none; did you mean model.visual.transformer.resblocks.0.attn.in_proj_weight?",
        ),
        (
            "vlmo", {}, {"tune": "lora", "lora_targets": ("model.mlm_score*",)},
            "expected patterns of matrices that are trained, got model.mlm_score*",
        ),
        ("clip", {}, {"tune": "lora", "freeze": ("model.*",)}, "E: ete.freeze: expected patterns that leave"),
    ],
)  # fmt: skip
def test_bad_choices_are_named(name: str, keys: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_trained(build(name, **keys), EndToEnd(**options), name="E")
    assert message in str(caught.value)


def test_an_update_that_the_encoder_computes_without_is_an_error() -> None:
    class Held(TinyEncoder):
        """Computes with its first weights, whatever its layers have become."""

        def __init__(self) -> None:
            super().__init__()
            self.held = {name: layer.weight for name, layer in self.layers.items()}

        def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"image": batch["pixels"] @ self.held["image"].T, "text": batch["length"] @ self.held["text"].T}

    with pytest.raises(PluginError, match=r"for the update of each weight, got none for layers.image"):
        worker_of(Held(), tune="lora")


@pytest.mark.parametrize("paradigm", ["ete", "ft"])
def test_lora_without_peft_says_how_to_get_it(paradigm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    answer = call(
        "run", "-m", "VBPR", "-d", "demo", "--encoder=clip:tiny", "--paradigm", paradigm, f"--{paradigm}.tune=lora"
    )
    assert answer.code == 2
    assert f"{paradigm}.tune: expected peft for lora, got " in answer.err
    assert "pip install 'mmrec-lmm[lora]'" in answer.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ete", "--ete.tune=last:0"), "ete.tune must be full, lora, side, or last:N, such as last:1, got 'last:0'"),
        (("ete", "--ete.lora_rank=0"), "ete.lora_rank must be from 1 to 4,096, got 0"),
        (("ft", "--ft.tune=side"), "--paradigm ft: expected ft.tune of full, lora or last:N, got side: a side network"),
    ],
)
def test_values_that_cannot_be_are_refused_before_any_data_is_read(arguments: tuple[str, str], message: str) -> None:
    answer = call("run", "-m", "VBPR", "-d", "demo", "--encoder=clip:tiny", "--paradigm", *arguments)
    assert answer.code == 2
    assert message in answer.err


def test_names_are_put_together_by_their_numbers() -> None:
    names = [f"a.{at}.{part}.w" for at in (0, 1, 2, 5) for part in (0, 1)] + ["b.3.w", "c"]
    assert grouped(names) == ("a.0-2,5.0-1.w", "b.3.w", "c")
    assert grouped([]) == ()


# Runs

SMALL = ("-m", "VBPR", "-d", "toy", "--epochs=3", "--embedding_size=4", "--train_batch_size=16", "--threads=1")
ETE = ("run", *SMALL, "--paradigm", "ete", "--ete.learning_rate=1e-3", "--ete.rows=9", "--ete.micro_batch=2", "--json")


@pytest.fixture
def toy(data_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data_path.parent)


def result_of(answer: Answer) -> dict[str, Any]:
    assert answer.code == 0, answer.err
    result: dict[str, Any] = json.loads(answer.out)
    return result


def encoded(folder: str, *arguments: str) -> dict[str, np.ndarray]:
    """The tables of the toy by modality, as `encode` writes them."""
    answer = call("encode", "-d", "toy", *arguments, "--threads=1", "--export", folder)
    assert answer.code == 0, answer.err
    return {path.stem: np.load(path) for path in Path(folder).glob("*.npy")}


@pytest.mark.parametrize(
    ("name", "choice"),
    [("clip:tiny", "lora"), ("clip:tiny", "last:1"), ("vlmo:tiny", "lora"), ("beit3:tiny", "lora")],
)
def test_a_run_keeps_what_it_trained_and_merges_it_into_weights_that_the_encoder_reads(
    name: str, choice: str, toy: None
) -> None:
    result = result_of(call(*ETE, "--encoder", name, f"--ete.tune={choice}"))
    ete, folder = result["record"]["ete"], Path("runs", result["run_id"])
    assert ete["tune"] == choice
    assert ete["steps"] > 0
    assert 0 < ete["parameters_trained"] < ete["parameters"] / 4
    assert result["record"]["encoder_cost"]["parameters_trained"] == ete["parameters_trained"]
    kept = {"lora": "adapter.safetensors", "last:1": "encoder.safetensors"}[choice]
    assert {path.name for path in folder.glob("*r.safetensors")} - {"per_user.safetensors"} == {kept}
    assert sum(value.numel() for value in load_weights(folder / kept).values()) == ete["parameters_trained"]

    answer = call("weights", "merge", result["run_id"], "-o", "merged.safetensors")
    assert answer.code == 0, answer.err
    tables = encoded("out", "--encoder", name, "--encoder.weights=merged.safetensors")
    for modality, table in load_weights(folder / "features.safetensors").items():
        theirs = torch.from_numpy(tables[f"{modality}_feat"])
        torch.testing.assert_close(theirs, table, rtol=0, atol=1e-6 * table.abs().max().item())
    assert call("replay", result["run_id"]).code == 0

    family = name.partition(":")[0]
    with pytest.raises(DataError, match=r"expected an adapter of base [0-9a-f]{16}, .*, got one of base [0-9a-f]{16}"):
        merge_file(folder / kept, build(family, weights="merged.safetensors"))
    about = {"tune": choice, "base": state_hash(build(family).state_dict()), "rank": 8, "alpha": 16.0}
    save_weights(Path("w"), {"model.no.A": torch.zeros(8, 3)}, {key: json.dumps(value) for key, value in about.items()})
    with pytest.raises(DataError, match="expected tensors of this encoder, got others"):
        merge_file(Path("w"), build(family))


def test_all_of_an_encoder_is_merged_as_it_is_and_other_runs_are_refused(toy: None) -> None:
    result = result_of(call(*ETE, "--encoder=clip:tiny"))
    assert result["record"]["ete"]["trained"] == []
    assert call("weights", "merge", result["run_id"], "-o", "merged.safetensors").code == 0
    assert all(
        torch.equal(value, load_weights(Path("merged.safetensors"))[name])
        for name, value in load_weights(Path("runs", result["run_id"], "encoder.safetensors")).items()
    )
    frozen = result_of(call("run", *SMALL, "--encoder=clip:tiny", "--json"))
    answer = call("weights", "merge", frozen["run_id"], "-o", "other.safetensors")
    assert answer.code == 2
    assert "expected a run that trained an encoder with its recommender, got VBPR-toy-" in answer.err


@pytest.mark.parametrize("choice", ["lora", "last:1"])
def test_at_a_rate_of_zero_a_run_gives_the_scores_of_pt(choice: str, toy: None) -> None:
    frozen = result_of(call("run", *SMALL, "--encoder=clip:tiny", "--json"))
    twin = result_of(call(*ETE, "--encoder=clip:tiny", "--ete.learning_rate=0", f"--ete.tune={choice}"))
    assert twin["test"] == frozen["test"]
    ours, theirs = (load_weights(Path("runs", one["run_id"], "best.safetensors")) for one in (twin, frozen))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


FT = (
    "encode", "-d", "toy", "--paradigm", "ft", "--ft.held_out=0.3", "--ft.batch_size=4", "--ft.learning_rate=1e-3",
    "--threads=1", "--json",
)  # fmt: skip


@pytest.mark.parametrize("choice", ["lora", "last:1"])
def test_a_tuned_file_is_whole_and_differs_where_it_was_trained(
    choice: str, toy: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path / "home"))
    answer = call(*FT, "--encoder=vlmo:tiny", "--ft.epochs=2", f"--ft.tune={choice}")
    assert answer.code == 0, answer.err
    (path,) = (tmp_path / "home" / "tuned").glob("*.safetensors")
    base, found = build("vlmo").state_dict(), load_weights(path)
    assert found.keys() == base.keys()
    about = load_record(path)
    assert about.tune == choice
    assert about.parameters == sum(parameter.numel() for parameter in build("vlmo").parameters())
    changed = {name for name, value in found.items() if not torch.equal(value, base[name])}
    assert {*grouped(name for name in found if name in changed)} == {*about.trained}


# Kills, and several processes

KILLER = """
@hookimpl
def mmrec_epoch_finished(run, epoch):
    if epoch.epoch == 2 and Path("die").exists():
        Path("die").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def launch(toy: None) -> Callable[..., Answer]:
    """`mmrec-lmm ARGUMENTS` on so many processes."""
    plugin(Path("killer.py"), KILLER)

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


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["lora", "last:1"])
def test_a_run_that_is_killed_ends_with_the_same_bits_and_on_two_processes_close_to_them(
    choice: str, launch: Callable[..., Answer]
) -> None:
    run = (
        *ETE, "-p", "killer.py", "--encoder=clip:tiny", f"--ete.tune={choice}", "--epochs=5", "--ete.itc=0.1",
        "--valid_metric=NDCG@10", "--checkpoint_seconds=0", "--ete.learning_rate=1e-4",
    )  # fmt: skip
    whole = result_of(launch(1, *run, "--out", "whole"))
    Path("die").touch()
    assert launch(1, *run).code == -9
    assert Path("runs", whole["run_id"], "checkpoint", "state.safetensors").stat().st_size < 2_000_000
    resumed = result_of(launch(1, *run, "--resume"))
    assert resumed["run_id"] == whole["run_id"]
    assert resumed["test"] == whole["test"]
    kept = "adapter" if choice == "lora" else "encoder"
    for file in ("best", kept, "features"):
        one, other = (Path(folder, whole["run_id"], f"{file}.safetensors") for folder in ("runs", "whole"))
        assert hash_file(one) == hash_file(other), file

    Path("die").touch()
    assert launch(2, *run, "--out", "two").code != 0
    together = result_of(launch(2, *run, "--out", "two", "--resume"))
    assert together["run_id"] == whole["run_id"]
    for file in ("best", kept, "features"):
        mine, others = (load_weights(Path(out, whole["run_id"], f"{file}.safetensors")) for out in ("two", "whole"))
        for name, value in mine.items():
            if not name.endswith("in_proj_bias"):  # no loss depends on that of keys: its gradient is only rounding
                torch.testing.assert_close(value, others[name], rtol=1e-5, atol=1e-5, msg=f"{file}: {name}")


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["lora", "last:1"])
def test_tuning_that_is_killed_ends_with_the_same_bits_and_on_two_processes_close_to_them(
    choice: str, launch: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = (
        *FT, "--encoder=clip:tiny", f"--ft.tune={choice}", "--ft.epochs=6", "--ft.patience=6", "--checkpoint_seconds=0",
        "--ft.learning_rate=1e-4",
    )  # fmt: skip
    ends = {}
    for home in ("killed", "whole", "two"):
        monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path / home))
        if home == "killed":
            process = start(*run)
            wait_until(lambda: list(tmp_path.glob("killed/tuned/*.parts/state.safetensors")), process)
            process.kill()
            process.communicate()
            assert not list(tmp_path.glob("killed/tuned/*.safetensors"))
        answer = launch(2 if home == "two" else 1, *run)
        assert answer.code == 0, answer.err
        (ends[home],) = tmp_path.glob(f"{home}/tuned/*.safetensors")
    assert len({path.name for path in ends.values()}) == 1
    one, other, two = (load_weights(ends[home]) for home in ("killed", "whole", "two"))
    for name, value in other.items():
        assert torch.equal(one[name], value), name
        if not name.endswith("in_proj_bias"):
            torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-5, msg=name)
