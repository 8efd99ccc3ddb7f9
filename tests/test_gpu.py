"""What must hold on a GPU: the CPU's numbers, its own bits again after an interruption, and no waiting.

`make test-gpu` runs this file, in some minutes on one GPU. Without a GPU each test is skipped. Tests of `cuda:1` need
two.
"""

import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Answer, finish, plugin, start_together
from PIL import Image
from test_end_to_end_processes import ETE, close, launch, losses  # noqa: F401 - launch is a fixture
from test_syncs import DATA, SPLITS, built, syncs_of_ranking, watched_epoch
from torch import Tensor, nn

from mmrec_lmm.data.items import pad_and_stack
from mmrec_lmm.data.sampling import TrainingRows
from mmrec_lmm.evaluation.ranking import Evaluator
from mmrec_lmm.features import encoding
from mmrec_lmm.features.inference import Inference
from mmrec_lmm.features.prepared import PreparedItems
from mmrec_lmm.plugin.contracts import ItemEncoder, ParameterFree
from mmrec_lmm.plugin.item_features import ItemFeatures
from mmrec_lmm.plugin.registry import Registry, load_registry
from mmrec_lmm.plugin.specs import resolve
from mmrec_lmm.running import run_folder
from mmrec_lmm.running.grid import run_grid
from mmrec_lmm.running.runner import Interrupted
from mmrec_lmm.testing import TinyEncoder, no_syncs, noted_syncs
from mmrec_lmm.training.clock import PartClock
from mmrec_lmm.training.encoder_side import EncoderWorker
from mmrec_lmm.training.end_to_end import JointEncoder
from mmrec_lmm.training.paradigms import EndToEnd
from mmrec_lmm.types import Batch, FeatureTable, ItemCatalog, RawItem, RunResult, RunSpec

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # products repeat their bits; read when the first is made
pytestmark = pytest.mark.gpu

GPU = "cuda:0"
MODELS = [spec.name for spec in load_registry().models if not issubclass(resolve(spec.cls), ParameterFree)]
ENCODERS = [spec for spec in load_registry().encoders if "tiny" in spec.variants or spec.name == "basic"]
TUNABLE = ("clip:tiny", "vlmo:tiny", "beit3:tiny")
VARIANTS = [
    *((name, {}) for name in MODELS),
    ("SLMRec", {"ssl_task": "FD"}),
    ("SLMRec", {"ssl_task": "FM"}),
    ("MMGCL", {"variant": "paper"}),
    ("FREEDOM", {"pruning": "uniform"}),
    ("MGCN", {"fusion": "paper"}),
    ("MMGCN", {"trainable_id": False}),
    ("LATTICE", {"cf_model": "ngcf"}),
]
#: Without draws of its own on the device, so that a step has the same numbers on any.
STILL: Mapping[str, Mapping[str, Any]] = {
    "MMGCL": {"dropout_rate": 0.0},
    "FREEDOM": {"dropout": 0.0},
    "BM3": {"dropout": 0.0},
}
Specs = Callable[..., tuple[RunSpec, ...]]


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Operations on the GPU repeat their bits, where torch has such a version of them; for others it warns."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def first_batch(device: str) -> Batch:
    rows = TrainingRows(DATA.train, DATA.n_users, 300, device)
    return next(rows.epoch(torch.Generator().manual_seed(3)))


# Models


