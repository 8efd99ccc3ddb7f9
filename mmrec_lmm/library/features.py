"""Features from a program: `encode` makes the tables of an encoder, without a run."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from ..checking.probes import Probed, probe
from ..data.opening import open_dataset
from ..plugin.registry import Registry, load_registry
from ..running.inputs import encode_dataset
from ..types import FeatureTable, RunSpec
from .request import (
    StrPath,
    as_a_guest,
    one_of_each,
    only_encoding,
    refuse_torchrun,
    request_of,
    resolve_runs,
    values_of,
)

logger = logging.getLogger(__name__)


def encode(
    dataset: str,
    encoder: str,
    *,
    paradigm: str = "pt",
    modalities: Iterable[str] | None = None,
    features: Mapping[str, StrPath] | None = None,
    weights: StrPath | None = None,
    configs: StrPath | None = None,
    data_path: StrPath | None = None,
    plugins: Iterable[StrPath] = (),
    force: bool = False,
    progress: bool = True,
    settings: Mapping[str, Any] | None = None,
    **keys: Any,
) -> dict[str, FeatureTable]:
    """The features that an encoder makes of a data set's items, by modality, as `mmrec-lmm encode` makes them: from the
    cache if they are there, unless `force`. In a table, `values` (I, D) has a row for each item, and `present` (I,)
    marks the items that have the modality. Arguments and errors as of `run`."""
    refuse_torchrun("encode")
    registry = load_registry([str(plugin) for plugin in plugins])
    flags = {"encoder.weights": weights, "data_path": data_path}
    given = {name: value for name, value in flags.items() if value is not None}
    request = request_of(
        "", dataset, encoder=encoder, paradigm=paradigm, modalities=modalities, features=features, configs=configs,
        keys=values_of(one_of_each(given, settings or {}, keys)),
    )  # fmt: skip
    resolved = resolve_runs(request, registry)
    spec = only_encoding(resolved)
    with as_a_guest():
        for note in resolved.notes:
            logger.warning("%s", note)
        return encode_dataset(spec, registry, progress=progress, force=force)


def probed(spec: RunSpec, tables: Mapping[str, FeatureTable], registry: Registry) -> Probed:
    """The probes of tables, which see no interactions but those of train."""
    return probe(tables, open_dataset(spec.dataset, spec.settings, registry).train)
