"""Encoders and models on a GPU: `python -m benchmarks.gpu [--budget 450] [--device cuda] [--quick]`.

models    a step, an epoch and an evaluation of each at Amazon Baby's size, in float32
encoders  CLIP ViT-B/16, VLMo Base-Plus and BEiT-3 base with random weights, in bfloat16, on 7,050 items: encoding
          image and text, an epoch of `--paradigm ete` with VBPR, an epoch of `--paradigm ft`

Items are prepared tensors in memory, so decoding of images isn't measured. The arithmetic of an encoder is held against
a large bfloat16 product on the same device. The program watches its time: a part that wouldn't fit takes fewer items,
or is skipped, and says so. docs/performance.md says how to read it.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mmrec_lmm.config.settings import Settings
from mmrec_lmm.data.items import pad_and_stack
from mmrec_lmm.data.sampling import TrainingRows
from mmrec_lmm.errors import MMRecError
from mmrec_lmm.evaluation.measures import Measures
from mmrec_lmm.evaluation.ranking import Evaluator
from mmrec_lmm.features.inference import OUT_OF_MEMORY, Inference
from mmrec_lmm.features.prepared import PreparedItems, ahead
from mmrec_lmm.formatting import first_line
from mmrec_lmm.machine import choose_device, encode_batch, forget_peak_memory, keep_freed_memory, peak_memory
from mmrec_lmm.plugin.contracts import ItemEncoder
from mmrec_lmm.plugin.item_features import ItemFeatures
from mmrec_lmm.plugin.registry import Registry, load_registry
from mmrec_lmm.plugin.specs import EncoderSpec, resolve
from mmrec_lmm.training.encoder_side import EncoderWorker
from mmrec_lmm.training.end_to_end import JointEncoder
from mmrec_lmm.training.fine_tuning import _Tuner
from mmrec_lmm.training.loop import Validation
from mmrec_lmm.training.pairs import Pairs
from mmrec_lmm.training.paradigms import EndToEnd, FineTuning
from mmrec_lmm.training.trainer import Trainer
from mmrec_lmm.types import RawItem, TrainingData

from .counting import count
from .encoders import FULL, WORDS, full
from .host import processor
from .jobs import SomeRows
from .joint import QUICK, tiny
from .synthetic import BABY, Size, features, interactions

MODELS = ("BPR", "LightGCN", "VBPR", "SLMRec", "MMGCL", "LATTICE", "FREEDOM", "BM3", "MGCN", "MMGCN")
MODALITIES = ("image", "text")
SAMPLES = 32  # different items, which are repeated
DTYPE: Literal["bfloat16"] = "bfloat16"  # of encoders
SHARE = 0.7  # of a part's time that its main measurement may take, by the estimate
ROUNDS = 3  # of a model's epoch and evaluation


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    size: Size
    rows: int  # of a recommender's batch
    product: int  # side of the large product
    tuning: FineTuning
    joint: EndToEnd
    batch: int  # items encoded at once


FULL_SCALE = Scale(
    BABY, Settings().train_batch_size, 8192, FineTuning(dtype=DTYPE), EndToEnd(dtype=DTYPE),
    encode_batch(Settings(), torch.device("cuda")),
)  # fmt: skip
QUICK_SCALE = Scale(
    replace(QUICK, widths={"image": 12, "text": 8}), 30, 64, FineTuning(dtype=DTYPE, batch_size=8),
    EndToEnd(dtype=DTYPE, rows=8, micro_batch=4), 8,
)  # fmt: skip


class Budget:
    """The seconds that are left, shared equally by the parts to come."""

    def __init__(self, seconds: float, parts: int) -> None:
        self._end, self._parts = time.perf_counter() + seconds, parts

    def next_part(self) -> float:
        """The seconds that the next part may take; none below zero."""
        share = (self._end - time.perf_counter()) / max(1, self._parts)
        self._parts -= 1
        return max(0.0, share)


class Skipped(Exception):
    """A part has too little time, or memory."""


@dataclass(frozen=True)
class Work:
    """What an encoder did: with how many items, in how many seconds, with how many operations of products."""

    items: int
    seconds: float
    flops: float


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long a call takes, until the device has done its work."""
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def half_rate(device: torch.device, side: int, repeats: int = 20) -> float:
    """FLOP/s of a product of two square matrices of bfloat16."""
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    out = torch.empty_like(a)

    def products() -> None:
        for _ in range(repeats):
            torch.mm(a, b, out=out)

    products()
    return 2 * side**3 * repeats / min(seconds(products, device) for _ in range(3))


