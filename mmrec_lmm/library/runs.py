"""Runs from a program: made by `run` and `grid`, found by `runs`, and each as a `Run`, with its files as tables."""

from __future__ import annotations

import dataclasses
import html
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import pandas as pd

from ..bridge import with_model_file
from ..config.resolve import Resolved
from ..data.ids import read_ids
from ..data.opening import open_dataset
from ..errors import ConfigError, DataError
from ..logs import keep_log, only_errors
from ..plugin.registry import Registry, load_registry
from ..running import exports, run_folder
from ..running.grid import Grid as GridResult
from ..running.grid import run_grid
from ..running.index import COLUMNS, find_runs, row_of
from ..running.marks import marks
from ..running.plugins import plugins_of
from ..running.recommend import KINDS, Trained, embeddings, open_run, recommendations
from ..types import RunRecord, RunResult
from ..user_paths import expand_home, user_path
from .request import (
    StrPath,
    as_a_guest,
    one_of_each,
    refuse_torchrun,
    request_of,
    resolve_runs,
    several_values,
    unread_keys,
    values_of,
)

logger = logging.getLogger(__name__)

SPLITS = ("valid", "test", run_folder.COLD)  # of metrics by user


def run(
    model: StrPath,
    dataset: str,
    *,
    encoder: str | None = None,
    paradigm: str = "pt",
    modalities: Iterable[str] | None = None,
    features: Mapping[str, StrPath] | None = None,
    weights: StrPath | None = None,
    control: str | None = None,
    preset: str | None = None,
    configs: StrPath | None = None,
    data_path: StrPath | None = None,
    out: StrPath = "runs",
    plugins: Iterable[StrPath] = (),
    resume: bool = False,
    force: bool = False,
    progress: bool = True,
    settings: Mapping[str, Any] | None = None,
    **keys: Any,
) -> Run:
    """Train and evaluate a model, as `mmrec-lmm run` does, and return the run; one that is finished is not made again.

    `keys` are configuration keys (`epochs=3`), `settings` those with a dot (`{"encoder.image_size": 128}`); None for
    `data_path` is the configuration's, `data`. Raises MMRecError: ConfigError for a name, key or value, also for a list
    of values, DataError for data or weights, RunError if the run fails.
    """
    refuse_torchrun("run")
    model, plugins = with_model_file(str(model), map(str, plugins))
    registry = load_registry(plugins)
    request = request_of(
        model, dataset, encoder=encoder, paradigm=paradigm, modalities=modalities, features=features, control=control,
        preset=preset, configs=configs, keys=_keys(settings, keys, weights=weights, data_path=data_path),
    )  # fmt: skip
    resolved = resolve_runs(request, registry)
    if len(resolved.runs) > 1:
        got = several_values(resolved)
        raise ConfigError(f"run: expected one value of each key, got a grid of {got}; try grid(...), which runs all")
    made = _made(resolved, registry, out=user_path(out), resume=resume, force=force, progress=progress)
    return Run(made.best.path, plugins=plugins)


def grid(
    model: StrPath,
    dataset: str,
    *,
    grid: str | None = None,
    encoder: str | None = None,
    paradigm: str = "pt",
    modalities: Iterable[str] | None = None,
    features: Mapping[str, StrPath] | None = None,
    weights: StrPath | None = None,
    control: str | None = None,
    preset: str | None = None,
    configs: StrPath | None = None,
    data_path: StrPath | None = None,
    out: StrPath = "runs",
    plugins: Iterable[StrPath] = (),
    resume: bool = False,
    force: bool = False,
    progress: bool = True,
    settings: Mapping[str, Any] | None = None,
    **keys: Any,
) -> Grid:
    """As `run`, for each point of a grid: the product of all keys with a list of values (`reg_weight=[0.1, 0.01]`), or
    the published `grid` of that name. RunError only if all points fail."""
    refuse_torchrun("run")
    model, plugins = with_model_file(str(model), map(str, plugins))
    registry = load_registry(plugins)
    request = request_of(
        model, dataset, encoder=encoder, paradigm=paradigm, modalities=modalities, features=features, control=control,
        preset=preset, grid=grid, configs=configs, keys=_keys(settings, keys, weights=weights, data_path=data_path),
    )  # fmt: skip
    resolved = resolve_runs(request, registry)
    made = _made(resolved, registry, out=user_path(out), resume=resume, force=force, progress=progress)
    return Grid(made, plugins=plugins)


