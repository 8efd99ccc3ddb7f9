"""The cost of encoding beyond the encoder's own forward: `python -m benchmarks.encoders [--full] [--quick]`.

For each encoder and modality, in turn: the bare forward on prepared batches; the loader alone, one process that reads
JPEGs of 300 x 450 (or texts) and prepares them; and the pipeline, `encode` from files to the table in the cache. The
pipeline can be as fast as the slower of the two others. Encoders are the tiny variants, whose forward is fast enough to
show what the pipeline adds; --full takes the published sizes, with random weights. One thread computes, or a GPU in
bfloat16 where there is one. docs/performance.md says how to read it.
"""

import argparse
import importlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmrec_lmm.cache import home
from mmrec_lmm.data.items import Prepared, Source, loader, source_of
from mmrec_lmm.errors import MMRecError
from mmrec_lmm.features.encoding import EncodeOptions, encode
from mmrec_lmm.plugin.contracts import ItemEncoder
from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.plugin.specs import EncoderSpec, NoConfig, resolve
from mmrec_lmm.types import ItemCatalog

from .host import processor

AIM = 0.9  # of the slower of forward and loader
ROUNDS, SECONDS = 3, 5  # seconds of forward in a round, if there are as many items
IMAGES, TEXTS = 512, 4096
SIZE = (300, 450)  # of a poster, pixels
WORDS = ("a", "the", "of", "wooden", "toy", "train", "lamp", "blue", "story", "who", "finds", "unexpectedly", "Berlin")


@dataclass(frozen=True)
class Rates:
    """Items per second of wall-clock time, the medians of the rounds; and processor time, which a busy machine distorts
    less."""

    forward: float
    loader: float
    pipeline: float
    added: float  # seconds per item that the pipeline's main process computes beyond the forward

    @property
    def ratio(self) -> float:
        return self.pipeline / min(self.forward, self.loader)

    @property
    def limit(self) -> str:
        if self.loader >= self.forward:
            return "the encoder"
        return f"reading: {self.forward / self.loader:.1f} workers would keep up"


def make_catalog(folder: Path, n_images: int, n_texts: int) -> ItemCatalog:
    """Items with a text of a hundred words; the first ones have an image too, as detailed as a photograph (35 KB)."""
    rng = np.random.default_rng(0)
    images: list[Path | None] = [None] * n_texts
    for item in range(n_images):
        rough = Image.fromarray(rng.integers(0, 256, (30, 20, 3), dtype=np.uint8)).resize(SIZE)
        fine = rng.integers(-12, 13, (SIZE[1], SIZE[0], 3), dtype=np.int16)
        picture = Image.fromarray((np.asarray(rough, np.int16) + fine).clip(0, 255).astype(np.uint8))
        path = folder / f"{item}.jpg"
        picture.save(path, quality=85)
        images[item] = path
    texts = tuple(" ".join(rng.choice(WORDS, 100)) for _ in range(n_texts))
    return ItemCatalog({"title": texts}, tuple(images), tuple(map(str, range(n_texts))), "")


def first(catalog: ItemCatalog, n_items: int) -> ItemCatalog:
    """The catalog's first items."""
    fields = {name: texts[:n_items] for name, texts in catalog.fields.items()}
    return ItemCatalog(fields, catalog.images[:n_items], catalog.raw_ids[:n_items], catalog.fingerprint)


def affordable(catalog: ItemCatalog, encoder: ItemEncoder, modality: str, batch_size: int) -> int:
    """How many items the forward computes in some seconds, four batches at least."""
    source = source_of(first(catalog, batch_size), modality, ["title"])
    [(batch, _)] = _loaded(source, encoder.eval(), "", batch_size, workers=0)
    with torch.inference_mode():
        encoder(batch)
        seconds, _ = _seconds(lambda: encoder(batch))
    return batch_size * max(4, round(SECONDS / seconds))


