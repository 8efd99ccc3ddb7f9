"""What a run trains on: the data set, and a feature table per modality, from files or from an encoder."""

import dataclasses
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ..cache import fingerprint, hash_file, hash_readable, join_hashes, locked
from ..config.settings import OF_INPUTS, Settings
from ..data.items import JOINT, source_of
from ..data.loading import load_dataset
from ..errors import ConfigError, NotApplicable, PluginError, WeightsMissing
from ..features.controls import NO_FEATURES
from ..features.encoding import EncodeOptions, encode, encoder_spec, table_path
from ..features.files import (
    MISSED_IMAGES,
    absent_table,
    control_tables,
    mean_filled,
    normalized,
    read_feature_file,
)
from ..machine import choose_device, cpu_threads
from ..plugin.registry import Registry
from ..types import PRE_TRAINED, Dataset, FeatureTable, Inputs, RunSeconds, RunSpec, Tuned

logger = logging.getLogger(__name__)


def gather(spec: RunSpec, registry: Registry, *, progress: bool = False) -> Inputs:
    """The data set and a feature table for each modality that the run uses, from files or an encoder."""
    settings, model = spec.settings, registry.models.get(spec.model)
    check_applicable(spec, registry)
    torch.set_num_threads(cpu_threads(settings))
    started = time.perf_counter()
    dataset = open_dataset(spec.dataset, settings, registry)
    loaded = time.perf_counter()
    for note in dataset.notes:
        logger.warning("%s: %s", dataset.name, note)
    tuned = prepared_encoder(spec, dataset, registry, progress=progress)
    had = time.perf_counter()
    features = feature_tables(spec, dataset, registry, tuned=tuned, progress=progress) if model.uses_features else ()
    tables = dict(features)
    if spec.control == NO_FEATURES and settings.missing == "mean":
        logger.info("missing: mean fills nothing under --control none, where all items lack all modalities")
    made_in = sum(table.seconds for table in tables.values()) + (tuned.record.seconds if tuned else 0.0)
    if settings.missing == "mean" and spec.control != NO_FEATURES:
        tables = {modality: mean_filled(table) for modality, table in tables.items()}
    if spec.control is not None:
        tables = control_tables(tables, spec.control, settings.seed)
    seconds = RunSeconds(load=loaded - started, tune=had - loaded, encode=time.perf_counter() - had, encoder=made_in)
    encoded = () if spec.control == NO_FEATURES else tuple(tables)
    return Inputs(dataset, tables, seconds, tuned, files_behind(spec, dataset, encoded, registry))


def without_encoder(spec: RunSpec, inputs: Inputs) -> RunSpec:
    """The run as it is recorded: a twin without features is one run, whatever encoder it is the twin of."""
    if spec.control != NO_FEATURES:
        return spec
    return dataclasses.replace(spec, encoder=None, encoder_config=None, modalities=tuple(sorted(inputs.tables)))


@dataclass(frozen=True)
class SharedKeys:
    """Equal for runs that share what an encoder makes (`cached_files`), and all that they train on (`inputs`)."""

    encoded: str
    inputs: str


def shared_keys(spec: RunSpec, registry: Registry) -> SharedKeys:
    """What a run has in common with others, told from its spec alone: no file is looked at."""
    if spec.control == NO_FEATURES and not spec.features:
        names = declared_modalities(spec.modalities, spec.encoder, registry)
        if names is not None:
            spec = dataclasses.replace(spec, encoder=None, encoder_config=None, modalities=names)
    settings = {name: getattr(spec.settings, name) for name in OF_INPUTS}
    uses_features = registry.models.get(spec.model).uses_features
    tuning = spec.paradigm_config if registry.paradigms.get(spec.paradigm).prepares else None
    encoded = fingerprint([spec.dataset, settings, uses_features, spec.encoder, spec.encoder_config, tuning])
    draws = spec.control not in (None, "constant", NO_FEATURES)
    seed = spec.settings.seed if draws else None
    return SharedKeys(
        encoded, fingerprint([encoded, spec.paradigm, spec.modalities, spec.features, spec.control, seed])
    )


def declared_modalities(
    named: tuple[str, ...] | None, encoder_name: str | None, registry: Registry
) -> tuple[str, ...] | None:
    """The modalities that a run names or, where it names none, that its encoder makes of a catalog that has them all;
    None where files decide."""
    if named is not None:
        return tuple(sorted(named))
    encoder = registry.encoders.get(encoder_name) if encoder_name is not None else None
    if encoder is None or encoder.cls is None or encoder.feature_files is not None:
        return None
    return tuple(sorted(modality for modality in encoder.modalities if modality != JOINT))