def runs(folder: StrPath = "runs", *, plugins: Iterable[StrPath] = ()) -> Runs:
    """The finished runs in a folder, by name. A damaged one is logged and left out. DataError without such a folder."""
    return Runs(folder, plugins=plugins)


def recommend(
    run: Run | StrPath,
    users: str | Iterable[object] | None = None,
    k: int = 10,
    *,
    out: StrPath = "runs",
    data_path: StrPath | None = None,
    plugins: Iterable[StrPath] = (),
    internal_ids: bool = False,
) -> pd.DataFrame:
    """The best `k` items of each user, as `Run.recommend`. `run` may be a run's id, the start of one, its folder, or
    MODEL-DATASET: the latest of these without a control, or the best point of its grid."""
    if not isinstance(run, Run):
        folder, note = run_folder.find_latest(user_path(out), expand_home(str(run)))
        if note:
            logger.warning("%s", note)
        run = Run(folder, plugins=plugins, data_path=data_path)
    return run.recommend(users, k, internal_ids=internal_ids)


class Run:
    """A finished run: its numbers, its files as tables, and its model with the best weights."""

    def __init__(self, folder: StrPath, *, plugins: Iterable[StrPath] = (), data_path: StrPath | None = None) -> None:
        """`data_path` is the folder of data sets where it isn't the run's own any more."""
        self.folder = user_path(folder)
        self._plugins = [str(plugin) for plugin in plugins]
        self._data_path = None if data_path is None else str(user_path(data_path))

    @cached_property
    def result(self) -> RunResult:
        """The content of its `result.json`. DataError if it isn't a finished run, or damaged."""
        found = run_folder.load_result(self.folder)
        if found is None:
            raise DataError(f"{self.folder}: expected a finished run, got none; try `list runs`")
        return found

    @property
    def id(self) -> str:
        return self.result.run_id

    @property
    def valid(self) -> dict[str, float]:
        """Each metric on validation, by name: recall@20."""
        return dict(self.result.valid)

    @property
    def test(self) -> dict[str, float]:
        """Each metric on test, by name."""
        return dict(self.result.test)

    @property
    def best_epoch(self) -> int:
        return self.result.best_epoch

    @property
    def marks(self) -> tuple[str, ...]:
        """Warnings that its numbers may reflect the budget or the data, and not the model."""
        return marks(self.result)

    @property
    def record(self) -> RunRecord:
        """All that the result depends on: hashes, versions, seconds, memory."""
        return self.result.record

    @cached_property
    def history(self) -> pd.DataFrame:
        """A row for each epoch: epoch, `loss/...`, `valid/...` where it was evaluated, seconds, improved."""
        rows = []
        for report in run_folder.load_history(self.folder):
            losses = {f"loss/{name}": value for name, value in report.losses.items()}
            valid = {f"valid/{name}": value for name, value in (report.valid or {}).items()}
            times = {"train_seconds": report.train_seconds, "valid_seconds": report.valid_seconds}
            rows.append({"epoch": report.epoch, **losses, **valid, **times, "improved": report.improved})
        return pd.DataFrame(rows)

    @cached_property
    def per_user(self) -> dict[str, pd.DataFrame]:
        """By split, each metric of each evaluated user: rows by the shop's own ids, a column for each metric."""
        arrays = run_folder.load_per_user(self.folder)
        own = self._user_ids
        found = {}
        for split in (split for split in SPLITS if f"{split}/users" in arrays):
            of_split = {name: values for name, values in arrays.items() if name.partition("/")[0] == split}
            columns = {name.partition("/")[2]: values for name, values in of_split.items()}
            index = pd.Index(own[columns.pop("users")], name="user")
            found[split] = pd.DataFrame(columns, index=index)
        return found

    def recommend(
        self, users: str | Iterable[object] | None = None, k: int = 10, *, internal_ids: bool = False
    ) -> pd.DataFrame:
        """The best `k` items of each user, without training items: columns user, rank, item, title.

        `users` are the shop's own ids, None: all. Under `internal_ids`, ids are the numbers in the run's files, in
        question and answer. ConfigError for an unknown user, DataError if the data changed since the run.
        """
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise ConfigError(f"k: expected a whole number from 1 on, got {k!r}")
        with as_a_guest(), only_errors():
            frames = recommendations(self._trained, asked_users(users), int(k), internal_ids=internal_ids)
            return pd.concat(frames, ignore_index=True)

    def item_embeddings(self) -> np.ndarray:
        """The items' vectors (I, D) float32 with the best weights, in the order of the data set's items.

        NotApplicable for a model whose scores aren't dot products, RunError if a vector isn't finite.
        """
        return self._embeddings()["items"]

    def user_embeddings(self) -> np.ndarray:
        """The users' vectors (U, D) float32; the rest is as of `item_embeddings`."""
        return self._embeddings()["users"]

    def export_embeddings(
        self, path: StrPath, *, of: Literal["users", "items"] | None = None, format: str | None = None
    ) -> list[Path]:
        """Write the embeddings of all users and items, or one `of` them, with the shop's own ids: .npy, .safetensors,
        .parquet or .jsonl, by `format` or the suffix. Returns the files written: NAME.npy has its ids beside it."""
        chosen = exports.format_of(user_path(path), exports.EMBEDDINGS, format)
        if of not in (None, *KINDS):
            raise ConfigError(f"of: expected {' or '.join(KINDS)}, or None for both, got {of!r}")
        vectors = {name: values for name, values in self._embeddings().items() if of in (None, name)}
        ids = {name: self._trained.ids[name].of for name in vectors}
        return exports.write_embeddings(user_path(path), vectors, ids, chosen, run=self.id)

    def export_recommendations(
        self,
        path: StrPath,
        k: int = 10,
        *,
        users: str | Iterable[object] | None = None,
        format: str | None = None,
        internal_ids: bool = False,
    ) -> Path:
        """Write what `recommend` gives, by default for all users: .parquet, .jsonl, .csv or .tsv, by `format` or the
        suffix. Users are ranked and written in blocks."""
        chosen = exports.format_of(user_path(path), exports.RECOMMENDATIONS, format)
        with as_a_guest(), only_errors():
            frames = recommendations(self._trained, asked_users(users), k, internal_ids=internal_ids)
            return exports.write_recommendations(user_path(path), frames, chosen)

    def to_frame(self) -> pd.DataFrame:
        """One row, with the columns of `Runs.to_frame`."""
        return pd.DataFrame([row_of(self.result)])

    def __repr__(self) -> str:
        metric = self._main_metric
        return f"<Run {self.id}: {metric} {self.test[metric]:.4f} on test, best epoch {self.best_epoch}>"

    def _repr_html_(self) -> str:
        """For notebooks: the run, its marks, and a table of metrics by split."""
        table = pd.DataFrame({"valid": self.valid, "test": self.test}).T.to_html(float_format="{:.4f}".format)
        marked = "".join(f"<br>marked: {html.escape(mark)}" for mark in self.marks)
        return f"<p><b>{html.escape(self.id)}</b>: best epoch {self.best_epoch}{marked}</p>{table}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.folder.resolve() == other.folder.resolve()

    def __hash__(self) -> int:
        return hash(self.folder.resolve())

    @property
    def _main_metric(self) -> str:
        chance = self.record.chance
        return chance.metric if chance is not None and chance.metric in self.test else next(iter(self.test))

    @cached_property
    def _registry(self) -> Registry:
        """The plugins that the run was made with, and those given."""
        plugins, notes = plugins_of(str(self.folder), self._plugins, out=self.folder.parent)
        for note in notes:
            logger.warning("%s", note)
        return load_registry(plugins)

    @cached_property
    def _trained(self) -> Trained:
        with as_a_guest(), only_errors():
            return open_run(self.folder, self._registry, data_path=self._data_path)

    def _embeddings(self) -> dict[str, np.ndarray]:
        with as_a_guest(), only_errors():
            return embeddings(self._trained)

    @property
    def _user_ids(self) -> np.ndarray:
        """The own ids (U,) of all users."""
        if "_trained" in vars(self):
            return self._trained.ids["users"].of
        registry = self._registry
        settings = run_folder.load_config(self.folder, registry).settings
        if self._data_path is not None:
            settings = dataclasses.replace(settings, data_path=self._data_path)
        with only_errors():
            dataset = open_dataset(self.record.axes.dataset, settings, registry)
        run_folder.check_unchanged(self.result, dataset)
        return read_ids(dataset, "user").of


