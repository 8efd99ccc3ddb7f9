"""The registry: finds plugins, asks each for its specs, and gives them by name.

Plugins are the entry points of the group `mmrec_lmm`, each named `<distribution>:<entry point>`, and whatever `-p`
names: a module, a .py file, or MODULE:FILE.py, a file of which the module's `read_plugin` makes a plugin. The host's
own metrics and the shipped models come the same way. Every plugin is called alone, so each fault has a culprit. A
plugin that can't be imported, defines a hook wrongly or returns anything but specs is quarantined: nothing of it is
used, and it is listed with the reason. That is an error only if `-p` asked for the plugin. An unknown name is an error
too, and its message lists the plugins in quarantine.

    MMREC_LMM_BLOCK=NAME,NAME    leaves plugins out; NAME is a full name, a distribution or an entry point
    MMREC_LMM_TRACE=1            writes every hook call to stderr

Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import json
import logging
import os
import re
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import pluggy

from ..errors import ConfigError, PluginError, did_you_mean
from ..user_paths import expand_home
from . import hookspecs
from .hookspecs import API_VERSION, NAMESPACE
from .names import LONGEST
from .specs import DatasetSpec, EncoderSpec, MetricSpec, ModelSpec, ParadigmSpec, SamplerSpec, SplitSpec, resolve

if TYPE_CHECKING:
    from ..types import EpochReport, RunResult, RunSpec
    from .contracts import Paradigm

logger = logging.getLogger(__name__)

AnySpec = ModelSpec | SamplerSpec | EncoderSpec | ParadigmSpec | DatasetSpec | SplitSpec | MetricSpec
Spec = TypeVar("Spec", bound=AnySpec)

HOOKS = tuple(sorted(name for name in vars(hookspecs) if name.startswith("mmrec_")))
REGISTERS: Mapping[str, type[AnySpec]] = {
    "mmrec_register_models": ModelSpec,
    "mmrec_register_samplers": SamplerSpec,
    "mmrec_register_encoders": EncoderSpec,
    "mmrec_register_paradigms": ParadigmSpec,
    "mmrec_register_datasets": DatasetSpec,
    "mmrec_register_splits": SplitSpec,
    "mmrec_register_metrics": MetricSpec,
}
SPEC_NAME = re.compile(r"\w[\w.:+-]*")  # names become parts of file names, and metrics are written name@k


@dataclass(frozen=True)
class PluginInfo:
    """One plugin, for listings. `gives` maps a register hook to the names it gave; observer hooks give ()."""

    name: str
    status: Literal["ok", "blocked", "quarantined"]
    reason: str = ""
    distribution: str | None = None
    version: str | None = None
    gives: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    source: str = ""  # of a plugin of -p: the file's whole path, or the module's name
    code: str = ""  # and the hash of its code as it was loaded


class NamedSpecs(Generic[Spec]):
    """The registry of specs of one kind: by name, in any case, in the order of names.

    A name that two plugins claim belongs to neither: it isn't iterated, is listed in `conflicts`, and asking for it is
    an error. Other names aren't affected: one more plugin can't stop work that doesn't use it.
    """

    def __init__(self, kind: str, offers: Iterable[tuple[Spec, str]], *, withheld: str = "") -> None:
        """`offers` pairs each spec with its provider; `withheld` ends the message of an unknown name."""
        self.kind = kind
        self._withheld = withheld
        self._offers: dict[str, list[tuple[Spec, str]]] = {}
        for spec, provider in sorted(offers, key=lambda offer: (offer[0].name.lower(), offer[1])):
            self._offers.setdefault(spec.name.lower(), []).append((spec, provider))

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._offers

    def __iter__(self) -> Iterator[Spec]:
        return (offers[0][0] for offers in self._offers.values() if len(offers) == 1)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self)

    def get(self, name: str) -> Spec:
        """The spec of that name. ConfigError if there is none, PluginError if two plugins claim it."""
        return self._offer(name)[0]

    def provider(self, name: str) -> str:
        """The full name of the plugin that registered it; errors as `get`."""
        return self._offer(name)[1]

    def load(self, name: str, part: str) -> Any:
        """The object that a spec names in its field `part` ("cls", "config", "fn" ...), imported now.

        PluginError with the provider's name if that import fails: heavy libraries are first imported here.
        """
        spec, provider = self._offer(name)
        target = getattr(spec, part)
        try:
            return resolve(target)
        except Exception as error:
            raise PluginError(
                f"plugin {provider}: {part} of {self.kind} {spec.name}, {target}, can't be imported: {_reason(error)}"
            ) from error

    @property
    def conflicts(self) -> tuple[str, ...]:
        """One message for each name that more than one plugin claims."""
        return tuple(self._conflict(offers) for offers in self._offers.values() if len(offers) > 1)

    def _offer(self, name: str) -> tuple[Spec, str]:
        offers = self._offers.get(name.lower())
        if offers is None:
            if self.kind == "model" and name.endswith(".py"):
                raise ConfigError(
                    f"unknown model {name}; a model file of MMRec's is known by its path, which executes it: try "
                    f"-p mmrec_lmm.bridge:PATH/{Path(name).name}, of that very file name"
                )
            hint = did_you_mean(name, self.names()) or ";"
            if self.kind == "model" and (Path(name).suffix or len(Path(name).parts) > 1):
                hint = "; the path of a model file ends in .py;"
            known = ", ".join(self.names()) or "none"
            raise ConfigError(f"unknown {self.kind} {name}{hint} known: {known}{self._withheld}")
        if len(offers) > 1:
            raise PluginError(self._conflict(offers))
        return offers[0]

    def _conflict(self, offers: list[tuple[Spec, str]]) -> str:
        providers = [provider for _, provider in offers]
        return (
            f"{self.kind} {offers[0][0].name} is registered by {' and by '.join(providers)}; "
            f"leave one out, as with MMREC_LMM_BLOCK={providers[-1]}"
        )


@dataclass(frozen=True)
class Registry:
    """Everything that the plugins of this process bring."""

    models: NamedSpecs[ModelSpec]
    samplers: NamedSpecs[SamplerSpec]
    encoders: NamedSpecs[EncoderSpec]
    paradigms: NamedSpecs[ParadigmSpec]
    datasets: NamedSpecs[DatasetSpec]
    splits: NamedSpecs[SplitSpec]
    metrics: NamedSpecs[MetricSpec]
    plugins: tuple[PluginInfo, ...]
    _manager: pluggy.PluginManager = field(repr=False)

    @property
    def conflicts(self) -> tuple[str, ...]:
        """One message for each name that more than one plugin claims."""
        kinds = (
            self.models, self.samplers, self.encoders, self.paradigms, self.datasets, self.splits, self.metrics,
        )  # fmt: skip
        return tuple(message for specs in kinds for message in specs.conflicts)

    def is_shipped(self, provider: str) -> bool:
        """True for a plugin that comes with mmrec-lmm."""
        return provider.startswith("mmrec-lmm:")

    def paradigm(self, run: RunSpec) -> Paradigm:
        """The paradigm of a run, with the run's configuration of it."""
        made: Paradigm = self.paradigms.load(run.paradigm, "cls")(run.paradigm_config)
        return made

    def notify_start(self, run: RunSpec, folder: Path) -> None:
        """Call every observer before a run trains; one that raises is logged and can't stop the run."""
        self._notify("mmrec_run_started", run=run, folder=folder)

    def notify_epoch(self, run: RunSpec, epoch: EpochReport) -> None:
        """Call every observer after an epoch; one that raises is logged and can't stop the run."""
        self._notify("mmrec_epoch_finished", run=run, epoch=epoch)

    def notify_run(self, run: RunSpec, result: RunResult) -> None:
        """Call every observer when a run's result is on disk; one that raises is logged and changes nothing."""
        self._notify("mmrec_run_finished", run=run, result=result)

    def call_observer(self, plugin: str, hook: str, **report: Any) -> None:
        """Call an observer's hook, if it has that, and let through what it raises; for its check."""
        _call_alone(self._manager, plugin, hook, **report)

    def _notify(self, hook: str, **report: Any) -> None:
        for name in sorted({impl.plugin_name for impl in getattr(self._manager.hook, hook).get_hookimpls()}):
            try:
                _call_alone(self._manager, name, hook, **report)
            except Exception as error:
                logger.error("plugin %s: %s raised %s; the run goes on", name, hook, _reason(error), exc_info=True)


