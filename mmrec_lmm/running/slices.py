"""How good one trained run is on parts of test: cold and rare items, items that lack a modality, busy and idle users.

A slice belongs to the data set, so that all runs on it are asked about the same users. A slice of items counts, of each
user's held-out items, those in the slice alone, and leaves out users without any; a hit is read from the run's
`topk.tsv`, so that no model is loaded and no cutoff beyond that list can be answered.

Shapes: I items, U tested users, K listed items.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..cache import is_readable
from ..config.settings import Settings
from ..data.items import item_texts
from ..errors import ConfigError, DataError
from ..evaluation.ranking import MetricFunction
from ..evaluation.statistics import bootstrap, percentile_interval
from ..features.files import read_feature_file
from ..plugin.registry import Registry
from ..types import Dataset, RunResult
from . import run_folder
from .inputs import open_dataset

HEAD = 0.8  # share of the training interactions that the items outside the long tail hold


@dataclass(frozen=True)
class Slice:
    """A part of test: the held-out rows of some users or of some items."""

    name: str
    about: str  # what belongs to it, in words
    items: np.ndarray  # (I,) bool
    users: np.ndarray  # (n_users,) bool


def data_slices(dataset: Dataset, text_fields: Sequence[str]) -> list[Slice]:
    """The slices of a data set. Which items lack image or text the catalog says or, where there is none, the data
    set's own feature files."""
    every_item, every_user = np.ones(dataset.n_items, bool), np.ones(dataset.n_users, bool)
    of_items = np.bincount(dataset.train.items, minlength=dataset.n_items)  # (I,) training interactions
    parts = {
        "cold items": ("no training interaction", of_items == 0),
        "long tail": (
            f"items outside the smallest head that holds {HEAD:.0%} of the training interactions",
            ~_head(of_items),
        ),
    }
    for modality, has in _modalities(dataset, text_fields).items():
        parts[f"items without {modality}"] = (f"no {modality}", ~has)
    return [
        Slice("all", "all of test", every_item, every_user),
        *(Slice(name, about, items, every_user) for name, (about, items) in parts.items()),
        *(Slice(name, about, every_item, users) for name, about, users in _activity(dataset)),
    ]


def _head(interactions: np.ndarray) -> np.ndarray:
    """The most popular items (I,) bool, as few as hold the share HEAD; of equally popular ones those of lower id."""
    order = np.argsort(-interactions, kind="stable")
    held = np.cumsum(interactions[order])
    head = np.zeros(len(interactions), bool)
    head[order[: np.searchsorted(held, HEAD * held[-1] - 1e-9) + 1]] = True
    return head


def _modalities(dataset: Dataset, text_fields: Sequence[str]) -> dict[str, np.ndarray]:
    """Modality -> which items (I,) have it, of modalities that some item has."""
    catalog = dataset.catalog
    if catalog is None:
        tables = (
            read_feature_file(path, modality=modality, n_items=dataset.n_items)
            for modality, path in dataset.feature_files.items()
        )
        return {table.modality: table.present for table in tables}
    has = {
        "image": np.array([image is not None and is_readable(image) for image in catalog.images]),
        "text": np.array([bool(text) for text in item_texts(catalog, text_fields)]),
    }
    return {modality: items for modality, items in has.items() if items.any()}


def _activity(dataset: Dataset) -> Iterable[tuple[str, str, np.ndarray]]:
    """Thirds of the tested users by training interactions. Equally active users stay together, so that sizes differ."""
    counts = np.bincount(dataset.train.users, minlength=dataset.n_users)  # (n_users,)
    tested = counts[np.unique(dataset.test.users)]
    low, high = np.quantile(tested, [1 / 3, 2 / 3], method="inverted_cdf")
    yield "least active users", f"at most {low} training interactions", counts <= low
    yield "middling users", f"more than {low}, at most {high}", (counts > low) & (counts <= high)
    yield "most active users", f"more than {high}", counts > high


