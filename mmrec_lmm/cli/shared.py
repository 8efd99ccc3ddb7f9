"""Shared by handlers: load plugins, resolve runs, write output."""

from __future__ import annotations

import argparse
import gc
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..config.resolve import Resolved
    from ..plugin.registry import Registry


@contextmanager
def importing() -> Iterator[None]:
    """Import torch in this context: no garbage is searched for among its objects, now or later, which takes 0.3 s."""
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def registry_of(options: argparse.Namespace) -> Registry:
    """The registry of all plugins, including those of -p."""
    from ..plugin.registry import load_registry

    return load_registry(options.plugins)


def registry_of_run(options: argparse.Namespace) -> Registry:
    """The registry for what uses the finished run `options.run`, with the plugins that it was made with."""
    from ..plugin.registry import load_registry
    from ..running.plugins import plugins_of

    plugins, notes = plugins_of(options.run, options.plugins, out=options.out)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return load_registry(plugins)


def runs_of(options: argparse.Namespace) -> tuple[Registry, Resolved]:
    """The registry, and the runs that the flags describe. Prints notes on stderr."""
    from ..bridge import with_model_file
    from ..library.request import one_of_each, request_of, resolve_runs

    model, options.plugins = with_model_file(options.model or "", options.plugins)
    registry = registry_of(options)
    typed = vars(options)
    flags = {key: typed.get(key) for key in ("seed", "split", "sampler", "data_path", "device", "protocol")}
    flags["encoder.weights"] = typed.get("weights")
    names = ("encoder", "paradigm", "modalities", "control", "preset", "grid", "configs")
    request = request_of(
        model,
        options.dataset,
        features=once("--features", typed.get("features", [])),
        keys=one_of_each({key: value for key, value in flags.items() if value is not None}, options.overrides),
        **{name: typed.get(name) for name in names},
    )
    resolved = resolve_runs(request, registry)
    for note in resolved.notes:
        print(f"note: {note}", file=sys.stderr)
    return registry, resolved


def flag_for(flag: str, path: Path, default: str) -> str:
    """A flag with its path, as a shell reads it, behind a blank; "" for the path that the flag has by default."""
    return "" if path == Path(default) else f" {flag} {shlex.quote(str(path))}"


def once(flag: str, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs of a flag that may be repeated, by key. ConfigError for a key that comes twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ConfigError(f"{flag}: {key}: expected one value, got {found[key]} and {value}; try one")
        found[key] = value
    return found


def screen_width() -> int | None:
    """The columns of the terminal that stdout is; None for a pipe or a file."""
    import shutil

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def write(text: str, path: Path | None) -> None:
    """Write text to a file, or to stdout without one."""
    from ..disk.writing import write_output

    if path is None:
        print(text, end="")
    else:
        write_output(path, text.encode(errors="backslashreplace"))  # names of files may be no text


def print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2))
