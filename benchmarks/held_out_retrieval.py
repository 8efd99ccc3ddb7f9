"""Does tuning lift image-text retrieval of items that it hasn't seen? Each item of a catalog is held out once.

    python -m benchmarks.held_out_retrieval -d ml100k --data-path DIR --out held-out.jsonl
    python -m benchmarks.held_out_retrieval --out held-out.jsonl --report

`cnn_sbert:projected-lite` is tuned, as by `--paradigm ft`, on nine of ten parts of the items that have image and text,
of which a tenth selects the epoch. Then each item of the last part is looked for by its counterpart, among the items of
that part and among all. Items that share an image or a text are in one part, and finding either counts. Beside it
stands the same encoder with random weights in both networks: initialized as usual, and the CNN's batch norms with the
statistics of the images. The file has a line for each part of each encoder, so a run that was stopped continues.

Shapes: N items that have image and text, F numbers of a network's vector, D of a projected one.
"""

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from mmrec_lmm.config.settings import Settings
from mmrec_lmm.data.items import JOINT, source_of
from mmrec_lmm.data.opening import open_dataset
from mmrec_lmm.disk.hashing import hash_readable
from mmrec_lmm.evaluation.retrieval import compared, own_ranks
from mmrec_lmm.features.encoding import build_encoder
from mmrec_lmm.features.prepared import prepared_items, with_frozen_part
from mmrec_lmm.plugin.registry import Registry, load_registry
from mmrec_lmm.plugin.specs import EncoderSpec, resolve
from mmrec_lmm.training.fine_tuning import PAIR, _Tuner
from mmrec_lmm.training.pairs import Pairs, duplicate_groups, hold_out
from mmrec_lmm.training.paradigms import FineTuning

TUNING = FineTuning(learning_rate=1e-3, batch_size=256, epochs=60, patience=10, held_out=0.1)
REAL, RANDOM = "real towers", "random towers"
WAYS = ("image to text", "text to image")
AMONG = ("its part", "all")
K = 10
CALIBRATED = 256  # images that give random batch norms their statistics


def folds(groups: np.ndarray, count: int) -> list[np.ndarray]:
    """The positions of `count` parts, none with a part of a group (N,)."""
    order = np.random.default_rng(0).permutation(int(groups.max()) + 1)
    return [np.flatnonzero(np.isin(groups, part)) for part in np.array_split(order, count)]


@torch.no_grad()
def ranks(encoder: Any, vectors: Any, pairs: Pairs, part: np.ndarray) -> dict[str, dict[str, list[int]]]:
    """By way and by what is searched: the rank of each item's counterpart, from 0, for the items of a part."""
    rows = {name: normalize(values, dim=1) for name, values in encoder.eval()(vectors.batch(pairs.items)).items()}
    found: dict[str, dict[str, list[int]]] = {}
    for way in WAYS:
        queries, candidates = (rows[name] for name in way.split(" to "))  # (N, D) each
        own = own_ranks(queries[part], candidates[part], pairs.groups[part])
        every = own_ranks(queries, candidates, pairs.groups)[part]
        found[way] = dict(zip(AMONG, (own.tolist(), every.tolist()), strict=True))
    return found


def measure(
    name: str, encoder: Any, vectors: Any, pairs: Pairs, parts: Sequence[np.ndarray], out: Path, done: set[int]
) -> None:
    """Tune for each part that isn't done, and append a line."""
    first = {key: value.clone() for key, value in encoder.state_dict().items()}
    for number, part in enumerate(parts):
        if number in done:
            continue
        encoder.load_state_dict(first)
        before = ranks(encoder, vectors, pairs, part)
        others = pairs.where(~np.isin(np.arange(len(pairs)), part))
        held_out = hold_out(others.groups, TUNING.held_out, np.random.default_rng([TUNING.seed, 0]))
        tuner = _Tuner(encoder, vectors, others.where(~held_out), others.where(held_out), TUNING, name=name)
        tuner.run(lambda state: None)
        encoder.load_state_dict(tuner.best_weights)
        line = {
            "encoder": name,
            "part": number,
            "items": pairs.items[part].tolist(),
            "best_epoch": tuner.best_epoch,
            "all": len(pairs),
            "before": before,
            "after": ranks(encoder, vectors, pairs, part),
        }
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{name}: part {number + 1} of {len(parts)}, best epoch {tuner.best_epoch}", flush=True)


