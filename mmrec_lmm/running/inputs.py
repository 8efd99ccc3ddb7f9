"""The inputs of a run: the data set, and a feature table per modality, from files or from an encoder."""

import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ..cache import fingerprint
from ..config.settings import OF_INPUTS, OF_SPLIT, Settings
from ..data.items import JOINT, source_of
from ..data.opening import open_dataset
from ..disk.hashing import hash_file, hash_readable, join_hashes
from ..errors import ConfigError, NotApplicable, WeightsMissing, did_you_mean
from ..features.controls import NO_FEATURES
from ..features.encoding import EncodeOptions, encode, encoder_spec, table_path
from ..features.files import (
    MISSED_IMAGES,
    absent_table,
    control_tables,
    mean_filled,
    normalized,
    read_feature_file,
    scarcity,
    unequal_lengths,
    whitened,
)
from ..machine import choose_device, cpu_threads, encode_batch, loader_processes
from ..plugin.registry import Registry
from ..types import PRE_TRAINED, Dataset, EncoderCost, FeatureTable, Inputs, RunSeconds, RunSpec, Tuned

logger = logging.getLogger(__name__)


def gather(spec: RunSpec, registry: Registry, *, progress: bool = False) -> Inputs:
    """The data set and a feature table for each modality that the run uses, from files or an encoder."""
    settings, model = spec.settings, registry.models.get(spec.model)
    check_applicable(spec, registry)
    torch.set_num_threads(cpu_threads(settings))
    started = time.perf_counter()
    dataset = open_for(spec, registry)
    loaded = time.perf_counter()
    for note in dataset.notes:
        logger.warning("%s: %s", dataset.name, note)
    if dataset.split is not None:
        rows = ", ".join(f"{split} {count:,}" for split, count in dataset.split.rows.items())
        logger.info("%s: split %s, drawn with seed %d: %s", dataset.name, dataset.split, dataset.split.seed, rows)
    tuned = prepared_encoder(spec, dataset, registry, progress=progress)
    prepared = time.perf_counter()
    features = feature_tables(spec, dataset, registry, tuned=tuned, progress=progress) if model.uses_features else ()
    tables = dict(features)
    if spec.control != NO_FEATURES:
        _warn_of_scarcity(tables)
        if said := unequal_lengths(tables.values()):
            logger.info("%s", said)
    if spec.control == NO_FEATURES and settings.missing == "mean":
        logger.info("missing: mean has no effect under --control none, where all items lack all modalities")
    encoder_seconds = sum(table.seconds for table in tables.values()) + (tuned.seconds if tuned else 0.0)
    cost = _encoder_cost(spec, dataset, tables, tuned, registry)
    if settings.missing == "mean" and spec.control != NO_FEATURES:
        tables = {modality: mean_filled(table) for modality, table in tables.items()}
    if spec.control is not None:
        tables = control_tables(tables, spec.control, settings.seed)
    encoded_in = time.perf_counter() - prepared
    seconds = RunSeconds(load=loaded - started, tune=prepared - loaded, encode=encoded_in, encoder=encoder_seconds)
    encoded = () if spec.control == NO_FEATURES else tuple(tables)
    return Inputs(dataset, tables, seconds, tuned, files_behind(spec, dataset, encoded, registry), cost)


def open_for(spec: RunSpec, registry: Registry) -> Dataset:
    """The data set of a run, with the times of its training rows if its model reads them."""
    reader = f"model {spec.model}" if reads_timestamps(spec, registry) else ""
    return open_dataset(spec.dataset, spec.settings, registry, times_for=reader)


def reads_timestamps(spec: RunSpec, registry: Registry) -> bool:
    """True if the run's model, as it is configured, reads TrainingData.timestamps."""
    asks = registry.models.load(spec.model, "reads_timestamps")
    return bool(asks(spec.model_config) if callable(asks) else asks)


def _encoder_cost(
    spec: RunSpec, dataset: Dataset, tables: Mapping[str, FeatureTable], tuned: Tuned | None, registry: Registry
) -> EncoderCost | None:
    """What the encoder of a run's tables cost; None if none made any of them."""
    if spec.encoder is None or spec.control == NO_FEATURES:
        return None
    files = _from_files(spec, dataset, registry)
    made = [table for modality, table in tables.items() if modality not in files]
    if not made:
        return None
    paradigm = registry.paradigms.get(spec.paradigm)
    parameters: dict[str, int] | None = {}
    for table in made:  # what modalities share counts once
        parameters = None if parameters is None or table.parameters is None else {**parameters, **table.parameters}
    return EncoderCost(
        encode=sum(table.seconds for table in made) if all(table.seconds for table in made) else None,
        tune=(tuned.seconds or None) if tuned else 0.0,
        parameters=None if parameters is None else sum(parameters.values()),
        parameters_trained=None if paradigm.prepares or paradigm.joint else 0,  # its report says how many
    )


