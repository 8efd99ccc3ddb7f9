"""How near the host comes to what its work costs at least: `make bench`, or `python -m benchmarks.host [--quick]`.

Three jobs at Amazon Baby's size, on synthetic data: drawing an epoch's batches, a whole evaluation, a training epoch of
VBPR. Each is timed by turns with its floor (floors.py), and the ratio of the medians is held against its aim. The
machine's own rates come first, since milliseconds mean nothing without them. docs/performance.md says how to read it.
"""

import argparse
import platform
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mmrec_lmm.contracts import Recommender
from mmrec_lmm.data.sampling import TrainingRows
from mmrec_lmm.evaluator import Evaluator, MetricFunction, metric_values
from mmrec_lmm.features import ItemFeatures
from mmrec_lmm.registry import Registry, load_registry
from mmrec_lmm.settings import Settings
from mmrec_lmm.trainer import Trainer, Validation
from mmrec_lmm.types import TrainingData

from .floors import EvaluationFloor, SamplingFloor, VBPRFloor
from .synthetic import BABY, QUICK, Size, features, interactions
from .timing import Timing, by_turns, copy_rate, product_rate

SETTINGS = Settings()  # the shipped defaults: batches of 2,048, Adam at 0.001, four metrics at 5, 10, 20 and 50


@dataclass(frozen=True)
class Job:
    """Something that users run, the least that it could cost, and the arithmetic of that least."""

    name: str
    aim: float  # greatest ratio of the real time to the floor's
    real: Callable[[], object]
    floor: Callable[[], object]
    gflop: float  # of matrix products
    gigabytes: float  # read and written by gathers, products, sorts, mask, Adam; what stays in a cache counts as well


class World:
    """The synthetic data set, the real objects on it, and the floors that hold the same weights and tables."""

    def __init__(self, size: Size, *, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        splits, tables = interactions(size, rng), features(size, rng)
        registry = load_registry()
        self.size, self.metrics = size, metric_functions(registry)
        self.rows = TrainingRows(splits["train"], size.users, SETTINGS.train_batch_size)
        self.model = build_vbpr(
            registry, TrainingData(size.users, size.items, splits["train"]), ItemFeatures.from_tables(tables), seed
        )
        self.evaluator = Evaluator(splits["test"], [splits["train"]], size.items)
        self.generators = [torch.Generator().manual_seed(seed) for _ in range(2)]  # real, floor
