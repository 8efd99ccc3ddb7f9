"""Study files: one YAML file names many runs, as a product of axes, and says how to compare their results.

    models: [VBPR, LightGCN]
    encoders: ["clip:tiny", null]            null: the data set's own features
    paradigms: [pt, ft]
    datasets: [demo]
    seeds: [1, 2, 3]
    grids: {VBPR: {reg_weight: [0.1, 0.01]}}
    settings: {epochs: 20}
    for:
      - {encoder: clip, paradigm: ft, set: {ft.learning_rate: 1e-3}}

With `search: random`, a grid is a space of lists and ranges, and every model gets as many points of its own (`trials`).

A cell is one combination of the axes, with or without a control. It has one run for each seed and each point of its
model's grid. Its winner is the grid point with the best mean over seeds on validation. A cell that can't be run, for
example because its encoder can't be tuned, stays in the study with the reason.
"""

import dataclasses
import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from ..config import yaml_layers
from ..config.resolve import MOST_RUNS, Request, Value, resolve_request, schema_in, sections
from ..config.schema import DIFFERENT_METRICS, HOST, SEED, SIGNIFICANCE, Key, Limit, between, schema_of
from ..config.search import LINEAR, SCALES, Search
from ..config.yaml_layers import GRID, Layer
from ..errors import ConfigError, ConfigValueError, NotApplicable, PluginError, did_you_mean
from ..features.controls import NO_FEATURES, Control
from ..plugin.names import NAME_RULE, is_safe_name
from ..plugin.registry import Registry
from ..running.grid import best_point
from ..running.inputs import check_applicable, declared_modalities
from ..types import AXES, PRE_TRAINED, Axes, EncoderName, RunResult, RunSpec

FOR, SET = "for", "set"
NO_KEYS = frozenset({"preset", "modalities"})  # in settings and `set`, but no configuration keys


@dataclass(frozen=True, kw_only=True)
class StudyKeys:
    """The keys of a study's file, except `for`."""

    models: tuple[str, ...]
    datasets: tuple[str, ...]
    splits: tuple[str | None, ...] = ()  # null: the data set's own; empty: what the configuration says
    encoders: tuple[str | None, ...] = (None,)  # NAME or NAME:VARIANT; null: the data set's own features
    paradigms: tuple[str, ...] = (PRE_TRAINED,)
    modalities: tuple[str | None, ...] = (None,)  # `image+text` is one value of this axis; null: all available
    seeds: tuple[int, ...] = ()  # empty: the seed of the configuration
    seeds_at: Literal["grid", "winner"] = "grid"  # winner: grids use the first seed, their best points all seeds
    grids: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # model: a published grid, or {key: [values]}
    search: Literal["grid", "random"] = "grid"  # random: points drawn from each grid, as many for every model
    trials: int | None = None  # points of a random search, for every model
    search_seed: int = 0  # other points are drawn with another
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # for all cells; may include `preset`
    title: str = ""
    # control runs and slices of every cell
    controls: tuple[Control, ...] = ()
    controls_at: Literal["grid", "winner"] = "grid"  # winner: only a cell's best point gets them, after its grid
    each_modality: bool = False  # adds image alone and text alone to `modalities`
    slices: bool = False
    # how the results are compared
    metrics: tuple[str, ...] = ("Recall@10", "Recall@20", "NDCG@10", "NDCG@20")
    baseline: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # {axis: value} of the row to test against
    test: Literal["t-test", "t-test-users", "wilcoxon", "permutation"] = "t-test"
    alpha: float = 0.05
    best_within: tuple[str, ...] = ("dataset",)  # axes: marks the best among rows that agree on them
    family: tuple[str, ...] = ()  # axes: corrects p among rows that agree on them; empty: among all rows

    LIMITS: ClassVar[Mapping[str, Limit]] = {
        "trials": between(1, MOST_RUNS), "search_seed": SEED, "metrics": DIFFERENT_METRICS, "alpha": SIGNIFICANCE,
    }  # fmt: skip