def flops(work: Callable[[], object]) -> int:
    """The operations of a call's products, attention included."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


# Models


def trainer(
    name: str, registry: Registry, train: Any, held: ItemFeatures, scale: Scale, device: torch.device,
    callback: JointEncoder | None = None,
) -> tuple[Trainer, SomeRows]:  # fmt: skip
    """A model with default options, about to be trained; and its rows, whose `limit` is that of batches in an epoch."""
    torch.manual_seed(0)
    data = TrainingData(scale.size.users, scale.size.items, train)
    model = registry.models.load(name, "cls")(data, held, registry.models.load(name, "config")()).to(device)
    rows = SomeRows(TrainingRows(train, scale.size.users, scale.rows, device))
    return Trainer(
        model,
        rows,  # type: ignore[arg-type]
        Settings(),
        validate=lambda: Validation(0.0, {}),
        generator=torch.Generator().manual_seed(0),
        callback=callback,
    ), rows


def measure_model(name: str, registry: Registry, scale: Scale, device: torch.device, tables: Any, splits: Any) -> str:
    """A line of the table: medians of some rounds. A step is an epoch without its first batch, by their number."""
    forget_peak_memory(device)
    trained, rows = trainer(name, registry, splits["train"], ItemFeatures.from_tables(tables, device), scale, device)
    size = scale.size
    measures = Measures(registry.metrics, Settings().metrics, splits["train"], size.users, size.items)
    evaluator = Evaluator(splits["test"], [splits["train"]], scale.size.items)

    def epoch(batches: int) -> Callable[[], object]:
        def train() -> None:
            rows.limit = batches
            trained.train_epoch(1)

        return train

    def rank() -> None:
        measures.values(evaluator.rank(trained._model, max(Settings().topk)), Settings().topk)

    for work in (epoch(2), rank):  # what is made once
        work()
    operations = count(epoch(2)).operations - count(epoch(1)).operations
    first, whole, ranking = (
        statistics.median(seconds(work, device) for _ in range(ROUNDS)) for work in (epoch(1), epoch(len(rows)), rank)
    )
    step = (whole - first) / max(1, len(rows) - 1)
    return (
        f"| {name} | {1000 * step:,.2f} | {operations:,} | {whole:.3f} | {ranking:.3f} "
        f"| {peak_memory(device) / 1e9:.2f} |"
    )


# Encoders


def build(spec: EncoderSpec, *, quick: bool) -> ItemEncoder:
    """An encoder of image and text with random weights: at its published size, or tiny. Words are hashed to ids: what
    they are changes no time, and vocabularies would have to be downloaded."""
    if quick:
        return tiny(spec)
    small, module = tiny(spec), sys.modules[resolve(spec.cls).__module__]
    hashed: Any = getattr(small, "tokenize", None)
    with mock.patch.dict(vars(module)):
        if spec.name == "vlmo":
            module._tokenizer = lambda config, size: (  # type: ignore[attr-defined]
                replace(hashed, max_tokens=size.max_tokens), torch.zeros(size.vocabulary, dtype=torch.bool)
            )  # fmt: skip
        elif spec.name == "beit3":
            module.tokenizer = lambda config: replace(hashed, max_tokens=config.max_tokens)  # type: ignore[attr-defined]
        return full(spec, *MODALITIES).eval()


def prepared(encoder: ItemEncoder, n_items: int) -> PreparedItems:
    """Items as the encoder prepares them: noise of 224 x 224 with a text of a hundred words, some of them repeated."""
    rng = np.random.default_rng(0)
    samples = [
        encoder.prepare(RawItem(item, Image.fromarray(pixels), " ".join(rng.choice(WORDS, 100))))
        for item, pixels in enumerate(rng.integers(0, 256, (SAMPLES, 224, 224, 3), dtype=np.uint8))
    ]
    places = np.arange(n_items) % SAMPLES
    stacked = pad_and_stack(samples, padding=encoder.padding, encoder="")
    lengths = {
        key: np.array([len(sample[key]) for sample in samples])[places]
        for key, rows in stacked.items()
        if rows.ndim == 2 and not rows.is_floating_point()
    }
    return PreparedItems({key: rows.numpy()[places] for key, rows in stacked.items()}, lengths)


def fitting(allowed: float, per_item: float, least: int, wanted: int) -> int:
    """How many of the `wanted` items fit into the seconds; Skipped if not even `least` do."""
    fits = int(SHARE * allowed / per_item)
    if fits < least:
        raise Skipped(f"{least} items would take {least * per_item:.0f} s, and {allowed:.0f} s are allowed")
    return min(wanted, fits)


def encoding(encoder: ItemEncoder, items: PreparedItems, scale: Scale, device: torch.device, allowed: float) -> Work:
    """Encoding image and text: batches are read one ahead, and rows fetched one behind, as `encode` does."""
    model = Inference(encoder, "image", name="", device=device, dtype=DTYPE, compile=False, batch_size=scale.batch)

    def batches(n_items: int) -> Iterator[dict[str, Tensor]]:
        for part in torch.arange(n_items).split(scale.batch):
            batch = items.batch(part.numpy())
            yield {key: rows.pin_memory() for key, rows in batch.items()} if device.type == "cuda" else batch

    def encode(n_items: int) -> None:
        held: list[Tensor] = []
        for batch in ahead(batches(n_items)):
            held.append(model(batch))
            if len(held) > 1:
                model.fetched(held.pop(0))
        model.fetched(held.pop())

    some = min(2 * scale.batch, scale.size.items)
    encode(some)
    n_items = fitting(allowed, seconds(lambda: encode(some), device) / some, some, scale.size.items)
    taken = seconds(lambda: encode(n_items), device)
    return Work(n_items, taken, n_items * flops_of_an_item(encoder, items, device))


def flops_of_an_item(encoder: ItemEncoder, items: PreparedItems, device: torch.device) -> float:
    """The operations of one item's forward pass, from those of eight."""
    batch = {key: rows.to(device) for key, rows in items.batch(np.arange(8)).items()}
    with torch.no_grad():
        return flops(lambda: encoder(batch)) / 8