def encode_dataset(spec: RunSpec, registry: Registry, *, progress: bool = False) -> dict[str, FeatureTable]:
    """Just the features of a run: one table per modality. ConfigError for a paradigm that has none without a model."""
    if registry.paradigms.get(spec.paradigm).joint:
        raise ConfigError(
            f"--paradigm {spec.paradigm}: expected a paradigm that makes features without a recommender, got one that "
            "trains the encoder with it; try `run`"
        )
    torch.set_num_threads(cpu_threads(spec.settings))
    dataset = open_dataset(spec.dataset, spec.settings, registry)
    tuned = prepared_encoder(spec, dataset, registry, progress=progress)
    return dict(feature_tables(spec, dataset, registry, tuned=tuned, progress=progress))


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


def files_behind(
    spec: RunSpec, dataset: Dataset, modalities: Sequence[str], registry: Registry
) -> dict[str, dict[str, str]]:
    """Hashes of the files that the inputs come from, for telling which one changed: "data" and each modality -> file
    -> hash. Files are named within the data set's folder where they lie there; its images count as one."""
    folder = Path(spec.settings.data_path) / spec.dataset
    inter = folder / (spec.settings.inter_file_name or f"{spec.dataset}.inter")
    found = {"data": {inter.name: hash_file(inter)} if inter.is_file() else {}}
    ready = {**_ready_files(spec, dataset, registry), **spec.features} if modalities else {}
    encoded = [modality for modality in modalities if modality not in ready]
    of_catalog = {}
    if encoded and dataset.catalog is not None:
        images = [one for one in hash_readable(dataset.catalog.images) if one is not None]
        of_catalog = {"images": join_hashes(images)} if images else {}
        if (folder / "items.tsv").is_file():
            of_catalog["items.tsv"] = hash_file(folder / "items.tsv")
    for modality in modalities:
        path = ready.get(modality)
        where = None if path is None else path.relative_to(folder) if path.is_relative_to(folder) else path
        found[modality] = of_catalog if path is None else {str(where): hash_file(path)}
    return found


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


def prepared_encoder(spec: RunSpec, dataset: Dataset, registry: Registry, *, progress: bool) -> Tuned | None:
    """The encoder that the run's paradigm makes before there are features; None where it makes none. Raises ConfigError
    where it would be for nothing, and what `Paradigm.check` and `Paradigm.prepare` raise."""
    paradigm = registry.paradigms.get(spec.paradigm)
    if not paradigm.prepares:
        return None
    check_applicable(spec, registry)
    if dataset.catalog is None:
        raise ConfigError(
            f"--paradigm {paradigm.name} tunes on images and texts, but data set {dataset.name} has {_content(dataset)}"
        )
    files, to_encode = _wanted(spec, dataset, registry)
    if not to_encode:
        raise ConfigError(
            f"--paradigm {paradigm.name} tunes encoder {spec.encoder} for nothing where all features, of "
            f"{', '.join(files)}, come from files: leave out --features of a modality that it is to encode, or take "
            f"--paradigm {PRE_TRAINED}"
        )
    with _telling_content(dataset):
        return registry.paradigm(spec).prepare(spec, dataset.catalog, registry, progress=progress)


def feature_tables(
    spec: RunSpec, dataset: Dataset, registry: Registry, *, tuned: Tuned | None = None, progress: bool
) -> Iterator[tuple[str, FeatureTable]]:
    """One table per modality: from the encoder (as `tuned`, if it was) where the run names one, else from the data
    set's own files; a file given by `--features` comes first of all. `--modalities` picks among what there is; an
    encoder makes `joint` only if that names it. Those from files are scaled as `normalize` says."""
    files, to_encode = _wanted(spec, dataset, registry)
    if spec.control == NO_FEATURES:  # nothing is read or encoded for it
        yield from ((modality, absent_table(modality, dataset.n_items)) for modality in (*files, *to_encode))
        return
    how = spec.settings.normalize
    if how != "none" and not files:
        logger.warning("normalize: %s changes nothing: it is for feature files, and this run reads none", how)
    for modality, file in files.items():
        table = read_feature_file(file, modality=modality, n_items=dataset.n_items)
        yield modality, normalized(table, how)
    if to_encode:
        assert spec.encoder is not None
        assert dataset.catalog is not None
        settings = spec.settings
        with _telling_content(dataset):
            tables = encode(
                dataset.catalog,
                encoder_spec(spec, registry),
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
                tuned=tuned,
            )
        yield from tables.items()


@contextmanager
def _telling_content(dataset: Dataset) -> Iterator[None]:
    """Whoever is asked to fetch weights should know for how many items."""
    try:
        yield
    except WeightsMissing as error:
        raise WeightsMissing(f"{error}\ndata set {dataset.name} has {_content(dataset)}") from None


