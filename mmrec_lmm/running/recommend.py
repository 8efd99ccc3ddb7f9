"""Recommendations from a finished run: its model is built again with its best weights, and ranks.

Users and items are named by the shop's own ids (`data/ids.py`), or by the numbers that stand in the run's files.

Shapes: U asked users, K items of each.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..data.ids import Ids, number_in, read_ids
from ..errors import ConfigError, DataError
from ..evaluation.ranking import Ranker
from ..machine import choose_device
from ..plugin.contracts import Recommender
from ..plugin.registry import Registry
from ..training.resume import load_weights
from . import run_folder
from .inputs import gather
from .runner import build_model


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
    """The best `k` items of each user, without training items: rows of user, rank, item and the item's title.

    `users` maps each id, in the order of the answer, to the place where it was asked for, which messages name; None:
    all users. Under `internal_ids`, ids are numbers, in question and answer. Raises DataError if the data or features
    changed since the run, or for a damaged mapping; ConfigError for unknown users.
    """
    folder = run_folder.find_run(out, run)
    spec = run_folder.load_config(folder, registry)
    if data_path is not None:
        spec = dataclasses.replace(spec, settings=dataclasses.replace(spec.settings, data_path=data_path))
    inputs = gather(spec, registry)
    dataset = inputs.dataset
    result = run_folder.load_result(folder)
    assert result is not None
    run_folder.check_config(result)
    run_folder.check_unchanged(result, dataset, inputs.tables)
    user_ids = None if internal_ids else read_ids(dataset, "user")
    item_ids = None if internal_ids else read_ids(dataset, "item")
    asked = np.arange(dataset.n_users) if users is None else _numbers(users, user_ids, dataset.n_users)
    device = choose_device(spec.settings)
    model = build_model(spec, inputs, registry, device)
    _load_weights(folder, model, device)
    ranked, places = np.unique(asked, return_inverse=True)
    top = Ranker(ranked, [dataset.train], dataset.n_items).top(model, k).numpy()[places]  # (U, K)
    rows, ranks = np.nonzero(top >= 0)
    found, items = asked[rows], top[rows, ranks]
    titles = dataset.catalog.fields.get("title") if dataset.catalog else None
    return pd.DataFrame(
        {
            "user": found if user_ids is None else user_ids.of[found],
            "rank": ranks + 1,
            "item": items if item_ids is None else item_ids.of[items],
            "title": "" if titles is None else np.array(titles, dtype=object)[items],
        }
    )


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