def rates(
    catalog: ItemCatalog,
    encoder: ItemEncoder,
    modality: str,
    *,
    name: str,
    device: torch.device,
    batch_size: int,
    workers: int,
    rounds: int = ROUNDS,
) -> Rates:
    """How fast forward, loader and pipeline are, measured in turn."""
    dtype = "bfloat16" if device.type == "cuda" else "float32"
    encoder = encoder.eval().to(device)
    source = source_of(catalog, modality, ["title"])
    batches = [tensors for tensors, _ in _loaded(source, encoder, name, batch_size, workers=0)]
    on_device = [{key: tensor.to(device) for key, tensor in batch.items()} for batch in batches]

    def built(config: Any, modalities: tuple[str, ...]) -> ItemEncoder:  # which takes no time
        return encoder

    spec = EncoderSpec(name, cast(Any, built), NoConfig, (modality,), lambda config, modality: "random")
    options = EncodeOptions(device=device, batch_size=batch_size, workers=workers, dtype=dtype)

    @torch.inference_mode()
    def forward() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            for batch in on_device:
                encoder(batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def load() -> None:
        for _ in _loaded(source, encoder, name, batch_size, workers=workers):
            pass

    def pipeline() -> None:
        shutil.rmtree(home() / "features", ignore_errors=True)  # but not the hashes of files, which loading data leaves
        encode(catalog, spec, NoConfig(), modalities=[modality], text_fields=["title"], options=options)

    works = (forward, load, pipeline)
    for work in works:  # once untimed
        work()
    measured = [[_seconds(work) for work in works] for _ in range(rounds)]
    wall, own = (
        [statistics.median(times[place][clock] for times in measured) for place in range(3)] for clock in (0, 1)
    )
    n_items = len(source.items)
    quick, loaded, whole = (n_items / seconds for seconds in wall)
    return Rates(quick, loaded, whole, (own[2] - own[0]) / n_items)


def _loaded(
    source: Source, encoder: ItemEncoder, name: str, batch_size: int, *, workers: int
) -> Iterator[tuple[dict[str, Tensor], Any]]:
    ids = source.items.tolist()
    batches = [ids[at : at + batch_size] for at in range(0, len(ids), batch_size)]
    for batch in loader(source, encoder, name, batches, workers=workers, pin=False):
        assert isinstance(batch, Prepared), batch
        yield dict(batch.tensors), batch.unreadable


def _seconds(work: Callable[[], object]) -> tuple[float, float]:
    """The seconds of wall-clock time and of this process's processor time."""
    wall, own = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - own


def tiny(spec: EncoderSpec, modality: str) -> ItemEncoder:
    """The encoder's tiny variant."""
    encoder: ItemEncoder = resolve(spec.cls)(resolve(spec.config)(variant="tiny"), (modality,))
    return encoder


def full(spec: EncoderSpec, *modalities: str) -> ItemEncoder:
    """The encoder at its published size, with random weights, through a checkpoint in its official layout."""
    cls = resolve(spec.cls)
    module = sys.modules[cls.__module__]
    more = {}
    if spec.name == "vlmo":
        model = module.VLMo(module.SIZES["base_plus"])
    elif spec.name == "beit3":
        model = module.Beit3ForRetrieval(module.SIZES["base"], 224, 0.0)
    else:
        more["variant"] = "ViT-B-16-quickgelu"
        model = importlib.import_module("open_clip").create_model(more["variant"], pretrained=None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "random.pt")
        torch.save(model.state_dict(), path)
        encoder: ItemEncoder = cls(resolve(spec.config)(weights=str(path), **more), modalities)
    return encoder


FULL = ("vlmo", "beit3", "clip")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    known = {spec.name: spec for spec in load_registry().encoders if "tiny" in spec.variants}
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.encoders", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoders", nargs="+", choices=known, metavar="NAME", help="default: all")
    parser.add_argument("--modalities", nargs="+", default=("image", "text"), metavar="NAME")
    parser.add_argument("--full", action="store_true", help="published sizes; some minutes for each on a CPU")
    parser.add_argument("--workers", type=int, default=1, help="loader processes (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, help="default: 64, and 8 of full size on a CPU")
    parser.add_argument("--quick", action="store_true", help="a few items: shows that it runs, measures nothing")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    slow = options.full and device.type == "cpu"
    batch_size = options.batch_size or (4 if options.quick else 8 if slow else 64)
    where = torch.cuda.get_device_name(device) + ", bfloat16" if device.type == "cuda" else "one thread, float32"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(
        f"{processor()}, {os.cpu_count()} cores{load}; {where}; loader processes: {options.workers}; batches of "
        f"{batch_size}; {1 if options.quick else ROUNDS} rounds\n\n"
        "| encoder | modality | forward, items/s | loader, items/s | pipeline, items/s | of the slower | "
        f"of the forward | added, ms | aim {AIM} | limit |\n|---|---|---:|---:|---:|---:|---:|---:|---|---|",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MMREC_LMM_HOME"] = folder
        catalog = make_catalog(Path(folder), *((8, 8) if options.quick else (IMAGES, TEXTS)))
        for name in options.encoders or (FULL if options.full else known):
            for modality in options.modalities:
                try:
                    encoder = (full if options.full else tiny)(known[name], modality)
                except MMRecError as error:
                    print(f"| {name} | {modality} | not measured: {str(error)[:80]} |", flush=True)
                    continue
                n_items = 2 * batch_size if options.quick else affordable(catalog, encoder, modality, batch_size)
                found = rates(
                    first(catalog, n_items), encoder, modality, name=name, device=device, batch_size=batch_size,
                    workers=options.workers, rounds=1 if options.quick else ROUNDS,
                )  # fmt: skip
                print(
                    f"| {name} | {modality} | {found.forward:,.1f} | {found.loader:,.1f} | {found.pipeline:,.1f} "
                    f"| {found.ratio:.2f} | {found.pipeline / found.forward:.2f} | {1000 * found.added:.2f} "
                    f"| {'ok' if found.ratio >= AIM else 'miss'} | {found.limit} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