def without_encoder(spec: RunSpec, inputs: Inputs) -> RunSpec:
    """The run as it is recorded: a control run without features is the same run for every encoder."""
    if spec.control != NO_FEATURES:
        return spec
    return dataclasses.replace(spec, encoder=None, encoder_config=None, modalities=tuple(sorted(inputs.tables)))


@dataclass(frozen=True)
class SharedKeys:
    """Keys that are equal for runs with the same cached files of an encoder (`encoded`), which read the same `files`,
    and with the same `inputs`."""

    encoded: str
    files: str
    inputs: str


def shared_keys(spec: RunSpec, registry: Registry) -> SharedKeys:
    """The keys of what a run shares with others, from its spec alone: no file is read."""
    if spec.control == NO_FEATURES and not spec.features:
        names = declared_modalities(spec.modalities, spec.encoder, registry)
        if names is not None:
            spec = dataclasses.replace(spec, encoder=None, encoder_config=None, modalities=names)
    settings = {name: getattr(spec.settings, name) for name in OF_INPUTS - OF_SPLIT}
    split = {name: getattr(spec.settings, name) for name in OF_SPLIT}
    uses_features = registry.models.get(spec.model).uses_features
    prepared_by = [spec.paradigm, spec.paradigm_config] if registry.paradigms.get(spec.paradigm).prepares else None
    encoded = fingerprint([spec.dataset, settings, uses_features, spec.encoder, spec.encoder_config, prepared_by])
    draws = spec.control not in (None, "constant", NO_FEATURES)
    seed = spec.settings.seed if draws else None
    files = fingerprint([encoded, split])
    own = [spec.paradigm, spec.modalities, spec.features, spec.control, seed, reads_timestamps(spec, registry)]
    return SharedKeys(encoded, files, fingerprint([files, *own]))


def declared_modalities(
    named: tuple[str, ...] | None, encoder_name: str | None, registry: Registry
) -> tuple[str, ...] | None:
    """The modalities that a run names or, if it names none, those that its encoder makes of a complete catalog.

    None if they depend on files.
    """
    if named is not None:
        return tuple(sorted(named))
    encoder = registry.encoders.get(encoder_name) if encoder_name is not None else None
    if encoder is None or encoder.cls is None or encoder.feature_files is not None or encoder.modalities_of is not None:
        return None
    return tuple(sorted(modality for modality in encoder.modalities if modality != JOINT))


def encode_dataset(
    spec: RunSpec, registry: Registry, *, progress: bool = False, force: bool = False
) -> dict[str, FeatureTable]:
    """The features of a run alone: one table per modality; with `force`, encoded again.

    ConfigError for a paradigm that trains them with a model.
    """
    if registry.paradigms.get(spec.paradigm).joint:
        raise ConfigError(
            f"--paradigm {spec.paradigm}: expected a paradigm that makes features without a recommender, got one that "
            "trains the encoder with it; try `run`"
        )
    torch.set_num_threads(cpu_threads(spec.settings))
    dataset = open_dataset(spec.dataset, spec.settings, registry)
    tuned = prepared_encoder(spec, dataset, registry, progress=progress)
    tables = dict(feature_tables(spec, dataset, registry, tuned=tuned, progress=progress, force=force))
    _warn_of_scarcity(tables)
    return tables


def _warn_of_scarcity(tables: Mapping[str, FeatureTable]) -> None:
    for modality, table in tables.items():
        if scarce := scarcity(modality, int(table.present.sum()), len(table.present)):
            logger.warning("%s", scarce)


def files_behind(
    spec: RunSpec, dataset: Dataset, modalities: Sequence[str], registry: Registry
) -> dict[str, dict[str, str]]:
    """Hashes of the files that the inputs come from, to find out later which changed: "data" or modality -> file ->
    hash.

    Files in the data set's folder are named relative to it. All images of a catalog count as one file.
    """
    folder = Path(spec.settings.data_path) / spec.dataset
    inter = folder / (spec.settings.inter_file_name or f"{spec.dataset}.inter")
    found = {"data": {inter.name: hash_file(inter)} if inter.is_file() else {}}
    ready = _from_files(spec, dataset, registry) if modalities else {}
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


