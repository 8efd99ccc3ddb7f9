"""What a run trains on: the data set, and a feature table per modality, from files or from an encoder."""

import dataclasses
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .artifacts import locked
from .data.loading import load_dataset
from .encoding import EncodeOptions, encode
from .errors import ConfigError, PluginError, WeightsMissing
from .items import JOINT
from .machine import choose_device
from .registry import Registry
from .settings import Settings
from .specs import EncoderSpec
from .tables import control_tables, mean_filled, read_feature_file
from .types import Dataset, FeatureTable, RunSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """What a run trains on."""

    dataset: Dataset
    tables: Mapping[str, FeatureTable]
    seconds: Mapping[str, float]


def gather(spec: RunSpec, registry: Registry, *, progress: bool = False) -> Inputs:
    """The data set and a feature table for each modality that the run uses, from files or an encoder."""
    settings, model = spec.settings, registry.models.get(spec.model)
    started = time.perf_counter()
    dataset = open_dataset(spec.dataset, settings, registry)
    loaded = time.perf_counter()
    for note in dataset.notes:
        logger.warning("%s: %s", dataset.name, note)
    tables = dict(feature_tables(spec, dataset, registry, progress=progress)) if model.uses_features else {}
    if settings.missing == "mean":
        tables = {modality: mean_filled(table) for modality, table in tables.items()}
    if spec.control is not None:
        tables = control_tables(tables, spec.control, settings.seed)
    return Inputs(dataset, tables, {"load": loaded - started, "encode": time.perf_counter() - loaded})


def encode_dataset(spec: RunSpec, registry: Registry, *, progress: bool = False) -> dict[str, FeatureTable]:
    """Just the features of a run: one table per modality."""
    dataset = open_dataset(spec.dataset, spec.settings, registry)
    return dict(feature_tables(spec, dataset, registry, progress=progress))


def open_dataset(name: str, settings: Settings, registry: Registry) -> Dataset:
    """The data set of that name under `data_path`; one that a plugin can make is made on first use."""
    folder = Path(settings.data_path) / name
    spec = registry.datasets.get(name) if name in registry.datasets else None
    if spec is not None and spec.make is not None and not folder.exists():
        make_dataset(folder, registry.datasets.load(name, "make"))
    if spec is not None and spec.load is not None:
        dataset: Dataset = registry.datasets.load(name, "load")(folder, name, settings)
        return dataset
    return load_dataset(folder, name, settings)


def make_dataset(folder: Path, make: Callable[[Path], None]) -> None:
    """Have `make` write a data set that is not there yet; it appears whole or not at all, whatever `make` does.

    `make` gets a path that doesn't exist, with the same last part, in a hidden folder beside: a kill leaves only that.
    """
    with locked(folder.with_name(f".{folder.name}")):
        if folder.exists():  # another process was quicker
            return
        logger.info("making the data set %s in %s", folder.name, folder)
        hidden = folder.with_name(f".{folder.name}.making")
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir()
        try:
            make(hidden / folder.name)
            if not (hidden / folder.name).is_dir():
                raise PluginError(f"data set {folder.name}: the plugin that brings it made no such folder")
            (hidden / folder.name).rename(folder)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)


def feature_tables(
    spec: RunSpec, dataset: Dataset, registry: Registry, *, progress: bool
) -> Iterator[tuple[str, FeatureTable]]:
    """One table per modality: from the encoder if the run names one, else from the data set's own files; a file
    given by `--features` comes first of all. `--modalities` picks among what there is; an encoder makes `joint` only if
    that names it."""
    files = {**_ready_files(spec, dataset, registry), **spec.features}
    encodable = encodable_modalities(spec, dataset, registry) if spec.encoder else ()
    available = sorted({*files, *encodable})
    unasked = [modality for modality in available if modality != JOINT or modality in files]
    wanted = spec.modalities if spec.modalities is not None else unasked
    missing = [modality for modality in wanted if modality not in available]
    if missing or not wanted:
        raise ConfigError(_no_features(spec, dataset, missing, available, registry))
    for modality in wanted:
        if modality in files:
            yield modality, read_feature_file(files[modality], modality=modality, n_items=dataset.n_items)
    to_encode = tuple(modality for modality in wanted if modality not in files)
    if to_encode:
        assert spec.encoder is not None
        assert dataset.catalog is not None
        settings = spec.settings
        try:
            yield from encode(
                dataset.catalog,
                _imported(registry, spec.encoder),
                spec.encoder_config,
                modalities=to_encode,
                text_fields=settings.text_fields,
                options=EncodeOptions(
                    device=choose_device(settings),
                    batch_size=settings.encode_batch_size,
                    workers=settings.workers,
                    dtype=settings.encode_dtype,
                    compile=settings.encode_compile,
                    progress=progress,
                ),
            ).items()
        except WeightsMissing as error:  # whoever fetches weights should know for how many items
            raise WeightsMissing(f"{error}\ndata set {dataset.name} has {_content(dataset)}") from None


