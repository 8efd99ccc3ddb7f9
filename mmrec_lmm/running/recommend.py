"""Recommendations from a finished run: its model is built again with its best weights, and ranks."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ConfigError
from ..evaluation.ranking import Ranker
from ..machine import choose_device
from ..plugin.registry import Registry
from ..training.resume import load_weights
from . import run_folder
from .inputs import gather
from .runner import build_model


def recommend(
    run: str, users: Sequence[int], k: int, registry: Registry, *, out: Path, data_path: str | None = None
) -> list[dict[str, Any]]:
    """The best `k` items of each user, without training items: rows of user, rank, item, the item's raw id and title.

    Raises DataError if the data or features changed since the run, ConfigError for unknown users.
    """
    folder = run_folder.find_run(out, run)
    spec = run_folder.load_config(folder, registry)
    if data_path is not None:
        spec = dataclasses.replace(spec, settings=dataclasses.replace(spec.settings, data_path=data_path))
    inputs = gather(spec, registry)
    result = run_folder.load_result(folder)
    assert result is not None
    run_folder.check_unchanged(result, inputs.dataset, inputs.tables)
    unknown = [user for user in users if not 0 <= user < inputs.dataset.n_users]
    if unknown:
        raise ConfigError(f"--users: expected ids from 0 to {inputs.dataset.n_users - 1}, got {unknown[0]}")
    device = choose_device(spec.settings)
    model = build_model(spec, inputs, registry, device)
    model.load_state_dict(load_weights(folder / run_folder.WEIGHTS))
    if model.features.joint:
        for modality, table in load_weights(folder / run_folder.FEATURES).items():
            model.features.refresh(modality, torch.arange(len(table), device=device), table.to(device))
    ranker = Ranker(np.unique(users), [inputs.dataset.train], inputs.dataset.n_items)
    top = dict(zip(ranker.users.tolist(), ranker.top(model, k).tolist(), strict=True))
    catalog = inputs.dataset.catalog
    titles = catalog.fields.get("title") if catalog else None
    return [
        {
            "user": user,
            "rank": rank,
            "item": item,
            "id": catalog.raw_ids[item] if catalog else str(item),
            "title": titles[item] if titles else "",
        }
        for user in users
        for rank, item in enumerate(top[user], start=1)
        if item >= 0
    ]