def load_registry(extra: Sequence[str] = ()) -> Registry:
    """A registry of all installed plugins and of `extra`, the values of `-p`: a module's name, the path of a .py file,
    or `no:NAME`, which blocks as MMREC_LMM_BLOCK does. PluginError if a plugin of `extra` can't be used."""
    manager = pluggy.PluginManager(NAMESPACE)
    manager.add_hookspecs(hookspecs)
    if os.environ.get("MMREC_LMM_TRACE", "0") not in ("", "0"):
        _trace(manager)
    candidates = [*_installed(), *(_extra(value) for value in dict.fromkeys(extra) if not value.startswith("no:"))]
    blocked = _blocked(extra, candidates)
    plugins: list[PluginInfo] = []
    offers: dict[type[AnySpec], list[tuple[Any, str]]] = {spec_type: [] for spec_type in REGISTERS.values()}
    for candidate in candidates:
        info, given = _admit(manager, candidate, blocked)
        plugins.append(info)
        for hook, specs in given.items():
            offers[REGISTERS[hook]] += [(spec, info.name) for spec in specs]
    withheld = _withheld(plugins)
    return Registry(
        models=NamedSpecs("model", offers[ModelSpec], withheld=withheld),
        samplers=NamedSpecs("sampler", offers[SamplerSpec], withheld=withheld),
        encoders=NamedSpecs("encoder", offers[EncoderSpec], withheld=withheld),
        paradigms=NamedSpecs("paradigm", offers[ParadigmSpec], withheld=withheld),
        datasets=NamedSpecs("data set", offers[DatasetSpec], withheld=withheld),
        splits=NamedSpecs("split", offers[SplitSpec], withheld=withheld),
        metrics=NamedSpecs("metric", offers[MetricSpec], withheld=withheld),
        plugins=tuple(plugins),
        _manager=manager,
    )


