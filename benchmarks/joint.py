"""Joint training: what it costs beyond its encoder's arithmetic, and its curves.

    python -m benchmarks.joint [--full] [--quick]
    python -m benchmarks.joint side
    python -m benchmarks.joint gradients|variance|recall|tunes [--data-path DIR] [--out DIR]

`side` prints an epoch of a recommender with a side network beside one of the recommender alone, of towers of 3 and 12
blocks of which as many layers are taken. The last line has the curves (joint_curves.py). The first prints three tables,
for the tiny variants of VLMo, BEiT-3 and CLIP:
epochs   an epoch of a recommender and the encoder together, compared with two forward passes and one backward pass over
         the same rows plus an epoch of the recommender alone; the encoding of all items is timed separately
loader   prepared items read from the cache a second, compared with the items a second that the encoder computes forward
         and backward; and items prepared a second. --full adds CLIP ViT-B/16 with random weights
memory   the peak of the encoder's side of a joint run, at two sizes of the catalog

Items are JPEGs of 300 x 450 with a text of a hundred words; interactions are synthetic. One thread, its processor time.
docs/performance.md says how to read it.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmrec_lmm.config.settings import Settings
from mmrec_lmm.data.sampling import TrainingRows
from mmrec_lmm.errors import MMRecError
from mmrec_lmm.features.prepared import PreparedItems, prepared_items
from mmrec_lmm.features.states import HiddenStates
from mmrec_lmm.machine import encode_batch, keep_freed_memory
from mmrec_lmm.plugin.contracts import ItemEncoder
from mmrec_lmm.plugin.item_features import ItemFeatures
from mmrec_lmm.plugin.registry import Registry, load_registry
from mmrec_lmm.plugin.specs import EncoderSpec, NoConfig, resolve
from mmrec_lmm.training.encoder_side import EncoderWorker
from mmrec_lmm.training.end_to_end import JointEncoder
from mmrec_lmm.training.loop import Validation
from mmrec_lmm.training.paradigms import EndToEnd
from mmrec_lmm.training.side import SideNetwork, feature_key, side_items
from mmrec_lmm.training.trainer import Trainer
from mmrec_lmm.types import FeatureTable, Interactions, ItemCatalog, TrainingData

from . import joint_curves
from .encoders import FULL, full, make_catalog
from .host import processor
from .models import Bench
from .synthetic import Size, interactions
from .timing import Timing, by_turns, seconds

AIM = 1.3
MODELS = ("VBPR", "MMGCN")  # without and with a graph
MODALITIES = ("image", "text")
SIZE = Size(users=1_500, items=500, train=16_000, valid=3_000, test=3_000, widths={})
QUICK = Size(users=40, items=24, train=240, valid=50, test=50, widths={})
OPTIONS = EndToEnd(learning_rate=1e-4, refresh_epochs=10**9)  # the one refresh is timed apart
CATALOGS = (500, 5_000)  # items, whose memory is compared
CURVES = {
    "gradients": joint_curves.print_gradients,
    "variance": joint_curves.print_variance,
    "recall": joint_curves.print_recall,
    "tunes": joint_curves.print_tunes,
}


@dataclass(frozen=True)
class Epochs:
    """The times of a joint epoch and its floor, and of their parts in seconds."""

    timing: Timing
    rows: int  # items encoded with gradient in an epoch
    recommender: float  # an epoch of it alone
    refresh: float  # all items encoded once


def epochs(
    name: str, encoder: ItemEncoder, items: PreparedItems, registry: Registry, size: Size, *, repeats: int, batch: int
) -> Epochs:
    """Time joint epochs of model `name` and an encoder of image and text, by turns with their floor."""
    train = interactions(size, np.random.default_rng(0))["train"]
    present = {modality: torch.ones(size.items, dtype=torch.bool) for modality in MODALITIES}
    tables = {modality: torch.zeros(size.items, encoder.dims[modality]) for modality in MODALITIES}
    features = ItemFeatures(tables, present, joint=True)
    callback = JointEncoder(
        EncoderWorker(encoder, items, present, OPTIONS), features, OPTIONS, generator=torch.Generator().manual_seed(0)
    )
    joint = trainer(name, registry, train, size, features, batch=batch, callback=callback)
    touched: list[Tensor] = []
    step = callback._worker.step

    def noted(rows: Tensor, gradients: Mapping[str, Tensor], rate: float) -> float:
        touched.append(rows)
        return step(rows, gradients, rate)

    callback._worker.step = noted  # type: ignore[method-assign]
    callback.epoch_started(0)  # encodes all items; the recommender alone gets a constant copy
    frozen = ItemFeatures({modality: table.detach().clone() for modality, table in features().items()}, present)
    alone = trainer(name, registry, train, size, frozen, batch=batch)

    def joint_epoch() -> None:
        touched.clear()
        joint.train_epoch(1)

    def floor() -> None:
        alone.train_epoch(1)
        for rows in touched:
            forward_twice_and_backward(encoder, items, rows)

    timing = by_turns(joint_epoch, floor, repeats)
    recommender = statistics.median(seconds(lambda: alone.train_epoch(1)) for _ in range(repeats))
    return Epochs(timing, sum(map(len, touched)), recommender, seconds(callback.before_evaluation))


def trainer(
    name: str,
    registry: Registry,
    train: Interactions,
    size: Size,
    features: ItemFeatures,
    *,
    batch: int,
    callback: JointEncoder | None = None,
) -> Trainer:
    """A model with default options, about to be trained."""
    torch.manual_seed(0)
    data = TrainingData(size.users, size.items, train)
    model = registry.models.load(name, "cls")(data, features, registry.models.load(name, "config")())
    return Trainer(
        model,
        TrainingRows(train, size.users, batch),
        Settings(),
        validate=lambda: Validation(0.0, {}),
        generator=torch.Generator().manual_seed(0),
        callback=callback,
    )


def forward_twice_and_backward(encoder: ItemEncoder, items: PreparedItems, rows: Tensor) -> None:
    """The encoder's arithmetic in a step on some rows, with gradients that cost nothing."""
    for part in rows.split(OPTIONS.micro_batch):
        forward_and_backward(encoder, items.batch(part.numpy()))
    with torch.no_grad():
        for part in rows.split(encode_batch(Settings(), torch.device("cpu"))):
            encoder(items.batch(part.numpy()))