def prepared_encoder(spec: RunSpec, dataset: Dataset, registry: Registry, *, progress: bool) -> Tuned | None:
    """The encoder that the run's paradigm prepares before there are features; None if it prepares none.

    Raises ConfigError if nothing would use it, and what `Paradigm.check` and `Paradigm.prepare` raise.
    """
    paradigm = registry.paradigms.get(spec.paradigm)
    if not paradigm.prepares:
        return None
    check_applicable(spec, registry)
    if dataset.catalog is None:
        raise ConfigError(
            f"--paradigm {paradigm.name}: expected a data set with images and texts to tune on, got {dataset.name}, "
            f"which has {_content(dataset)}; try --paradigm {PRE_TRAINED}"
        )
    files, to_encode = _wanted(spec, dataset, registry)
    if not to_encode:
        raise ConfigError(
            f"--paradigm {paradigm.name}: expected a modality for encoder {spec.encoder} to encode, got all features "
            f"({', '.join(files)}) from files; try leaving out --features of a modality, or --paradigm {PRE_TRAINED}"
        )
    with _naming_content(dataset):
        return registry.paradigm(spec).prepare(spec, dataset.catalog, registry, progress=progress)


def feature_tables(
    spec: RunSpec,
    dataset: Dataset,
    registry: Registry,
    *,
    tuned: Tuned | None = None,
    progress: bool,
    force: bool = False,
) -> Iterator[tuple[str, FeatureTable]]:
    """One table per modality: from the encoder (as `tuned`, if given) if the run names one, else from the data set's
    feature files.

    A file given by `--features` takes precedence. `--modalities` selects among what is available; an encoder makes
    `joint` only if it is named there. Tables are scaled by `normalize`, those that the paradigm trains only if it keeps
    them so, and whitened if `whiten` says so; with `force`, those of the encoder are made again.
    """
    whiten = whitened if spec.settings.whiten else lambda table: table
    files, to_encode = _wanted(spec, dataset, registry)
    if spec.control == NO_FEATURES:  # reads no file and encodes nothing
        yield from ((modality, absent_table(modality, dataset.n_items)) for modality in (*files, *to_encode))
        return
    how = spec.settings.normalize
    paradigm = registry.paradigms.get(spec.paradigm)
    of_encoder = how if not paradigm.joint or how in paradigm.normalizes else "none"
    if of_encoder != how and to_encode:
        trained = " and ".join(to_encode)
        logger.warning("normalize: %s has no effect on %s, which %s trains: it is for features that stay as they are",
                       how, trained, spec.paradigm)  # fmt: skip
    for modality, file in files.items():
        table = read_feature_file(file, modality=modality, n_items=dataset.n_items)
        yield modality, whiten(normalized(table, how))
    if to_encode:
        assert spec.encoder is not None
        assert dataset.catalog is not None
        settings, device = spec.settings, choose_device(spec.settings)
        if any(modality != "image" for modality in to_encode):
            _note_skipped_fields(spec, dataset)
        with _naming_content(dataset):
            tables = encode(
                dataset.catalog,
                encoder_spec(spec, registry),
                spec.encoder_config,
                modalities=to_encode,
                text_fields=settings.text_fields,
                options=EncodeOptions(
                    device=device,
                    batch_size=encode_batch(settings, device),
                    workers=loader_processes(settings, device),
                    dtype=settings.encode_dtype,
                    compile=settings.encode_compile,
                    progress=progress,
                    force=force,
                ),
                tuned=tuned,
            )
        yield from ((modality, whiten(normalized(table, of_encoder))) for modality, table in tables.items())


@contextmanager
def _naming_content(dataset: Dataset) -> Iterator[None]:
    """Add to WeightsMissing how many items the weights are for."""
    try:
        yield
    except WeightsMissing as error:
        raise WeightsMissing(f"{error}\ndata set {dataset.name} has {_content(dataset)}") from None


