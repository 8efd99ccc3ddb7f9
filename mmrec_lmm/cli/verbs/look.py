"""`config show`, `list`, `info`, `completion`: a run's configuration, and what is available, also to a shell."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..completion import SHELLS, script
from ..parser import add_group, add_verb, as_json, data_folder, runs_folder, what_to_run
from ..shared import print_json, registry_of, runs_of, screen_width

if TYPE_CHECKING:
    from ..parser import Verbs


KINDS = ("models", "samplers", "encoders", "paradigms", "datasets", "splits", "metrics", "plugins", "runs")


def add(verbs: Verbs) -> None:
    config = add_group(verbs, "config", "Look at configuration.")
    show = add_verb(
        config, "show", _config_show, "Print each value of a run and the file that it comes from.", keys=True
    )
    what_to_run(show)
    show.add_argument("--grid", metavar="NAME", help="with a published grid")

    listing = add_verb(verbs, "list", _list, "List models, encoders, data sets, runs and more.")
    listing.add_argument("kind", choices=KINDS, help="what to list")
    data_folder(listing)
    runs_folder(listing)
    as_json(listing)

    info = add_verb(verbs, "info", _info, "Describe a model, encoder, data set or metric and its configuration keys.")
    info.add_argument("name", help="name of a model, encoder, data set or metric; `list` shows them")

    complete = add_verb(verbs, "completion", _completion, "Print a script by which a shell completes this command.")
    complete.add_argument("shell", choices=SHELLS, help="the shell that is to read it")


def _config_show(options: argparse.Namespace) -> int:
    from ...config.resolve import describe

    print(describe(runs_of(options)[1]))
    return 0


def _list(options: argparse.Namespace) -> int:
    from ..text import listing_text, run_rows, spec_rows

    if options.kind == "runs":
        from ...logs import start_log
        from ...running.run_folder import list_results

        start_log(None, "list", level="WARNING", verbose=False)
        rows = run_rows(list_results(options.out))
    elif options.kind == "datasets":
        from ...library.data import dataset_rows

        rows = dataset_rows(registry_of(options), options.data_path)
    else:
        rows = spec_rows(registry_of(options), options.kind)
    if options.json:
        print_json(rows)
    else:
        print(listing_text(rows, options.kind, screen_width()) or f"no {options.kind}")
    return 0


def _info(options: argparse.Namespace) -> int:
    from ..text import info_text

    print(info_text(registry_of(options), options.name))
    return 0


def _completion(options: argparse.Namespace) -> int:
    from .. import build_parser

    print(script(build_parser(), registry_of(options), options.shell), end="")
    return 0
