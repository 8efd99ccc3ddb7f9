"""The model of a finished run, built again with its best weights: it ranks items, and has vectors of users and items.

Users and items are named by the shop's own ids (`data/ids.py`), or by the numbers that stand in the run's files.

Shapes: U asked users, K items of each, I items, D embedding.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..data.ids import Ids, Kind, number_in, read_ids
from ..errors import ConfigError, DataError, NotApplicable, PluginError, RunError, TrainingDiverged
from ..evaluation.ranking import Ranker
from ..formatting import first_few
from ..machine import choose_device
from ..plugin.contracts import Recommender
from ..plugin.registry import Registry
from ..training.resume import load_weights
from ..types import Dataset, RunResult
from . import run_folder
from .inputs import gather
from .runner import build_model

USERS = 1 << 17  # whose items are ranked and handed on at once

#: Each table of embeddings, and what its rows are.
KINDS: Mapping[str, Kind] = {"users": "user", "items": "item"}


@dataclass(frozen=True)
class Trained:
    """The model of a finished run with its best weights on its device, and the data set that it was trained on."""

    result: RunResult
    dataset: Dataset
    model: Recommender
    device: torch.device
    plugin: str  # that brings the model

    @cached_property
    def ids(self) -> Mapping[str, Ids]:
        """The own ids of "users" and "items"."""
        return {name: read_ids(self.dataset, kind) for name, kind in KINDS.items()}

    @property
    def culprit(self) -> str:
        """The run, its model and the model's plugin, for messages."""
        return f"{self.result.run_id}: model {self.result.record.axes.model} (plugin {self.plugin})"


def open_run(folder: Path, registry: Registry, *, data_path: str | None = None) -> Trained:
    """The model of the finished run in `folder`. `data_path` replaces the run's own folder of data sets.

    Raises DataError if the data or features changed since the run, or if a file of it is damaged.
    """
    spec = run_folder.load_config(folder, registry)
    if data_path is not None:
        spec = dataclasses.replace(spec, settings=dataclasses.replace(spec.settings, data_path=data_path))
    inputs = gather(spec, registry)
    result = run_folder.load_result(folder)
    assert result is not None
    run_folder.check_config(result)
    run_folder.check_unchanged(result, inputs.dataset, inputs.tables)
    device = choose_device(spec.settings)
    model = build_model(spec, inputs, registry, device)
    _load_weights(folder, model, device)
    return Trained(result, inputs.dataset, model.eval(), device, registry.models.provider(spec.model))


def recommend(
    run: str,
    users: Mapping[str, str] | None,
    k: int,
    registry: Registry,
    *,
    out: Path,
    data_path: str | None = None,
    internal_ids: bool = False,
) -> pd.DataFrame:
    """`recommendations` of a run, found by its id, the start of one, or its folder, in one frame. Raises as that does,
    and as `open_run`."""
    trained = open_run(run_folder.find_run(out, run), registry, data_path=data_path)
    return pd.concat(recommendations(trained, users, k, internal_ids=internal_ids), ignore_index=True)


def recommendations(
    trained: Trained, users: Mapping[str, str] | None, k: int, *, internal_ids: bool = False
) -> Iterator[pd.DataFrame]:
    """The best `k` items of each user, without training items: rows of user, rank, item and the item's title, in frames
    of some USERS users each, at least one.

    `users` maps each id, in the order of the answer, to the place where it was asked for, which messages name; None:
    all users. Under `internal_ids`, ids are numbers, in question and answer. Raises ConfigError for unknown users
    before anything is ranked, DataError for a damaged mapping, RunError if a score is NaN.
    """
    dataset = trained.dataset
    user_ids, item_ids = (None, None) if internal_ids else (trained.ids["users"], trained.ids["items"])
    asked = np.arange(dataset.n_users) if users is None else _numbers(users, user_ids, dataset.n_users)
    listed = dataset.catalog.fields.get("title") if dataset.catalog else None
    titles = np.array(listed or [""] * dataset.n_items, dtype=object)

    def frames() -> Iterator[pd.DataFrame]:
        for start in range(0, max(1, len(asked)), USERS):
            block = asked[start : start + USERS]
            top = _top(trained, block, k)  # (U, K)
            rows, ranks = np.nonzero(top >= 0)
            found, items = block[rows], top[rows, ranks]
            yield pd.DataFrame(
                {
                    "user": found if user_ids is None else user_ids.of[found],
                    "rank": ranks + 1,
                    "item": items if item_ids is None else item_ids.of[items],
                    "title": titles[items],
                }
            )

    return frames()


