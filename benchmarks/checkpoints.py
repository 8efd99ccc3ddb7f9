"""What checkpoints cost: `python -m benchmarks.checkpoints [--quick] [--model LATTICE] [--epochs 8] [--threads 1]`.

Two whole runs on synthetic data of Amazon Baby's size: one with a checkpoint after each evaluation
(`checkpoint_seconds: 0`), one by the default rule. Measured are the seconds that an epoch's state costs beside the
epoch, and the bytes of all files that the run writes (Linux counts them). The figure for 100 epochs is extrapolated.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from mmrec_lmm.config.settings import Settings
from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.running.run_folder import load_history
from mmrec_lmm.running.runner import run
from mmrec_lmm.training.resume import Checkpoints
from mmrec_lmm.types import SPLITS, Dataset, Inputs, RunSpec

from .host import machine
from .synthetic import BABY, QUICK, Size, features, interactions

EPOCHS = 100  # of the extrapolated run


@dataclass
class Cost:
    """The cost of a run's states, in order; the last is that of the trained model."""

    seconds: list[float] = field(default_factory=list)  # of each state
    written: list[int] = field(default_factory=list)  # bytes of each
    epochs: list[float] = field(default_factory=list)  # seconds of each epoch with its evaluation
    total: int = 0  # bytes of all files of the run

    @property
    def state_seconds(self) -> float:
        """Of an epoch's state, the median; the first one also allocates the copy."""
        return statistics.median(self.seconds[1:-1])

    @property
    def epoch_seconds(self) -> float:
        """Of an epoch with its evaluation, the median; the first one makes what lasts for the run."""
        return statistics.median(self.epochs[1:])

    @property
    def other_bytes(self) -> int:
        """Of all that isn't a state of an epoch."""
        return self.total - sum(self.written[:-1])


def bytes_written() -> int:
    """The bytes that this process has written so far, to anything."""
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counts["wchar"])


def inputs_of(size: Size, rng: np.random.Generator) -> Inputs:
    splits, tables = interactions(size, rng), features(size, rng)
    train, valid, test = (splits[name] for name in SPLITS)
    return Inputs(Dataset("synthetic", size.users, size.items, train, valid, test, None, {}, ""), tables)


def measure(model: str, inputs: Inputs, settings: Settings) -> Cost:
    """Make a run, and note what each of its states costs."""
    registry, cost, offer = load_registry(), Cost(), Checkpoints.offer

    def noted(checkpoints: Checkpoints[Any], state: Any) -> None:
        before, started = bytes_written(), time.perf_counter()
        offer(checkpoints, state)
        cost.seconds.append(time.perf_counter() - started)
        cost.written.append(bytes_written() - before)

    spec = RunSpec(model, inputs.dataset.name, settings, registry.models.load(model, "config")())
    with tempfile.TemporaryDirectory() as out, mock.patch.object(Checkpoints, "offer", noted):
        before = bytes_written()
        result = run(spec, registry, out=Path(out), inputs=inputs)
        cost.total = bytes_written() - before
        cost.epochs = [report.train_seconds + report.valid_seconds for report in load_history(result.path)]
    return cost


def extrapolated(rule: Settings, cost: Cost, evaluated: int) -> float:
    """Bytes of a run of 100 epochs of this speed: the checkpoints that are due meanwhile, and the other files.

    One after each evaluation has `evaluated` bytes: weights are in it once, as best weights or current ones, since best
    weights that are there already aren't written again. A rare one may have both.
    """
    if not rule.checkpoint_seconds:
        return EPOCHS * evaluated + cost.other_bytes
    due = int(EPOCHS * cost.epoch_seconds / rule.checkpoint_seconds)
    return due * (evaluated + cost.written[-1]) + cost.other_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="LATTICE")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    parser.add_argument("--quick", action="store_true", help="a tiny size, to see that it runs")
    arguments = parser.parse_args()
    inputs = inputs_of(QUICK if arguments.quick else BABY, np.random.default_rng(0))
    plain = Settings(epochs=arguments.epochs, threads=arguments.threads, device="cpu")
    rules = [Settings(**{**plain.__dict__, "checkpoint_seconds": 0.0}), plain]
    costs = [measure(arguments.model, inputs, rule) for rule in rules]
    evaluated = max(costs[0].written[:-1])
    print(f"{machine(quick=arguments.quick)}\n{arguments.model}, {arguments.epochs} epochs\n")
    print("| checkpoint_seconds | epoch, s | its state, s | share | all files, MB | of 100 epochs, MB, extrapolated |")
    print("|---:|---:|---:|---:|---:|---:|")
    for rule, cost in zip(rules, costs, strict=True):
        print(
            f"| {rule.checkpoint_seconds:.0f} | {cost.epoch_seconds:.2f} | {cost.state_seconds:.3f} "
            f"| {cost.state_seconds / cost.epoch_seconds:.1%} | {cost.total / 1e6:,.1f} "
            f"| {extrapolated(rule, cost, evaluated) / 1e6:,.1f} |"
        )
    sizes = f"{evaluated / 1e6:,.1f} MB, that of the trained model {costs[1].written[-1] / 1e6:,.1f} MB"
    print(f"\nA checkpoint after each evaluation is {sizes}")


if __name__ == "__main__":
    main()