def _wanted(spec: RunSpec, dataset: Dataset, registry: Registry) -> tuple[dict[str, Path], tuple[str, ...]]:
    """The modalities that a run uses: those read from files, and those to be encoded. NotApplicable where one of them
    is neither, or there are none."""
    files = {**_ready_files(spec, dataset, registry), **spec.features}
    encodable = encodable_modalities(spec, dataset, registry) if spec.encoder else ()
    if spec.control == NO_FEATURES and spec.encoder is None and spec.modalities and dataset.catalog is not None:
        of_catalog = {"image": dataset.catalog.has_images, "text": dataset.catalog.has_text}  # for whichever encoder
        encodable = tuple(name for name, there in of_catalog.items() if there)
        encodable += (JOINT,) if len(encodable) == len(of_catalog) else ()
    available = sorted({*files, *encodable})
    unasked = [modality for modality in available if modality != JOINT or modality in files]
    wanted = spec.modalities if spec.modalities is not None else unasked
    missing = [modality for modality in wanted if modality not in available]
    if missing or not wanted:
        raise NotApplicable(_no_features(spec, dataset, missing, available, registry))
    ready = {modality: files[modality] for modality in wanted if modality in files}
    return ready, tuple(modality for modality in wanted if modality not in files)


def cached_files(spec: RunSpec, dataset: Dataset, registry: Registry) -> dict[str, Path]:
    """The store's files, there or not, that the run's inputs are made of: the tuned encoder under "tuned", tables by
    modality. Raises NotApplicable as `gather`, and WeightsMissing, since weights are part of the names."""
    check_applicable(spec, registry)
    if not registry.models.get(spec.model).uses_features or spec.control == NO_FEATURES:
        return {}
    _, to_encode = _wanted(spec, dataset, registry)
    if not to_encode or dataset.catalog is None:
        return {}
    encoder, fields = encoder_spec(spec, registry), spec.settings.text_fields
    found: dict[str, Path] = {}
    if registry.paradigms.get(spec.paradigm).prepares:
        found["tuned"] = registry.paradigm(spec).prepared_path(spec, dataset.catalog, registry)
    for modality in to_encode:
        source = source_of(dataset.catalog, modality, fields)
        tuned = found["tuned"].stem if "tuned" in found else None
        found[modality] = table_path(
            source, encoder, spec.encoder_config, dtype=spec.settings.encode_dtype, tuned=tuned
        )
    return found


def _ready_files(spec: RunSpec, dataset: Dataset, registry: Registry) -> Mapping[str, Path]:
    """The feature files that need no encoding: the data set's own or, of an encoder that names some, those."""
    if spec.encoder is None:
        return dataset.feature_files
    if registry.encoders.get(spec.encoder).feature_files is None:
        return {}
    files: Mapping[str, Path] = registry.encoders.load(spec.encoder, "feature_files")(spec.encoder_config, dataset)
    return files


def given_files(spec: RunSpec, dataset: Dataset, registry: Registry) -> dict[str, Path]:
    """The user's files that features come from: of features, by modality, and of weights (`--weights`), by name.
    Weights that were downloaded aren't among them, as these are held to the hash that they had at first."""
    if not registry.models.get(spec.model).uses_features or spec.control == NO_FEATURES:
        return {}
    found = {**_ready_files(spec, dataset, registry), **spec.features}
    if "image" in found and (missed := found["image"].with_name(MISSED_IMAGES)).is_file():
        found["missed images"] = missed
    given = Path(getattr(spec.encoder_config, "weights", "") or "")
    if given.is_file():
        return {**found, "weights": given}
    encoder = registry.encoders.get(spec.encoder) if spec.encoder and given.parts else None
    if encoder is None or encoder.files is None:
        return found
    needed = registry.encoders.load(encoder.name, "files")
    names = [file.name for modality in encoder.modalities for file in needed(spec.encoder_config, modality)]
    return found | {name: given / name for name in names if (given / name).is_file()}


def check_applicable(spec: RunSpec, registry: Registry) -> None:
    """NotApplicable where model, encoder or control has no part in the run's paradigm; ConfigError where another value
    contradicts it. Nothing is read but the plugins' code."""
    registry.paradigm(spec).check(spec, registry)


def encodable_modalities(spec: RunSpec, dataset: Dataset, registry: Registry) -> tuple[str, ...]:
    """The modalities that the run's encoder can encode and that this catalog has at all."""
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
            by_encoder = "it has no catalog (items.tsv) that an encoder could read; "
        else:
            by_encoder = f"--encoder NAME ({', '.join(able)}) makes them from its catalog, " if able else ""
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
        return "no catalog (items.tsv)"
    images = sum(image is not None for image in catalog.images)
    where = "" if images else " (they belong in its folder images, named in the column image of items.tsv)"
    texts = [f"{sum(map(bool, column)):,} with text in {field}" for field, column in catalog.fields.items()]
    return ", ".join([f"{len(catalog):,} items, {images:,} of them with an image{where}", *texts])