@dataclass(frozen=True)
class _Candidate:
    """A plugin before it is imported; `aliases` are the names under which it can be blocked."""

    name: str
    load: Callable[[], object]
    aliases: frozenset[str]
    asked: bool = False  # by -p: a fault is an error, not a quarantine
    source: str = ""  # of -p: the file's whole path, or the module's name
    distribution: str | None = None
    version: str | None = None
    edited: str = ""  # the package or module of one that is installed to be edited, but for mmrec-lmm's own


def _installed() -> list[_Candidate]:
    """The entry points in the order of their names: installation order must not matter.

    pluggy's own loader isn't used, since it silently skips the second of two entry points with one name.
    """
    candidates = []
    for entry in importlib.metadata.entry_points(group=NAMESPACE):
        distribution = _plain((entry.dist and entry.dist.name) or "unknown")  # damaged metadata has no name
        name = f"{distribution}:{entry.name}"
        candidates.append(
            _Candidate(
                name=name,
                load=entry.load,
                aliases=frozenset({_plain(name), distribution, _plain(entry.name)}),
                distribution=distribution,
                version=entry.dist.version if entry.dist else None,
                edited=entry.module.partition(".")[0] if distribution != "mmrec-lmm" and _is_edited(entry.dist) else "",
            )
        )
    return sorted(candidates, key=lambda candidate: candidate.name)


def _is_edited(distribution: importlib.metadata.Distribution | None) -> bool:
    """True for one that `pip install -e` installed (PEP 610)."""
    try:
        about = json.loads((distribution and distribution.read_text("direct_url.json")) or "{}")
        return about.get("dir_info", {}).get("editable") is True
    except (ValueError, AttributeError, OSError, RecursionError):
        return False


def _extra(value: str) -> _Candidate:
    value = expand_home(value)
    if reader := _reader(value):
        path = Path(value.removeprefix(f"{reader}:"))
        names, source = frozenset({_plain(value), _plain(path.name)}), f"{reader}:{path.resolve()}"
        return _Candidate(value, lambda: _read_by(reader, path), names, asked=True, source=source)
    if value.endswith(".py") or os.sep in value:
        path = Path(value)
        names, source = frozenset({_plain(value), _plain(path.stem)}), str(path.resolve())
        return _Candidate(value, lambda: _load_file(path), names, asked=True, source=source)
    names = frozenset({_plain(value)})
    return _Candidate(value, lambda: importlib.import_module(value), names, asked=True, source=value)


def _reader(value: str) -> str:
    """The module that reads the file of `MODULE:FILE.py`; empty for any other value."""
    reader, _, file = value.partition(":")
    return reader if file.endswith(".py") and re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", reader) else ""


def _read_by(reader: str, path: Path) -> object:
    """The plugin that a module makes of a file that was written for another toolbox."""
    return importlib.import_module(reader).read_plugin(path)


def source_hash(source: str) -> str | None:
    """The hash of the code of a plugin, a file or a module: of a package, that of all files below its folder. None
    if there is none."""
    if reader := _reader(source):
        source = source.removeprefix(f"{reader}:")
    try:
        path = (
            Path(source)
            if source.endswith(".py")
            else Path((importlib.util.find_spec(source) or _NOWHERE).origin or "")
        )
        paths = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
        digests = [hashlib.sha256(each.read_bytes()).hexdigest() for each in paths]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    except (OSError, TypeError, ImportError, ValueError):
        return None