def _wanted(spec: RunSpec, dataset: Dataset, registry: Registry) -> tuple[dict[str, Path], tuple[str, ...]]:
    """The modalities that a run uses: those read from files, and those to encode.

    Raises NotApplicable if one is available from neither, or there are none, and ConfigError for a text field that the
    user gave and the catalog lacks.
    """
    own = _ready_files(spec, dataset, registry)
    files = {**own, **spec.features}
    encodable = encodable_modalities(spec, dataset, registry) if spec.encoder else ()
    if spec.control == NO_FEATURES and spec.encoder is None and spec.modalities and dataset.catalog is not None:
        of_catalog = {"image": dataset.catalog.has_images, "text": dataset.catalog.has_text}  # for any encoder
        encodable = tuple(name for name, there in of_catalog.items() if there)
        encodable += (JOINT,) if len(encodable) == len(of_catalog) else ()
    available = sorted({*files, *encodable})
    default = [modality for modality in available if modality != JOINT or modality in files]
    wanted = spec.modalities if spec.modalities is not None else default
    missing = [modality for modality in wanted if modality not in available]
    if missing or not wanted:
        raise NotApplicable(_no_features(spec, dataset, missing, available, registry))
    if unused := [modality for modality in spec.features if modality not in wanted]:
        raise ConfigError(
            f"--features: expected modalities that the run has ({', '.join(wanted)}), got {', '.join(unused)}; try "
            "--modalities with them, or leaving them out"
        )
    known = {"image", "text", *own, *encodable}
    for modality in spec.features:
        if modality not in known and (meant := did_you_mean(modality, known)):
            logger.warning("--features: %s is read as a modality of its own%s", modality, meant)
    ready = {modality: files[modality] for modality in wanted if modality in files}
    to_encode = tuple(modality for modality in wanted if modality not in files)
    if any(modality != "image" for modality in to_encode):
        check_text_fields(spec, dataset)
    return ready, to_encode


def check_text_fields(spec: RunSpec, dataset: Dataset) -> None:
    """ConfigError if the user gave a text field that the catalog lacks. The default's may be missing, wherever they
    stand: they are those of the usual data sets."""
    lacking = _lacking_fields(spec, dataset)
    if "text_fields" not in spec.given or not lacking or spec.settings.text_fields == Settings().text_fields:
        return
    assert dataset.catalog is not None
    there = list(dataset.catalog.fields)
    raise ConfigError(
        f"{spec.given['text_fields']}: text_fields: expected columns of the catalog of {dataset.name}, got "
        f"{lacking[0]}{did_you_mean(lacking[0], there) or ';'} there are {', '.join(there) or 'none'}"
    )


def _note_skipped_fields(spec: RunSpec, dataset: Dataset) -> None:
    """Log the text fields of a shipped file that the catalog lacks, but for those of the default."""
    lacking = _lacking_fields(spec, dataset)
    skipped = [field for field in lacking if field not in Settings().text_fields]
    if skipped:
        logger.info("text_fields: %s skipped, as the catalog of %s lacks them", ", ".join(skipped), dataset.name)
    there = {} if dataset.catalog is None else {field.lower(): field for field in dataset.catalog.fields}
    meant = [there[field.lower()] for field in lacking if field.lower() in there]
    if meant:
        fields = ", ".join(there.get(field.lower(), field) for field in spec.settings.text_fields)
        logger.warning(
            "text_fields: the columns %s of the catalog of %s aren't read, as their names are written otherwise; try "
            "--text_fields='[%s]'",
            ", ".join(meant), dataset.name, fields,
        )  # fmt: skip


def _lacking_fields(spec: RunSpec, dataset: Dataset) -> list[str]:
    """The run's text fields that the catalog lacks."""
    if dataset.catalog is None:
        return []
    return [field for field in spec.settings.text_fields if field not in dataset.catalog.fields]


def cached_files(spec: RunSpec, dataset: Dataset, registry: Registry) -> dict[str, Path]:
    """The cached files of the run's inputs, existing or not: the tuned encoder under "tuned", tables by modality.

    Raises NotApplicable as `gather` does, and WeightsMissing, as file names depend on the weights.
    """
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


def _from_files(spec: RunSpec, dataset: Dataset, registry: Registry) -> dict[str, Path]:
    """The files of the modalities that aren't encoded: the ready ones, and those of `--features`."""
    return {**_ready_files(spec, dataset, registry), **spec.features}


def _ready_files(spec: RunSpec, dataset: Dataset, registry: Registry) -> Mapping[str, Path]:
    """The feature files that need no encoding: those of the encoder, if it names any, else the data set's own."""
    if spec.encoder is None:
        return dataset.feature_files
    if registry.encoders.get(spec.encoder).feature_files is None:
        return {}
    files: Mapping[str, Path] = registry.encoders.load(spec.encoder, "feature_files")(spec.encoder_config, dataset)
    return files


def given_files(spec: RunSpec, dataset: Dataset, registry: Registry) -> dict[str, Path]:
    """The user's files that features come from: feature files by modality, and weights (`--weights`) by name.

    Downloaded weights aren't among them, as their hash is checked.
    """
    if not registry.models.get(spec.model).uses_features or spec.control == NO_FEATURES:
        return {}
    found = _from_files(spec, dataset, registry)
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
    """Raise NotApplicable if model, encoder or control doesn't fit the run's paradigm, the sampler its model, or a
    metric its features; ConfigError if another value doesn't. Only the plugins' code is read."""
    if spec.model:  # not of `encode`
        check_sampler(spec, registry)
        check_metrics(spec, registry)
    if spec.settings.whiten and registry.paradigms.get(spec.paradigm).joint:
        raise NotApplicable(
            f"whiten: expected a paradigm that leaves features as they are, got {spec.paradigm}, which trains "
            "them; try whiten: false"
        )
    registry.paradigm(spec).check(spec, registry)


