"""`import-mmrec`: a checkout's models, configuration and data, copied to where runs look for them.

<to>/models/*.py  common/  utils/     the model files, and the modules beside them that they may import; also others
<to>/configs/                         YAML, which a run of a file there finds by itself
<data path>/<data set>/               interactions, feature files, tables; no caches of models
"""

import ast
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..disk.folders import new_folder
from ..disk.reading import check_file
from ..errors import ConfigError, DataError
from ..formatting import first_few
from ..plugin.names import is_safe_name
from .model_file import ModelFile, load, loaded_file
from .run_values import HOST_KEYS, OVERALL

_PARTS = {"models": "*.py", "common": "*.py", "utils": "*.py", "configs": "*.yaml"}  # of src, and the files copied
_CURE = "try a checkout that git made"
_CACHES = (".pt", ".pth", ".ckpt")
_COMPUTED = frozenset({"device", "model", "dataset", "data_path", "use_gpu", "valid_metric_bigger"})


@dataclass(frozen=True)
class ImportedModel:
    """A model file after the import: its class, the features that it reads, keys without a value, or why it can't be
    loaded."""

    path: str
    cls: str = ""
    features: tuple[str, ...] = ()
    keys_without_value: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Import:
    """What `import_checkout` did; `notes` say what was left out."""

    models: tuple[ImportedModel, ...]
    configs: str | None
    datasets: tuple[str, ...]
    notes: tuple[str, ...]


def import_checkout(checkout: Path, *, to: Path, data_path: Path, force: bool = False) -> Import:
    """Copy what is in a checkout of MMRec, and load each model file, which executes its code.

    Raises DataError without a checkout, ConfigError where `to` exists, unless `force` replaces it. A data set
    that exists is kept, unless `force` replaces it.
    """
    source = next((place for place in (checkout / "src", checkout) if (place / "models").is_dir()), None)
    if source is None:
        raise DataError(f"{checkout}: expected a checkout of MMRec, with src/models, got none; try its top folder")
    parts = {**_PARTS, **dict.fromkeys(_imported(source), "*.py")}
    others = {path.name for path in to.iterdir()} - parts.keys() if to.is_dir() else {to.name} if to.exists() else set()
    if others or (to.exists() and not force):
        got = f"one with {min(others)}" if others else "one that exists"
        cure = "try another --to" if others else "try --force, which replaces it, or another --to"
        raise ConfigError(f"{to}: expected a new folder for models and configs, got {got}; {cure}")
    with new_folder(to) as building:
        for part, pattern in parts.items():
            place = source / part
            for file in [place] if place.is_file() else sorted(one for one in place.rglob(pattern) if not one.is_dir()):
                copy = building / file.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                check_file(file, _CURE)
                shutil.copyfile(file, copy)
    models = tuple(_describe(path) for path in sorted((to / "models").glob("*.py")) if path.name != "__init__.py")
    notes: list[str] = []
    datasets = tuple(_datasets(checkout / "data", data_path, notes, force=force))
    return Import(models, str(to / "configs") if (to / "configs").is_dir() else None, datasets, tuple(notes))


def _imported(source: Path) -> list[str]:
    """What else of src the model files import: folders, and files."""
    files = [file for part in ("models", "common", "utils") for file in sorted((source / part).rglob("*.py"))]
    found: dict[str, None] = {}
    while files:
        for top in _tops(files.pop()):
            place = next((place for place in (source / f"{top}.py", source / top) if place.exists()), None)
            if place is not None and place.name not in {*found, *_PARTS} and top not in sys.stdlib_module_names:
                found[place.name] = None
                files += sorted(place.rglob("*.py")) if place.is_dir() else [place]
    return list(found)


def _tops(file: Path) -> set[str]:
    """The first parts of the names that a file imports; none of one that isn't Python."""
    with suppress(SyntaxError, ValueError, OSError):
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
        return {name.partition(".")[0] for name in names} - {""}
    return set()


def _describe(path: Path) -> ImportedModel:
    try:
        load(path)
    except ConfigError as error:
        return ImportedModel(str(path), error=str(error))
    file = loaded_file(path)
    return ImportedModel(str(path), file.cls.__name__, file.features, _without_value(file))


def _without_value(file: ModelFile) -> tuple[str, ...]:
    """The keys that the file reads and that neither YAML nor the host gives a value."""
    known = {*file.yaml(), *HOST_KEYS, *OVERALL, *_COMPUTED}
    return tuple(sorted(key for key in file.keys if key not in known))


def _datasets(source: Path, data_path: Path, notes: list[str], *, force: bool) -> Iterator[str]:
    """The names of the data sets that were copied."""
    for folder in sorted(source.iterdir()) if source.is_dir() else ():
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        place = data_path / folder.name
        if not is_safe_name(folder.name) or not (folder / f"{folder.name}.inter").is_file():
            notes.append(f"{folder}: left out: expected {folder.name}.inter there, got none")
        elif place.exists() and not (force and (place / f"{folder.name}.inter").is_file()):
            notes.append(f"{place} exists and is kept; --force replaces a data set")
        else:
            with new_folder(place) as building:
                for file in sorted(folder.iterdir()):
                    if file.is_file() and file.suffix not in _CACHES and "graph_dict" not in file.name:
                        shutil.copyfile(file, building / file.name)
            if inner := [path.name for path in sorted(folder.iterdir()) if path.is_dir()]:
                notes.append(f"{folder}: left out: expected files alone, got the folder {first_few(inner)}; copy it")
            yield folder.name