@dataclass(frozen=True)
class Part:
    """An entry of `for`: the cells that it selects, by axis, and the settings that they get."""

    where: Mapping[str, tuple[Any, ...]]
    settings: Mapping[str, Any]
    lines: Mapping[str, int]
    line: int | None


@dataclass(frozen=True)
class Cell:
    """One combination of a study's axes, with one run for each grid point and seed.

    A cell that isn't applicable has no runs; `reason` says why.
    """

    axes: Axes
    runs: tuple[RunSpec, ...] = ()
    reason: str = ""

    @property
    def key(self) -> str:
        """The cell's name within its study."""
        return self.axes.key

    @property
    def points(self) -> list[dict[str, Any]]:
        """The grid point of each run, without the seed."""
        return [_without_seed(run.point) for run in self.runs]

    def like(self, point: Mapping[str, Any]) -> "Cell":
        """The cell with only its runs at one grid point, of any seed."""
        wanted = _without_seed(point)
        runs = tuple(run for run, own in zip(self.runs, self.points, strict=True) if own == wanted)
        return dataclasses.replace(self, runs=runs)


@dataclass(frozen=True, kw_only=True)
class Study(StudyKeys):
    """A study as its file defines it."""

    name: str
    file: Layer
    parts: tuple[Part, ...] = ()
    configs: Path | None = None
    overrides: Mapping[str, str | Value] = dataclasses.field(default_factory=dict)  # the command line's, for every run

    def cells(self, registry: Registry) -> list[Cell]:
        """Every cell, with its runs or the reason why it isn't applicable. Doesn't read data sets.

        Raises ConfigError with one line for each problem in the file.
        """
        return _Expansion(self, registry).cells()


def find_study(name: str, configs: Path | None = None) -> Path:
    """The file of a study, given by path or by name in the configuration folders. ConfigError lists the names."""
    if Path(name).is_file():
        return Path(name)
    places = yaml_layers.folders(configs)
    found = yaml_layers.find(places, "study", f"{name}.yaml")
    if found is None:
        known = sorted({path.stem for place in places for path in yaml_layers.entries(place / "study")})
        hint = did_you_mean(name, known)
        raise ConfigError(
            f"study: expected a file or the name of a study ({', '.join(known) or 'none here'}), got {name}{hint}"
        )
    return found


def load_study(path: Path, *, configs: Path | None = None, overrides: Mapping[str, str | Value] | None = None) -> Study:
    """The study of a YAML file. ConfigError has one line for each problem, with its place in the file."""
    file = yaml_layers.read(path, "study", sections=())
    schema = schema_of(StudyKeys, "a study").keys
    problems: list[str] = []
    values = {name: _read(schema[name], value, file, problems) for name, value in file.values.items() if name in schema}
    is_search_known = values.get("search", "grid") is not None
    for name in [name for name in file.values if name not in {*schema, FOR}]:
        hint = did_you_mean(name, [*schema, FOR])
        problems.append(f"{file.origin(name)}: unknown key {name}{hint}")
        is_search_known = is_search_known and "did you mean search?" not in hint
    for name in ("models", "datasets"):
        if not file.values.get(name):
            problems.append(f"{path}: {name}: expected at least one, got none; try {name}: [NAME]")
    for name in ("best_within", "family", "baseline"):
        for axis in values.get(name) or ():
            if axis not in AXES:
                hint = did_you_mean(axis, AXES) or f"; try {', '.join(AXES)}"
                problems.append(f"{file.origin(name)}: {name}: expected an axis, got {axis}{hint}")
    named = [(f"{path}: the file's name", path.stem)]
    named += [(f"{file.origin('datasets')}: datasets", name) for name in values.get("datasets") or ()]
    problems += [
        f"{where}: expected a name of {NAME_RULE}, got {name!r}; rename it"
        for where, name in named
        if not is_safe_name(name)
    ]
    values["settings"] = values.get("settings") or {}
    for axis in sorted({"modalities", "split"} & values["settings"].keys()):
        instead = "it" if axis == "modalities" else f"splits: [{values['settings'][axis]}]"
        problems.append(
            f"{file.origin(f'settings.{axis}')}: settings: expected configuration keys, got the axis {axis}; "
            f"try {instead} beside settings"
        )
    problems += _search_problems(file, values) if is_search_known else ()  # a misspelled one is one message
    parts = tuple(_parts(file, problems))
    if problems:
        raise ConfigError("\n".join(problems))
    return Study(name=path.stem, file=file, parts=parts, configs=configs, overrides=overrides or {}, **values)