def forward_and_backward(encoder: ItemEncoder, batch: dict[str, Tensor]) -> None:
    """One pass each way. The gradients add up in the encoder's weights, which stay."""
    torch.stack([rows.sum() for rows in encoder(batch).values()]).sum().backward()


@dataclass(frozen=True)
class Loading:
    """Items a second: computed forward and backward, read from the cache, and prepared for it."""

    computed: float
    read: float
    made: float


def loading(catalog: ItemCatalog, encoder: ItemEncoder, *, name: str, rounds: int, computed: int) -> Loading:
    """Time reading a catalog's prepared items, and the encoder on `computed` of them a round.

    Batches are random, as a step draws them. They were written shortly before, so they come from the system's cache.
    """
    n_items = len(catalog)
    made = n_items / seconds(lambda: stored(catalog, encoder, name))
    items = stored(catalog, encoder, name)
    rng = np.random.default_rng(0)
    batches = [part.numpy() for part in torch.from_numpy(rng.permutation(n_items)).split(OPTIONS.micro_batch)]

    def read() -> None:
        for batch in batches:
            items.batch(batch)

    def compute() -> None:
        for part in torch.arange(computed).split(OPTIONS.micro_batch):
            forward_and_backward(encoder, items.batch(part.numpy()))

    timing = by_turns(compute, read, rounds)
    return Loading(computed / statistics.median(timing.real), n_items / statistics.median(timing.floor), made)


def stored(catalog: ItemCatalog, encoder: ItemEncoder, name: str) -> PreparedItems:
    """The catalog's items as the encoder prepares them, made where they aren't there."""
    spec = EncoderSpec(name, None, NoConfig, tuple(encoder.dims), lambda config, modality: "random")
    return prepared_items(catalog, spec, NoConfig(), encoder, text_fields=["title"])


def tiny(spec: EncoderSpec) -> ItemEncoder:
    """The tiny variant, for image and text."""
    encoder: ItemEncoder = resolve(spec.cls)(resolve(spec.config)(variant="tiny"), MODALITIES)
    return encoder.eval()


