"""`weights list` and `weights get`: encoders' files, for machines without a network; `weights merge`: a run's."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ConfigError
from ..parser import add_group, add_verb, as_json, runs_folder
from ..shared import print_json, registry_of, registry_of_run, screen_width

if TYPE_CHECKING:
    from ..parser import Verbs


def add(verbs: Verbs) -> None:
    weights = add_group(verbs, "weights", "Look at encoders' files of weights, and download them.")
    listing = add_verb(weights, "list", _list, "List the files that encoders need, and where they are.", keys=True)
    listing.add_argument("name", nargs="*", help="encoders, also as NAME:VARIANT (default: all)")
    as_json(listing)

    get = add_verb(weights, "get", _get, "Download all files that runs with these encoders need.", keys=True)
    get.add_argument("name", nargs="*", help="encoders, also as NAME:VARIANT")
    get.add_argument("--all", action="store_true", help="every encoder, each in its default variant")
    as_json(get)

    merge = add_verb(weights, "merge", _merge, "Write the encoder that an end-to-end run trained as one whole file.")
    merge.add_argument("run", help="the run's id, the start of it, or its folder")
    merge.add_argument("-o", dest="file", type=Path, metavar="FILE", required=True, help="the file of safetensors")
    runs_folder(merge)
    as_json(merge)


def _list(options: argparse.Namespace) -> int:
    from ..text import weights_text
    from ..weights import asked, list_files

    registry = registry_of(options)
    rows = list_files(asked(options.name, registry, options.overrides), registry)
    if options.json:
        print_json(rows)
    else:
        print(weights_text(rows, screen_width()))
    return 0


def _merge(options: argparse.Namespace) -> int:
    from ..weights import merge

    done = merge(options.run, options.file, registry_of_run(options), out=options.out)
    if options.json:
        print_json(done)
    else:
        print(f"{done['path']}: {done['tensors']} tensors, {done['from']} merged into its base")
    return 0


def _get(options: argparse.Namespace) -> int:
    from ...logs import start_log
    from ..text import weights_text
    from ..weights import asked, get_files

    if bool(options.name) == options.all:
        raise ConfigError("weights get: expected names of encoders or --all; `list encoders` shows them")
    registry = registry_of(options)
    encoders = asked(options.name, registry, options.overrides)
    start_log(None, "weights", level="INFO", verbose=True)
    rows, errors = get_files(encoders, registry)
    if options.json:
        print_json(rows)
    else:
        print(weights_text(rows, screen_width()))
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return max((error.exit_code for error in errors), default=0)