RANGE = "{from: LOW, to: HIGH, scale: log}"


def _search_problems(file: Layer, values: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a study's search and the ranges of its grids."""
    is_random = values.get("search") == "random"
    if is_random and file.values.get("trials") is None:
        yield f"{file.origin('search')}: trials: expected the number of points for every model, got none; try trials: 8"
    for name in ("trials", "search_seed") if not is_random else ():
        if values.get(name) is not None:
            yield f"{file.origin(name)}: {name}: expected search: random with it, got search: grid; try leaving it out"
    for model, grid in (values.get("grids") or {}).items():
        for key, given in grid.items() if isinstance(grid, Mapping) else ():
            if not _is_range(given):
                continue
            where = file.origin(f"grids.{model}.{key}")
            if not is_random:
                yield f"{where}: {key}: expected a list of values, got a range; try search: random with trials: N"
            elif given.keys() - {"from", "to", "scale"} or not {"from", "to"} <= given.keys():
                yield f"{where}: {key}: expected {RANGE}, got {given!r}"
            elif (scale := given.get("scale", LINEAR)) not in SCALES:
                yield f"{where}: {key}: scale: expected {' or '.join(SCALES)}, got {scale!r}"


def _is_range(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value.keys() & {"from", "to"})


def winner(cell: Cell, results: Sequence[RunResult | None]) -> tuple[RunResult, ...]:
    """The runs of a cell's best grid point, in order of their seeds; empty where no run is finished.

    Best is the highest `valid_metric` on validation, mean over seeds, among the points with the most finished runs.
    `results` are those of `cell.runs`; None where a run isn't finished.
    """
    made = [
        dataclasses.replace(result, parameters=run.point)  # a stored result may come from another grid
        for run, result in zip(cell.runs, results, strict=True)
        if result is not None
    ]
    return best_point(made, cell.runs[0]).runs if made else ()


def _without_seed(point: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in point.items() if name != "seed"}


def _read(key: Key, value: Any, file: Layer, problems: list[str]) -> Any:
    try:
        return key.read(value)
    except ValueError as error:
        problems.append(f"{file.origin(key.name)}: {key.name} {error}")
        return None


def _parts(file: Layer, problems: list[str]) -> Iterator[Part]:
    """The entries of `for`; an axis may have one value or a list."""
    entries = file.values.get(FOR) or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        problems.append(
            f"{file.origin(FOR)}: for: expected a list of {{axis: value, ..., set: {{key: value}}}}, got {entries!r}"
        )
        return
    for place, entry in enumerate(entries):
        prefix = f"{FOR}.{place}."
        where = {axis: tuple(_listed(value)) for axis, value in entry.items() if axis != SET}
        for axis in where:
            if axis not in AXES:
                hint = did_you_mean(axis, (*AXES, SET)) or f"; try {', '.join(AXES)} or set"
                problems.append(f"{_at(file, prefix + axis)}: for: expected an axis or set, got {axis}{hint}")
        if not isinstance(entry.get(SET), dict) or not entry[SET]:
            got = repr(entry[SET]) if SET in entry else "none"
            problems.append(
                f"{_at(file, prefix + next(iter(entry), ''))}: set: expected {{key: value, ...}}, got {got}"
            )
            continue
        inner = f"{prefix}{SET}."
        if "split" in entry[SET]:
            problems.append(
                f"{_at(file, inner + 'split')}: split: expected a configuration key, got an axis of the whole study; "
                f"try splits: [{entry[SET]['split']}] beside models"
            )
            continue
        if not isinstance(entry[SET].get("modalities", ""), str | None):
            problems.append(
                f"{_at(file, inner + 'modalities')}: modalities: expected text such as image+text, or null, "
                f"got {entry[SET]['modalities']!r}"
            )
            continue
        lines = {name.removeprefix(inner): line for name, line in file.lines.items() if name.startswith(inner)}
        yield Part(where, entry[SET], lines, file.lines.get(prefix + next(iter(entry))))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _flat(file: Layer, where: str, values: Mapping[str, Any], sections: Collection[str]) -> dict[str, Any]:
    """The values with the keys of sections under their full names. ConfigError names the place of one given twice."""
    try:
        return yaml_layers.flat(values, sections)
    except ConfigValueError as error:
        raise ConfigError(f"{_at(file, f'{where}.{error.key}')}: {error.key}: {error.text}") from None


def _at(file: Layer, name: str) -> str:
    return str(file.origin(name))


def _modalities(text: str | None) -> tuple[str, ...] | None:
    return tuple(text.split("+")) if text else None


class _Taken(NamedTuple):
    """The settings of one cell in the file. A place is that of an entry of `for`; None is `settings`."""

    values: Mapping[str, Any]  # of configuration keys
    lines: Mapping[str, int]
    preset: str | None
    places: frozenset[int | None]  # that apply to the cell
    read: frozenset[tuple[int | None, str]]  # places and keys that its runs have


class _Expansion:
    """Expands a study into cells. Collects all problems; each value in the file must be used by some cell."""

    def __init__(self, study: Study, registry: Registry) -> None:
        known = sections(registry)
        parts = tuple(
            dataclasses.replace(part, settings=_flat(study.file, f"{FOR}.{place}.{SET}", part.settings, known))
            for place, part in enumerate(study.parts)
        )
        settings = _flat(study.file, "settings", study.settings, known)
        self.study = dataclasses.replace(study, settings=settings, parts=parts)
        self.registry = registry
        self.problems: list[str] = []
        self._keys: dict[tuple[str | None, ...], set[str]] = {}
        self._resolved: dict[str, tuple[RunSpec, ...]] = {}
        self._metrics_from: dict[str, str] = {}  # the file and line that set the metrics of a resolution

    def cells(self) -> list[Cell]:
        self._check_names()
        self._fail()
        self._check_size()
        cells: dict[str, Cell] = {}
        taken: list[_Taken] = []
        runs = 0
        for combination in self._combinations():
            cell, asked, parts = self._narrowed(combination)
            if cell.key not in cells:
                taken.append(self._taken(cell, parts))
                cells[cell.key] = self._with_runs(cell, asked, taken[-1])
                runs += len(cells[cell.key].runs)
                if runs > MOST_RUNS:
                    raise ConfigError(
                        f"{self.study.file.source}: expected at most {MOST_RUNS:,} runs, got more in the first "
                        f"{len(cells):,} cells; try splitting the study"
                    )
        self._fail()
        self._check_read(taken)
        self._check_baseline(cells.values())
        self._fail()
        return list(cells.values())

    def _check_size(self) -> None:
        """ConfigError if the axes have more combinations than a study may have runs."""
        study = self.study
        lists = {
            "models": study.models, "datasets": study.datasets, "splits": study.splits or (None,),
            "encoders": study.encoders, "paradigms": study.paradigms, "modalities": study.modalities,
            "controls": (None, *study.controls),
        }  # fmt: skip
        if (count := math.prod(map(len, lists.values()))) > MOST_RUNS:
            sizes = ", ".join(f"{name} {len(values):,}" for name, values in lists.items() if len(values) > 1)
            raise ConfigError(
                f"{study.file.source}: expected at most {MOST_RUNS:,} cells, got {count:,} ({sizes}); try splitting it"
            )

    def _combinations(self) -> Iterator[Cell]:
        """Every combination of the axes. A model without features has one for each data set and split."""
        study = self.study
        for model, dataset, split, encoder, paradigm in itertools.product(
            dict.fromkeys(map(self._model, study.models)),
            dict.fromkeys(map(self._dataset, study.datasets)),
            dict.fromkeys(name and self.registry.splits.get(name).name for name in study.splits or (None,)),
            study.encoders,
            dict.fromkeys(map(self._paradigm, study.paradigms)),
        ):
            if not self.registry.models.get(model).uses_features:
                yield Cell(Axes(model, dataset, modalities=(), split=split))
                continue
            name = self._encoder(encoder, dataset)
            wanted = list(map(_modalities, study.modalities))
            wanted += [("image",), ("text",)] if study.each_modality else []
            controls: list[str | None] = [None, *study.controls]
            for some, control in itertools.product(wanted, controls):
                yield Cell(Axes(model, dataset, name, paradigm, some, control, split))

    def _narrowed(self, cell: Cell) -> tuple[Cell, Axes, list[Part]]:
        """The cell as the study has it, the axes that its runs ask for, and the entries of `for` that select it.

        An entry may set modalities, so two combinations may become one cell. There is one control run without features
        for all encoders and paradigms with the same modalities: it has neither encoder nor paradigm of its own, but
        asks for those of the first such cell.
        """
        if cell.axes.control == NO_FEATURES:
            own, asked, _ = self._narrowed(_with(cell, control=None))
            encoder = asked.encoder.name if asked.encoder else None
            names = declared_modalities(asked.modalities, encoder, self.registry)
            cell = _with(own, encoder=None, paradigm=PRE_TRAINED, modalities=names, control=NO_FEATURES)
            return cell, asked, self._parts_of(cell)
        parts = self._parts_of(cell)
        chosen = [part.settings["modalities"] for part in parts if "modalities" in part.settings]
        cell = _with(cell, modalities=_modalities(chosen[-1])) if chosen else cell
        return cell, cell.axes, parts

    def _parts_of(self, cell: Cell) -> list[Part]:
        return [part for part in self.study.parts if _selects(part, cell)]

    def _with_runs(self, cell: Cell, asked: Axes, taken: _Taken) -> Cell:
        """The cell with runs that ask for the encoder and modalities of `asked`.

        Cells that differ only in modalities and control share one resolved configuration.
        """
        axes, preset = cell.axes, taken.preset
        self._check_single_values(axes.model, taken)
        layer = self._layer(axes, taken)
        grid = self._grid(axes.model)
        known = repr((axes.model, axes.dataset, asked.encoder, axes.paradigm, preset, layer.values))
        if known not in self._resolved:
            request = Request(
                model=axes.model,
                dataset=axes.dataset,
                encoder=asked.encoder,
                paradigm=axes.paradigm,
                preset=preset,
                grid=grid if isinstance(grid, str) else None,
                configs=self.study.configs,
                study=layer,
                search=self._search(axes.model),
                overrides=self.study.overrides,
            )
            try:
                resolved = resolve_request(request, self.registry)
                self._resolved[known] = resolved.runs
                self._metrics_from[known] = str(resolved.origins["metrics"])
            except ConfigError as error:
                self.problems += str(error).splitlines()
                self._resolved[known] = ()
        for run in self._resolved[known][:1]:
            cell = _with(cell, split=run.settings.split)  # without `splits`, configuration may name one
        some = asked.modalities or None
        runs = tuple(dataclasses.replace(run, modalities=some, control=axes.control) for run in self._resolved[known])
        try:
            for run in runs[:1]:
                check_applicable(run, self.registry)
                self._check_metrics(run, self._metrics_from[known])
                self._check_measured(run)
        except NotApplicable as error:
            return dataclasses.replace(cell, reason=str(error))
        except PluginError:  # such as a missing library: the run reports it, and other cells continue
            pass
        except ConfigError as error:
            self.problems.append(str(error))
        return dataclasses.replace(cell, runs=runs)

    def _check_metrics(self, run: RunSpec, where: str) -> None:
        """Note the run's metrics that don't exist; `where` is the place that set them."""
        for metric in run.settings.metrics:
            try:
                self.registry.metrics.get(metric)
            except PluginError:
                raise
            except ConfigError as error:
                self.problems.append(f"{where}: {error}")

    def _check_measured(self, run: RunSpec) -> None:
        """Note what the study reports but its runs don't keep, before any run starts."""
        study, settings = self.study, run.settings
        measured = [f"{name}@{k}" for name in settings.metrics for k in settings.topk]
        for metric in study.metrics:
            if metric.lower() not in map(str.lower, measured):
                self.problems.append(
                    f"{_at(study.file, 'metrics')}: metrics: expected a metric that runs of {run.model} measure, got "
                    f"{metric}{did_you_mean(metric, measured)}; their metrics and topk give {', '.join(measured)}"
                )
        if study.slices and not settings.save_recommended_topk:
            self.problems.append(
                f"{_at(study.file, 'slices')}: slices: expected runs that save their lists, got "
                "save_recommended_topk: false; try save_recommended_topk: true"
            )

    def _taken(self, cell: Cell, parts: Sequence[Part]) -> _Taken:
        """The settings of a cell. Keys that only other cells of the study have are left out."""
        study, axes = self.study, cell.axes
        mine = self._keys_of(axes.model, axes.encoder, axes.paradigm)
        preset = study.settings.get("preset")
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        read: set[tuple[int | None, str]] = set()
        of_all = {name.removeprefix("settings."): line for name, line in study.file.lines.items()}
        sources: list[tuple[int | None, Mapping[str, Any], Mapping[str, int]]] = [(None, study.settings, of_all)]
        sources += [(study.parts.index(part), part.settings, part.lines) for part in parts]
        for place, settings, where in sources:
            preset = settings.get("preset", preset)
            if "preset" in settings and "preset" in where:
                lines["preset"] = where["preset"]
            for key in [key for key in settings if key not in NO_KEYS]:
                if key in mine or key not in self._all_keys:  # configuration reports the keys that no cell has
                    values[key] = settings[key]
                    if key in mine:
                        read.add((place, key))
                    if key in where:
                        lines[key] = where[key]
        places = frozenset(place for place, _, _ in sources)
        return _Taken(values, lines, None if preset is None else str(preset), places, frozenset(read))

    def _layer(self, cell: Axes, taken: _Taken) -> Layer:
        """The settings of a cell, with its split, the seeds and the model's grid, as a layer of configuration."""
        file, model, axes = self.study.file, cell.model, self._axes(cell.model)
        lines = dict(taken.lines)
        for key in axes:
            lines[key] = file.lines.get(f"grids.{model}.{key}", file.lines.get("seeds", 0))
        lines["grid"] = file.lines.get(f"grids.{model}", file.lines.get("grids", 0))
        lines["trials"] = file.lines.get("trials", 0)
        listed = {key: axis if isinstance(axis, list) else [axis] for key, axis in axes.items()}
        split = {"split": cell.split} if self.study.splits else {}
        return Layer("study", file.source, {**taken.values, **split, **listed, GRID: list(axes)}, lines)

    def _axes(self, model: str) -> dict[str, Any]:
        """The keys that the file gives several values in a model's runs: the seed, and those of its grid."""
        grid = self._grid(model)
        seeds = {"seed": list(self.study.seeds)} if self.study.seeds else {}
        given = grid if isinstance(grid, Mapping) else {}
        ends = {key: [value["from"], value["to"]] for key, value in given.items() if _is_range(value)}
        return {**seeds, **given, **ends}

    def _search(self, model: str) -> Search | None:
        """How points of the model's grid are drawn; None if all are run."""
        study, grid = self.study, self._grid(model)
        if study.search != "random":
            return None
        assert study.trials is not None
        given = grid if isinstance(grid, Mapping) else {}
        scales = {key: str(value.get("scale", LINEAR)) for key, value in given.items() if _is_range(value)}
        return Search(study.trials, study.search_seed, scales)

    def _check_single_values(self, model: str, taken: _Taken) -> None:
        """Note settings of keys that have several values already."""
        for key in self._axes(model):
            if key in taken.values:
                line = taken.lines.get(key)
                by = "seeds" if key == "seed" else "grids"
                self.problems.append(
                    f"{self.study.file.source}{f':{line}' if line else ''}: {key}: expected one source of values for "
                    f"{model}, got a setting and {by}; try leaving one out"
                )

    def _grid(self, model: str) -> Any:
        """The model's entry under `grids`, ignoring the case of its name."""
        return {name.lower(): grid for name, grid in self.study.grids.items()}.get(model.lower())

    def _keys_of(self, model: str, encoder: EncoderName | None, paradigm: str) -> set[str]:
        """The configuration keys of a run of this model, encoder and paradigm."""
        name = encoder.name if encoder else None
        which = (model, name, paradigm)
        if which not in self._keys:
            registry, of_paradigm = self.registry, schema_in(self.registry.paradigms.get(paradigm.partition(":")[0]))
            keys = {*HOST.keys, *schema_of(registry.models.load(model, "config"), model).keys}
            if name:
                keys |= schema_of(registry.encoders.load(name, "config"), name, prefix="encoder.").keys.keys()
            for sampler in registry.samplers:
                if sampler.config is not None:
                    config = registry.samplers.load(sampler.name, "config")
                    keys |= schema_of(config, sampler.name, prefix=f"{sampler.name}.").keys.keys()
            self._keys[which] = keys | (of_paradigm.keys.keys() if of_paradigm else set())
        return self._keys[which]

    @cached_property
    def _all_keys(self) -> set[str]:
        """The configuration keys of all combinations of the study's models, encoders and paradigms."""
        study = self.study
        axes = itertools.product(study.models, study.encoders, study.datasets, study.paradigms)
        sets = (
            self._keys_of(self._model(model), self._encoder(encoder, dataset), paradigm)
            for model, encoder, dataset, paradigm in axes
        )
        return set().union(*sets)

    def _check_names(self) -> None:
        study, registry = self.study, self.registry
        encoders = []
        for encoder in study.encoders:
            try:
                encoders += [] if encoder is None else [EncoderName.typed(encoder).name]
            except ConfigError as error:
                self.problems.append(f"{_at(study.file, 'encoders')}: {error}")
        for key, specs, names in (
            ("models", registry.models, study.models),
            ("encoders", registry.encoders, encoders),
            ("splits", registry.splits, [name for name in study.splits if name is not None]),
            ("paradigms", registry.paradigms, [name.partition(":")[0] for name in study.paradigms]),
        ):
            for name in names:
                try:
                    specs.load(name, "draw" if key == "splits" else "config")
                except ConfigError as error:
                    self.problems.append(f"{_at(study.file, key)}: {error}")
        self._check_modalities()
        for name in study.models if study.search == "random" else ():
            if self._grid(name) is None:
                self.problems.append(
                    f"{_at(study.file, 'models')}: grids: expected one for every model under search: random, got none "
                    f"for {name}; try grids: {{{name}: {{learning_rate: {RANGE}}}}}, or {{}} where there is nothing to "
                    "search"
                )
        for place, name in enumerate(study.grids):
            if name.lower() in map(str.lower, [*study.grids][:place]):
                self.problems.append(
                    f"{_at(study.file, f'grids.{name}')}: grids: expected one for each model, got two for {name}; try "
                    "one"
                )
            if name.lower() not in map(str.lower, study.models):
                hint = did_you_mean(name, study.models)
                self.problems.append(
                    f"{_at(study.file, f'grids.{name}')}: grids: expected a model of this study, got {name}{hint}"
                )
            if not isinstance(study.grids[name], str | Mapping):
                self.problems.append(
                    f"{_at(study.file, f'grids.{name}')}: grids: expected a grid's name or {{key: [values]}}, got "
                    f"{study.grids[name]!r}"
                )

    def _check_modalities(self) -> None:
        """Note modalities that none of the study's encoders makes. Skipped if some come from unread feature files."""
        study, encoders = self.study, self.registry.encoders
        names = [EncoderName.parse(name or "").name for name in study.encoders]
        specs = [encoders.get(name) for name in names if name in encoders]
        if len(specs) < len(names) or any(spec.feature_files for spec in specs):
            return
        known = {modality for spec in specs for modality in spec.modalities}
        said = [(_at(study.file, "modalities"), text) for text in study.modalities]
        for number, part in enumerate(study.parts):
            said.append((_at(study.file, f"{FOR}.{number}.{SET}.modalities"), part.settings.get("modalities")))
        for where, text in said:
            for name in _modalities(text) or ():
                if name not in known:
                    hint = did_you_mean(name, known) or f"; try {', '.join(sorted(known))}"
                    self.problems.append(
                        f"{where}: modalities: expected one that an encoder of this study makes, got {name}{hint}"
                    )

    def _check_read(self, taken: Collection[_Taken]) -> None:
        """Note parts that select no cell, and keys that no cell uses: each was meant for one."""
        study = self.study
        selecting = {place for one in taken for place in one.places}
        read = {entry for one in taken for entry in one.read}
        said: list[tuple[int | None, Mapping[str, Any], str, str]] = [(None, study.settings, "settings", "a cell")]
        for number, part in enumerate(study.parts):
            said.append((number, part.settings, f"{FOR}.{number}.{SET}", "a cell of this entry"))
            if number not in selecting:
                self.problems.append(
                    f"{study.file.source}:{part.line}: for: expected an entry that selects a cell, got one that "
                    "selects none"
                )
        for place, settings, prefix, who in said:
            if place is None or place in selecting:
                for key in [key for key in settings if key not in NO_KEYS]:
                    if (place, key) not in read:
                        self.problems.append(
                            f"{_at(study.file, f'{prefix}.{key}')}: {key}: expected a key that {who} reads, got one "
                            "that none reads"
                        )

    def _check_baseline(self, cells: Collection[Cell]) -> None:
        """Note a baseline that matches no cell. Modalities are skipped: only the data determine them."""
        wanted = {axis: value for axis, value in self.study.baseline.items() if axis != "modalities"}
        if any(cell.axes.matches(wanted) for cell in cells):
            return
        named = ", ".join(f"{axis} {'null' if value is None else value}" for axis, value in wanted.items())
        there = [
            f"{axis} {', '.join(dict.fromkeys(cell.axes.value(axis) or 'null' for cell in cells))}" for axis in wanted
        ]
        self.problems.append(
            f"{_at(self.study.file, 'baseline')}: baseline: expected values that a cell of the study has, got {named}; "
            f"try {'; '.join(there)}"
        )

    def _fail(self) -> None:
        if self.problems:
            raise ConfigError("\n".join(dict.fromkeys(self.problems)))

    def _model(self, name: str) -> str:
        return self.registry.models.get(name).name

    def _paradigm(self, name: str) -> str:
        """The paradigm as its plugin writes it, with its variant."""
        base, colon, variant = name.partition(":")
        return f"{self.registry.paradigms.get(base).name}{colon}{variant}"

    def _dataset(self, name: str) -> str:
        return self.registry.datasets.get(name).name if name in self.registry.datasets else name

    def _encoder(self, text: str | None, dataset: str) -> EncoderName | None:
        """The encoder in its own spelling. null is the data set's default encoder, if it has one, as in `run`."""
        if text is None:
            known = self.registry.datasets.get(dataset) if dataset in self.registry.datasets else None
            return EncoderName.parse(known.default_encoder) if known and known.default_encoder else None
        asked = EncoderName.parse(text)
        return dataclasses.replace(asked, name=self.registry.encoders.get(asked.name).name)


def _selects(part: Part, cell: Cell) -> bool:
    """True if the cell has one of the part's values on each axis that the part names."""
    return all(any(cell.axes.has(axis, value) for value in values) for axis, values in part.where.items())


def _with(cell: Cell, **values: Any) -> Cell:
    """The cell with these values on its axes."""
    return dataclasses.replace(cell, axes=dataclasses.replace(cell.axes, **values))
