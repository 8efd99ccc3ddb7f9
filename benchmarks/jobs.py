"""One measurement per process, since a peak of memory is a process's: `python -m benchmarks.jobs '{...}'`.

models.py starts these and collects their results. Each job is a function from plain values to plain values, passed as
JSON. The peak is read after one step (or two: an epoch's first batch is special in LATTICE) and one evaluation, before
anything is counted or the machine's rates are measured.
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmrec_lmm.config.settings import Settings
from mmrec_lmm.data.loading import load_dataset
from mmrec_lmm.data.sampling import TrainingRows
from mmrec_lmm.evaluation.measures import Measures
from mmrec_lmm.evaluation.ranking import Evaluator
from mmrec_lmm.features.prepared import PreparedItems
from mmrec_lmm.graph import BipartiteGraph, nearest_neighbors
from mmrec_lmm.machine import forget_peak_memory, keep_freed_memory
from mmrec_lmm.plugin.contracts import Recommender
from mmrec_lmm.plugin.item_features import ItemFeatures
from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.plugin.specs import resolve
from mmrec_lmm.training.encoder_side import EncoderWorker
from mmrec_lmm.training.end_to_end import JointEncoder
from mmrec_lmm.training.loop import Validation
from mmrec_lmm.training.paradigms import EndToEnd
from mmrec_lmm.training.trainer import Trainer
from mmrec_lmm.types import Batch, FeatureTable, Interactions, RawItem, TrainingData

from .counting import Count, count
from .memory import peak_bytes
from .synthetic import BABY, QUICK, Size, clustered, features, interactions
from .timing import copy_rate, now, product_rate, seconds, selection_rate, sparse_rate

SETTINGS = Settings()  # the shipped defaults: batches of 2,048, Adam at 0.001, four metrics at 5, 10, 20 and 50
ROUNDS = 3  # in which steps, evaluation and the machine's rates are measured by turns
WIDTH = 64  # of embeddings, and so of what is propagated and compared


class SomeRows:
    """An epoch's first batches, as the trainer draws them, and when each was asked for."""

    def __init__(self, rows: TrainingRows) -> None:
        self._rows, self.limit = rows, 2
        self.times: list[float] = []

    def epoch(self, generator: torch.Generator) -> Iterator[Batch]:
        self.times = []
        for batch in islice(self._rows.epoch(generator), self.limit):
            yield batch
            self.times.append(now())  # the trainer is back: its step on this batch is done

    def __len__(self) -> int:
        return len(self._rows)


def train(
    model: str,
    *,
    options: Mapping[str, Any],
    steps: int,
    factor: int,
    widths: Mapping[str, int],
    quick: bool,
    steps_only: bool = False,
    mapped: bool = False,
    items: int | None = None,
) -> dict[str, Any]:
    """Time a model's first batch of an epoch and `steps` more, in the real trainer, and a whole evaluation: medians of
    a few rounds, in which the machine's rates are measured too.

    `seconds` and `floor` of each are by part: "first" (epoch start, sampling and first batch), "step", "evaluation".
    With `steps_only` there is one round, and neither evaluation nor floor. `factor` multiplies Baby's size, of which
    `items` may replace the number of items; `mapped` features are read from a memory-mapped file.
    """
    size = QUICK if quick else BABY
    size = size.times(factor, size.widths if quick else widths)
    if items is not None:
        size = Size(size.users, items, size.train, size.valid, size.test, size.widths)
    size = _fitting(size, options)
    rng = np.random.default_rng(0)
    splits = interactions(size, rng)
    with tempfile.TemporaryDirectory() as folder:
        tables = _mapped(size, rng, Path(folder)) if mapped else features(size, rng)
        return _train(model, size, splits, tables, options=options, steps=steps, steps_only=steps_only, quick=quick)


