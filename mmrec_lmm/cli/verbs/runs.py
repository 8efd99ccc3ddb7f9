"""`recommend`, `embeddings`, `replay`, `results` and `slices`: use finished runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ConfigError
from ..parser import add_group, add_verb, as_json, condition, count, runs_folder, users
from ..shared import once, print_json, registry_of_run

if TYPE_CHECKING:
    from ...running.recommend import Trained
    from ..parser import Verbs


def add(verbs: Verbs) -> None:
    recommend = add_verb(verbs, "recommend", _recommend, "Print the best items for users, from a finished run.")
    _which_run(recommend)
    recommend.add_argument(
        "--users", type=users, required=True, metavar="ID,ID,...",
        help="the users by your own ids, as in the data that was imported; @FILE: one a line; all: every user",
    )  # fmt: skip
    recommend.add_argument(
        "--internal-ids", action="store_true", help="users and items are the numbers in the run's files, from 0"
    )
    _data_of_run(recommend)
    recommend.add_argument("-k", type=count, default=10, help="items per user (default: 10)")
    runs_folder(recommend)
    recommend.add_argument(
        "--format", choices=("text", "csv", "tsv", "json", "jsonl", "parquet"),
        help="default: by the suffix of FILE, else text",
    )  # fmt: skip
    recommend.add_argument("-o", "--output", type=Path, metavar="FILE", help="write to FILE (default: stdout)")
    recommend.add_argument(
        "--json", dest="format", action="store_const", const="json", help="the same as --format json"
    )

    embeddings = add_verb(
        verbs, "embeddings", _embeddings, "Write the vectors of all users and items from a finished run to a file."
    )
    _which_run(embeddings)
    embeddings.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE",
        help="the file: .npy, .safetensors, .parquet or .jsonl",
    )  # fmt: skip
    embeddings.add_argument("--of", choices=("users", "items"), help="only those (default: both)")
    embeddings.add_argument(
        "--format", choices=("npy", "safetensors", "parquet", "jsonl"), help="default: by the suffix of FILE"
    )
    _data_of_run(embeddings)
    runs_folder(embeddings)

    again = add_verb(verbs, "replay", _replay, "Repeat a finished run and compare: identical, or what differs first.")
    _which_run(again)
    _data_of_run(again)
    again.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or mps (default: the run's)")
    runs_folder(again)
    as_json(again)

    compare = add_verb(
        verbs,
        "compare",
        _compare,
        "Say what differs between two runs, and if their numbers do by more than noise.",
    )
    compare.add_argument("run", metavar="RUN", help="a run's id, the start of one, or its folder")
    compare.add_argument("other", metavar="OTHER", help="the other run, likewise")
    runs_folder(compare)
    as_json(compare)

    results = add_group(verbs, "results", "Query, export and index finished runs.")
    index = add_verb(results, "index", _index, "Rebuild the index of finished runs.")
    export = add_verb(results, "export", _export, "Export finished runs as a table, one row per run.")
    export.add_argument("--format", choices=("jsonl", "csv"), default="jsonl", help="default: jsonl")
    export.add_argument("-o", dest="file", type=Path, metavar="FILE", help="write to FILE (default: stdout)")
    export.add_argument(
        "--where", type=condition, action="extend", nargs="+", default=[], metavar="KEY=VALUE",
        help="only runs with these values",
    )  # fmt: skip
    ask = add_verb(results, "query", _query, "Answer a SELECT over the tables runs and metrics.")
    ask.add_argument("sql", help="for example \"SELECT run, value FROM metrics WHERE split = 'test'\"")
    as_json(ask)
    for verb in (index, export, ask):
        runs_folder(verb)

    slices = add_verb(
        verbs, "slices", _slices, "Show a finished run on parts of test: cold items, long tail, idle and busy users."
    )
    _which_run(slices)
    _data_of_run(slices)
    runs_folder(slices)
    as_json(slices)


def _which_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run's id, the start of one, or its folder")


def _data_of_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-path", metavar="DIR", help="folder of data sets (default: the run's)")


def _recommend(options: argparse.Namespace) -> int:
    from ...logs import start_log
    from ...running.exports import format_of, pieces, write_recommendations
    from ...running.recommend import recommendations
    from ..shared import write
    from ..text import recommendations_text

    how, file = _format(options), options.output
    if how == "parquet":
        if file is None:
            raise ConfigError("--format parquet: expected -o FILE, got none; try -o recommendations.parquet")
        format_of(file, RECOMMENDED, how)
    start_log(None, "recommend", level="ERROR", verbose=False)  # the run has warned about its data
    frames = recommendations(_trained(options), options.users, options.k, internal_ids=options.internal_ids)
    if how in ("text", "json"):
        import pandas as pd

        write(recommendations_text(pd.concat(frames, ignore_index=True), how), file)
    elif file is not None:
        write_recommendations(file, frames, how)
    else:
        for piece in pieces(frames, how):
            print(piece, end="")
    return 0


RECOMMENDED = ("parquet", "jsonl", "csv", "tsv", "json")  # formats that a suffix names


def _format(options: argparse.Namespace) -> str:
    """The format of recommendations: as asked, else by the file's suffix, else text."""
    suffix = options.output.suffix.lower().removeprefix(".") if options.output else ""
    return options.format or (suffix if suffix in RECOMMENDED else "text")


