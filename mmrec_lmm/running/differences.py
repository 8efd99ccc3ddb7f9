"""In which keys runs differ, by their resolved configuration (`config.json`)."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..config.settings import OF_NO_NUMBER
from ..types import RunResult

#: What says elsewhere in a list of runs what a run is.
_COLUMNS = frozenset({"model", "dataset", "encoder", "control", "split", "seed", "point", "features"})


def keys_of(resolved: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The keys of a resolved run in the user's spelling, with values: seed, reg_weight, encoder.variant, ft.epochs. It
    may be anybody's: what should be a section and isn't is a key."""
    settings = resolved.get("settings")
    sampler = settings.get("sampler") if isinstance(settings, Mapping) else None
    sections = {
        "settings": "",
        "model_config": "",
        "encoder_config": "encoder.",
        "paradigm_config": f"{resolved.get('paradigm')}.",
        "sampler_config": f"{sampler}.",
    }
    for name, value in resolved.items():
        if name in sections and isinstance(value, Mapping):
            yield from ((f"{sections[name]}{key}", held) for key, held in value.items())
        elif name not in sections or value is not None:
            yield name, value


def differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys of two resolved runs whose values differ, with both; None for a key that one of the runs lacks."""
    before, after = dict(keys_of(then)), dict(keys_of(now))
    return {key: (before.get(key), after.get(key)) for key in {**before, **after} if before.get(key) != after.get(key)}


def set_apart(results: Sequence[RunResult]) -> list[dict[str, Any]]:
    """For each run, its values of the keys that most runs of its model and data set have otherwise, beside what a
    list has columns for and its own point of a grid; keys of an encoder are compared among the runs that have it."""
    keys = [dict(keys_of(result.record.resolved or {})) for result in results]
    counts: dict[tuple[Any, ...], Counter[str]] = {}
    for held, result in zip(keys, results, strict=True):
        for name, value in held.items():
            counts.setdefault(_among(result, name), Counter())[repr(value)] += 1
    usual = {among: counter.most_common(1)[0][0] for among, counter in counts.items()}
    return [
        {
            name: held[name]
            for name in sorted(held.keys() - _COLUMNS - OF_NO_NUMBER - result.parameters.keys())
            if usual[_among(result, name)] != repr(held[name])
        }
        for held, result in zip(keys, results, strict=True)
    ]


def _among(result: RunResult, name: str) -> tuple[Any, ...]:
    """What the runs have in common that are compared in `name`."""
    axes = result.record.axes
    return axes.model, axes.dataset, axes.encoder if name.startswith("encoder.") else None, name