class Slicer:
    """Answers for any run on one data set. `text_fields` as of `data_slices`."""

    def __init__(self, dataset: Dataset, text_fields: Sequence[str], registry: Registry) -> None:
        self.dataset, self.slices = dataset, data_slices(dataset, text_fields)
        self._registry = registry

    def values(self, run: RunResult, metrics: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
        """Slice -> metric ("recall@20") -> one value for each user who has held-out items in it, ascending by id.

        Raises DataError where the run was made on other data or kept no lists, ConfigError where a metric is unknown or
        needs longer lists.
        """
        if run.record.data != self.dataset.fingerprint:
            raise DataError(f"{run.run_id}: the data changed since this run; run it again")
        users, items = _lists(run.path)  # (U,), (U, K)
        functions = {metric: self._function(metric, items.shape[1], run.run_id) for metric in metrics}
        test = self.dataset.test
        keys = np.unique(test.users * self.dataset.n_items + test.items)
        hits = np.isin(users[:, None] * self.dataset.n_items + items, keys) & (items >= 0)  # (U, K)
        found = {}
        for part in self.slices:
            mine = part.items[test.items] & part.users[test.users]
            positives = np.bincount(test.users[mine], minlength=self.dataset.n_users)[users]  # (U,)
            there = positives > 0
            kept = (hits & part.items[items])[there]
            found[part.name] = {
                metric: function(kept, positives[there], k) for metric, (function, k) in functions.items()
            }
        return found

    def _function(self, metric: str, listed: int, run_id: str) -> tuple[MetricFunction, int]:
        """A metric's function, and its cutoff."""
        name, _, cutoff = metric.partition("@")
        if not cutoff.isdecimal() or int(cutoff) == 0:
            raise ConfigError(f"{metric} is no metric at a cutoff, such as recall@20")
        if int(cutoff) > listed:
            raise ConfigError(
                f"{run_id} keeps the best {listed} items of each user, so {metric} can't be told from them; "
                f"run it again with --topk=[{cutoff}]"
            )
        return self._registry.metrics.load(name, "fn"), int(cutoff)


def _lists(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The tested users (U,) of a run and their best items (U, K), -1 where candidates ran out."""
    path = folder / run_folder.TOPK
    if not path.is_file():
        raise DataError(f"{path}: no such file; run it again with --force --save_recommended_topk=true")
    table = pd.read_csv(path, sep="\t").to_numpy()
    return table[:, 0], table[:, 1:]


def slice_run(name: str, registry: Registry, *, out: Path, data_path: str | None = None) -> list[dict[str, Any]]:
    """A finished run on each slice of its data set: rows of slice, what that is, numbers of items and users, and by
    metric the mean with the ends of its 95 % bootstrap interval over users. Errors as of `Slicer.values`."""
    folder = run_folder.find_run(out, name)
    spec, run = run_folder.load_config(folder, registry), run_folder.load_result(folder)
    assert run is not None
    settings: Settings = spec.settings
    if data_path is not None:
        settings = dataclasses.replace(settings, data_path=data_path)
    slicer = Slicer(open_dataset(spec.dataset, settings, registry), settings.text_fields, registry)
    values = slicer.values(run, list(run.test))
    return [
        {
            "slice": part.name,
            "about": part.about,
            "items": int(part.items.sum()),
            "users": len(next(iter(values[part.name].values()))),
            "metrics": _means(values[part.name]),
        }
        for part in slicer.slices
    ]


def _means(values: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """By metric, the mean of users' values with its interval; nothing where a slice has no user."""
    columns = np.stack(list(values.values()), axis=1)  # (U, M)
    if not len(columns):
        return {}
    ends = percentile_interval(bootstrap(columns))
    return {
        metric: {"mean": float(columns[:, place].mean()), "low": float(ends[0, place]), "high": float(ends[1, place])}
        for place, metric in enumerate(values)
    }