def _train(
    name: str, size: Size, splits: Any, tables: Any, *, options: Any, steps: int, steps_only: bool, quick: bool
) -> dict[str, Any]:
    keep_freed_memory()  # as a run does
    registry = load_registry()
    measures = Measures(registry.metrics, SETTINGS.metrics, splits["train"], size.users, size.items)
    data = TrainingData(size.users, size.items, splits["train"])
    started = now()
    model = _build(name, data, tables, options)
    batch = size.train // 7 if quick else SETTINGS.train_batch_size  # a few, also of a tiny size
    rows = SomeRows(TrainingRows(splits["train"], size.users, batch))
    trainer = _trainer(model, rows)
    trainer.train_epoch(0)  # what is made once for a whole run
    start = now() - started
    evaluator = Evaluator(splits["test"], [splits["train"]], size.items)

    def rank() -> None:
        measures.values(evaluator.rank(model, max(SETTINGS.topk)), SETTINGS.topk)

    if not steps_only:
        rank()
    peak = peak_bytes()

    def epoch(batches: int) -> Count:
        rows.limit = batches
        return count(lambda: trainer.train_epoch(1))

    work: dict[str, dict[str, Any]] = {}
    if not steps_only:
        work["first"] = _plain(epoch(1))
        work["step"] = _difference(_plain(epoch(2)), work["first"])
        work["evaluation"] = _plain(count(rank))
        scores = len(np.unique(splits["test"].users)) * size.items
        work["evaluation"]["selected"][str(max(SETTINGS.topk))] = (
            scores  # `rank` chooses among fewer, so it may beat it
        )
    selections = {int(k) for part in work.values() for k in part["selected"]}

    times: dict[str, list[float]] = {"first": [], "step": [], "evaluation": []}
    rates: list[dict[str, float]] = []
    rows.limit = 1 + steps
    for _ in range(1 if quick or steps_only else ROUNDS):
        began = now()
        trainer.train_epoch(2)
        times["first"].append(rows.times[0] - began)
        times["step"] += np.diff(rows.times).tolist()
        if not steps_only:
            times["evaluation"].append(seconds(rank))
            rates.append(_rates(data, selections, quick=quick))
    rate = {name: statistics.median(each[name] for each in rates) for name in (rates[0] if rates else ())}
    return {
        "batches": len(rows),
        "seconds": {"start": start} | {part: statistics.median(taken) for part, taken in times.items() if taken},
        "peak": peak,
        "work": work,
        "rates": rate,
        "floor": {part: floor(counted, rate) for part, counted in work.items()},
    }


def epochs(
    model: str,
    *,
    options: Mapping[str, Any],
    number: int,
    widths: Mapping[str, int],
    quick: bool,
    data_path: str | None = None,
) -> dict[str, Any]:
    """The seconds of each of a model's first epochs, whole, in the real trainer: does it slow down as it trains?

    With `data_path` on the interactions of the data set `baby` there; features are drawn in any case.
    """
    keep_freed_memory()
    size, rng = _fitting(QUICK if quick else replace(BABY, widths=widths), options), np.random.default_rng(0)
    train = interactions(size, rng)["train"]
    if data_path is not None:
        dataset = load_dataset(Path(data_path) / "baby", "baby", SETTINGS)
        size, train = replace(size, users=dataset.n_users, items=dataset.n_items), dataset.train
    data = TrainingData(size.users, size.items, train)
    trainer = _trainer(
        _build(model, data, features(size, rng), options), TrainingRows(train, size.users, SETTINGS.train_batch_size)
    )
    taken = [seconds(partial(trainer.train_epoch, epoch)) for epoch in range(number)]
    return {"seconds": taken, "peak": peak_bytes()}


def _fitting(size: Size, options: Mapping[str, Any]) -> Size:
    """The size with the features that a model takes: UGNN's (`dense: false`) all have `latent_dim` columns."""
    if options.get("dense", True):
        return size
    return replace(size, widths=dict.fromkeys(size.widths, options["latent_dim"]))


