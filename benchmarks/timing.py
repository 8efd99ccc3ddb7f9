"""Interleaved timing, and the machine's own rates.

A shared machine's speed drifts by more than the differences to be measured, so nothing is compared across runs: what is
compared alternates, A B A B ..., and only the ratio of the medians has a meaning.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Timing:
    """Seconds of each repetition, real and floor by turns."""

    real: list[float]
    floor: list[float]

    @property
    def ratio(self) -> float:
        return statistics.median(self.real) / statistics.median(self.floor)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The quartiles of the ratios of neighboring repetitions."""
        lower, _, upper = statistics.quantiles(
            (r / f for r, f in zip(self.real, self.floor, strict=True)), n=4, method="inclusive"
        )
        return lower, upper


def now() -> float:
    """Seconds since some moment: processor time where torch has one thread, as other work on the machine distorts it
    least; else wall-clock time. On an idle machine both are the same for one thread."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    started = now()
    work()
    return now() - started


def by_turns(real: Callable[[], object], floor: Callable[[], object], repeats: int) -> Timing:
    """Time both `repeats` times (2 or more), in turn, after one untimed call of each."""
    real(), floor()
    pairs = [(seconds(real), seconds(floor)) for _ in range(repeats)]
    return Timing([pair[0] for pair in pairs], [pair[1] for pair in pairs])


def product_rate(size: int, repeats: int = 9) -> float:
    """Float32 GFLOP/s of a product of two square matrices."""
    a, b, out = torch.rand(size, size), torch.rand(size, size), torch.empty(size, size)
    return 2 * size**3 / 1e9 / _median(lambda: torch.mm(a, b, out=out), repeats)


def copy_rate(megabytes: int, repeats: int = 9) -> float:
    """GB/s of copying a block of memory, read and written bytes counted."""
    source = torch.ones(megabytes << 18)
    target = torch.empty_like(source)
    return 2 * source.nbytes / 1e9 / _median(lambda: target.copy_(source), repeats)


def sparse_rate(matrix: Tensor, width: int, repeats: int = 9) -> float:
    """Float32 GFLOP/s of a sparse matrix times a dense one of `width` columns."""
    x, out = torch.rand(matrix.shape[1], width), torch.empty(matrix.shape[0], width)
    work = 2 * matrix.values().numel() * width
    return work / 1e9 / _median(lambda: torch.addmm(out, matrix, x, beta=0, out=out), repeats)


def selection_rate(n: int, k: int, *, rows: int = 256, repeats: int = 9) -> float:
    """Billions of numbers a second, of which the largest `k` of each `n` are chosen."""
    scores, values, places = torch.rand(rows, n), torch.empty(rows, k), torch.empty(rows, k, dtype=torch.int64)
    return rows * n / 1e9 / _median(lambda: torch.topk(scores, k, out=(values, places)), repeats)


def _median(work: Callable[[], object], repeats: int) -> float:
    work()
    return statistics.median(seconds(work) for _ in range(repeats))
