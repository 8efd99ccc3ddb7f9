"""`plugin new` and `plugin check`: begin a plugin, and see whether it keeps the contract."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ...plugin.templates import KINDS
from ..parser import add_group, add_verb, as_json
from ..shared import importing, print_json, registry_of

if TYPE_CHECKING:
    from ..parser import Verbs


def add(verbs: Verbs) -> None:
    plugin = add_group(verbs, "plugin", "Write a plugin, or check one.")
    new = add_verb(plugin, "new", _new, "Write a package that can be installed, with a plugin and its tests.")
    new.add_argument("kind", choices=KINDS, help="what it brings")
    new.add_argument("name", help="its name, such as MyModel: letters, digits, - and _")
    new.add_argument("-o", "--output", type=Path, metavar="DIR", help="the package's folder (default: by its name)")

    check = add_verb(plugin, "check", _check, "Check what a plugin registers against the contract of its kind.")
    check.add_argument("name", nargs="+", help="a .py file, a plugin, or a model, an encoder, ... that one registers")
    as_json(check)


def _new(options: argparse.Namespace) -> int:
    from ...plugin.templates import write_plugin

    specs: Any = getattr(registry_of(options), f"{options.kind}s", ())  # observers have no names
    if options.name in specs:
        raise ConfigError(
            f"{options.name}: expected the name of a new {options.kind}, got that of one of "
            f"{specs.provider(options.name)}; try My{options.name}"
        )
    folder = write_plugin(options.kind, options.name, options.output)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            print(path)
    print(
        f"next: cd {shlex.quote(str(folder))} && pip install --no-deps --no-build-isolation -e . && pytest",
        file=sys.stderr,
    )
    return 0


def _check(options: argparse.Namespace) -> int:
    with importing():
        from ...logs import start_log
        from ...testing.conformance import checks_of, outcome

    start_log(None, "check", level="CRITICAL", verbose=False)  # the checks say what is wrong
    files = [name for name in options.name if name.endswith(".py")]
    names = [name for name in options.name if name not in files]
    rows = []
    for check in checks_of([*options.plugins, *files], names=names):
        state, reason = outcome(check)
        rows.append({"kind": check.kind, "name": check.subject, "check": check.name, "state": state, "reason": reason})
        if not options.json:
            print(f"{state:<6} {check}" + (f"\n       {reason}" if reason else ""), flush=True)
    failed = sum(row["state"] == "failed" for row in rows)
    if options.json:
        print_json(rows)
    else:
        print(f"{len(rows)} checks, {failed} failed")
    return 1 if failed else 0