@pytest.mark.parametrize("joint", [False, True], ids=["frozen", "joint"])
@pytest.mark.parametrize("name", MODELS)
def test_a_step_and_a_ranking_have_the_numbers_of_the_cpu(registry: Registry, name: str, joint: bool) -> None:
    outcomes = []
    for device in ("cpu", GPU):
        model = built(registry, name, device=device, joint=joint, **STILL.get(name, {}))
        model.train()
        model.on_epoch_start(0)
        terms = model.training_loss(first_batch(device))
        torch.stack([*terms.values()]).sum().backward()
        gradients = {key: each.grad.cpu() for key, each in model.named_parameters() if each.grad is not None}
        gradients |= {key: leaf.grad.cpu() for key, leaf in model.features().items() if leaf.grad is not None}
        model.eval()
        with torch.no_grad():
            scores = model.scorer()(torch.arange(DATA.n_users, device=device)).cpu()
        outcomes.append(({key: term.detach().cpu() for key, term in terms.items()}, gradients, scores))
    on_cpu, on_gpu = outcomes
    assert on_cpu[1], "a step has gradients"
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_ranking_is_that_of_the_same_scores_on_the_cpu(registry: Registry, name: str) -> None:
    model = built(registry, name, device=GPU).eval()
    evaluator = Evaluator(SPLITS["test"], [SPLITS["train"]], DATA.n_items)
    on_gpu, on_cpu = evaluator.rank(model, 20), evaluator.rank(built(registry, name), 20)
    assert (on_gpu.items == on_cpu.items).mean() > 0.99  # neighboring scores may change places by rounding


@pytest.mark.parametrize("name", MODELS)
def test_a_run_trains_and_ranks(specs: Specs, registry: Registry, tmp_path: Path, name: str) -> None:
    result = run_grid(specs(name, device=GPU, epochs="2"), registry, out=tmp_path / "runs").best
    assert result.record.device == torch.cuda.get_device_name(0)
    assert 0 < result.record.peak_memory_bytes < 1e9
    check_history(result, epochs=2)


def check_history(result: RunResult, *, epochs: int) -> None:
    """Losses and metrics of each epoch are finite."""
    reports = run_folder.load_history(result.path)
    assert len(reports) == epochs
    for report in reports:
        assert report.valid is not None
        assert all(map(math.isfinite, [*report.losses.values(), *report.valid.values()]))
    assert all(0 <= value <= 1 for value in result.test.values())


# No waiting


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=lambda part: str(part))
def test_no_step_waits_for_the_gpu(registry: Registry, name: str, options: dict[str, Any]) -> None:
    assert watched_epoch(built(registry, name, device=GPU, **options), GPU) == 2 * 6