@torch.no_grad()
def random_weights(folder: Path, spec: EncoderSpec, config: Any, images: Tensor) -> Any:
    """A configuration like `config`, of random weights that are written to `folder`; `images` are prepared ones."""
    plugin = sys.modules[type(config).__module__]
    packaged = plugin.minilm_folder(config)
    config = dataclasses.replace(config, variant="projected", cnn=plugin.LITE, weights=str(folder))
    texts, cnn = folder / plugin.MINILM, folder / plugin.cnn_file(config).name
    torch.manual_seed(0)
    shutil.copytree(packaged, texts, dirs_exist_ok=True)
    weights = load_file(packaged / "model.safetensors")
    for key, value in weights.items():  # as BERT is initialized
        if value.is_floating_point() and "LayerNorm" not in key:
            nn.init.zeros_(value) if key.endswith("bias") else nn.init.normal_(value, std=0.02)
        elif value.is_floating_point():
            nn.init.zeros_(value) if key.endswith("bias") else nn.init.ones_(value)
    save_file(weights, texts / "model.safetensors", metadata={"format": "pt"})

    import timm

    network = timm.create_model(plugin.LITE.removeprefix("timm:"), pretrained=False)
    save_file(network.state_dict(), cnn)
    built: Any = build_encoder(spec, config, ("image",)).cnn
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the statistics are those of the one batch
    network.train()(built.normalize(images))
    save_file(network.state_dict(), cnn)
    return config


def run(options: argparse.Namespace) -> None:
    registry: Registry = load_registry()
    settings = Settings(data_path=str(options.data_path))
    catalog = open_dataset(options.dataset, settings, registry).catalog
    assert catalog is not None
    spec = registry.encoders.get("cnn_sbert")
    spec = dataclasses.replace(spec, cls=resolve(spec.cls), weights_id=resolve(spec.weights_id))
    config = resolve(spec.config)(variant="projected-lite", image_size=options.image_size)
    fields = settings.text_fields
    source = source_of(catalog, JOINT, fields)
    hashes = hash_readable(source.images)
    for name in (REAL, RANDOM):
        done = {line["part"] for line in lines(options.out) if line["encoder"] == name}
        if len(done) == options.folds:
            continue
        encoder = build_encoder(spec, config, PAIR)
        prepared = prepared_items(catalog, spec, config, encoder, text_fields=fields)  # pixels and tokens: of both
        items = np.array(sorted(set(source.items.tolist()) - prepared.unreadable))
        if name == RANDOM:
            images = prepared.batch(items[:CALIBRATED])["pixels"]
            encoder = build_encoder(spec, random_weights(options.weights, spec, config, images), PAIR)
        groups = duplicate_groups([hashes[item] or "" for item in items], [source.texts[item] for item in items])
        pairs = Pairs(items, groups)
        vectors = with_frozen_part(prepared, encoder, items, batch_size=64, device=torch.device("cpu"), dtype="float32")
        measure(name, encoder, vectors, pairs, folds(groups, options.folds), options.out, done)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def hits(found: Sequence[dict[str, Any]], when: str, way: str, among: str) -> np.ndarray:
    return np.concatenate([np.array(line[when][way][among]) < K for line in found])


def report(path: Path) -> str:
    """The table of what a file holds, in Markdown, with 95 % intervals over items."""
    found = {name: [line for line in lines(path) if line["encoder"] == name] for name in (REAL, RANDOM)}
    out = [
        f"| Recall@{K} | searched | chance | random towers, tuned | real towers, untuned | real towers, tuned "
        "| tuning adds | over random towers |",
        "|---|---|---:|---:|---:|---:|---|---|",
    ]
    for among in AMONG:
        sizes = [len(line["items"]) if among == "its part" else line["all"] for line in found[REAL]]
        chance = np.average([K / size for size in sizes], weights=[len(line["items"]) for line in found[REAL]])
        for way in WAYS:
            rng = np.random.default_rng(0)
            before, after = (hits(found[REAL], when, way, among) for when in ("before", "after"))
            tuned = compared(before, after, rng)
            over = compared(hits(found[RANDOM], "after", way, among), after, rng)
            out.append(
                f"| {way} | {among} | {chance:.4f} | {span(over.before)} | {span(tuned.before)} | {span(tuned.after)} "
                f"| {span(tuned.difference, '+')} | {span(over.difference, '+')} |"
            )
    return "\n".join(out)


def span(estimate: tuple[float, float, float], sign: str = "") -> str:
    value, low, high = (f"{number:{sign}.4f}" for number in estimate)
    return f"{value} ({low} to {high})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", "--dataset", default="ml100k")
    parser.add_argument("--data-path", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("held-out.jsonl"), help="the file, which is continued")
    parser.add_argument("--folds", type=int, default=10, help="parts of the items (default: %(default)s)")
    parser.add_argument("--image-size", type=int, default=128, help="pixels a side (default: %(default)s)")
    parser.add_argument("--weights", type=Path, default=Path("random-towers"), help="a folder for the random ones")
    parser.add_argument("--report", action="store_true", help="only print what the file holds")
    options = parser.parse_args(arguments)
    if not options.report:
        run(options)
    print(report(options.out))


if __name__ == "__main__":
    main()