def at_size(model: str, *, users: int, items: int, rows: int, steps: int, ranked: int, quick: bool) -> dict[str, Any]:
    """Time training steps of a large data set in the real trainer, and a ranking of `ranked` of its users among all
    items in the real evaluator. `items` and `users` count what the data set has, `rows` its training rows.

    `seconds`: "rows" (what the sampling of batches prepares), "model", "evaluator", then as `train`; "vectors" is what
    an evaluation computes once. `floor` is that of the ranking: its products, and one `topk` of all scores.
    """
    keep_freed_memory()
    registry, k = load_registry(), max(SETTINGS.topk)
    splits = interactions(Size(users, items, rows, users, users, {}), np.random.default_rng(0))
    train, test = splits["train"], splits["test"]
    chosen = np.isin(test.users, np.random.default_rng(1).choice(users, ranked, replace=False))
    held_out = Interactions(test.users[chosen], test.items[chosen])
    forget_peak_memory(torch.device("cpu"))
    times: dict[str, float] = {}

    def timed(part: str, work: Callable[[], Any]) -> Any:
        started = now()
        result = work()
        times[part] = now() - started
        return result

    batches = timed("rows", lambda: SomeRows(TrainingRows(train, users, SETTINGS.train_batch_size)))
    torch.manual_seed(0)
    data, no_features = TrainingData(users, items, train), ItemFeatures.from_tables({})
    cls, config = registry.models.load(model, "cls"), registry.models.load(model, "config")()
    recommender = timed("model", lambda: cls(data, no_features, config))
    generator = torch.Generator().manual_seed(0)
    trainer = Trainer(recommender, batches, SETTINGS, validate=lambda: Validation(0.0, {}), generator=generator)
    trainer.train_epoch(0)  # two batches, with what is made once for a whole run
    batches.limit = 1 + steps
    began = now()
    trainer.train_epoch(1)
    times |= {"first": batches.times[0] - began, "step": statistics.median(np.diff(batches.times).tolist())}
    evaluator = timed("evaluator", lambda: Evaluator(held_out, [train], items))
    with torch.no_grad():
        timed("vectors", recommender.eval().vectors)
    product, selection = product_rate(256 if quick else 2048, repeats=3), selection_rate(items, k, rows=64, repeats=3)
    ranking = timed("evaluation", lambda: evaluator.rank(recommender, k))
    measures = Measures(registry.metrics, SETTINGS.metrics, train, users, items)
    timed("metrics", lambda: measures.values(ranking, SETTINGS.topk))
    return {
        "batches": len(batches),
        "seconds": times,
        "peak": peak_bytes(),
        "floor": ranked * items * (2 * WIDTH / product + 1 / selection) / 1e9,
    }


def neighbors(*, items: int, width: int = WIDTH, probes: int | None = None) -> dict[str, Any]:
    """Time the search for the 10 nearest of `items` vectors, exact or in `probes` clusters."""
    x = torch.from_numpy(clustered(items, width, np.random.default_rng(0)))
    began = now()
    near = nearest_neighbors(x, 10, probes=probes)
    return {"seconds": now() - began, "peak": peak_bytes(), "recall": near.recall}


def joint_memory(encoder: str, *, items: int) -> dict[str, Any]:
    """The peak of an encoder's side of a joint run: two steps on a gradient for every item, and an encoding of all.
    `tables` are the bytes of features and gradient, which grow with the catalog.

    One prepared item is used for all: a real run's cached items are memory-mapped, and the system can free their pages.
    """
    keep_freed_memory()
    spec, modalities = load_registry().encoders.get(encoder), ("image", "text")
    built = resolve(spec.cls)(resolve(spec.config)(variant="tiny"), modalities)
    one = built.prepare(RawItem(0, Image.effect_noise((300, 450), 80).convert("RGB"), 100 * "word "))
    prepared = PreparedItems({key: np.broadcast_to(row, (items, *row.shape)) for key, row in one.items()}, {})
    present = {modality: torch.ones(items, dtype=torch.bool) for modality in modalities}
    tables = {modality: torch.zeros(items, built.dims[modality]) for modality in modalities}
    features, options = ItemFeatures(tables, present, joint=True), EndToEnd()
    callback = JointEncoder(
        EncoderWorker(built, prepared, present, options), features, options, generator=torch.Generator().manual_seed(0)
    )
    callback.epoch_started(0)
    batch = Batch(*torch.zeros(3, 1, dtype=torch.int64))
    for _ in range(2 * options.encoder_every):
        for leaf in features().values():
            leaf.grad = torch.randn_like(leaf)
        callback.after_batch(batch)
    callback.before_evaluation()
    return {"peak": peak_bytes(), "tables": 2 * sum(table.nbytes for table in tables.values())}


