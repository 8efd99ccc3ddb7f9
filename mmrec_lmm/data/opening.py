"""Opening a data set by its name: a folder in MMRec's layout, or what a plugin makes or reads."""

import dataclasses
import logging
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

from ..config.settings import Settings
from ..disk.folders import restore_folder
from ..disk.locks import locked
from ..disk.reading import check_readable
from ..disk.temporaries import sweep, sweep_once, temporary_path
from ..errors import ConfigError, DataError, PluginError
from ..plugin.registry import Registry
from ..plugin.specs import DatasetSpec
from ..types import Dataset
from .loading import load_dataset
from .splitting import Rule

logger = logging.getLogger(__name__)


def open_dataset(name: str, settings: Settings, registry: Registry, *, times_for: str = "") -> Dataset:
    """The data set of that name under `data_path`; one that a plugin can make is made on first use.

    `times_for` names who reads the times of training rows, if anybody does. Raises DataError; for a data set that can
    be got, with the command.
    """
    folder = Path(settings.data_path) / name
    check_readable(folder)
    restore_folder(folder)
    sweep_once(folder.parent)
    spec = registry.datasets.get(name) if name in registry.datasets else None
    if spec is not None and spec.make is not None and not folder.exists():
        make_dataset(folder, registry.datasets.load(name, "make"))
    if spec is not None and spec.get and not folder.exists():
        raise DataError(
            f"{folder}: expected the data set {name}, got no such folder; try `{how_to_get(spec, settings)}`, or "
            "--data-path DIR if it lies elsewhere"
        )
    if spec is not None and spec.load is not None:
        dataset: Dataset = registry.datasets.load(name, "load")(folder, name, settings)
        if settings.split and dataset.split is None:
            raise ConfigError(
                f"--split {settings.split}: expected a data set whose table of interactions is read here, got {name}, "
                "which its plugin reads and splits; try leaving out --split"
            )
        if times_for and (dataset.timestamps is None or dataset.timestamps.shape != dataset.train.users.shape):
            got = "none" if dataset.timestamps is None else f"an array {dataset.timestamps.shape}"
            raise DataError(
                f"{times_for}: expected a data set with a time for each training row, ({len(dataset.train)},), got "
                f"{got} of {name}, which its plugin reads"
            )
    else:
        dataset = load_dataset(folder, name, settings, rule=split_rule(settings, registry), times_for=times_for)
    if dataset.catalog is None:
        return dataset
    catalog = dataclasses.replace(dataset.catalog, background=settings.image_background)
    return dataclasses.replace(dataset, catalog=catalog)


def split_rule(settings: Settings, registry: Registry) -> Rule | None:
    """The rule that draws the split which settings name; None if they name none."""
    if not settings.split:
        return None
    spec, provider = registry.splits.get(settings.split), registry.splits.provider(settings.split)
    owner = f"plugin {provider}: split {spec.name}"
    return Rule(spec.name, registry.splits.load(spec.name, "draw"), spec.needs_times, owner)


def how_to_get(spec: DatasetSpec, settings: Settings) -> str:
    """The command that brings a data set to the folder where a run looks for it."""
    elsewhere = settings.data_path != Settings().data_path
    return f"{spec.get} --data-path {shlex.quote(settings.data_path)}" if elsewhere else spec.get


def make_dataset(folder: Path, make: Callable[[Path], None]) -> None:
    """Have `make` write a data set that is not there yet; it appears whole or not at all, whatever `make` does.

    `make` gets a path that doesn't exist, with the same last part, in a hidden folder beside: a kill leaves only that.
    """
    with locked(folder.with_name(f".{folder.name}")):
        if folder.exists():  # another process was quicker
            return
        logger.info("making the data set %s in %s", folder.name, folder)
        sweep(folder.parent)
        hidden = temporary_path(folder)
        hidden.mkdir()
        try:
            make(hidden / folder.name)
            if not (hidden / folder.name).is_dir():
                raise PluginError(f"data set {folder.name}: the plugin that brings it made no such folder")
            (hidden / folder.name).rename(folder)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
