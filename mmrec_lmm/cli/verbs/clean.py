"""`clean`: what the cache folder and the folder of runs hold, and removing what is asked for."""

from __future__ import annotations

import argparse
import math
import time
from typing import TYPE_CHECKING, Any

from ...config.choices import REMOVABLE
from ...errors import RunError, did_you_mean
from ...formatting import first_few
from ..parser import add_verb, as_json, data_folder, duration, runs_folder
from ..shared import print_json

if TYPE_CHECKING:
    from ...running.storage import Stored
    from ..parser import Verbs


def add(verbs: Verbs) -> None:
    clean = add_verb(
        verbs, "clean", _clean, "Show what the cache folder and the folder of runs hold, and remove kinds of it."
    )
    clean.add_argument(
        "kinds", nargs="*", type=_kind, metavar="KIND",
        help=f"remove all of this kind: {', '.join(REMOVABLE)} (default: remove nothing)",
    )  # fmt: skip
    clean.add_argument(
        "--older", type=duration, default=-math.inf, metavar="TIME",
        help="only what hasn't changed for so long: 30d, 12h or 45m",
    )  # fmt: skip
    clean.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    runs_folder(clean)
    data_folder(clean)
    as_json(clean)


def _clean(options: argparse.Namespace) -> int:
    from ...cache import home
    from ...running.storage import held, remove, stored
    from ..text import removal_lines, storage_text

    entries = [one for one in stored(options.out, options.data_path) if time.time() - one.changed >= options.older]
    where = f"{home()} (cache), {options.out} (runs), {options.data_path} (data sets)"
    asked = [one for one in entries if one.kind in options.kinds]
    in_use = [one for one in asked if held(one)]
    removed = [one for one in asked if one not in in_use]
    failed: list[Stored] = []
    if options.kinds and not options.dry_run:
        found = remove(asked)
        removed, in_use, failed = list(found.removed), list(found.held), list(found.failed)
    if options.json:
        print_json(
            {
                "home": str(home()), "out": str(options.out), "data_path": str(options.data_path),
                "dry_run": options.dry_run,
                "stored": [_document(one) for one in (asked if options.kinds else entries)],
                "removed": [] if options.dry_run else [str(one.path) for one in removed],
                "in_use": [str(one.path) for one in in_use],
            }
        )  # fmt: skip
    elif not options.kinds:
        print(f"{where}\n\n{storage_text(entries)}")
    else:
        print(where)
        print("\n".join(removal_lines(options.kinds, removed, in_use, dry_run=options.dry_run)))
    if failed:
        paths = first_few([one.path for one in failed])
        raise RunError(f"{paths}: can't be removed; does this user have the permission?")
    return 0


def _kind(text: str) -> str:
    if text not in REMOVABLE:
        expected = f"expected {', '.join(REMOVABLE)}, got {text!r}{did_you_mean(text, REMOVABLE)}"
        raise argparse.ArgumentTypeError(f"{expected}; results and data sets are never removed")
    return text


def _document(one: Stored) -> dict[str, Any]:
    return {"kind": one.kind, "path": str(one.path), "bytes": one.bytes, "changed": one.changed}