def code_of(plugin_class: Any) -> str | None:
    """The hash of a class of a file of -p as it was loaded; None for any other class."""
    return getattr(sys.modules.get(plugin_class.__module__), FILE_CODE, None)


FILE_CODE = "__mmrec_lmm_code__"  # of a module that was loaded from a file: the hash of its code
_NOWHERE = importlib.machinery.ModuleSpec("nowhere", None, origin=None)


def _load_file(path: Path) -> ModuleType:
    """The module in a .py file. Its name in `sys.modules` follows from the path: `f"{__name__}:Class"` in a spec
    resolves, and a second load gives the same classes, unless the file changed."""
    path = path.resolve()
    if not path.is_file():
        raise PluginError(f"expected a Python file, got {path}, which isn't a file")
    name = f"mmrec_lmm_file_{path.stem}_{hashlib.sha256(bytes(path)).hexdigest()[:8]}"
    code = source_hash(str(path))
    if name in sys.modules and getattr(sys.modules[name], FILE_CODE, None) == code:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"expected a Python file, got {path}")
    before = sys.modules.get(name)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    setattr(module, FILE_CODE, code)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
        raise
    return module


def _blocked(extra: Sequence[str], candidates: Sequence[_Candidate]) -> frozenset[str]:
    """The names to leave out. An unknown one is only a warning: a shell's profile may serve many environments."""
    names = os.environ.get("MMREC_LMM_BLOCK", "").split(",")
    names += [value.removeprefix("no:") for value in extra if value.startswith("no:")]
    blocked = {_plain(name): name.strip() for name in names if name.strip()}
    aliases = {alias for candidate in candidates for alias in candidate.aliases}
    for unknown in [name for name in blocked if name not in aliases]:
        hint = did_you_mean(unknown, aliases)
        logger.warning("no plugin is called %s, so blocking it does nothing%s", blocked[unknown], hint)
    return frozenset(blocked)


def _admit(
    manager: pluggy.PluginManager, candidate: _Candidate, blocked: frozenset[str]
) -> tuple[PluginInfo, Mapping[str, list[AnySpec]]]:
    """Import, check and register one plugin: its PluginInfo, and its specs by hook, none unless all are valid."""

    def info(
        status: Literal["ok", "blocked", "quarantined"],
        reason: str = "",
        gives: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    ) -> PluginInfo:
        found = candidate.name, status, reason, candidate.distribution, candidate.version, gives
        source = candidate.source if status == "ok" and not reason else ""  # one that is installed is found there
        return PluginInfo(*found, source=source, code=(source_hash(source) or "") if source else "")

    if candidate.aliases & blocked:
        return info("blocked"), {}
    plugin: object = None
    try:
        plugin = candidate.load()
        if candidate.asked and manager.is_registered(plugin):
            return info("ok", f"is {manager.get_name(plugin)}"), {}
        _check_plugin(manager, plugin)
        manager.register(plugin, candidate.name)
        _check_hooks(manager, plugin)
        hooks = sorted(caller.name for caller in manager.get_hookcallers(plugin) or ())
        given = {hook: _specs(manager, candidate.name, hook) for hook in hooks if hook in REGISTERS}
        changing = candidate.source if candidate.asked else candidate.edited
        if changing and "mmrec_register_encoders" in given:
            code = source_hash(changing) or ""
            given["mmrec_register_encoders"] = [
                dataclasses.replace(spec, code=code)
                for spec in given["mmrec_register_encoders"]
                if isinstance(spec, EncoderSpec)
            ]
    except Exception as error:
        if plugin is not None and manager.get_plugin(candidate.name) is plugin:
            manager.unregister(name=candidate.name)
        reason = _reason(error)
        if candidate.asked:
            if isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] in ("common", "utils"):
                reason += f"; if this is a model file of MMRec's, try -m {candidate.name}"
            reads = isinstance(error, PluginError) and _reader(candidate.name)  # the message names the file
            raise PluginError(reason if reads else f"-p {candidate.name}: {reason}") from error
        logger.warning("plugin %s is left out: %s", candidate.name, reason)
        logger.debug("plugin %s", candidate.name, exc_info=True)
        return info("quarantined", reason), {}
    return info("ok", gives={hook: tuple(spec.name for spec in given.get(hook, ())) for hook in hooks}), given


