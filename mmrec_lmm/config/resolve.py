"""Configuration: MMRec's YAML layers and the command line become runs, and every value keeps its origin.

Layers, later wins: the schemas' defaults < overall.yaml < dataset/<name>.yaml < model/<name>.yaml <
encoder/<name>.yaml < preset/<preset>.yaml < preset/<preset>/<model>.yaml < grid/<grid>.yaml <
grid/<grid>/<model>.yaml < a study's file < command line.

Keys are flat, as in MMRec, and a later layer replaces a value whole. `hyper_parameters` is the exception: its lists are
joined over the layers. Each key that it names is a grid axis, and the grid is their product, the last key fastest.
Keys that MMRec lacks are in a section: `encoder:`, or that of a paradigm, such as `ft:`. A folder of MMRec's loads
unedited.
"""

import dataclasses
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError, ConfigValueError, PluginError, did_you_mean
from ..formatting import aligned
from ..plugin.names import NAME_RULE, is_safe_name
from ..plugin.registry import NamedSpecs, Registry
from ..plugin.specs import DatasetSpec, EncoderSpec, ModelSpec, ParadigmSpec, SamplerSpec, SplitSpec
from ..types import PRE_TRAINED, EncoderName, RunSpec
from . import yaml_layers
from .choices import CALLED_ELSEWHERE
from .schema import HOST, Key, Schema, check_settings, describe_type, schema_of, takes_whole
from .search import Search, Values, draw, make_range
from .settings import MMREC_UNUSED, OF_SPLIT
from .yaml_layers import ENCODER, GRID, Layer, Origin, as_yaml

MOST_RUNS = 100_000  # of a grid, and of a study
COMMAND_LINE = "command line"
DEFAULT = "default"
_GRIDS = ("grid", "model grid")  # layers that --grid names
_SHARED = ("overall", "dataset", "preset")  # layers that serve every model, so they may hold keys of other models

#: Keys of MMRec's models and of its text encoder: accepted in those layers, and unused where the model has no such key.
_MMREC_MODEL_KEYS = frozenset({
    "aggr_mode", "alpha", "cf_model", "cl_loss", "cl_weight", "degree_ratio", "dropout", "dropout_rate",
    "embedding_size", "feat_embed_dim", "fusion_mode", "hidden_dropout_prob", "hidden_size", "hyper_num",
    "image_knn_k", "keep_rate", "kl_weight", "knn_k", "lambda_coeff", "latent_embedding", "layer_norm_eps", "layer_num",
    "max_img_size", "max_position_embeddings", "max_txt_len", "mess_dropout", "mm_fusion_mode", "mm_image_weight",
    "mode", "n_hyper_layer", "n_layers", "n_mm_layers", "n_ui_layers", "neighbor_weight", "pad_token_id", "recdim",
    "reg_weight", "shrink", "ssl_alpha", "ssl_task", "ssl_temp", "temp", "text_knn_k", "type_vocab_size",
    "use_raw_features", "weight_size", "weighting",
})  # fmt: skip


@dataclass(frozen=True)
class Value:
    """A key's value as a program gives it: text in it is text, and isn't read as YAML."""

    value: Any