class Runs(Sequence[Run]):
    """The finished runs in a folder, by name."""

    def __init__(
        self, folder: StrPath, *, plugins: Iterable[StrPath] = (), where: Mapping[str, str] | None = None
    ) -> None:
        """`where` selects as the method does, by text."""
        self.folder, self._plugins, self._where = user_path(folder), list(plugins), dict(where or {})
        self._rows = find_runs(self.folder, self._where)

    def where(self, **values: Any) -> Runs:
        """The runs whose columns have these values, in any case; None means none (`encoder=None`)."""
        wanted = {name: _text(value) for name, value in values.items()}
        return Runs(self.folder, plugins=self._plugins, where={**self._where, **wanted})

    def to_frame(self) -> pd.DataFrame:
        """One row for each run: the columns of the index, then each metric, as `valid/recall@20`."""
        return pd.DataFrame(self._rows, columns=None if self._rows else [name for name in COLUMNS if name != "stamp"])

    @overload
    def __getitem__(self, place: int) -> Run: ...
    @overload
    def __getitem__(self, place: slice) -> list[Run]: ...
    def __getitem__(self, place: int | slice) -> Run | list[Run]:
        if isinstance(place, slice):
            return [self._run(row) for row in self._rows[place]]
        return self._run(self._rows[place])

    def __iter__(self) -> Iterator[Run]:
        return map(self._run, self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"<{len(self)} runs in {self.folder}>"

    def _run(self, row: Mapping[str, Any]) -> Run:
        return Run(self.folder / row["run"], plugins=self._plugins)


class Grid:
    """The runs of a grid in order, `best`: that of the point with the best validation score, and the `failures`: each
    failed point with the reason."""

    def __init__(self, result: GridResult, *, plugins: Iterable[StrPath] = ()) -> None:
        plugins = list(plugins)
        self.result = result
        self.runs = [Run(one.path, plugins=plugins) for one in result.results]
        self.best = Run(result.best.path, plugins=plugins)
        self.failures = list(result.failures)

    def to_frame(self) -> pd.DataFrame:
        """One row for each run: its values on the grid's axes, its id, and each metric, as `valid/recall@20`."""
        return pd.DataFrame(
            [
                {
                    **one.parameters,
                    "run": one.run_id,
                    **{f"valid/{name}": value for name, value in one.valid.items()},
                    **{f"test/{name}": value for name, value in one.test.items()},
                }
                for one in self.result.results
            ]
        )

    def __repr__(self) -> str:
        failed = f", {len(self.failures)} failed" if self.failures else ""
        return f"<Grid of {len(self.runs)} runs{failed}; best: {self.best!r}>"


def asked_users(users: str | Iterable[object] | None) -> dict[str, str] | None:
    """Users as `recommendations` takes them; None for all."""
    if users is None:
        return None
    listed = [users] if isinstance(users, str) else [str(user) for user in users]
    if not listed:
        raise ConfigError("--users: expected at least one id, got none; None means all users")
    return dict.fromkeys(listed, "--users")


def _made(
    resolved: Resolved, registry: Registry, *, out: Path, resume: bool, force: bool, progress: bool
) -> GridResult:
    """Make the runs, with a log in the folder of runs."""
    first = resolved.runs[0]
    with as_a_guest(), keep_log(out / "log", f"{first.model}-{first.dataset}", level=first.settings.state):
        for note in (*resolved.notes, *unread_keys(resolved)):
            logger.warning("%s", note)
        return run_grid(resolved.runs, registry, out=out, resume=resume, force=force, progress=progress)


def _keys(settings: Mapping[str, Any] | None, keys: Mapping[str, Any], **flags: Any) -> dict[str, Any]:
    """All configuration keys that a call gives."""
    flags = {"encoder.weights" if name == "weights" else name: flag for name, flag in flags.items() if flag is not None}
    return values_of(one_of_each(flags, settings or {}, keys))


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return "" if value is None else str(value)