def _embeddings(options: argparse.Namespace) -> int:
    from ...library.runs import Run
    from ...logs import start_log
    from ...running.exports import EMBEDDINGS, format_of

    format_of(options.output, EMBEDDINGS, options.format)  # before the model is built
    start_log(None, "embeddings", level="ERROR", verbose=False)  # the run has warned about its data
    run = Run(_run_folder(options), plugins=options.plugins, data_path=options.data_path)
    for path in run.export_embeddings(options.output, of=options.of, format=options.format):
        print(path)
    return 0


def _trained(options: argparse.Namespace) -> Trained:
    from ...running.recommend import open_run

    options.run = str(folder := _run_folder(options))  # whichever is the latest of a name
    return open_run(folder, registry_of_run(options), data_path=options.data_path)


def _run_folder(options: argparse.Namespace) -> Path:
    """The folder of the run that the flags name; of several that fit MODEL-DATASET, the one that is said."""
    from ...running.run_folder import find_latest

    folder, note = find_latest(options.out, options.run)
    if note:
        print(f"note: {note}", file=sys.stderr)
    return folder


def _replay(options: argparse.Namespace) -> int:
    from ...logs import start_log
    from ...running.replay import replay
    from ...typed_json import plain
    from ..text import replay_text

    start_log(None, "replay", level="ERROR", verbose=False)  # the run has warned about its data
    found = replay(
        options.run, registry_of_run(options), out=options.out,
        data_path=options.data_path, device=options.device, progress=True,
    )  # fmt: skip
    if options.json:
        print_json({**plain(found), "reproduced": found.reproduced})
    else:
        print(replay_text(found))
    return 0 if found.reproduced else 1


def _compare(options: argparse.Namespace) -> int:
    from ...running.run_folder import find_run, load_result
    from ...studies.contrast import contrast
    from ...typed_json import plain
    from ..text import contrast_text

    one, other = (load_result(find_run(options.out, name)) for name in (options.run, options.other))
    assert one is not None
    assert other is not None
    found = contrast(one, other)
    if options.json:
        print_json(plain(found))
    else:
        print(contrast_text(found))
    return 0


def _index(options: argparse.Namespace) -> int:
    from ...logs import start_log
    from ...running.index import INDEX, rebuild

    start_log(None, "results", level="WARNING", verbose=False)
    print(f"{rebuild(options.out)} runs in {options.out / INDEX}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from ...disk.writing import write_output
    from ...logs import start_log
    from ...running.index import as_csv, as_jsonl, find_runs

    start_log(None, "results", level="WARNING", verbose=False)
    rows = find_runs(options.out, once("--where", options.where))
    text = as_csv(rows) if options.format == "csv" else as_jsonl(rows)
    if options.file:
        write_output(options.file, text.encode())
    else:
        print(text, end="")
    return 0


def _query(options: argparse.Namespace) -> int:
    from ...logs import start_log
    from ...running.index import query
    from ..text import table

    start_log(None, "results", level="WARNING", verbose=False)
    rows = query(options.out, options.sql)
    if options.json:
        print_json(rows)
    else:
        print(table(rows) or "no rows")
    return 0


def _slices(options: argparse.Namespace) -> int:
    from ...running.slices import slice_run
    from ..text import slices_text

    rows = slice_run(options.run, registry_of_run(options), out=options.out, data_path=options.data_path)
    if options.json:
        print_json(rows)
    else:
        print(slices_text(rows))
    return 0