def _top(trained: Trained, users: np.ndarray, k: int) -> np.ndarray:
    """The best items (U, K) of users (U,), -1 where candidates run out."""
    ranked, places = np.unique(users, return_inverse=True)
    dataset = trained.dataset
    try:
        return Ranker(ranked, [dataset.train], dataset.n_items).top(trained.model, k).numpy()[places]
    except TrainingDiverged as error:
        raise RunError(f"{trained.culprit}: expected scores that are numbers, got NaN; {run_folder.CURE}") from error


@torch.no_grad()
def embeddings(trained: Trained) -> dict[str, np.ndarray]:
    """The vectors whose dot products are the scores: "users" (n_users, D) and "items" (n_items, D), float32.

    Raises NotApplicable for a model with other scores, RunError where a vector isn't finite.
    """
    vectors = trained.model.eval().vectors()
    if vectors is None:
        raise NotApplicable(
            f"{trained.culprit}: expected scores that are dot products of vectors, got a scorer of its own; try "
            "`recommend`, which ranks with it"
        )
    found = {}
    for name, values in zip(KINDS, vectors, strict=True):
        expected = getattr(trained.dataset, f"n_{name}")
        if values.ndim != 2 or len(values) != expected:
            shape = tuple(values.shape)
            raise PluginError(f"{trained.culprit}: vectors: expected ({expected}, D) for {name}, got {shape}")
        found[name] = values.to("cpu", torch.float32, copy=True).numpy()
        wrong = np.flatnonzero(~np.isfinite(found[name]).all(axis=1))
        if len(wrong):
            got = f"NaN or infinity for {name} {first_few(trained.ids[name].of[wrong])}"
            raise RunError(f"{trained.culprit}: expected finite embeddings, got {got}; {run_folder.CURE}")
    return found


def _load_weights(folder: Path, model: Recommender, device: torch.device) -> None:
    """Give the model the weights of its run, and an end-to-end one its features. DataError if they don't fit."""
    path = folder / run_folder.WEIGHTS
    try:
        model.load_state_dict(_own_weights(path))
    except RuntimeError as error:
        raise DataError(f"{path}: expected the run's weights, got others ({error}); {run_folder.CURE}") from None
    if not model.features.joint:
        return
    path = folder / run_folder.FEATURES
    shapes = {modality: tuple(table.shape) for modality, table in model.features().items()}
    tables = _own_weights(path)
    if (found := {modality: tuple(table.shape) for modality, table in tables.items()}) != shapes:
        raise DataError(f"{path}: expected features {shapes}, got {found}; {run_folder.CURE}")
    for modality, table in tables.items():
        model.features.refresh(modality, torch.arange(len(table), device=device), table.to(device))


def _own_weights(path: Path) -> dict[str, torch.Tensor]:
    run_folder.check_own(path)
    return load_weights(path)


def _numbers(users: Mapping[str, str], ids: Ids | None, n_users: int) -> np.ndarray:
    """The numbers (U,) of the asked users; ConfigError names the first unknown one and its place."""
    asked = list(users)
    numbers = np.array([number_in(user) for user in asked]) if ids is None else ids.numbers(asked)
    if (unknown := (numbers < 0) | (numbers >= n_users)).any():
        user = asked[int(np.argmax(unknown))]
        if ids is None:
            text = f"expected numbers from 0 to {n_users - 1} with --internal-ids, got {user}"
        else:
            text = ids.expected(user)
        if (count := int(unknown.sum())) > 1:
            text += f" ({count:,} of {len(asked):,} ids are unknown)"
        raise ConfigError(f"{users[user]}: {text}")
    return numbers