@pytest.mark.parametrize("name", MODELS)
def test_no_block_of_an_evaluation_waits_for_the_gpu(
    registry: Registry, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built(registry, name, device=GPU)
    few, many = (syncs_of_ranking(model, block, monkeypatch, GPU) for block in (400, 40))
    assert few == many


def joint_encoder(micro_batch: int) -> tuple[JointEncoder, ItemFeatures]:
    """A tiny encoder on the GPU, about to take a step for each batch, on each of 24 items."""
    options = EndToEnd(encoder_every=1, rows=0, micro_batch=micro_batch, refresh_epochs=10**9)
    items = PreparedItems({"pixels": np.ones((24, 3), np.float32), "length": np.ones((24, 1), np.float32)}, {})
    present = {modality: torch.ones(24, dtype=torch.bool, device=GPU) for modality in ("image", "text")}
    features = ItemFeatures({m: torch.zeros(24, 4, device=GPU) for m in present}, present, joint=True)
    worker = EncoderWorker(TinyEncoder(), items, present, options)
    callback = JointEncoder(worker, features, options, generator=torch.Generator().manual_seed(0))
    callback.epoch_started(0)
    return callback, features


@pytest.mark.parametrize("micro_batch", [2, 8])
def test_a_step_of_an_encoder_waits_for_the_norms_of_rows_and_of_the_gradient_alone(micro_batch: int) -> None:
    callback, features = joint_encoder(micro_batch)
    for watched in (False, True):
        for leaf in features().values():
            leaf.grad = torch.ones_like(leaf)
        with noted_syncs(GPU) if watched else nullcontext([]) as found:
            callback.after_batch(first_batch(GPU))
    assert callback._steps == 2
    assert len(found) == 2, found


def test_a_step_of_tuning_does_not_wait(shop: ItemCatalog, registry: Registry) -> None:
    spec = registry.encoders.get("clip")
    encoder = encoding.build_encoder(spec, resolve(spec.config)(variant="tiny"), ("image", "text")).to(GPU)
    batch = pad_and_stack(
        [encoder.prepare(RawItem(item, Image.open(shop.images[item]), "blue train")) for item in range(4)],
        padding=encoder.padding,
        encoder="clip",
    )
    on_gpu = {key: rows.to(GPU) for key, rows in batch.items()}
    for guard in (nullcontext(), no_syncs(GPU)):
        with guard:
            torch.stack([*encoder.train().tuning_losses(on_gpu).values()]).sum().backward()


def test_what_waits_is_noticed() -> None:
    x = torch.ones(3, device=GPU)
    with pytest.raises(RuntimeError, match="synchronizing CUDA operation"), no_syncs(GPU):
        x.sum().item()
    with noted_syncs(GPU) as found:
        x.sum().item()
        x.nonzero()
    assert len(found) >= 2
    assert torch.cuda.get_sync_debug_mode() == 0


# Interruption


def interrupting(folder: Path, epoch: int) -> Registry:
    """The registry with a plugin that stops a run after an epoch."""
    stop = f"@hookimpl\ndef mmrec_epoch_finished(run, epoch):\n    if epoch.epoch == {epoch}: raise KeyboardInterrupt\n"
    return load_registry([str(plugin(folder / "stop.py", stop))])


def numbers(result: RunResult) -> tuple[Any, ...]:
    """What a run came to, without its seconds."""
    reports = [
        dataclasses.replace(report, train_seconds=0.0, valid_seconds=0.0)
        for report in run_folder.load_history(result.path)
    ]
    return dict(result.valid), dict(result.test), result.best_epoch, reports


def check_resumes(
    asked: tuple[RunSpec, ...], registry: Registry, folder: Path, *, disturb: Callable[[], object]
) -> None:
    """A run that was interrupted, and continues in another random state, comes to the numbers of one that wasn't."""
    whole = run_grid(asked, registry, out=folder / "whole").best
    with pytest.raises(Interrupted):
        run_grid(asked, interrupting(folder, 2), out=folder / "halted")
    disturb()
    resumed = run_grid(asked, registry, out=folder / "halted", resume=True).best
    assert numbers(resumed) == numbers(whole)
    for file in (run_folder.WEIGHTS, run_folder.TOPK):
        assert (resumed.path / file).read_bytes() == (whole.path / file).read_bytes()


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=lambda part: str(part))
def test_an_interrupted_run_continues_to_the_same_bits(
    specs: Specs, registry: Registry, tmp_path: Path, name: str, options: dict[str, str]
) -> None:
    small = {"weight_size": "[4, 4]"} if options.get("cf_model") == "ngcf" else {}
    asked = specs(name, device=GPU, epochs="4", **{key: str(value) for key, value in options.items()}, **small)
    check_resumes(asked, registry, tmp_path, disturb=lambda: torch.rand(7, device=GPU))


@pytest.mark.usefixtures("deterministic")
def test_an_interrupted_joint_run_continues_to_the_same_bits(specs: Specs, registry: Registry, tmp_path: Path) -> None:
    asked = specs(encoder="clip:tiny", paradigm="ete", device=GPU, epochs="4", **{"ete.learning_rate": "1e-3"})
    check_resumes(asked, registry, tmp_path, disturb=lambda: torch.rand(7, device=GPU))


# Encoders


@pytest.fixture
def shop(tmp_path: Path) -> ItemCatalog:
    """Six items of several sizes and lengths; one has no image, one no text."""
    rng, images = np.random.default_rng(0), []
    for item in range(5):
        images.append(tmp_path / f"{item}.png")
        Image.fromarray(rng.integers(0, 256, (20 + 13 * item, 90 - 7 * item, 3), dtype=np.uint8)).save(images[-1])
    texts = tuple(" ".join(["blue", "wooden", "train", "lamp"][: 1 + item % 4]) for item in range(5))
    return ItemCatalog({"title": (*texts, "")}, (*images[:4], None, images[4]), tuple("abcdef"), "unused")


