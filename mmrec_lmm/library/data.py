"""`datasets` and `list datasets`: what lies in the folder of data sets, and what can be had besides."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.resolve import Request, resolve_request
from ..data.opening import how_to_get
from ..data.overview import overview
from ..disk.reading import check_readable
from ..errors import MMRecError
from ..formatting import first_line
from ..plugin.registry import load_registry
from ..user_paths import user_path

if TYPE_CHECKING:
    import os

    import pandas as pd

    from ..config.settings import Settings
    from ..plugin.registry import Registry
    from ..plugin.specs import DatasetSpec


def datasets(
    data_path: str | os.PathLike[str] = "data", *, plugins: Iterable[str | os.PathLike[str]] = ()
) -> pd.DataFrame:
    """A row for each data set in the folder, with what its files hold, and for each that a plugin brings."""
    import pandas as pd

    return pd.DataFrame(dataset_rows(load_registry([str(plugin) for plugin in plugins]), user_path(data_path)))


def dataset_rows(registry: Registry, data_path: Path) -> list[dict[str, Any]]:
    """A row for each folder of data, and for each data set that a plugin registers and that isn't there.

    Counts are those of the files. A folder that can't be read is listed, with the reason as its state.
    """
    check_readable(data_path)
    folders = {path.name for path in data_path.glob("[!.]*") if path.is_dir()} if data_path.is_dir() else set()
    rows = []
    for name in sorted(folders | set(registry.datasets.names()), key=str.lower):
        spec, counts = None, {}
        try:
            spec = registry.datasets.get(name) if name in registry.datasets else None
            settings = resolve_request(Request("", name, overrides={"data_path": str(data_path)}), registry).runs[0]
            if name in folders and not (spec and spec.load):
                counts = _counts(data_path / name, name, settings.settings)
            state = "here" if name in folders else _origin(spec, settings.settings)
        except (MMRecError, OSError) as error:
            state = f"can't be read: {first_line(error).replace(f'{data_path}/{name}/', '')}"
        rows.append(
            {
                "name": name,
                **{column: counts.get(column) for column in COLUMNS},
                "state": state,
                "summary": spec.summary if spec else "",
                "plugin": registry.datasets.provider(name) if spec else None,
            }
        )
    return rows


COLUMNS = ("users", "items", "interactions", "images", "texts", "features", "timestamps")


def _counts(folder: Path, name: str, settings: Settings) -> dict[str, Any]:
    found = overview(folder, name, settings)
    features = ", ".join(f"{modality} {width}" for modality, width in found.features.items())
    return {**vars(found), "features": features or None, "timestamps": "yes" if found.timestamps else "no"}


def _origin(spec: DatasetSpec | None, settings: Settings) -> str:
    """How a data set that isn't here comes here."""
    if spec and spec.get:
        return how_to_get(spec, settings)
    return "made on first use" if spec and spec.make else "its plugin reads it"