def floor(work: Mapping[str, Any], rates: Mapping[str, float]) -> float:
    """The seconds that the counted work takes at the machine's rates: products, rows moved, the optimizer's pass and
    selections. Elementwise work could be fused into these, and counts as free."""
    giga = (
        work["flops"] / rates["product"]
        + work["sparse_flops"] / rates["sparse"]
        + work["moved"] / rates["copy"]
        + sum(n / rates[f"largest {k}"] for k, n in work["selected"].items())
    )
    return float(giga / 1e9)


def _build(
    name: str, data: TrainingData, tables: Mapping[str, FeatureTable], options: Mapping[str, Any]
) -> Recommender:
    """A model with fresh weights, always the same."""
    registry = load_registry()
    torch.manual_seed(0)
    model: Recommender = registry.models.load(name, "cls")(
        data, ItemFeatures.from_tables(tables), registry.models.load(name, "config")(**options)
    )
    return model


def _trainer(model: Recommender, rows: Any) -> Trainer:
    generator = torch.Generator().manual_seed(0)
    return Trainer(model, rows, SETTINGS, validate=lambda: Validation(0.0, {}), generator=generator)


def _plain(counted: Count) -> dict[str, Any]:
    numbers = {name: getattr(counted, name) for name in ("operations", "flops", "sparse_flops", "moved", "bytes")}
    return numbers | {"selected": {str(k): n for k, n in counted.selected.items()}}


def _difference(both: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, Any]:
    """The work that the second of two batches adds."""
    numbers = {name: number - first[name] for name, number in both.items() if name != "selected"}
    selected = {k: n - first["selected"].get(k, 0) for k, n in both["selected"].items()}
    return numbers | {"selected": {k: n for k, n in selected.items() if n}}


def _rates(data: TrainingData, selections: Collection[int], *, quick: bool) -> dict[str, float]:
    """GFLOP/s of a large product and of the sparse product with this graph, GB/s of a copy, and the numbers a second
    (in billions) among which the largest k of a row are chosen, by k."""
    graph = BipartiteGraph(data).adjacency("symmetric").csr()
    return {
        "product": product_rate(256 if quick else 2048, repeats=3),
        "sparse": sparse_rate(graph, WIDTH, repeats=5),
        "copy": copy_rate(4 if quick else 256, repeats=3),
    } | {f"largest {k}": selection_rate(data.n_items, k, repeats=5) for k in selections}


def _mapped(size: Size, rng: np.random.Generator, folder: Path) -> dict[str, FeatureTable]:
    """Normal deviates in files, of which only what is read comes into memory; written in blocks."""
    tables, present = {}, np.ones(size.items, dtype=bool)
    for modality, width in size.widths.items():
        path = folder / f"{modality}.npy"
        values = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(size.items, width))
        for start in range(0, size.items, 4096):
            rows = values[start : start + 4096]
            rows[:] = rng.standard_normal(rows.shape, np.float32)
        values.flush()
        del values
        tables[modality] = FeatureTable(modality, np.load(path, mmap_mode="c"), present, modality)
    return tables


JOBS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "train": train,
    "epochs": epochs,
    "at_size": at_size,
    "neighbors": neighbors,
    "joint_memory": joint_memory,
}


def main() -> None:
    """Read a job from the command line, print its result."""
    request = json.loads(sys.argv[1])
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    print(json.dumps(JOBS[request["job"]](**request["arguments"])))


if __name__ == "__main__":
    main()