@dataclass(frozen=True)
class Request:
    """A request as the user typed it. `model` is empty for a verb that needs none (`encode`), `study` is the layer of a
    study's file, `search` draws points of the grid instead of its product, `overrides` holds the raw text of each
    `--key=value`, or a program's Value in its place."""

    model: str
    dataset: str
    encoder: EncoderName | None = None
    paradigm: str = PRE_TRAINED
    modalities: tuple[str, ...] | None = None
    features: Mapping[str, Path] = field(default_factory=dict)
    control: str | None = None
    preset: str | None = None
    grid: str | None = None
    configs: Path | None = None
    study: Layer | None = None
    search: Search | None = None
    overrides: Mapping[str, str | Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Resolved:
    """All runs of a request: the grid's points in product order, or the one run without a grid.

    `origins` has every key, `axes` the values of the grid's keys in order, `unused` the keys of MMRec that a
    file has and nothing here reads, with that file. `notes` list what was left out of the request.
    """

    runs: tuple[RunSpec, ...]
    origins: Mapping[str, Origin]
    axes: Mapping[str, tuple[Any, ...]]
    unused: Mapping[str, str]
    notes: tuple[str, ...] = ()


def resolve_request(request: Request, registry: Registry) -> Resolved:
    """The runs that a request asks for, with its names looked up in the registry. Raises as `resolve`, and ConfigError
    for an unknown name."""
    if request.dataset and not is_safe_name(request.dataset):
        raise ConfigError(f"data set: expected a name of {NAME_RULE}, got {request.dataset!r}; rename its folder")
    request = _without_variant(request, registry)
    model = registry.models.get(request.model) if request.model else None
    dataset = registry.datasets.get(request.dataset) if request.dataset in registry.datasets else None
    if request.encoder is None and dataset and (model is None or model.uses_features):
        default = dataset.default_encoder
        request = dataclasses.replace(request, encoder=EncoderName.parse(default) if default else None)
    return resolve(
        request,
        model=model,
        encoder=registry.encoders.get(request.encoder.name) if request.encoder else None,
        dataset=dataset,
        paradigm=registry.paradigms.get(request.paradigm),
        sections=sections(registry),
        samplers=registry.samplers,
        splits=registry.splits,
    )


def sections(registry: Registry) -> tuple[str, ...]:
    """The sections that a file may have: the encoder's, and those of all paradigms and samplers."""
    samplers = (spec.name for spec in registry.samplers if spec.config is not None)
    return (ENCODER, *registry.paradigms.names(), *samplers)


def resolve(
    request: Request,
    *,
    model: ModelSpec | None,
    encoder: EncoderSpec | None,
    dataset: DatasetSpec | None,
    paradigm: ParadigmSpec | None = None,
    sections: Sequence[str] = (ENCODER,),
    samplers: NamedSpecs[SamplerSpec] | None = None,
    splits: NamedSpecs[SplitSpec] | None = None,
) -> Resolved:
    """The runs that a request asks for. `dataset` is None if the data set is only a folder in MMRec's layout. Without a
    model, runs have an empty name and no model_config, and are used for their settings and encoder. If the model uses
    no features, the request's values for features are left out of its run. `sections` are those that a file may hold,
    read by this run or not. `samplers` and `splits` are those that a run may name.

    ConfigError has one line for each fault, of all files at once; PluginError names a faulty schema.
    """
    notes: tuple[str, ...] = ()
    if model and not model.uses_features:
        request, notes = _without_features(request, model)
        encoder = None
    if request.control == "none" and request.paradigm != PRE_TRAINED:
        request, notes = _without_paradigm(request)
        paradigm = None
    of_model, of_encoder, of_paradigm = _model_schema(model, sections), _encoder_schema(encoder), schema_in(paradigm)
    schemas = [schema for schema in (HOST, of_model, of_encoder, of_paradigm) if schema]
    keys = {name: key for schema in schemas for name, key in schema.keys.items()}
    merge = _Merge(keys, sections, unread=model.unread if model else ())
    stack = [*_files(request, model, encoder, dataset, merge), request.study]
    of_samplers = _sampler_schemas([*filter(None, stack)], request, samplers)
    for schema in of_samplers.values():
        merge.know(schema.keys)
    merge.samplers = samplers
    merge.add([*filter(None, stack), _command_line(request, encoder, merge)])
    merge.check_name("sampler", samplers)
    merge.check_name("split", splits)
    if request.study is None:  # a study's grid serves all its paradigms, of which some may lack its axes
        merge.problems += _idle_axes(filter(None, stack), merge)
    merge.fail()

    axes = {name: merge.points[name] for name in merge.axes}
    trials = _trials(axes, request, model, merge) if request.search else None
    sizes = {name: len(values) for name, values in axes.items() if trials is None or name == "seed"}
    if (count := math.prod(sizes.values()) * len(trials or (None,))) > MOST_RUNS:
        shown = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
        raise ConfigError(f"{GRID}: expected at most {MOST_RUNS:,} runs, got {count:,} ({shown}); try fewer values")
    origins = {
        name: dataclasses.replace(origin, value=merge.points[name] if name in axes else merge.points[name][0])
        for name, origin in merge.origins.items()
    }
    if not origins["use_gpu"].value and origins["device"].value == "auto":
        origins["device"] = dataclasses.replace(origins["use_gpu"], value="cpu")  # MMRec's way to choose the CPU
    of_plugins = [spec.configs for spec in (model, encoder, dataset) if spec and spec.configs]
    given = {name: str(origin) for name, origin in origins.items() if not _is_shipped(origin, of_plugins)}
    runs = []
    for point in _product(axes) if trials is None else _at_seeds(trials, axes):
        values = {name: origin.value for name, origin in origins.items()} | point
        of_sampler = of_samplers.get(values["sampler"].lower())
        run = RunSpec(
            model=model.name if model else "",
            dataset=_dataset_name(request, dataset),
            settings=_build(HOST, values, merge),
            model_config=_build(of_model, values, merge) if of_model else None,
            encoder=encoder.name if encoder else None,
            encoder_config=_build(of_encoder, values, merge) if of_encoder else None,
            paradigm=paradigm.name if paradigm else request.paradigm,
            paradigm_config=_build(of_paradigm, values, merge) if of_paradigm else None,
            sampler_config=_build(of_sampler, values, merge) if of_sampler else None,
            modalities=request.modalities,
            features=request.features,
            control=request.control,
            point=point,
            given=given,
        )
        runs.append(run)
    merge.fail()
    if of_paradigm:
        for name in of_paradigm.keys:  # a default that another key decides is known only now
            if origins[name].value is None:
                decided = [getattr(run.paradigm_config, name.removeprefix(of_paradigm.prefix)) for run in runs]
                if decided.count(decided[0]) == len(decided):
                    origins[name] = dataclasses.replace(origins[name], value=decided[0])
    return Resolved(tuple(runs), origins, axes, merge.unused, notes)


def _product(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every point of a grid, the last key fastest."""
    for choice in itertools.product(*axes.values()):
        yield dict(zip(axes, choice, strict=True))


def _at_seeds(trials: Sequence[Mapping[str, Any]], axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """The trials at every seed; seeds are not searched."""
    for seed in axes.get("seed", (None,)):
        for trial in trials:
            yield {name: trial.get(name, seed) for name in axes}


def _trials(
    axes: Mapping[str, tuple[Any, ...]], request: Request, model: ModelSpec | None, merge: "_Merge"
) -> list[dict[str, Any]]:
    """The points of a random search of a grid's axes; one where there is nothing to search."""
    search = request.search
    assert search is not None
    space: dict[str, Values] = {}
    try:
        for name, values in axes.items():
            if name in search.scales:
                space[name] = make_range(name, values, takes_whole(merge.keys[name].hint), search.scales[name])
            elif name != "seed":
                space[name] = values
        return draw(space, search, model.name if model else "") if space else [{}]
    except ConfigValueError as error:
        place = merge.origins.get(error.key) or (request.study.origin(error.key) if request.study else COMMAND_LINE)
        merge.problems.append(f"{place}: {error.key}: {error.text}")
    merge.fail()
    raise AssertionError


def describe(resolved: Resolved) -> str:
    """The text of `config show`: each key, its value as YAML (an axis: its values, with bars between), its origin."""

    def brief(source: object) -> str:
        return str(source).replace(f"{yaml_layers.shipped()}{os.sep}", "mmrec-lmm:configs/")

    rows = []
    for name, origin in resolved.origins.items():
        values = origin.value if name in resolved.axes else (origin.value,)
        rows.append((name, " | ".join(map(as_yaml, values)), brief(origin)))
    rows += [(name, "(unused)", brief(source)) for name, source in resolved.unused.items()]
    return "\n".join("  ".join(line).rstrip() for line in aligned(rows, right=(False, False, False)))


def _without_variant(request: Request, registry: Registry) -> Request:
    """The request with the variant of its paradigm, as in ete:side, as the key that it stands for."""
    name, colon, variant = request.paradigm.partition(":")
    if not colon:
        return request
    paradigm = registry.paradigms.get(name).name
    key = getattr(registry.paradigms.load(paradigm, "config"), "VARIANT", "")
    if not key or not variant:
        got = f"{request.paradigm}; try --paradigm {paradigm}"
        raise ConfigError(
            f"--paradigm: expected NAME{', or NAME:VARIANT' if key else ', as it has no variants'}, got {got}"
        )
    full = f"{paradigm}.{key}"
    typed = _given(request.overrides.get(full, variant), None)
    in_file = request.study.values.get(full, variant) if request.study else variant
    if {typed, in_file} != {variant}:
        other = typed if typed != variant else in_file
        raise ConfigError(
            f"{full}: expected one value, got {other}, and --paradigm {request.paradigm}; try leaving one out"
        )
    return dataclasses.replace(request, paradigm=paradigm, overrides={**request.overrides, full: variant})


def _without_features(request: Request, model: ModelSpec) -> tuple[Request, tuple[str, ...]]:
    """The request without an encoder and other values for features, and a note if there were any."""
    of_encoder = [name for name in request.overrides if name.startswith("encoder.")]
    idle = [name for name in ("encoder", "modalities", "features", "control") if getattr(request, name)] + of_encoder
    kept = {name: text for name, text in request.overrides.items() if name not in of_encoder}
    plain = dataclasses.replace(request, encoder=None, modalities=None, features={}, control=None, overrides=kept)
    return plain, (f"{model.name} uses no item features: --{', --'.join(idle)} left out",) if idle else ()


def _without_paradigm(request: Request) -> tuple[Request, tuple[str, ...]]:
    """The request without its paradigm, and a note: without features no encoder is trained, so this is one run."""
    own = f"{request.paradigm}."
    kept = {name: text for name, text in request.overrides.items() if not name.startswith(own)}
    note = f"--control none uses no features, whatever trained their encoder: --paradigm {request.paradigm} left out"
    return dataclasses.replace(request, paradigm=PRE_TRAINED, overrides=kept), (note,)


def schema_in(paradigm: ParadigmSpec | None) -> Schema | None:
    """The schema of a paradigm's section; None where it has none."""
    if paradigm is None or paradigm.config is None:
        return None
    return schema_of(paradigm.config, f"--paradigm {paradigm.name}", prefix=f"{paradigm.name}.")


def _sampler_schemas(
    stack: Sequence[Layer], request: Request, samplers: NamedSpecs[SamplerSpec] | None
) -> dict[str, Schema]:
    """The schemas of the samplers that the last layer with the key `sampler` names, by name in lower case; those
    without keys, and unknown ones, have none."""
    if samplers is None:
        return {}
    named = [layer.values["sampler"] for layer in stack if "sampler" in layer.values]
    if "sampler" in request.overrides:
        named.append(_given(request.overrides["sampler"], HOST.keys["sampler"]))
    last = named[-1] if named else HOST.keys["sampler"].default
    schemas = {}
    for name in map(str, last if isinstance(last, list | tuple) else [last]):
        if name in samplers and (spec := samplers.get(name)).config is not None:
            owner = f"sampler {spec.name}"
            schemas[spec.name.lower()] = schema_of(samplers.load(name, "config"), owner, prefix=f"{spec.name}.")
    return schemas


def _model_schema(model: ModelSpec | None, sections: Sequence[str]) -> Schema | None:
    if model is None:
        return None
    schema = schema_of(model.config, f"model {model.name}")
    for name in schema.keys:
        if name in HOST.keys or name in (*sections, GRID):
            raise PluginError(
                f"model {model.name}: expected a schema with keys of its own, got {name}, which is the host's; to ship "
                f"another value of it, try model/{model.name.lower()}.yaml in the spec's configs folder"
            )
    return schema


def _encoder_schema(encoder: EncoderSpec | None) -> Schema | None:
    return schema_of(encoder.config, f"encoder {encoder.name}", prefix="encoder.") if encoder else None


class _Merge:
    """Merges layers: the last value of each key, read in its type, and the axes in order.

    `points` holds a key's one value, or an axis's values, and `order` the layers' names, first to last. `problems`
    lists every fault of every layer.
    """

    def __init__(self, keys: Mapping[str, Key], sections: Sequence[str], *, unread: Iterable[str] = ()) -> None:
        self.keys, self.sections = keys, sections
        self.unread = MMREC_UNUSED.union(unread)
        self.points: dict[str, tuple[Any, ...]] = {name: (key.default,) for name, key in keys.items()}
        self.origins = {name: Origin(None, DEFAULT, DEFAULT) for name in keys}
        self.axes: list[str] = []
        self.order = [DEFAULT]
        self.unused: dict[str, str] = {}
        self.problems: list[str] = []
        self.samplers: NamedSpecs[SamplerSpec] | None = None  # that the key `sampler` may name

    def _owner(self, section: str) -> str:
        """What a section without keys here belongs to."""
        return f"sampler: {section}" if self.samplers and section in self.samplers else f"--paradigm {section}"

    def know(self, keys: Mapping[str, Key]) -> None:
        """Take further keys, before any layer is added."""
        self.keys = {**self.keys, **keys}
        self.points |= {name: (key.default,) for name, key in keys.items()}
        self.origins |= {name: Origin(None, DEFAULT, DEFAULT) for name in keys}

    def check_name(self, key: str, specs: NamedSpecs[Any] | None) -> None:
        """Spell a key that names a spec as the spec does; note an unknown one."""
        if specs is None:
            return
        try:
            names = (None if name is None else specs.get(name).name for name in self.points[key])
            self.points[key] = tuple(dict.fromkeys(names))
        except PluginError:
            raise
        except ConfigError as error:
            self.problems.append(f"{self.origins[key]}: {error}")

    def add(self, stack: Iterable[Layer]) -> None:
        stack = list(stack)
        self.order += [layer.name for layer in stack]
        for layer in stack:  # all axes first: a file may hold the list of a key that a later one names
            self._add_axes(layer)
        for layer in stack:
            for name in layer.values:
                if name != GRID and self._knows(name, layer):
                    self._set(name, layer)
        self.problems += [
            f"{name}: expected {describe_type(self.keys[name].hint)}, got no value; set it in a file or with --{name}="
            for name, points in self.points.items()
            if MISSING in points
        ]

    def fail(self) -> None:
        """Raise all problems at once, if there are any."""
        if self.problems:
            raise ConfigError("\n".join(dict.fromkeys(self.problems)))

    def culprits(self, names: Iterable[str]) -> dict[str, Origin]:
        """The origins of those keys that were set by the last layer to set any: values agreed before it. Empty if all
        keys have their defaults."""
        origins = {name: self.origins[name] for name in names if name in self.keys}
        last = max((self.order.index(origin.layer) for origin in origins.values()), default=0)
        return {name: origin for name, origin in origins.items() if last and origin.layer == self.order[last]}

    def _add_axes(self, layer: Layer) -> None:
        try:
            names = layer.grid_names()
        except ValueError as error:
            self.problems.append(f"{layer.origin(GRID)}: {GRID} {error}")
            return
        for name in names:
            if name not in self.axes and self._knows(name, layer, in_grid=True):
                self._add_axis(name, layer)

    def _add_axis(self, name: str, layer: Layer) -> None:
        if name in OF_SPLIT:
            self.problems.append(
                f"{layer.origin(name if name in layer.values else GRID)}: {name}: expected one value, got an axis of a "
                "grid, whose points are compared; points on different splits can't be; try splits: in a study's file"
            )
        self.axes.append(name)

    def _set(self, name: str, layer: Layer) -> None:
        try:
            self.points[name] = self._read(name, layer)
            self.origins[name] = layer.origin(name)
        except ValueError as error:
            self.points[name] = ()  # a key without default isn't reported as missing too
            self.problems.append(f"{layer.origin(name)}: {name.removeprefix(layer.prefix)} {error}")

    def _read(self, name: str, layer: Layer) -> tuple[Any, ...]:
        """The values that a layer gives a key: one, or an axis's without repeats. A list typed on the command line
        makes its key an axis; in a file the key must be named, unless anything can be its value. Raises ValueError."""
        key, value = self.keys[name], layer.values[name]
        is_list = key.hint is Any and layer.name != COMMAND_LINE and name not in self.axes
        if is_list or not key.is_axis(value):
            return (key.read(value),)
        if not value:
            raise ValueError("must be a list of at least one value for a grid axis, got []")
        if name not in self.axes:
            if layer.name != COMMAND_LINE:
                shown = name.removeprefix(layer.prefix)
                raise ValueError(
                    f"must be {describe_type(key.hint)}, got {value!r}; to make it a grid axis, add {GRID}: [{shown}]"
                )
            self._add_axis(name, layer)
        points: dict[str, Any] = {}  # by what they look like, as a mapping can't be a key
        for point in map(key.read, value):
            points.setdefault(repr(point), point)
        return tuple(points.values())

    def _knows(self, name: str, layer: Layer, *, in_grid: bool = False) -> bool:
        """True if a schema has the key. Else it is listed, in `unused` if a file may have it, or in `problems`."""
        if name in self.keys:
            return True
        section = name.partition(".")[0] if name.startswith(tuple(f"{section}." for section in self.sections)) else ""
        idle_section = section and not any(key.startswith(f"{section}.") for key in self.keys)
        of_mmrec = name in self.unread or (layer.name in _SHARED and name in _MMREC_MODEL_KEYS)
        if layer.name != COMMAND_LINE and (of_mmrec or idle_section):
            self.unused[name] = layer.source
            return False
        shown = name.removeprefix(layer.prefix)
        if of_mmrec:
            reason = ", which MMRec's files may hold but nothing here reads"
        elif idle_section:
            reason = ": no encoder was asked for" if section == ENCODER else f": it belongs to {self._owner(section)}"
        elif name == "encoder.weights":
            reason = ": this encoder reads no file of weights"
        elif (meant := CALLED_ELSEWHERE.get(shown)) in self.keys:
            reason = f"; did you mean {meant}?"
        elif modality := re.fullmatch(r"(\w+)_feature_file", name):
            reason = f"; for another modality than image and text, try --features {modality[1]}=FILE.npy"
        elif len(ends := [key for key in self.keys if key.endswith(f".{shown}")]) == 1:
            reason = f"; did you mean {ends[0].removeprefix(layer.prefix)}?"
        else:
            reason = did_you_mean(shown, (key.removeprefix(layer.prefix) for key in self.keys))
        what = f"{GRID} names the unknown key" if in_grid else "unknown key"
        self.problems.append(f"{layer.origin(GRID if in_grid else name)}: {what} {shown}{reason}")
        return False


def _build(schema: Schema, values: Mapping[str, Any], merge: _Merge) -> Any:
    """The schema's dataclass. A value that its own checks refuse is reported with the places that set it."""
    try:
        built = schema.build(values)
        if schema is HOST:
            check_settings(built)
        return built
    except ConfigValueError as error:
        merge.problems.append(_refused(error, schema, merge))
    except ValueError as error:  # without a key: take those that its message names
        words = [schema.prefix + word for word in re.findall(r"\w+", str(error))]
        origins = [merge.origins[word] for word in words if word in schema.keys]
        places = dict.fromkeys(str(origin) for origin in origins if origin.layer != DEFAULT)
        merge.problems.append(f"{', '.join(places) or schema.owner}: {error}")
    return None


def _refused(error: ConfigValueError, schema: Schema, merge: _Merge) -> str:
    """The message: where the values came from, the key as it is written there, and what is wrong with it."""
    key = schema.prefix + error.key
    culprits = merge.culprits(schema.prefix + name for name in (error.key, *error.others))
    layers = {origin.layer for origin in culprits.values()}
    places = ", ".join(dict.fromkeys(map(str, culprits.values()))) or schema.owner
    if COMMAND_LINE in layers and key not in culprits:
        places += f" --{', --'.join(culprits)}"
    return f"{places}: {error.key if 'encoder' in layers else key} {error.text}"


def _command_line(request: Request, encoder: EncoderSpec | None, merge: _Merge) -> Layer:
    values: dict[str, Any] = {}
    for name, given in request.overrides.items():
        try:
            values[name] = _given(given, merge.keys.get(name))
        except yaml_layers.TooMany as error:
            raise ConfigError(f"{COMMAND_LINE}: {name}: {error.problem}; try several commands") from None
    if encoder and request.encoder and request.encoder.variant:  # `--encoder clip:tiny` means variant=tiny
        variant = "encoder.variant"
        if variant not in merge.keys:
            merge.problems.append(
                f"{COMMAND_LINE}: --encoder: expected {encoder.name}, which has no variants, got {request.encoder}"
            )
        elif variant in values:
            merge.problems.append(f"{COMMAND_LINE}: {request.encoder} and --{variant} both name a variant; give one")
        else:
            values[variant] = request.encoder.variant
    return Layer(COMMAND_LINE, COMMAND_LINE, values)


def _given(value: "str | Value", key: Key | None) -> Any:
    """The value of an override: a program's as it is, a typed text read."""
    return value.value if isinstance(value, Value) else _typed(value, key)


def _typed(text: str, key: Key | None) -> Any:
    """The typed text, read as YAML, or unread if only that fits its key: a file may be called 123. An empty text isn't
    null, as of an unset variable of the shell: nobody means the default."""
    if not text:
        return text
    try:
        value = yaml_layers.parse(text)
    except yaml_layers.TooMany:
        raise
    except yaml.YAMLError:
        return text
    if value == "" and text.strip("'\" "):  # | and > begin a block of text in YAML
        return text
    if isinstance(value, str) and text.lstrip()[:1] not in ("'", '"'):  # its blanks count, and # begins no comment
        return text if key is None or key.fits(text) else text.strip()
    return text if key and not key.is_axis(value) and not key.fits(value) and key.fits(text) else value


def _files(
    request: Request,
    model: ModelSpec | None,
    encoder: EncoderSpec | None,
    dataset: DatasetSpec | None,
    merge: _Merge,
) -> Iterator[Layer]:
    """The layers that are files, in order. Files may be missing, except those of a preset or grid that was named."""
    preset, grid = request.preset, request.grid
    asked = request.study or Layer(COMMAND_LINE, COMMAND_LINE, {})  # the layer that named them
    own, own_folder = (f"{model.name}.yaml", model.configs) if model else ("", None)
    wanted: list[tuple[str, Path | None, tuple[str, ...]]] = [
        ("overall", None, ("overall.yaml",)),
        ("dataset", dataset.configs if dataset else None, ("dataset", f"{_dataset_name(request, dataset)}.yaml")),
        ("model", own_folder, ("model", own)),
    ]
    if encoder:
        wanted += [("encoder", encoder.configs, ("encoder", f"{encoder.name}.yaml"))]
    if preset is not None:
        wanted += [
            ("preset", None, ("preset", f"{preset}.yaml")),
            ("model preset", own_folder, ("preset", preset, own)),
        ]
    if grid is not None:
        wanted += [("grid", None, ("grid", f"{grid}.yaml")), ("model grid", own_folder, ("grid", grid, own))]

    found, problems = set(), merge.problems
    for name, plugin_folder, parts in wanted:
        path = yaml_layers.find(yaml_layers.folders(request.configs, plugin_folder), *parts)
        if path is None and name == "model" and model and model.file_stem:
            path = yaml_layers.find(filter(None, (request.configs, plugin_folder)), "model", f"{model.file_stem}.yaml")
        if path:
            found.add(name)
            try:
                layer = yaml_layers.read(
                    path, name, prefix="encoder." if name == "encoder" else "", sections=merge.sections
                )
                chosen = request.configs
                yield _of_checkout(layer, chosen) if chosen and chosen in path.parents else layer
            except ConfigError as error:
                problems.append(str(error))

    places = yaml_layers.folders(request.configs, own_folder)
    if preset is not None and not found & {"preset", "model preset"}:
        names = _names_in(places, "preset", own)
        problems.append(f"{asked.origin('preset')}: {_unknown('preset', preset, names)}")
    if grid is not None and not found & {*_GRIDS}:
        names = _names_in(places, "grid", own)
        problems.append(f"{asked.origin('grid')}: {_unknown(f'grid of model {request.model}', grid, names)}")


def _of_checkout(layer: Layer, configs: Path) -> Layer:
    """A layer of `configs`; of a checkout of MMRec's, whose programs start in src/, with its data_path from there."""
    source, given = configs.parent, layer.values.get("data_path")
    if not isinstance(given, str) or given.startswith("~") or not (source / "models").is_dir():
        return layer
    return dataclasses.replace(layer, values={**layer.values, "data_path": os.path.normpath(source / given)})


def _idle_axes(stack: Iterable[Layer], merge: _Merge) -> Iterator[str]:
    """What to say of a grid's axes that belong to the section of another paradigm: its points would all be one run."""
    for layer in stack:
        for name in layer.grid_names() if layer.name in _GRIDS else ():
            if "." in name and name in merge.unused:
                section = name.partition(".")[0]
                yield f"{layer.origin(GRID)}: expected axes that this run has, got {name}; try --paradigm {section}"


def _names_in(places: Iterable[Path], folder: str, own: str) -> list[str]:
    """The presets or grids that a model has: files for all models, and folders with the file `own`."""
    entries = [entry for place in places for entry in yaml_layers.entries(place / folder)]
    named = [entry for entry in entries if entry.suffix == ".yaml" or yaml_layers.find([entry], own)]
    return [entry.name.removesuffix(".yaml") for entry in named]


def _unknown(kind: str, name: str, known: list[str]) -> str:
    return f"unknown {kind}: {name}{did_you_mean(name, known) or ';'} known: {', '.join(sorted(set(known))) or 'none'}"


def _is_shipped(origin: Origin, of_plugins: Iterable[Path]) -> bool:
    """True if a default set the value, or a file that comes with mmrec-lmm or with a plugin."""
    if origin.layer in (DEFAULT, COMMAND_LINE):
        return origin.layer == DEFAULT
    file = Path(origin.source).resolve()
    return any(file.is_relative_to(folder.resolve()) for folder in (yaml_layers.shipped(), *of_plugins))


def _dataset_name(request: Request, dataset: DatasetSpec | None) -> str:
    """The name of the data set's folder: a plugin decides how that of its own is spelled."""
    return dataset.name if dataset and (dataset.make or dataset.load) else request.dataset
