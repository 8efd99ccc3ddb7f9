"""How near the host comes to the minimum cost of its work: `make bench`, or `python -m benchmarks.host [--quick]`.

Three jobs at Amazon Baby's size, on synthetic data: drawing an epoch's batches, a whole evaluation, a training epoch of
VBPR. Each alternates with its floor (floors.py), and the ratio of the medians is compared with its aim. The machine's
own rates are printed too, since milliseconds alone say little. docs/performance.md says how to read it.
"""

import argparse
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mmrec_lmm.config.settings import Settings
from mmrec_lmm.data.sampling import TrainingRows
from mmrec_lmm.evaluation.measures import Measures
from mmrec_lmm.evaluation.ranking import Evaluator
from mmrec_lmm.plugin.item_features import ItemFeatures
from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.training.loop import Validation
from mmrec_lmm.training.trainer import Trainer
from mmrec_lmm.types import TrainingData

from .counting import Count, count
from .floors import EvaluationFloor, SamplingFloor, VBPRFloor
from .synthetic import BABY, QUICK, Size, features, interactions
from .timing import Timing, by_turns, copy_rate, product_rate

SETTINGS = Settings()  # the shipped defaults: batches of 2,048, Adam at 0.001, four metrics at 5, 10, 20 and 50


@dataclass(frozen=True)
class Job:
    """Something that users run, its floor (the minimum it could cost), and how many times the floor it may take."""

    name: str
    aim: float
    repeats: int
    real: Callable[[], object]
    floor: Callable[[], object]


@dataclass(frozen=True)
class Measured:
    """A job's times, and the work in its floor."""

    job: Job
    timing: Timing
    work: Count


def jobs(size: Size, *, seed: int = 0) -> list[Job]:
    """The three jobs. Real code and floors start from the same weights, tables and generator states."""
    rng = np.random.default_rng(seed)
    splits, tables = interactions(size, rng), features(size, rng)
    registry = load_registry()
    vbpr, config = registry.models.load("VBPR", "cls"), registry.models.load("VBPR", "config")()
    measures = Measures(registry.metrics, SETTINGS.metrics, splits["train"], size.users, size.items)
    torch.manual_seed(seed)
    data = TrainingData(size.users, size.items, splits["train"])
    model = vbpr(data, ItemFeatures.from_tables(tables), config)
    rows = TrainingRows(splits["train"], size.users, SETTINGS.train_batch_size)
    evaluator = Evaluator(splits["test"], [splits["train"]], size.items)
    generator, other_generator = (torch.Generator().manual_seed(seed) for _ in range(2))
    trainer = Trainer(model, rows, SETTINGS, validate=lambda: Validation(0.0, {}), generator=generator)

    sampling = SamplingFloor(rows, other_generator)
    weights = VBPRFloor(model.state_dict(), [model.features()[name] for name in model.modalities], config.reg_weight)
    evaluation = EvaluationFloor(weights, splits["test"], splits["train"], SETTINGS.topk)
    return [
        Job("sampling", 2.0, 25, lambda: list(rows.epoch(generator)), lambda: list(sampling())),
        Job(
            "evaluation",
            1.5,
            9,
            lambda: measures.values(evaluator.rank(model, max(SETTINGS.topk)), SETTINGS.topk),
            evaluation,
        ),
        Job(
            "VBPR epoch",
            1.5,
            7,
            lambda: trainer.train_epoch(0),
            lambda: weights.epoch(sampling(), SETTINGS.train_batch_size, SETTINGS.learning_rate).tolist(),
        ),
    ]


def measure(job: Job, repeats: int | None = None) -> Measured:
    """Time a job and its floor by turns."""
    return Measured(job, by_turns(job.real, job.floor, repeats or job.repeats), count(job.floor))


def machine(*, quick: bool = False) -> str:
    """One line on the processor, and the rates that it reached just now (on small operands if `quick`)."""
    product, copy = product_rate(256 if quick else 2048), copy_rate(4 if quick else 256)
    return (
        f"{processor()}, {os.cpu_count()} cores; torch {torch.__version__} on {torch.get_num_threads()} threads; "
        f"large product {product:.0f} GFLOP/s, copy {copy:.0f} GB/s"
    )


def processor() -> str:
    """The processor's name as Linux knows it, else its architecture."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def table(results: Sequence[Measured]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| job | ms | floor, ms | ratio | middle half | aim | | floor: operations | GFLOP | GB | GFLOP/s |",
        "|---|---:|---:|---:|---|---:|---|---:|---:|---:|---:|",
    ]
    for result in results:
        job, timing, work = result.job, result.timing, result.work
        real, floor = (1000 * statistics.median(times) for times in (timing.real, timing.floor))
        lower, upper = timing.quartiles
        verdict = "ok" if timing.ratio <= job.aim else "miss"
        lines.append(
            f"| {job.name} | {real:,.1f} | {floor:,.1f} | {timing.ratio:.2f} | {lower:.2f} - {upper:.2f} | {job.aim} "
            f"| {verdict} | {work.operations:,} | {work.flops / 1e9:,.1f} | {work.bytes / 1e9:,.2f} "
            f"| {work.flops / floor / 1e6:,.0f} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny size: shows that it runs, measures nothing")
    parser.add_argument("--repeats", type=int, help="times that each job and its floor run (default: by job)")
    options = parser.parse_args(argv)
    size = QUICK if options.quick else BABY
    widths = " + ".join(f"{width:,}" for width in size.widths.values())
    print(f"{size.users:,} users, {size.items:,} items, {size.train:,} training rows, features {widths}", flush=True)
    print(f"before: {machine(quick=options.quick)}", flush=True)
    results = [measure(job, options.repeats) for job in jobs(size)]
    print(f"after:  {machine(quick=options.quick)}\n")
    print(table(results))


if __name__ == "__main__":
    main()