def _ready_files(spec: RunSpec, dataset: Dataset, registry: Registry) -> Mapping[str, Path]:
    """The feature files that need no encoding: the data set's own or, of an encoder that names some, those."""
    if spec.encoder is None:
        return dataset.feature_files
    if registry.encoders.get(spec.encoder).feature_files is None:
        return {}
    files: Mapping[str, Path] = registry.encoders.load(spec.encoder, "feature_files")(spec.encoder_config, dataset)
    return files


def _imported(registry: Registry, encoder: str) -> EncoderSpec:
    """The encoder's spec with what it names imported; PluginError names the plugin where that fails."""
    load = registry.encoders.load
    return dataclasses.replace(
        registry.encoders.get(encoder), cls=load(encoder, "cls"), weights_id=load(encoder, "weights_id")
    )


def encodable_modalities(spec: RunSpec, dataset: Dataset, registry: Registry) -> tuple[str, ...]:
    """The modalities that the run's encoder can encode and that this catalogue has at all."""
    assert spec.encoder is not None
    catalog = dataset.catalog
    has = {"image": catalog is not None and catalog.has_images, "text": catalog is not None and catalog.has_text}
    has[JOINT] = all(has.values())
    encoder = registry.encoders.get(spec.encoder)
    return tuple(modality for modality in encoder.modalities if encoder.cls and has.get(modality, False))


def _no_features(
    spec: RunSpec, dataset: Dataset, missing: Sequence[str], available: Sequence[str], registry: Registry
) -> str:
    """Why a run has no features of a modality, and what to type."""
    what = f"{', '.join(missing)} features" if missing else "item features"
    there = f"available: {', '.join(available)}" if available else "none are available"
    by_file = f"--features {missing[0] if missing else 'image'}=FILE.npy reads them from a file"
    catalog = dataset.catalog
    if spec.encoder is None or registry.encoders.get(spec.encoder).cls is None:
        encoders = [one for one in registry.encoders if one.cls is not None]
        able = [one.name for one in encoders if not missing or {*missing} <= {*one.modalities}]
        if catalog is None:
            by_encoder = "it has no catalogue (items.tsv) that an encoder could read; "
        else:
            by_encoder = f"--encoder NAME ({', '.join(able)}) makes them from its catalogue, " if able else ""
        return f"data set {dataset.name} has no {what} among its files ({there}): {by_encoder}{by_file}"
    encoder = registry.encoders.get(spec.encoder)
    return (
        f"encoder {encoder.name} can't make {what} for data set {dataset.name} ({there}): it encodes "
        f"{', '.join(encoder.modalities)}, and the data set has {_content(dataset)}; {by_file}"
    )


def _content(dataset: Dataset) -> str:
    """What a data set holds for an encoder, in words."""
    catalog = dataset.catalog
    if catalog is None:
        return "no catalogue (items.tsv)"
    images = sum(image is not None for image in catalog.images)
    texts = [f"{sum(map(bool, column)):,} with a {field}" for field, column in catalog.fields.items()]
    where = "" if images else " (they belong in its folder images, named in the column image of items.tsv)"
    return ", ".join([f"{images:,} of {len(catalog):,} items with an image{where}", *texts])
