"""The plugins of `-p` that a run was made with: recorded with the run, and loaded again for what uses it.

A record is data, and may be another's. So a recorded plugin is loaded unasked only if it is a path that this user gave
to a run before; `<home>/plugins.json` lists these.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..cache import home
from ..disk.reading import is_there, read_json
from ..disk.writing import write_json
from ..errors import DataError, PluginError
from ..plugin.registry import Registry, source_hash
from ..types import RunSpec
from . import run_folder

LIST = "plugins.json"
_CURE = "it counts as empty; -p names a run's plugin"


def used(spec: RunSpec, registry: Registry) -> dict[str, str]:
    """The plugins of -p that bring something of a run: the file, or the module's name, and the hash of its code."""
    providers = {
        *([registry.models.provider(spec.model)] if spec.model else ()),  # none of `encode`
        registry.paradigms.provider(spec.paradigm),
        registry.samplers.provider(spec.settings.sampler),
        *([registry.splits.provider(spec.settings.split)] if spec.settings.split else ()),
        *(registry.metrics.provider(name) for name in spec.settings.metrics),
        *([registry.encoders.provider(spec.encoder)] if spec.encoder else ()),
        *([registry.datasets.provider(spec.dataset)] if spec.dataset in registry.datasets else ()),
    }
    return {info.source: info.code for info in registry.plugins if info.name in providers and info.source}


def trust(plugins: Mapping[str, str]) -> None:
    """Note that this user gave these plugins to a run."""
    known = _trusted()
    if new := plugins.keys() - known:
        write_json(home() / LIST, sorted({*known, *new}))


def _trusted() -> set[str]:
    path = home() / LIST
    found = read_json(path, cure=_CURE) if is_there(path, _CURE) else []
    return {one for one in found if isinstance(one, str)} if isinstance(found, list) else set()


def plugins_of(run: str, given: Sequence[str], *, out: Path) -> tuple[list[str], list[str]]:
    """The values of -p for what uses a finished run: `given`, then those that it was made with; and notes on
    what changed.

    A given file takes the place of a recorded one of the same name. PluginError for a plugin that this user never gave,
    DataError for one that isn't there.
    """
    result = run_folder.load_result(run_folder.find_run(out, run))
    plugins, notes = list(given), []
    names = {Path(value).name for value in given}
    for source, code in ((result.record.plugins if result is not None else None) or {}).items():
        if Path(source).name in names:
            continue
        if source not in _trusted():
            raise PluginError(
                f"{run}: expected -p {source}, the plugin that it was made with, as code is only loaded unasked if you "
                f"ran it before; try -p {source}, if you trust it"
            )
        now = source_hash(source)
        if now is None:
            raise DataError(
                f"{run}: expected the plugin that it was made with, {source}, got no such file; try -p with its new "
                "path"
            )
        if now != code:
            notes.append(f"{source} changed since {Path(run).name} was made")
        plugins.append(source)
    return plugins, notes
