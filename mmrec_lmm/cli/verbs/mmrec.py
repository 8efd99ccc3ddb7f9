"""`import-mmrec`: take a checkout of MMRec over."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..parser import add_verb, as_json, data_folder
from ..shared import flag_for, importing, print_json

if TYPE_CHECKING:
    from ..parser import Verbs


def add(verbs: Verbs) -> None:
    load = add_verb(
        verbs,
        "import-mmrec",
        _import,
        "Take over a checkout of MMRec: its models, configuration and data. The model files' code is executed.",
    )
    load.add_argument("checkout", type=Path, metavar="CHECKOUT", help="its top folder")
    load.add_argument(
        "--to", type=Path, default=Path("mmrec"), metavar="DIR", help="of models and configs (default: mmrec)"
    )
    data_folder(load)
    load.add_argument("--force", action="store_true", help="replace DIR, and data sets of the same names")
    as_json(load)


def _import(options: argparse.Namespace) -> int:
    with importing():
        from ...bridge.checkout import import_checkout
        from ...typed_json import plain
        from ..text import imported_text

    found = import_checkout(options.checkout, to=options.to, data_path=options.data_path, force=options.force)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    if options.json:
        print_json(plain(found))
        return 0
    print(imported_text(found))
    model = next((one.path for one in found.models if not one.error), None)
    if model is not None:
        dataset = found.datasets[0] if found.datasets else "NAME"
        where = flag_for("--data-path", options.data_path, "data")
        print(f"next: mmrec-lmm run -m {shlex.quote(model)} -d {dataset}{where}", file=sys.stderr)
    return 0