@pytest.mark.parametrize("spec", ENCODERS, ids=lambda spec: spec.name)
def test_a_gpu_makes_the_rows_of_the_cpu_and_in_bfloat16_nearly(
    spec: Any, shop: ItemCatalog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = resolve(spec.config)(**({"variant": "tiny"} if "tiny" in spec.variants else {}))

    def encoded(way: str, **options: Any) -> dict[str, FeatureTable]:
        monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path / way))
        monkeypatch.setattr(encoding, "SHARD", 4)
        chosen = encoding.EncodeOptions(batch_size=2, **options)
        return encoding.encode(shop, spec, config, modalities=spec.modalities, text_fields=["title"], options=chosen)

    on_cpu, half = encoded("cpu"), encoded("half", device=GPU, dtype="bfloat16")
    encoding._note_full_precision.cache_clear()
    with caplog.at_level(logging.INFO):
        on_gpu = encoded("gpu", device=GPU, workers=2)
    assert caplog.text.count("--encode_dtype=bfloat16 uses the GPU's fast units") == 1
    for modality, table in on_cpu.items():
        np.testing.assert_allclose(on_gpu[modality].values, table.values, atol=1e-4, rtol=1e-4)
        spread = np.abs(table.values).max()
        np.testing.assert_allclose(half[modality].values, table.values, atol=0.05 * spread, rtol=0.05)


class Wide(ItemEncoder):
    """Takes 64 MB for each item of a batch, as activations."""

    def __init__(self) -> None:
        super().__init__()
        self.dims = {"text": 2}
        self.scale = nn.Parameter(torch.ones(()))

    def prepare(self, item: RawItem) -> dict[str, Tensor]:
        raise NotImplementedError

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        numbers = self.scale * batch["numbers"]  # (B, 2)
        activations = numbers[:, :1].repeat(1, 16 << 20)
        return {"text": numbers + 0 * activations.mean(dim=1, keepdim=True)}


def test_a_batch_that_does_not_fit_into_the_gpus_memory_is_halved(caplog: pytest.LogCaptureFixture) -> None:
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(0) + (700 << 20)) / total, 0)
    try:
        model = Inference(Wide(), "text", name="wide", device=GPU, dtype="float32", compile=False, batch_size=32)
        numbers = torch.randn(32, 2)
        rows = model.fetched(model({"numbers": numbers}))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)
        torch.cuda.empty_cache()
    np.testing.assert_allclose(rows, numbers.numpy(), rtol=1e-6)
    assert "encoder wide: no memory for 32 items at once; going on with 16 (encode_batch_size)" in caplog.text