#: Of the side network's benchmark: towers of ViT-B's width, and features of CLIP's.
SIDE_SIZE = Size(users=943, items=1_682, train=80_000, valid=3_000, test=3_000, widths={})
SIDE_WIDTH, SIDE_DIM, TAKEN = 768, 512, 4
SIDE_MODELS = ("VBPR", "MMGCN", "MMGCL", "SLMRec", "LATTICE", "FREEDOM", "BM3", "MGCN")


def side_world(depth: int, size: Size, *, width: int, dim: int) -> tuple[SideNetwork, PreparedItems]:
    """A side network over TAKEN layers of towers of `depth` blocks, whose states of all items are cached already."""
    rng = np.random.default_rng(0)
    layers = tuple(np.linspace(0, depth, TAKEN).round().astype(int).tolist())
    present = np.ones(size.items, bool)
    states, tables = {}, {}
    for modality in MODALITIES:
        arrays = tuple(rng.standard_normal((size.items, width)).astype(np.float16) for _ in layers)
        states[modality] = HiddenStates(layers, depth, arrays)
        values = rng.standard_normal((size.items, dim)).astype(np.float32)
        tables[modality] = FeatureTable(modality, values, present, modality)
    network = SideNetwork(
        dict.fromkeys(MODALITIES, dim),
        {modality: states[modality].widths for modality in MODALITIES},
        rank=EndToEnd().side_width,
        unit=dict.fromkeys(MODALITIES, False),
        generator=torch.Generator().manual_seed(0),
    )
    return network, side_items(tables, states)


@dataclass(frozen=True)
class SideEpochs:
    """A joint epoch beside one of the recommender alone, the rows with gradient in it, and all items encoded once."""

    timing: Timing
    rows: int
    refresh: float


def side_epochs(
    model: str, depth: int, registry: Registry, size: Size, *, repeats: int, batch: int, width: int, dim: int
) -> SideEpochs:
    """Time joint epochs with a side network by turns with epochs of the recommender alone."""
    options = EndToEnd(tune="side", refresh_epochs=10**9)
    network, items = side_world(depth, size, width=width, dim=dim)
    train = interactions(size, np.random.default_rng(0))["train"]
    present = {modality: torch.ones(size.items, dtype=torch.bool) for modality in MODALITIES}
    tables = {name: torch.from_numpy(items.arrays[feature_key(name)]) for name in MODALITIES}
    features = ItemFeatures(tables, present, joint=True)
    callback = JointEncoder(
        EncoderWorker(network, items, present, options), features, options, generator=torch.Generator().manual_seed(0)
    )
    joint = trainer(model, registry, train, size, features, batch=batch, callback=callback)
    alone = trainer(model, registry, train, size, ItemFeatures(tables, present), batch=batch)
    timing = by_turns(lambda: joint.train_epoch(1), lambda: alone.train_epoch(1), repeats)
    rows = callback._rows // (repeats + 1)
    return SideEpochs(timing, rows, seconds(callback.before_evaluation))


def print_side(registry: Registry, size: Size, *, repeats: int, batch: int, width: int, dim: int) -> None:
    """A line for each model and depth."""
    print(
        f"| model | blocks | layers taken | joint epoch, s | recommender alone, s | ratio | middle half | rows "
        f"| {size.items} items encoded, s |\n|---|---:|---:|---:|---:|---:|---|---:|---:|"
    )
    for model in SIDE_MODELS:
        for depth in (3, 12):
            found = side_epochs(model, depth, registry, size, repeats=repeats, batch=batch, width=width, dim=dim)
            times, (low, high) = found.timing, found.timing.quartiles
            print(
                f"| {model} | {depth} | {TAKEN} | {statistics.median(times.real):.2f} "
                f"| {statistics.median(times.floor):.2f} | {times.ratio:.2f} | {low:.2f} - {high:.2f} | {found.rows} "
                f"| {found.refresh:.2f} |",
                flush=True,
            )