def check_metrics(spec: RunSpec, registry: Registry) -> None:
    """Raise NotApplicable for a metric of features that the run lacks, ConfigError if the metric that selects can't.

    Unknown names are left to those who know where they were set.
    """
    settings = spec.settings
    known = {name.lower(): registry.metrics.get(name) for name in settings.metrics if name in registry.metrics}
    without = not registry.models.get(spec.model).uses_features or spec.control == NO_FEATURES
    for metric in known.values():
        if without and "features" in metric.needs:
            who = f"model {spec.model}, which uses none" if spec.control != NO_FEATURES else "--control none"
            raise NotApplicable(
                f"metrics: expected item features for {metric.name}, got {who}; try leaving {metric.name} out"
            )
    selects = known.get(settings.valid_metric.partition("@")[0].lower())
    if selects is not None and not selects.larger_is_better:
        raise ConfigError(
            f"valid_metric: expected a metric of which larger is better, got {settings.valid_metric}; try Recall@20"
        )


def check_sampler(spec: RunSpec, registry: Registry) -> None:
    """Raise NotApplicable if the run's sampler doesn't draw as many negatives as its model takes."""
    settings, model = spec.settings, registry.models.get(spec.model)
    if model.negatives == "none":
        return
    if registry.samplers.get(settings.sampler).cls is None:
        raise NotApplicable(
            f"sampler: expected one that draws negatives for model {model.name}, got {settings.sampler}; try uniform"
        )
    if model.negatives == "one" and settings.n_negatives > 1:
        able = [other.name for other in registry.models if other.negatives == "several"]
        raise NotApplicable(
            f"n_negatives: expected 1 for model {model.name}, which takes one negative per positive, got "
            f"{settings.n_negatives}; try {', '.join([*able, 'or n_negatives 1'])}"
        )


def encodable_modalities(spec: RunSpec, dataset: Dataset, registry: Registry) -> tuple[str, ...]:
    """The modalities that the run's encoder can encode and that some item of the catalog has."""
    assert spec.encoder is not None
    catalog = dataset.catalog
    has = {"image": catalog is not None and catalog.has_images, "text": catalog is not None and catalog.has_text}
    has[JOINT] = all(has.values())
    encoder = registry.encoders.get(spec.encoder)
    encodes = encoder.encodes(spec.encoder_config) if encoder.cls else ()
    return tuple(modality for modality in encodes if has.get(modality, False))


def _no_features(
    spec: RunSpec, dataset: Dataset, missing: Sequence[str], available: Sequence[str], registry: Registry
) -> str:
    """The message about modalities without features, with the flags that would give them."""
    what = f"{', '.join(missing)} features" if missing else "item features"
    there = f"got {', '.join(available) or 'none'}"
    by_file = f"--features {missing[0] if missing else 'image'}=FILE.npy"
    catalog = dataset.catalog
    if spec.encoder is None or registry.encoders.get(spec.encoder).cls is None:
        encoders = [one for one in registry.encoders if one.cls is not None]
        able = [one.name for one in encoders if not missing or {*missing} <= {*one.modalities}]
        if catalog is None:
            by_encoder = "a catalog (items.tsv) for an encoder to read, or "
        else:
            by_encoder = f"--encoder NAME ({', '.join(able)}), or " if able else ""
        return f"data set {dataset.name}: expected {what} among its files, {there}; try {by_encoder}{by_file}"
    encoder = registry.encoders.get(spec.encoder)
    return (
        f"encoder {encoder.name}: expected {what} for data set {dataset.name}, {there}; it encodes "
        f"{', '.join(encoder.encodes(spec.encoder_config))}, and the data set has {_content(dataset)}; try {by_file}"
    )


def _content(dataset: Dataset) -> str:
    """The content of a data set that encoders read, in words."""
    catalog = dataset.catalog
    if catalog is None:
        return "no catalog (items.tsv)"
    images = sum(image is not None for image in catalog.images)
    where = (
        ""
        if images
        else " (the column image of items.tsv names them; `mmrec-lmm data images NAME --from DIR` takes those that are "
        "called by the items' ids)"
    )
    texts = [f"{sum(map(bool, column)):,} with text in {field}" for field, column in catalog.fields.items()]
    return ", ".join([f"{len(catalog):,} items, {images:,} of them with an image{where}", *texts])
