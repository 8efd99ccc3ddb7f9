"""The command line: verbs, flags and exit codes. It parses, calls the library and prints; heavy imports wait for that.

Exit codes: 0 ok; 1 a run failed; 2 usage or configuration; 4 data or weights missing or damaged; 130 interrupted, with
the state saved. An error is one message on stderr; stdout carries results alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..errors import ConfigError, DataError, MMRecError, did_you_mean

if TYPE_CHECKING:
    from ..config.resolve import Resolved
    from ..plugin.registry import Registry
    from ..studies import executor
    from ..studies.leaderboard import Leaderboard

ABOUT = (
    "Train, evaluate and compare recommenders on what their items look like and say. "
    "Without a verb, flags mean `run`: mmrec-lmm -m VBPR -d demo."
)
KINDS = ("models", "encoders", "datasets", "metrics", "plugins", "runs")
EXIT_CODES = "exit codes: 0 ok, 1 a run failed, 2 usage or configuration, 4 data or weights, 130 interrupted"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Without a verb, flags mean `run`, as in MMRec."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version"):
        arguments.insert(0, "run")
    parser = build_parser()
    if not arguments:
        parser.print_help()
        return 0
    options, rest = parser.parse_known_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's kill saves the state, as Ctrl-C does
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported; docs/performance.md says why
    try:
        options.overrides = _overrides(rest, options.parser, allowed=options.takes_keys)
        exit_code: int = options.handler(options)
        sys.stdout.flush()
        return exit_code
    except MMRecError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(
            "interrupted; what is finished is kept, and the same command continues (run: with --resume)",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's own flush at exit fails again
        return 0
    except OSError as error:
        if error.filename is None or error.strerror is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1


def build_parser() -> argparse.ArgumentParser:
    """Every verb with its flags."""
    parser = argparse.ArgumentParser(prog="mmrec-lmm", description=ABOUT, epilog=EXIT_CODES, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"mmrec-lmm {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")

    def verb(
        name: str, handler: Callable[[Any], int], summary: str, *, parent: Any = verbs, keys: bool = False
    ) -> argparse.ArgumentParser:
        about = f"{summary} Any configuration key may follow as --key=value." if keys else summary
        sub: argparse.ArgumentParser = parent.add_parser(
            name, help=summary, description=about, epilog=EXIT_CODES, allow_abbrev=False
        )
        sub.set_defaults(handler=handler, parser=sub, takes_keys=keys)
        if handler is _usage:  # a group of verbs, each of which has its own flags
            return sub
        sub.add_argument(
            "-p",
            dest="plugins",
            action="append",
            default=[],
            metavar="PLUGIN",
            help="also load a plugin that isn't installed: a module or a .py file; no:NAME leaves one out",
        )
        return sub

    run = verb("run", _run, "Train and evaluate a model, or each point of a grid.", keys=True)
    _what_to_run(run)
    _how_to_run(run)
    run.add_argument("--grid", metavar="NAME", help="run a published grid: mmrec or lmm")
    run.add_argument("--plots", type=Path, metavar="DIR", help="also draw its learning curves and metrics by cutoff")
    run.add_argument("--json", action="store_true", help="print one JSON document on stdout")

    demo = verb(
        "demo",
        _demo,
        "Make the demo data and show what content is worth on it: VBPR with its own, no and shuffled features.",
        keys=True,
    )
    demo.add_argument("--data-path", default="data", metavar="DIR", help="folder of data sets (default: data)")
    demo.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="folder of runs (default: runs)")

    config = verb("config", _usage, "Look at configuration.")
    show = verb(
        "show",
        _config_show,
        "Print each value of a run and the file that it comes from.",
        parent=config.add_subparsers(metavar="VERB"),
        keys=True,
    )
    _what_to_run(show)
    show.add_argument("--grid", metavar="NAME", help="with a published grid")

    listing = verb("list", _list, "List what there is.")
    listing.add_argument("kind", choices=KINDS, help="what to list")
    listing.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="folder of runs (default: runs)")
    listing.add_argument("--json", action="store_true", help="print one JSON document on stdout")

    info = verb("info", _info, "Describe a model, encoder, data set or metric and its configuration keys.")
    info.add_argument("name", help="of a model, encoder, data set or metric; `list` shows them")

    encode = verb("encode", _encode, "Encode a data set's items; the features are kept and reused.", keys=True)
    _which_data(encode)
    encode.add_argument("--encoder", required=True, metavar="NAME", help="the encoder, or NAME:VARIANT")
    _how_to_encode(encode)
    encode.add_argument(
        "--paradigm",
        choices=("pt", "ft"),
        default="pt",
        help="the encoder as pre-trained, or first fine-tuned on the data",
    )
    encode.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or mps")
    encode.add_argument("--export", type=Path, metavar="DIR", help="also write MMRec's files, <modality>_feat.npy")

    table = verb("table", _table, "Print a study's leaderboard as a table.")
    table.add_argument("file", type=Path, help="a leaderboard as JSON, as a study writes it")
    _which_layout(table)
    _how_to_print(table)

    paper = verb("paper", _paper, "Print the paper's own tables, recounted.")
    paper.add_argument("--table", type=int, choices=(1, 3, 4, 5), help="one of them (default: all)")
    _how_to_print(paper)

    doctor = verb("doctor", _doctor, "Check libraries, devices, plugins, weights and data.")
    _data_folder(doctor)

    data = verb("data", _usage, "Make, check and import data sets.")
    data_verbs = data.add_subparsers(metavar="VERB")
    data_demo = verb("demo", _data_demo, "Make the demo data set.", parent=data_verbs)
    _data_folder(data_demo)
    data_demo.add_argument("--seed", type=int, help="another random catalogue")
    data_demo.add_argument("--force", action="store_true", help="replace an existing data set")
    check = verb("check", _data_check, "Read a data set and report its counts and gaps.", parent=data_verbs, keys=True)
    _which_data(check)
    load = verb(
        "import",
        _data_import,
        "Make a data set from an interactions table, an items table and images.",
        parent=data_verbs,
    )
    load.add_argument("name", type=_folder_name, help="the new data set's name")
    load.add_argument(
        "--interactions",
        type=Path,
        required=True,
        metavar="FILE",
        help="a table of users and items, with or without a header",
    )
    load.add_argument(
        "--items", type=Path, metavar="FILE", help="a table of items: id, title, brand, categories, description, image"
    )
    load.add_argument("--images", type=Path, metavar="DIR", help="the folder of the items table's images")
    load.add_argument("--user-column", metavar="NAME", help="the users' column, where its name isn't a usual one")
    load.add_argument("--item-column", metavar="NAME", help="the items' column, where its name isn't a usual one")
    load.add_argument(
        "--columns",
        type=_names,
        metavar="user,item,...",
        help="names for an interactions table without a header (default: user,item,rating,timestamp)",
    )
    load.add_argument("--items-id-column", metavar="NAME", help="the id's column of the items table")
    load.add_argument(
        "--separator", metavar="TEXT", help="of both tables (default: tab or comma, as the first line has)"
    )
    _data_folder(load)
    load.add_argument("--seed", type=int, default=0, help="of the split (default: 0)")
    load.add_argument(
        "--core", type=int, default=0, metavar="K", help="keep only users and items with K interactions or more"
    )
    load.add_argument(
        "--drop-unknown", action="store_true", help="drop interactions with items that the items table lacks"
    )
    load.add_argument("--force", action="store_true", help="replace an existing data set")

    board = verb("leaderboard", _leaderboard, "Make one HTML page of a leaderboard, to be opened, mailed or published.")
    board.add_argument("file", type=Path, metavar="FILE", help="a leaderboard as JSON")
    _which_page(board)

    study = verb("study", _usage, "Run a study: many runs from one file, and their tables.")
    study_verbs = study.add_subparsers(metavar="VERB")
    study_run = verb(
        "run", _study_run, "Do a study's runs; the same command goes on where it was stopped.", parent=study_verbs
    )
    _which_study(study_run)
    who = study_run.add_mutually_exclusive_group()
    who.add_argument("--jobs", type=_count, default=1, metavar="N", help="processes that share the runs")
    who.add_argument("--on", choices=("ray",), help="a Ray cluster instead: RAY_ADDRESS's, or one started here")
    study_run.add_argument("--dry-run", action="store_true", help="list what would be done, and what it would take")
    study_run.add_argument("--no-probe", action="store_true", help="with --dry-run: no estimate, which takes minutes")
    study_run.add_argument("-v", "--verbose", action="store_true", help="show the log on stderr")
    status = verb("status", _study_status, "Show how far a study is.", parent=study_verbs)
    _which_study(status)
    status.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    of_study = verb("table", _study_table, "Print what a study has found so far as a table.", parent=study_verbs)
    _which_study(of_study)
    _which_layout(of_study)
    _how_to_print(of_study)
    of_study.add_argument("--plots", type=Path, metavar="DIR", help="also draw seeds and cost against quality there")
    its_page = verb("page", _study_page, "Make one HTML page of what a study has found so far.", parent=study_verbs)
    _which_study(its_page)
    _which_page(its_page)

    recommend = verb("recommend", _recommend, "The best items for users, from a finished run.")
    recommend.add_argument("run", help="a run's id, the start of one, or its folder")
    recommend.add_argument("--users", type=_users, required=True, metavar="0,1,2", help="internal user ids")
    recommend.add_argument("--data-path", metavar="DIR", help="folder of data sets (default: the run's)")
    recommend.add_argument("-k", type=_count, default=10, help="items per user (default: 10)")
    recommend.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="DIR", help="folder of runs (default: runs)"
    )
    recommend.add_argument("--json", action="store_true", help="print one JSON document on stdout")

    again = verb("replay", _replay, "Make a finished run again and compare: identical, or what differs first.")
    again.add_argument("run", help="a run's id, the start of one, or its folder")
    again.add_argument("--data-path", metavar="DIR", help="folder of data sets (default: the run's)")
    again.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or mps (default: the run's)")
    again.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="folder of runs (default: runs)")
    again.add_argument("--json", action="store_true", help="print one JSON document on stdout")

    stored = verb("results", _usage, "Ask, export and index finished runs.")
    stored_verbs = stored.add_subparsers(metavar="VERB")
    index = verb("index", _results_index, "Make the index over finished runs anew.", parent=stored_verbs)
    export = verb("export", _results_export, "Finished runs as a table, one row a run.", parent=stored_verbs)
    export.add_argument("--format", choices=("jsonl", "csv"), default="jsonl", help="default: jsonl")
    export.add_argument("-o", dest="file", type=Path, metavar="FILE", help="write there instead of to stdout")
    export.add_argument(
        "--where", type=_condition, action="extend", nargs="+", default=[], metavar="KEY=VALUE",
        help="only runs with these values",
    )  # fmt: skip
    ask = verb("query", _results_query, "Answer a SELECT over the tables runs and metrics.", parent=stored_verbs)
    ask.add_argument("sql", help="for example \"SELECT run, value FROM metrics WHERE split = 'test'\"")
    ask.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    for each in (index, export, ask):
        each.add_argument(
            "--out", type=Path, default=Path("runs"), metavar="DIR", help="folder of runs (default: runs)"
        )

    slices = verb("slices", _slices, "A finished run on parts of test: cold items, long tail, idle and busy users.")
    slices.add_argument("run", help="a run's id, the start of one, or its folder")
    slices.add_argument("--data-path", metavar="DIR", help="folder of data sets (default: the run's)")
    slices.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="folder of runs (default: runs)")
    slices.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    return parser


def _what_to_run(parser: argparse.ArgumentParser) -> None:
    """The flags that say what is run."""
    parser.add_argument("-m", "--model", required=True, metavar="NAME", help="the model; `list models` shows them")
    _which_data(parser)
    parser.add_argument(
        "--encoder",
        metavar="NAME",
        help="makes the item features, also as NAME:VARIANT; default: the data set's own feature files",
    )
    _how_to_encode(parser)
    parser.add_argument(
        "--paradigm", choices=("pt", "ft", "ete"), default="pt", help="pre-trained, fine-tuned or end-to-end encoder"
    )
    parser.add_argument(
        "--features",
        type=_feature_file,
        action="append",
        default=[],
        metavar="MODALITY=FILE.npy",
        help="features of a modality from a file",
    )
    parser.add_argument(
        "--control",
        choices=("shuffled", "random", "constant", "none"),
        help="a twin run whose features carry no content",
    )
    parser.add_argument(
        "--preset", choices=("mmrec", "lmm", "paper"), help="set what differs between the sources as one of them has it"
    )
    parser.add_argument("--seed", metavar="N", help="of the weights, the batches and the negatives (default: 999)")
    parser.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or mps")


def _how_to_encode(parser: argparse.ArgumentParser) -> None:
    """The flags of an encoder, and of what it encodes."""
    parser.add_argument(
        "--weights", metavar="PATH", help="the encoder's checkpoint, or the folder that holds its files"
    )
    parser.add_argument("--modalities", type=_names, metavar="image,text", help="default: all that there are but joint")


def _which_data(parser: argparse.ArgumentParser) -> None:
    """The flags that say which data set is read, and with which configuration."""
    parser.add_argument(
        "-d", "--dataset", required=True, type=_folder_name, metavar="NAME", help="a folder in the folder of data sets"
    )
    parser.add_argument("--data-path", metavar="DIR", help="folder of data sets (default: data)")
    parser.add_argument("--configs", type=Path, metavar="DIR", help="a folder of YAML in MMRec's layout")


def _which_layout(parser: argparse.ArgumentParser) -> None:
    """The flag that says what a table compares."""
    parser.add_argument(
        "--layout",
        choices=("plain", "table1", "table3", "table4", "table5", "slices"),
        default="plain",
        help="what it compares, by the paper's tables, or metrics on parts of test (default: plain, all rows)",
    )


def _which_page(parser: argparse.ArgumentParser) -> None:
    """The flag that says where a page is written."""
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("leaderboard.html"),
        metavar="PAGE",
        help="the page (default: leaderboard.html)",
    )


def _how_to_print(parser: argparse.ArgumentParser) -> None:
    """The flags of a verb that prints a table."""
    parser.add_argument(
        "--format", choices=("markdown", "latex", "csv", "html"), default="markdown", help="default: markdown"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write it there (default: stdout)")


def _which_study(parser: argparse.ArgumentParser) -> None:
    """The flags that say which study, on what, and where its runs are."""
    parser.add_argument("study", help="a study's file, or the name of one in a folder study of configs")
    parser.add_argument("--data-path", metavar="DIR", help="folder of data sets (default: the study's)")
    parser.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or mps")
    parser.add_argument("--configs", type=Path, metavar="DIR", help="a folder of YAML in MMRec's layout")
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="folder of runs (default: runs)")


def _data_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-path", type=Path, default=Path("data"), metavar="DIR", help="folder of data sets (default: data)"
    )


def _how_to_run(parser: argparse.ArgumentParser) -> None:
    """The flags that change no number."""
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="folder of runs (default: runs)")
    parser.add_argument("--resume", action="store_true", help="continue a run that was stopped")
    parser.add_argument("--force", action="store_true", help="run again what is finished")
    parser.add_argument(
        "--protocol", choices=("default", "mmrec"), help="mmrec: also show what selecting on test, as there, would give"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show the log on stderr")


# Verbs. Each returns an exit code.


def _run(options: argparse.Namespace) -> int:
    from ..distributed import is_first_process
    from ..logs import start_log
    from ..running.grid import document_of, help_grid, run_grid
    from ..running.run_folder import document
    from .text import grid_text, run_text

    registry, resolved = _resolve(options)
    if not is_first_process():
        start_log(None, "help", level="ERROR", verbose=False)  # the first process speaks for all
        help_grid(resolved.runs, registry)
        return 0
    if options.plots:
        from ..report import plots

        plots.need_matplotlib()
    first = resolved.runs[0]
    log = start_log(
        options.out / "log", f"{first.model}-{first.dataset}", level=first.settings.state, verbose=options.verbose
    )
    for source in dict.fromkeys(resolved.unused.values()):
        keys = ", ".join(key for key, file in resolved.unused.items() if file == source)
        print(f"note: {source}: keys of MMRec that nothing here reads: {keys}", file=sys.stderr)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    grid = run_grid(resolved.runs, registry, out=options.out, resume=options.resume, force=options.force, progress=True)
    stored = sum(result.record["finished"] < started for result in grid.results)
    if stored:
        print(f"note: {stored} of {len(grid.results)} finished before; --force runs them again", file=sys.stderr)
    if options.json:
        _print_json(document(grid.best) if len(resolved.runs) == 1 else document_of(grid))
    else:
        print(run_text(grid.best) if len(resolved.runs) == 1 else grid_text(grid, first.settings.valid_metric))
        print(f"\n{grid.best.path}/  log: {log}")
    if options.plots:
        plots.run_plots(grid.best.path, options.plots)
    for point, reason in grid.failures:
        print(f"error: {dict(point)}: {reason}", file=sys.stderr)
    return 1 if grid.failures else 0


def _demo(options: argparse.Namespace) -> int:
    from .demo import demo

    print(demo(_load_registry(options), options.overrides, data_path=options.data_path, out=options.out))
    return 0


def _config_show(options: argparse.Namespace) -> int:
    from ..config.resolve import describe

    print(describe(_resolve(options)[1]))
    return 0


def _list(options: argparse.Namespace) -> int:
    from . import text as report

    if options.kind == "runs":
        from ..running.run_folder import list_results

        rows = report.run_rows(list_results(options.out))
    else:
        rows = report.catalogue_rows(_load_registry(options), options.kind)
    if options.json:
        _print_json(rows)
    else:
        print(report.listing_text(rows) or f"no {options.kind}")
    return 0


def _info(options: argparse.Namespace) -> int:
    from .text import info_text

    print(info_text(_load_registry(options), options.name))
    return 0


def _encode(options: argparse.Namespace) -> int:
    from ..distributed import is_first_process
    from ..features.files import export_table
    from ..logs import start_log
    from ..running.inputs import encode_dataset
    from .text import encoded_text

    options.model = None
    registry, resolved = _resolve(options)
    start_log(None, "encode", level="INFO" if is_first_process() else "ERROR", verbose=True)
    tables = encode_dataset(resolved.runs[0], registry, progress=True)
    if not is_first_process():
        return 0
    if options.export:
        for table in tables.values():
            export_table(options.export / f"{table.modality}_feat.npy", table)
    print(encoded_text(tables))
    return 0


def _table(options: argparse.Namespace) -> int:
    from ..report.tables import render
    from ..studies.leaderboard import read_leaderboard

    _write(render(read_leaderboard(options.file), layout=options.layout, format=options.format), options.output)
    return 0


def _paper(options: argparse.Namespace) -> int:
    from ..report import paper
    from ..report.tables import render

    if options.format == "csv" and options.table is None:
        raise ConfigError("a CSV file holds one table: say which, as in --table 3")
    texts = [
        render(paper.leaderboard(table), layout=f"table{table}", format=options.format, published=lambda row: {})
        for table in ([options.table] if options.table else paper.tables())
    ]
    _write("\n".join(texts), options.output)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from .doctor import doctor

    text, healthy = doctor(_load_registry(options), options.data_path)
    print(text)
    return 0 if healthy else DataError.exit_code


def _data_demo(options: argparse.Namespace) -> int:
    from mmrec_lmm_data_tools.demo import SEED, make

    folder = options.data_path / "demo"
    make(folder, seed=SEED if options.seed is None else options.seed, force=options.force)
    print(f"{folder} is ready; try: mmrec-lmm run -m VBPR -d demo --data-path {options.data_path}")
    return 0


def _data_check(options: argparse.Namespace) -> int:
    from ..features.files import normalized, read_feature_file
    from ..running.inputs import open_dataset
    from .text import dataset_text

    options.model = options.encoder = None
    registry, resolved = _resolve(options)
    run = resolved.runs[0]
    dataset = open_dataset(run.dataset, run.settings, registry)
    tables = {
        modality: normalized(
            read_feature_file(path, modality=modality, n_items=dataset.n_items), run.settings.normalize
        )
        for modality, path in dataset.feature_files.items()
    }
    print(dataset_text(dataset, tables))
    return 0


def _data_import(options: argparse.Namespace) -> int:
    from mmrec_lmm_data_tools.importing import import_dataset

    report = import_dataset(
        options.interactions,
        options.data_path / options.name,
        items=options.items,
        images=options.images,
        seed=options.seed,
        core=options.core,
        user_column=options.user_column,
        item_column=options.item_column,
        columns=options.columns,
        items_id_column=options.items_id_column,
        separator=options.separator,
        drop_unknown=options.drop_unknown,
        force=options.force,
    )
    print(report)
    return 0


def _leaderboard(options: argparse.Namespace) -> int:
    from ..cache import write_bytes
    from ..report.page import page
    from ..studies.leaderboard import read_leaderboard

    print(write_bytes(options.output, page(read_leaderboard(options.file)).encode()))
    return 0


def _study_run(options: argparse.Namespace) -> int:
    from ..distributed import processes
    from ..logs import start_log
    from ..studies import executor
    from ..studies.leaderboard import FINISHED, NOT_APPLICABLE
    from .text import job_line, study_text

    if processes() > 1:
        raise ConfigError("study run shares its runs by --jobs or --on ray, and not by torchrun: leave that out")
    call = dataclasses.replace(_study_call(options), since=time.time())
    if options.dry_run:
        return _study_dry_run(options, call)
    plan, registry = call.plan()
    log = start_log(options.out / "log", call.study.name, level=call.level, verbose=options.verbose)
    done = itertools.count(1)

    def told(job: executor.Job, record: executor.Record) -> None:
        print(f"[{next(done)}] {job_line(job, record)}", file=sys.stderr)

    def do(plan: executor.Plan) -> None:
        if options.on == "ray":
            from ..studies.ray import on_ray

            on_ray(call, plan, told=told)
        elif options.jobs > 1:
            executor.in_processes(call, plan, options.jobs, told=told)
        else:
            executor.Worker(plan, registry, since=call.since, progress=True, told=told).work()

    plan = executor.do_all(call, plan, do)
    outcomes = plan.outcomes()
    if not call.study.baseline and all(outcome.cell.modalities != () for outcome in outcomes):
        print("Nothing will be tested: the study names no baseline and has no ID-only model.\n")
    print(f"{study_text(outcomes)}\n\n{plan.folder}/  log: {log}")
    return 0 if all(outcome.state in (FINISHED, NOT_APPLICABLE) for outcome in outcomes) else 1


def _study_dry_run(options: argparse.Namespace, call: executor.Call) -> int:
    from ..logs import start_log
    from ..studies.estimate import measure, probe, shared_artefacts
    from .text import artefacts_text, estimate_text, making_line, making_text, probe_line, study_text

    start_log(None, call.study.name, level="ERROR", verbose=False)  # what the data lacks is for the runs to tell
    plan, registry = call.plan()
    print(study_text(plan.outcomes()))
    shared = shared_artefacts(plan, registry)
    print(f"\n{artefacts_text(shared)}")
    if not options.no_probe:
        makings = measure(shared, plan, call, told=lambda found: print(making_line(found), file=sys.stderr))
        if makings:
            print(f"\n{making_text(makings, jobs=options.jobs)}")
        probes = probe(plan, call, registry, told=lambda found: print(probe_line(found), file=sys.stderr))
        print(f"\n{estimate_text(probes, jobs=options.jobs)}")
    return 0


def _study_status(options: argparse.Namespace) -> int:
    from .text import outcome_rows, study_text

    outcomes = _study_call(options).plan()[0].outcomes()
    if options.json:
        _print_json(outcome_rows(outcomes))
    else:
        print(study_text(outcomes))
    return 0


def _study_table(options: argparse.Namespace) -> int:
    from ..report.plots import leaderboard_plots, need_matplotlib
    from ..report.tables import render

    if options.plots:
        need_matplotlib()
    board = _findings(options)
    _write(render(board, layout=options.layout, format=options.format), options.output)
    if options.plots:
        for path in leaderboard_plots(board, options.plots):
            print(path, file=sys.stderr)
    return 0


def _study_page(options: argparse.Namespace) -> int:
    from ..cache import write_bytes
    from ..report.page import page

    print(write_bytes(options.output, page(_findings(options)).encode()))
    return 0


def _findings(options: argparse.Namespace) -> Leaderboard:
    """What the study has found so far."""
    from ..logs import start_log
    from ..studies.findings import find

    start_log(None, "study", level="ERROR", verbose=False)  # what the data lacks is for the runs to tell
    return find(*_study_call(options).plan())


def _study_call(options: argparse.Namespace) -> executor.Call:
    """What the flags ask for, as every process of a study gets it."""
    from ..studies.executor import Call
    from ..studies.file import find_study, load_study

    flags = {"data_path": options.data_path, "device": options.device}
    return Call(
        study=load_study(
            find_study(options.study, options.configs),
            configs=options.configs,
            overrides={key: value for key, value in flags.items() if value is not None},
        ),
        folder=Path.cwd(),
        out=options.out,
        plugins=tuple(options.plugins),
    )


def _recommend(options: argparse.Namespace) -> int:
    from ..logs import start_log
    from ..running.recommend import recommend
    from .text import table

    start_log(None, "recommend", level="ERROR", verbose=False)  # the run has told what the data lacks
    registry = _load_registry(options)
    rows = recommend(options.run, options.users, options.k, registry, out=options.out, data_path=options.data_path)
    if options.json:
        _print_json(rows)
    else:
        print(table(rows))
    return 0


def _replay(options: argparse.Namespace) -> int:
    from ..cache import plain
    from ..logs import start_log
    from ..running.replay import replay
    from .text import replay_text

    start_log(None, "replay", level="ERROR", verbose=False)  # the run has told what the data lacks
    found = replay(
        options.run, _load_registry(options), out=options.out,
        data_path=options.data_path, device=options.device, progress=True,
    )  # fmt: skip
    if options.json:
        _print_json({**plain(found), "reproduced": found.reproduced})
    else:
        print(replay_text(found))
    return 0 if found.reproduced else 1


def _results_index(options: argparse.Namespace) -> int:
    from ..logs import start_log
    from ..running.index import INDEX, rebuild

    start_log(None, "results", level="WARNING", verbose=False)
    print(f"{rebuild(options.out)} runs in {options.out / INDEX}")
    return 0


def _results_export(options: argparse.Namespace) -> int:
    from ..cache import write_bytes
    from ..logs import start_log
    from ..running.index import as_csv, as_jsonl, find_runs

    start_log(None, "results", level="WARNING", verbose=False)
    rows = find_runs(options.out, dict(options.where))
    text = as_csv(rows) if options.format == "csv" else as_jsonl(rows)
    if options.file:
        write_bytes(options.file, text.encode())
    else:
        print(text, end="")
    return 0


def _results_query(options: argparse.Namespace) -> int:
    from ..logs import start_log
    from ..running.index import query
    from .text import table

    start_log(None, "results", level="WARNING", verbose=False)
    rows = query(options.out, options.sql)
    if options.json:
        _print_json(rows)
    else:
        print(table(rows) or "no rows")
    return 0


def _slices(options: argparse.Namespace) -> int:
    from ..running.slices import slice_run
    from .text import slices_text

    rows = slice_run(options.run, _load_registry(options), out=options.out, data_path=options.data_path)
    if options.json:
        _print_json(rows)
    else:
        print(slices_text(rows))
    return 0


# What several verbs do


def _load_registry(options: argparse.Namespace) -> Registry:
    from ..plugin.registry import load_registry

    return load_registry(options.plugins)


def _resolve(options: argparse.Namespace) -> tuple[Registry, Resolved]:
    """The registry, and the runs that the flags ask for."""
    from ..config.resolve import Request, resolve

    registry = _load_registry(options)
    typed = vars(options)
    model = registry.models.get(options.model) if options.model else None
    dataset = registry.datasets.get(options.dataset) if options.dataset in registry.datasets else None
    unasked = dataset.default_encoder if dataset and (model is None or model.uses_features) else None
    flags = {key: typed.get(key) for key in ("seed", "data_path", "device", "protocol")}
    flags["encoder.weights"] = typed.get("weights")
    request = Request(
        model=options.model,
        dataset=options.dataset,
        encoder=options.encoder or unasked,
        paradigm=typed.get("paradigm", "pt"),
        modalities=typed.get("modalities"),
        features=dict(typed.get("features", [])),
        control=typed.get("control"),
        preset=typed.get("preset"),
        grid=typed.get("grid"),
        configs=typed.get("configs"),
        overrides={**{key: value for key, value in flags.items() if value is not None}, **options.overrides},
    )
    resolved = resolve(
        request,
        model=model,
        encoder=registry.encoders.get(request.encoder_name) if request.encoder_name else None,
        dataset=dataset,
    )
    for note in resolved.notes:
        print(f"note: {note}", file=sys.stderr)
    for metric in {metric for run in resolved.runs for metric in run.settings.metrics}:
        registry.metrics.get(metric)  # an unknown one is refused now, and not after hours of encoding
    return registry, resolved


def _overrides(rest: Sequence[str], parser: argparse.ArgumentParser, *, allowed: bool) -> dict[str, str]:
    """The configuration keys among the arguments that no flag of the verb's parser took."""
    overrides = {}
    for argument in rest:
        key, equals, value = argument.removeprefix("--").partition("=")
        if not allowed or not argument.startswith("--") or not equals or not key:
            flags = re.findall(r"--([a-z][\w-]+)", parser.format_help())  # dashes, which all have, would make all alike
            meant = did_you_mean(key, flags).replace("mean ", "mean --")
            if allowed:
                name = key if argument.startswith("--") and key else "KEY"
                meant += f"; a configuration key is written with an equals sign: --{name}=VALUE"
            raise ConfigError(f"unknown argument {argument}{meant}")
        overrides[key] = value
    return overrides


def _folder_name(text: str) -> str:
    if not text or text.startswith(".") or Path(text).name != text:
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a data set; --data-path says in which folder it lies")
    return text


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing")
    return names


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def _users(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of user ids such as 0,1,2")
    return tuple(dict.fromkeys(int(user) for user in text.split(",")))


def _feature_file(text: str) -> tuple[str, Path]:
    modality, equals, path = text.partition("=")
    if not equals or not modality:
        raise argparse.ArgumentTypeError(f"{text!r} is not MODALITY=FILE.npy")
    return modality, Path(path)


def _condition(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def _usage(options: argparse.Namespace) -> int:
    options.parser.print_help(sys.stderr)
    return 2


def _write(text: str, path: Path | None) -> None:
    """Text to a file, or to stdout."""
    from ..cache import write_bytes

    if path is None:
        print(text, end="")
    else:
        write_bytes(path, text.encode())


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))