def print_epochs(
    encoders: Mapping[str, ItemEncoder], catalog: ItemCatalog, registry: Registry, size: Size, *, repeats: int
) -> None:
    """A line for each encoder with each model."""
    batch = max(size.train // 8, 1)
    print(
        f"| encoder | model | joint epoch, s | floor, s | of that the recommender | ratio | middle half | aim {AIM} "
        f"| rows | {size.items} items encoded, s |\n|---|---|---:|---:|---:|---:|---|---|---:|---:|"
    )
    for name, encoder in encoders.items():
        items = stored(catalog, encoder, name)
        for model in MODELS:
            found = epochs(model, encoder, items, registry, size, repeats=repeats, batch=batch)
            times, (low, high) = found.timing, found.timing.quartiles
            print(
                f"| {name}:tiny | {model} | {statistics.median(times.real):.2f} | {statistics.median(times.floor):.2f} "
                f"| {found.recommender:.2f} | {times.ratio:.2f} | {low:.2f} - {high:.2f} "
                f"| {'ok' if times.ratio <= AIM else 'miss'} | {found.rows} | {found.refresh:.2f} |",
                flush=True,
            )


def print_loading(works: Sequence[tuple[str, ItemEncoder, int]], catalog: ItemCatalog) -> None:
    """A line for each encoder by its name, and how many items it computes in a round."""
    print(
        "\n| encoder | items | forward + backward, items/s | read from the cache, items/s | made, items/s |\n"
        "|---|---|---:|---:|---:|"
    )
    for name, encoder, computed in works:
        found = loading(catalog, encoder, name=f"{name} once more", rounds=3, computed=computed)
        kinds = " + ".join(sorted(encoder.dims))
        print(f"| {name} | {kinds} | {found.computed:,.1f} | {found.read:,.0f} | {found.made:,.0f} |", flush=True)


def print_memory(names: Sequence[str], sizes: Sequence[int], *, quick: bool) -> None:
    """A line for each encoder, each measured in a process of its own."""
    bench = Bench(threads=1, steps=0, quick=quick)
    print("\n| encoder |" + "".join(f" {size:,} items, MB | tables, MB |" for size in sizes))
    print("|---|" + "---:|" * (2 * len(sizes)))
    for name in names:
        cells = []
        for size in sizes:
            found = bench.job("joint_memory", encoder=name, items=size)
            cells += [f"{1000 * found['peak']:.0f}", f"{found['tables'] / 1e6:.1f}"]
        print(f"| {name}:tiny | {' | '.join(cells)} |", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    registry = load_registry()
    known = {name: registry.encoders.get(name) for name in FULL if name in registry.encoders}
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.joint", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", nargs="?", choices=("costs", "side", *CURVES), default="costs", help="default: %(default)s"
    )
    parser.add_argument("--data-path", default="data", metavar="DIR", help="of the curves' demo data (default: data)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="DIR", help="of the curves' runs (default: runs)"
    )
    parser.add_argument("--encoders", nargs="+", choices=known, metavar="NAME", help="default: all")
    parser.add_argument("--full", action="store_true", help="read and compute full-size images too, for some minutes")
    parser.add_argument("--repeats", type=int, default=5, help="of an epoch and its floor (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few items: shows that it runs, measures nothing")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.what in CURVES:
        CURVES[options.what](registry, options.data_path, options.out, options.quick)
        return
    keep_freed_memory()  # as a run does
    size = QUICK if options.quick else SIZE
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"{processor()}, {os.cpu_count()} cores{load}; one thread, processor time; {options.repeats} repeats\n")
    if options.what == "side":
        of_side = (QUICK, 64, 16, 8) if options.quick else (SIDE_SIZE, 2048, SIDE_WIDTH, SIDE_DIM)
        print_side(registry, of_side[0], repeats=options.repeats, batch=of_side[1], width=of_side[2], dim=of_side[3])
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MMREC_LMM_HOME"] = folder
        catalog = make_catalog(Path(folder), size.items, size.items)
        encoders: dict[str, ItemEncoder] = {}
        for name in options.encoders or known:
            try:
                encoders[name] = tiny(known[name])
            except MMRecError as error:  # its libraries aren't installed
                print(f"{name}: not measured: {error}")
        print_epochs(encoders, catalog, registry, size, repeats=options.repeats)
        works = [(f"{name}:tiny", encoder, min(256, size.items)) for name, encoder in encoders.items()]
        if options.full:
            works.append(("clip ViT-B/16", full(known["clip"], "image").eval(), 8))
        print_loading(works, catalog)
    print_memory([*encoders], (20, 40) if options.quick else CATALOGS, quick=options.quick)


if __name__ == "__main__":
    main()