# Paradigms


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_frozen_features_of_an_encoder_train_a_model(
    specs: Specs, registry: Registry, tmp_path: Path, dtype: str
) -> None:
    asked = specs(encoder="clip:tiny", device=GPU, epochs="2", encode_dtype=dtype)
    check_history(run_grid(asked, registry, out=tmp_path / "runs").best, epochs=2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("encoder", TUNABLE)
def test_an_encoder_is_fine_tuned(specs: Specs, registry: Registry, tmp_path: Path, encoder: str, dtype: str) -> None:
    of_ft = {"ft.epochs": "2", "ft.batch_size": "4", "ft.held_out": "0.25", "ft.dtype": dtype}
    result = run_grid(
        specs(encoder=encoder, paradigm="ft", device=GPU, epochs="2", **of_ft), registry, out=tmp_path / "runs"
    ).best
    check_history(result, epochs=2)
    record = json.loads((result.path / "result.json").read_text())["record"]["ft"]
    assert record["device"] == torch.cuda.get_device_name(0)
    assert all(math.isfinite(value) for epoch in record["epochs"] for value in epoch.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("encoder", TUNABLE)
def test_an_encoder_is_trained_end_to_end(
    specs: Specs, registry: Registry, tmp_path: Path, encoder: str, dtype: str
) -> None:
    of_ete = {"ete.dtype": dtype, "ete.learning_rate": "1e-3", "ete.itc": "0.1", "ete.micro_batch": "4"}
    result = run_grid(
        specs(encoder=encoder, paradigm="ete", device=GPU, epochs="2", recompute="true", **of_ete),
        registry,
        out=tmp_path / "runs",
    ).best
    check_history(result, epochs=2)
    record = json.loads((result.path / "result.json").read_text())["record"]["ete"]
    assert record["steps"] > 0
    assert 0 < record["gradient_norm"]["mean"] < math.inf


# Several processes, several devices

TOGETHER = """
import torch
from torch import nn
from mmrec_lmm.distributed import *

device = torch.device("cuda:0")
join(device)
torch.manual_seed(0)
layer, rows = nn.Linear(3, 2).to(device), torch.randn(7, 3, device=device)
whole = layer(rows).square().sum()
expected = torch.autograd.grad(whole, [*layer.parameters()])
with sharing():
    own = rows[local_slice(7)].clone().requires_grad_()
    assert torch.equal(all_gather(own), rows)
    share = layer(own).square().sum()
    share.backward()
    sum_gradients([*layer.parameters()])
    torch.testing.assert_close(all_reduce(share), whole)
    for parameter, gradient in zip(layer.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
print("equal", broadcast(rank()))
"""


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started see one GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")


@pytest.mark.usefixtures("one_gpu")
def test_two_processes_share_one_gpu_over_gloo(tmp_path: Path) -> None:
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    for answer in finish(start_together(script)):
        assert (answer.code, answer.out) == (0, "equal 0\n"), answer.err


@pytest.mark.slow
@pytest.mark.usefixtures("one_gpu")
def test_two_processes_on_one_gpu_train_an_encoder_as_one_does(launch: Callable[..., Answer]) -> None:  # noqa: F811
    alone = json.loads(launch(1, *ETE, f"--device={GPU}", "--out", "alone").out)
    expected = losses()
    answer = launch(2, *ETE, f"--device={GPU}")
    assert answer.code == 0, answer.err
    together = json.loads(answer.out)
    close(losses(), expected)
    assert together["run_id"] == alone["run_id"]
    assert together["record"]["processes"] == 2


@pytest.mark.gpu(devices=2)
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize(("name", "options"), [("VBPR", {}), ("SLMRec", {"ssl_task": "FD"}), ("MMGCL", {})])
def test_an_interrupted_run_on_the_second_gpu_continues_to_the_same_bits(
    specs: Specs, registry: Registry, tmp_path: Path, name: str, options: dict[str, str]
) -> None:
    asked = specs(name, device="cuda:1", epochs="4", **options)
    check_resumes(asked, registry, tmp_path, disturb=lambda: [torch.rand(7, device=f"cuda:{n}") for n in range(2)])


@pytest.mark.gpu(devices=2)
@pytest.mark.parametrize("paradigm", ["pt", "ft", "ete"])
def test_a_run_on_the_second_gpu_leaves_the_first_alone(
    specs: Specs, registry: Registry, tmp_path: Path, paradigm: str
) -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(0)
    torch.cuda.reset_peak_memory_stats(0)
    small = {"ft.epochs": "1", "ft.batch_size": "4", "ft.held_out": "0.25"} if paradigm == "ft" else {}
    asked = specs(encoder="clip:tiny", paradigm=paradigm, device="cuda:1", epochs="2", **small)
    check_history(run_grid(asked, registry, out=tmp_path / "runs").best, epochs=2)
    assert torch.cuda.max_memory_allocated(0) == before


def test_the_seconds_of_parts_are_the_gpus_and_their_recording_waits_for_nothing() -> None:
    clock, x = PartClock(torch.device(GPU)), torch.randn(4096, 4096, device=GPU)
    torch.cuda.synchronize()
    started = time.perf_counter()
    clock.start()
    with no_syncs(GPU):
        for part, products in (("one", 1), ("many", 50), ("one", 1)):
            for _ in range(products):
                x @ x
            clock.lap(part)
    seconds = clock.take()
    assert seconds["many"] > 5 * seconds["one"] > 0
    assert sum(seconds.values()) <= time.perf_counter() - started
