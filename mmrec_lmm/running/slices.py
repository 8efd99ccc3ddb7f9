"""Metrics of a trained run on slices of test: cold and rare items, items that lack a modality, more or less active
users.

Slices are defined by the data set, so all runs on it are measured on the same users. A slice of items counts only those
of each user's held-out items that are in the slice, and leaves out users without any. Hits are read from the run's
`topk.tsv`, so no model is loaded, and cutoffs beyond the length of its lists aren't available.

Shapes: I items, U tested users, K listed items.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config.settings import Settings
from ..data.items import item_texts
from ..data.opening import open_dataset
from ..disk.reading import is_readable
from ..errors import ConfigError, DataError
from ..evaluation.statistics import bootstrap, percentile_interval
from ..features.files import read_feature_file
from ..plugin.registry import Registry
from ..types import Dataset, RunResult
from . import run_folder

COLD_ALONE = "cold items alone"  # the slice of a `cold-item` split in which nothing else is ranked
HEAD = 0.8  # share of the training interactions that belong to the items outside the long tail


@dataclass(frozen=True)
class Slice:
    """A part of test: the held-out rows of some users or of some items."""

    name: str
    about: str  # its definition, in words
    items: np.ndarray  # (I,) bool
    users: np.ndarray  # (n_users,) bool


def data_slices(dataset: Dataset, text_fields: Sequence[str]) -> list[Slice]:
    """The slices of a data set. Its catalog or, without one, its feature files say which items lack a modality."""
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
    """A mask (I,) of the fewest items with the share HEAD of interactions; of equally popular ones, lower ids first."""
    order = np.argsort(-interactions, kind="stable")
    held = np.cumsum(interactions[order])
    head = np.zeros(len(interactions), bool)
    head[order[: np.searchsorted(held, HEAD * held[-1] - 1e-9) + 1]] = True
    return head


def _modalities(dataset: Dataset, text_fields: Sequence[str]) -> dict[str, np.ndarray]:
    """Modality -> a mask (I,) of the items that have it, for modalities that some item has."""
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
    """Thirds of the tested users by training interactions; equally active users stay together, so sizes differ."""
    counts = np.bincount(dataset.train.users, minlength=dataset.n_users)  # (n_users,)
    tested = counts[np.unique(dataset.test.users)]
    low, high = np.quantile(tested, [1 / 3, 2 / 3], method="inverted_cdf")
    yield "least active users", f"at most {low} training interactions", counts <= low
    yield "middling users", f"more than {low}, at most {high}", (counts > low) & (counts <= high)
    yield "most active users", f"more than {high}", counts > high


class Slicer:
    """Computes metrics by slice, for any run on one data set. `text_fields` as in `data_slices`."""

    def __init__(self, dataset: Dataset, text_fields: Sequence[str], registry: Registry) -> None:
        self.dataset, self.slices = dataset, data_slices(dataset, text_fields)
        self._registry = registry

    def values(self, run: RunResult, metrics: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
        """Slice -> metric ("recall@20") -> one value for each user who has held-out items in it, ascending by id;
        only metrics that slices have (`measures`).

        Raises DataError if the run was made on other data or has no lists, ConfigError if a metric is unknown or needs
        longer lists.
        """
        run_folder.check_unchanged(run, self.dataset)
        users, items = run_folder.load_topk(
            run.path, n_users=self.dataset.n_users, n_items=self.dataset.n_items, sha256=run.record.topk
        )  # (U,), (U, K)
        functions = {
            metric: self._function(metric, items.shape[1], run.run_id) for metric in metrics if self.measures(metric)
        }
        if not functions:
            raise ConfigError(f"metrics: expected one of hits alone, as Recall is, got {', '.join(metrics)}")
        test = self.dataset.test
        keys = np.unique(test.users * self.dataset.n_items + test.items)
        hits = np.isin(users[:, None] * self.dataset.n_items + items, keys) & (items >= 0)  # (U, K)
        found = {}
        for part in self.slices:
            in_slice = part.items[test.items] & part.users[test.users]
            positives = np.bincount(test.users[in_slice], minlength=self.dataset.n_users)[users]  # (U,)
            kept = positives > 0  # users with held-out items in the slice
            part_hits = (hits & part.items[items])[kept]
            found[part.name] = {
                metric: function(part_hits, positives[kept], k) for metric, (function, k) in functions.items()
            }
        if run.record.cold_items is not None:
            per_user = run_folder.load_per_user(run.path)
            names = {metric: f"{run_folder.COLD}/{metric}" for metric in functions if metric in run.test}
            if missing := names.values() - per_user.keys():
                path = run.path / run_folder.PER_USER
                raise DataError(f"{path}: expected {min(missing)}, got no such array; {run_folder.CURE}")
            measured = {metric: per_user[name] for metric, name in names.items()}
            found[COLD_ALONE] = measured
        return found

    def measures(self, metric: str) -> bool:
        """True if slices have the metric: it is one of hits alone. Lists as a whole belong to no slice."""
        name = metric.partition("@")[0]
        return name not in self._registry.metrics or not self._registry.metrics.get(name).context

    def _function(self, metric: str, listed: int, run_id: str) -> tuple[Callable[..., np.ndarray], int]:
        """A metric's function, and its cutoff."""
        name, _, cutoff = metric.partition("@")
        if not cutoff.isdecimal() or int(cutoff) == 0:
            raise ConfigError(f"metric: expected a name and a cutoff, got {metric}; try recall@20")
        if int(cutoff) > listed:
            raise ConfigError(
                f"metric: expected a cutoff of at most {listed}, the length of {run_id}'s lists, got {metric}; try "
                f"running it again with --topk=[{cutoff}]"
            )
        return self._registry.metrics.load(name, "fn"), int(cutoff)