def joint(encoder: ItemEncoder, items: PreparedItems, scale: Scale, device: torch.device, allowed: float) -> Work:
    """An epoch of VBPR and the encoder, and the encoding of all items before an evaluation.

    The arithmetic is the encoder's: each row of a step is computed forward, backward and forward again.
    """
    n_items, registry = scale.size.items, load_registry()
    present = {modality: torch.ones(n_items, dtype=torch.bool, device=device) for modality in MODALITIES}
    tables = {modality: torch.zeros(n_items, encoder.dims[modality], device=device) for modality in MODALITIES}
    held = ItemFeatures(tables, present, joint=True)
    callback = JointEncoder(
        EncoderWorker(encoder, items, present, scale.joint),
        held,
        scale.joint,
        generator=torch.Generator().manual_seed(0),
        batch_size=scale.batch,
    )
    train = interactions(scale.size, np.random.default_rng(0))["train"]
    trained, rows = trainer("VBPR", registry, train, held, scale, device, callback)
    each = flops_of_an_item(encoder, items, device)
    rows.limit = scale.joint.encoder_every
    trained.train_epoch(0)  # a step of the encoder, after all items are encoded
    once = seconds(callback.before_evaluation, device)
    steps = -(-len(rows) // scale.joint.encoder_every)
    expected = once * (1 + 4 * steps * min(scale.joint.rows or n_items, n_items) / n_items)
    if expected > allowed:
        raise Skipped(f"an epoch would take {expected:.0f} s, and {allowed:.0f} s are allowed")
    rows.limit, before = len(rows), callback._rows

    def epoch() -> None:
        trained.train_epoch(1)
        callback.before_evaluation()

    taken = seconds(epoch, device)
    with_gradient = callback._rows - before
    return Work(n_items, taken, each * (4 * with_gradient + n_items))


def tuning(encoder: ItemEncoder, items: PreparedItems, scale: Scale, device: torch.device, allowed: float) -> Work:
    """An epoch of tuning on the encoder's own losses; the arithmetic is that of the first batches, counted."""
    batch = scale.tuning.batch_size

    def tuner(n_items: int) -> _Tuner:
        """Over the first items, of which the last two are held out."""
        ids = np.arange(n_items + 2)
        trained, held_out = (Pairs(part, np.arange(len(part))) for part in (ids[:-2], ids[-2:]))
        return _Tuner(encoder.to(device), items, trained, held_out, scale.tuning, name="benchmark")

    some = min(2 * batch, scale.size.items - 2)
    each = flops(lambda: tuner(some).train_epoch(1)) / some
    once = seconds(lambda: tuner(some).train_epoch(1), device) / some
    n_items = fitting(allowed, once, some, scale.size.items - 2) // batch * batch
    whole = tuner(n_items)
    return Work(n_items, seconds(lambda: whole.train_epoch(1), device), n_items * each)


PARTS = {"encoding": encoding, "ete epoch": joint, "ft epoch": tuning}


def measure_encoder(
    spec: EncoderSpec, scale: Scale, device: torch.device, rate: float, budget: Budget, *, quick: bool
) -> None:
    """Print a line for each part."""
    skipped = [f"| {spec.name} | {part} | skipped: {{}} |" for part in PARTS]
    try:
        encoder = build(spec, quick=quick).to(device)
        items = prepared(encoder, scale.size.items)
    except MMRecError as error:  # its libraries aren't installed
        for line in skipped:
            budget.next_part()
            print(line.format(first_line(error)), flush=True)
        return
    for (part, measure), line in zip(PARTS.items(), skipped, strict=True):
        allowed = budget.next_part()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        forget_peak_memory(device)
        try:
            work = measure(encoder, items, scale, device, allowed)
        except (Skipped, MMRecError) as error:
            print(line.format(first_line(error)), flush=True)
            continue
        except RuntimeError as error:
            if not any(sign in str(error) for sign in OUT_OF_MEMORY):
                raise
            print(line.format("out of memory"), flush=True)
            continue
        reached = work.flops / work.seconds
        print(
            f"| {spec.name} | {part} | {work.items:,} | {work.seconds:,.2f} | {work.items / work.seconds:,.1f} "
            f"| {reached / 1e12:,.1f} | {100 * reached / rate:.0f} % | {peak_memory(device) / 1e9:.2f} |",
            flush=True,
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    started = time.perf_counter()
    registry = load_registry()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu with --quick (default: %(default)s)")
    parser.add_argument("--budget", type=float, default=450, help="seconds in all (default: %(default)s)")
    parser.add_argument("--models", nargs="*", choices=MODELS, default=MODELS, metavar="NAME", help="default: all")
    parser.add_argument("--encoders", nargs="*", choices=FULL, default=FULL, metavar="NAME", help="default: all")
    parser.add_argument("--quick", action="store_true", help="a tiny size: shows that it runs, measures nothing")
    options = parser.parse_args(argv)
    device = choose_device(Settings(device=options.device))
    scale = QUICK_SCALE if options.quick else FULL_SCALE
    keep_freed_memory()  # as a run does
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    rate = half_rate(device, scale.product)
    print(
        f"{name}, torch {torch.__version__}; "
        f"a {DTYPE} product of side {scale.product:,}: {rate / 1e12:,.1f} TFLOP/s\n\n"
        "| model | step, ms | operations | epoch, s | evaluation, s | peak, GB |\n|---|" + "---:|" * 5,
        flush=True,
    )
    budget = Budget(
        options.budget - (time.perf_counter() - started), len(options.models) + len(PARTS) * len(options.encoders)
    )
    rng = np.random.default_rng(0)
    splits, tables = interactions(scale.size, rng), features(scale.size, rng)
    for model in options.models:
        if not budget.next_part():
            print(f"| {model} | skipped: no time is left |", flush=True)
            continue
        print(measure_model(model, registry, scale, device, tables, splits), flush=True)
    print(
        f"\n| encoder, {DTYPE} | part | items | s | items/s | TFLOP/s | of the product | peak, GB |\n|---|---|"
        + "---:|" * 6,
        flush=True,
    )
    for encoder in options.encoders:
        measure_encoder(registry.encoders.get(encoder), scale, device, rate, budget, quick=options.quick)
    print(f"\n{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
