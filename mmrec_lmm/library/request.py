"""From what a user asks for, as flags or as arguments, to resolved runs. And the manners of a guest in a program."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch

from ..config.resolve import Request, Resolved, Value, resolve_request
from ..config.settings import OF_INPUTS
from ..distributed import processes
from ..errors import ConfigError
from ..plugin.registry import Registry
from ..types import PRE_TRAINED, EncoderName, RunSpec
from ..user_paths import user_path

StrPath = str | os.PathLike[str]
_Value = TypeVar("_Value")


def resolve_runs(request: Request, registry: Registry) -> Resolved:
    """The runs that a request asks for. ConfigError also for an unknown metric: now, not after hours of encoding."""
    resolved = resolve_request(request, registry)
    for metric in dict.fromkeys(metric for run in resolved.runs for metric in run.settings.metrics):
        try:
            registry.metrics.get(metric)
        except ConfigError as error:
            raise ConfigError(f"{resolved.origins['metrics']}: {error}") from None
    return resolved


def only_encoding(resolved: Resolved) -> RunSpec:
    """The run whose features are asked for. ConfigError for lists of values that would give several encodings; those
    of other keys, such as a grid's seeds, change none."""
    made = {
        repr((run.encoder_config, run.paradigm_config, [getattr(run.settings, name) for name in sorted(OF_INPUTS)]))
        for run in resolved.runs
    }
    if len(made) > 1:
        got = several_values(resolved)
        raise ConfigError(f"encode: expected one value of each key, got {got}; try a command for each value")
    return resolved.runs[0]


def several_values(resolved: Resolved) -> str:
    """The keys that have several values, in words: reg_weight (2 values), n_layers (3 values)."""
    return ", ".join(f"{name} ({len(values)} values)" for name, values in resolved.axes.items() if len(values) > 1)


def one_of_each(*sources: Mapping[str, _Value]) -> dict[str, _Value]:
    """The values of all sources, by key. ConfigError for a key that two of them give."""
    found: dict[str, _Value] = {}
    for source in sources:
        if twice := found.keys() & source.keys():
            key = min(twice)
            raise ConfigError(f"{key}: expected one value, got {_shown(found[key])} and {_shown(source[key])}; try one")
        found |= source
    return found


def _shown(value: Any) -> str:
    return repr(value.value if isinstance(value, Value) else value)[:80]


def unread_keys(resolved: Resolved) -> list[str]:
    """A note for each file with keys of MMRec that nothing here reads."""
    return [
        f"{source}: keys of MMRec that nothing here reads: "
        + ", ".join(key for key, file in resolved.unused.items() if file == source)
        for source in dict.fromkeys(resolved.unused.values())
    ]


def request_of(
    model: str,
    dataset: str,
    *,
    encoder: str | None = None,
    paradigm: str | None = None,
    modalities: Iterable[str] | None = None,
    features: Mapping[str, StrPath] | None = None,
    control: str | None = None,
    preset: str | None = None,
    grid: str | None = None,
    configs: StrPath | None = None,
    keys: Mapping[str, str | Value],
) -> Request:
    """The request of flags or arguments; `keys` are the configuration's."""
    names = modalities.split(",") if isinstance(modalities, str) else modalities
    return Request(
        model=model,
        dataset=dataset,
        encoder=None if encoder is None else EncoderName.typed(encoder),
        paradigm=PRE_TRAINED if paradigm is None else paradigm,
        modalities=None if names is None else tuple(name.strip() for name in names),
        features={modality: user_path(path) for modality, path in (features or {}).items()},
        control=control,
        preset=preset,
        grid=grid,
        configs=None if configs is None else user_path(configs),
        overrides=keys,
    )


def values_of(given: Mapping[str, Any]) -> dict[str, Value]:
    """The values that a program gives configuration keys, in YAML's types; None for a flag of that name left out."""
    return {name: Value(_as_yaml(value)) for name, value in given.items()}


def _as_yaml(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _as_yaml(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | range):
        return [_as_yaml(inner) for inner in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def refuse_torchrun(what: str) -> None:
    """ConfigError in one of torchrun's processes: those after the first would return no result."""
    if processes() > 1:
        raise ConfigError(f"{what}: expected one process, got torchrun; try torchrun -m mmrec_lmm {what}")


@contextmanager
def as_a_guest() -> Iterator[None]:
    """A context in which the work of this package leaves torch as the program had it: its random state, and its
    number of threads."""
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        torch.set_num_threads(threads)