def slice_run(name: str, registry: Registry, *, out: Path, data_path: str | None = None) -> list[dict[str, Any]]:
    """A finished run on each slice of its data set: rows of the slice's name, definition, numbers of items and users,
    and by metric the mean with its 95 % bootstrap interval over users. Raises the errors of `Slicer.values`."""
    folder = run_folder.find_run(out, name)
    spec, run = run_folder.load_config(folder, registry), run_folder.load_result(folder)
    assert run is not None
    run_folder.check_config(run)
    settings: Settings = spec.settings
    if data_path is not None:
        settings = dataclasses.replace(settings, data_path=data_path)
    slicer = Slicer(open_dataset(spec.dataset, settings, registry), settings.text_fields, registry)
    values = slicer.values(run, list(run.test))
    rows = [
        {
            "slice": part.name,
            "about": part.about,
            "items": int(part.items.sum()),
            "users": len(next(iter(values[part.name].values()))),
            "metrics": _means(values[part.name]),
        }
        for part in slicer.slices
    ]
    cold = run.record.cold_items
    if cold is not None:
        chance = f"{run.record.chance.metric} by chance {cold.chance.mean:.4f}" if run.record.chance else ""
        rows.append(
            {
                "slice": COLD_ALONE,
                "about": f"all of test, but only the {cold.candidates:,} cold items are ranked ({chance})",
                "items": cold.candidates,
                "users": len(next(iter(values[COLD_ALONE].values()))),
                "metrics": _means(values[COLD_ALONE]),
            }
        )
    return rows


def _means(values: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """By metric, the mean of users' values with its interval; empty if a slice has no user."""
    columns = np.stack(list(values.values()), axis=1)  # (U, M)
    if not len(columns):
        return {}
    ends = percentile_interval(bootstrap(columns))
    return {
        metric: {"mean": float(columns[:, place].mean()), "low": float(ends[0, place]), "high": float(ends[1, place])}
        for place, metric in enumerate(values)
    }