def _check_plugin(manager: pluggy.PluginManager, plugin: object) -> None:
    """Raise PluginError with the reason for a fault that pluggy doesn't notice before registration."""
    if inspect.isclass(plugin):
        raise PluginError(f"expected a module or an instance, got the class {plugin.__name__}; try naming its module")
    needs = getattr(plugin, "MMREC_LMM_API", API_VERSION)
    if not isinstance(needs, int) or needs > API_VERSION:
        raise PluginError(
            f"MMREC_LMM_API: expected version {API_VERSION} of the plugin API or an earlier one, got {needs!r}; try "
            "upgrading mmrec-lmm"
        )
    for hook in HOOKS:
        if inspect.isroutine(getattr(plugin, hook, None)) and manager.parse_hookimpl_opts(plugin, hook) is None:
            raise PluginError(f"{hook} lacks the decorator @hookimpl")


def _check_hooks(manager: pluggy.PluginManager, plugin: object) -> None:
    """Raise PluginError with the reason for a fault that pluggy accepts silently."""
    callers = manager.get_hookcallers(plugin)
    if not callers:
        raise PluginError("implements no hook of mmrec-lmm")
    for caller in callers:
        if caller.name not in HOOKS:
            raise PluginError(f"unknown hook {caller.name}{did_you_mean(caller.name, HOOKS)}")
        for impl in caller.get_hookimpls():
            if impl.plugin is plugin and impl.kwargnames:
                raise PluginError(f"{caller.name}: expected arguments without defaults, got {impl.kwargnames}")
            if impl.plugin is plugin and (impl.wrapper or impl.hookwrapper):
                raise PluginError(f"{caller.name} is a hook wrapper; a plugin can't change what others give or see")


def _specs(manager: pluggy.PluginManager, name: str, hook: str) -> list[AnySpec]:
    """The specs that a register hook of one plugin returns, checked. PluginError with the reason."""
    expected = REGISTERS[hook]
    wanted = f"{hook}: expected a list of {expected.__name__}"
    specs: list[AnySpec] = []
    try:
        for result in _call_alone(manager, name, hook) or [None]:  # pluggy drops None
            if not isinstance(result, Iterable):
                raise PluginError(f"{wanted}, got {reprlib.repr(result)}")
            specs += result
    except PluginError:
        raise
    except Exception as error:
        raise PluginError(f"{hook} raised {_reason(error)}") from error
    for spec in specs:
        if not isinstance(spec, expected):
            raise PluginError(f"{wanted}, got one with {reprlib.repr(spec)}")
        if not SPEC_NAME.fullmatch(spec.name) or len(spec.name) > LONGEST or ".." in spec.name:
            raise PluginError(
                f"{hook}: expected a name of at most {LONGEST} letters, digits and _ . : + -, got {spec.name!r}"
            )
    return specs


def _call_alone(manager: pluggy.PluginManager, name: str, hook: str, **arguments: Any) -> list[Any]:
    """The results, other than None, of a hook of one plugin, called through pluggy: tracing sees the call."""
    others = [plugin for other, plugin in manager.list_name_plugin() if plugin is not None and other != name]
    return manager.subset_hook_caller(hook, others)(**arguments)


def _trace(manager: pluggy.PluginManager) -> None:
    """Write a line to stderr for each hook call from now on: its plugin, arguments and result."""

    def after(
        outcome: pluggy.Result[Any], hook: str, impls: Sequence[pluggy.HookImpl], arguments: Mapping[str, Any]
    ) -> None:
        plugin = ", ".join(impl.plugin_name for impl in impls)
        said = ", ".join(f"{key}={reprlib.repr(value)}" for key, value in arguments.items())
        end = f"raised {outcome.exception!r}" if outcome.exception else f"gave {reprlib.repr(outcome.get_result())}"
        print(f"trace: {plugin}: {hook}({said}) {end}", file=sys.stderr)

    manager.add_hookcall_monitoring(lambda *_: None, after)


def _withheld(plugins: Iterable[PluginInfo]) -> str:
    """The end of an unknown name's message: the plugins that might have brought it, and why they aren't used."""
    quarantined = "; ".join(f"{info.name} ({info.reason})" for info in plugins if info.status == "quarantined")
    blocked = ", ".join(info.name for info in plugins if info.status == "blocked")
    return (f"; plugins in quarantine: {quarantined}" if quarantined else "") + (
        f"; blocked plugins: {blocked}" if blocked else ""
    )


def _plain(name: str) -> str:
    """A name as packaging compares names: lower case, runs of - _ . as one hyphen."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _reason(error: Exception) -> str:
    """An error in one line; with its type, unless it is a PluginError."""
    text = " ".join(str(error).split())
    return text if isinstance(error, PluginError) else f"{type(error).__name__}: {text}"
