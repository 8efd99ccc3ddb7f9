"""The conformance kit: named checks of what a plugin registers, each with the advice of what to change.

    for check in checks_of(["my_plugin.py"]):
        check()

A check passes, raises Fault with a sentence, or raises NotApplicable where it doesn't concern the plugin.
`mmrec-lmm plugin check` prints the same checks, and options.py makes tests of them.

Shapes: U users, I items, B batch.
"""

import os
import tempfile
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import ConfigError, NotApplicable, did_you_mean
from ..plugin.registry import REGISTERS, NamedSpecs, Registry, load_registry

#: What a check is about, and the register hook that brings it.
KINDS = {
    "model": "mmrec_register_models",
    "encoder": "mmrec_register_encoders",
    "paradigm": "mmrec_register_paradigms",
    "dataset": "mmrec_register_datasets",
    "split": "mmrec_register_splits",
    "metric": "mmrec_register_metrics",
    "sampler": "mmrec_register_samplers",
}
_LONGEST = 400  # characters of what an unexpected error says: torch lists all its backends
OBSERVERS = ("mmrec_run_started", "mmrec_epoch_finished", "mmrec_run_finished")


class Fault(AssertionError):
    """A plugin breaks a rule; the message says what to change."""


@dataclass(frozen=True)
class Check:
    """One check of one registered thing: `kind` and `subject` say of which, `name` what is checked."""

    kind: str
    subject: str
    name: str
    run: Callable[[], None]

    def __call__(self) -> None:
        self.run()

    def __str__(self) -> str:
        return f"{self.kind} {self.subject}: {self.name}"


def checks_of(
    plugins: Sequence[str] = (), *, only: Mapping[str, Sequence[str]] | None = None, names: Sequence[str] = ()
) -> list[Check]:
    """All checks of what `plugins` (files, modules, or the names of installed plugins) bring; of the `names` of models,
    encoders and other things, whatever plugin brings them; and of names by kind, `only`.

    ConfigError for a name that nothing has.
    """
    files = [plugin for plugin in plugins if plugin.endswith(".py") or "/" in plugin or not _installed(plugin)]
    registry = load_registry(files)
    found: dict[tuple[str, str], None] = {}
    for plugin in plugins:
        found |= dict.fromkeys(_given(registry, plugin))
    for name in names:
        matches = [(kind, spec.name) for kind, spec in _all(registry) if spec.name.lower() == name.lower()]
        of_plugin = [] if matches else _given(registry, name)
        if not matches and not of_plugin:
            known = [spec.name for _, spec in _all(registry)]
            raise ConfigError(
                f"{name}: expected the name of a model, an encoder, another thing that a plugin registers, or a "
                f"plugin, got none of these{did_you_mean(name, known)}; try a file, as ./{name}.py"
            )
        found |= dict.fromkeys(matches or of_plugin)
    for kind, chosen in (only or {}).items():
        found |= dict.fromkeys((kind, _specs(registry, kind).get(name).name) for name in chosen)
    return [check for kind, name in found for check in _checks(registry, kind, name)]


def _installed(plugin: str) -> bool:
    return any(plugin in _called(info.name, info.distribution) for info in load_registry().plugins)


def _called(name: str, distribution: str | None) -> set[str]:
    """The names of an installed plugin: in full, its entry point's, its distribution's."""
    return {name, name.partition(":")[2], distribution or name}


def _given(registry: Registry, plugin: str) -> list[tuple[str, str]]:
    """What a plugin brings: (kind, name). Observers are named by their plugin."""
    found = []
    for info in registry.plugins:
        if plugin not in _called(info.name, info.distribution):
            continue
        if info.reason.startswith("is "):  # a module of -p that is installed, too
            return _given(registry, info.reason.removeprefix("is "))
        if info.status == "quarantined":
            raise ConfigError(f"plugin {info.name}: {info.reason}")
        found += [(kind, name) for kind, hook in KINDS.items() for name in info.gives.get(hook, ())]
        if any(hook in info.gives for hook in OBSERVERS):
            found.append(("observer", info.name))
    return found


def _all(registry: Registry) -> Iterator[tuple[str, Any]]:
    for kind, hook in KINDS.items():
        if hook in REGISTERS:
            yield from ((kind, spec) for spec in _specs(registry, kind))


def _specs(registry: Registry, kind: str) -> NamedSpecs[Any]:
    return getattr(registry, f"{kind}s")


def _checks(registry: Registry, kind: str, name: str) -> Iterator[Check]:
    """The checks of one thing, in order. What they need, such as torch, is imported now."""
    from . import checks_of_models, checks_of_others

    owner = name if kind == "observer" else f"plugin {_specs(registry, kind).provider(name)}: {kind} {name}"
    if kind == "model":
        named: Mapping[str, Callable[..., None]] = checks_of_models.CHECKS
    else:
        named = checks_of_others.CHECKS.get(kind, {})
    for check, function in named.items():
        yield Check(kind, name, check, partial(function, registry, name, owner))


def outcome(check: Check) -> tuple[str, str]:
    """A check's state, "ok", "failed" or "n/a", and the reason where there is one. Any error of a plugin is caught."""
    try:
        with own_home():
            check()
    except NotApplicable as reason:
        return "n/a", str(reason)
    except AssertionError as fault:
        return "failed", " ".join(str(fault).split())
    except Exception as error:
        where = _place(error)
        return (
            "failed",
            f"{check.kind} {check.subject}: {type(error).__name__}: "
            f"{textwrap.shorten(str(error), _LONGEST, placeholder=' ...')} ({where})",
        )
    return "ok", ""


def _place(error: Exception) -> str:
    """The last file and line outside the host and installed libraries; the last of all if there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    host = str(Path(__file__).resolve().parents[1])
    own = [
        frame
        for frame in frames
        if not frame.filename.startswith((host, "<")) and "site-packages" not in Path(frame.filename).parts
    ]
    last = (own or frames)[-1]
    return f"{last.filename}:{last.lineno}"


@contextmanager
def own_home() -> Iterator[None]:
    """A context with an empty cache: nothing of the user's is read or written."""
    before = os.environ.get("MMREC_LMM_HOME")
    with tempfile.TemporaryDirectory(prefix="mmrec-lmm-check-") as folder:
        os.environ["MMREC_LMM_HOME"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["MMREC_LMM_HOME"]
            else:
                os.environ["MMREC_LMM_HOME"] = before
