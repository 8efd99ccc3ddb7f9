"""`study` and `leaderboard`: many runs from one file, their tables and pages."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..parser import (
    add_group,
    add_verb,
    as_json,
    configs_folder,
    how_to_print,
    processes,
    runs_folder,
    shard,
    which_layout,
)
from ..shared import importing, print_json, screen_width, write

if TYPE_CHECKING:
    from ...library.studies import Study
    from ...studies.leaderboard import Leaderboard
    from ..parser import Verbs


def add(verbs: Verbs) -> None:
    board = add_verb(
        verbs, "leaderboard", _leaderboard, "Make one HTML page of a leaderboard, to open, mail or publish."
    )
    board.add_argument("file", type=Path, metavar="FILE", help="a leaderboard as JSON")
    _which_page(board)

    study = add_group(verbs, "study", "Run a study: many runs from one file, and their tables.")
    run = add_verb(study, "run", _run, "Do a study's runs; the same command continues where it stopped.")
    _which_study(run)
    who = run.add_mutually_exclusive_group()
    who.add_argument("--jobs", type=processes, default=1, metavar="N", help="number of processes that share the runs")
    who.add_argument("--on", choices=("ray",), help="use a Ray cluster: RAY_ADDRESS's, or one started here")
    run.add_argument("--shard", type=shard, metavar="I/N", help="do only part I of N, as a task of a job array")
    run.add_argument("--dry-run", action="store_true", help="list the runs, and estimate time, memory and disk")
    run.add_argument("--no-probe", action="store_true", help="with --dry-run: skip the estimate, which takes minutes")
    run.add_argument("-v", "--verbose", action="store_true", help="show the log on stderr")
    status = add_verb(study, "status", _status, "Show how far a study is.")
    _which_study(status)
    as_json(status)
    table = add_verb(study, "table", _table, "Print a study's results so far as a table.")
    _which_study(table)
    which_layout(table)
    how_to_print(table)
    table.add_argument("--plots", type=Path, metavar="DIR", help="also draw seeds, and quality against cost, there")
    page = add_verb(study, "page", _page, "Make one HTML page of a study's results so far.")
    _which_study(page)
    _which_page(page)


def _which_study(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose the study, its data and device, and the folder of its runs."""
    parser.add_argument("study", help="a study's file, or its name in the folder `study` of configs")
    parser.add_argument("--data-path", metavar="DIR", help="folder of data sets (default: the study's)")
    parser.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or mps")
    configs_folder(parser)
    runs_folder(parser)


def _which_page(parser: argparse.ArgumentParser) -> None:
    """Add the flag for the page's file."""
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("leaderboard.html"),
        metavar="PAGE",
        help="the page (default: leaderboard.html)",
    )


def _leaderboard(options: argparse.Namespace) -> int:
    from ...disk.writing import write_output
    from ...report.page import page
    from ...studies.leaderboard import read_leaderboard

    print(write_output(options.output, page(read_leaderboard(options.file)).encode()))
    return 0


def _run(options: argparse.Namespace) -> int:
    import itertools

    from ...studies.processes import import_ahead

    if options.jobs > 1 and not options.dry_run:
        import_ahead()
    with importing():
        from ...logs import start_log
        from ...studies.executor import Job, Record, Shard
        from ...studies.leaderboard import FINISHED, NOT_APPLICABLE
        from ..text import job_line, plan_text, shard_text

    study = _study(options).from_now(Shard(*options.shard) if options.shard else None)
    study.refuse_torchrun()
    if options.dry_run:
        return _dry_run(options, study)
    plan, registry = study.plan()
    log = start_log(options.out / "log", study.name, level=study.call.level, verbose=options.verbose)
    done = itertools.count(1)

    def on_progress(job: Job, record: Record) -> None:
        print(f"[{next(done)}] {job_line(job, record)}", file=sys.stderr)

    plan = study.do(plan, registry, jobs=options.jobs, on=options.on, progress=True, on_progress=on_progress)
    if not study.call.study.baseline and all(cell.axes.modalities != () for cell in plan.cells):
        print("Nothing will be tested: the study names no baseline and has no ID-only model.\n")
    print(plan_text(plan, screen_width()))
    if plan.shard:
        print(shard_text(plan))
    print(f"\n{study.folder}/" + (f"  log: {log}" if log else ""))
    if plan.shard:
        return 0 if plan.is_done else 1
    return 0 if all(outcome.state in (FINISHED, NOT_APPLICABLE) for outcome in plan.outcomes()) else 1


def _dry_run(options: argparse.Namespace, study: Study) -> int:
    from ...logs import start_log
    from ...studies.estimate import measure, probe, shared_files
    from ..text import estimate_text, making_line, making_text, plan_text, probe_line, shard_text, shared_text

    start_log(None, study.name, level="ERROR", verbose=False)  # the runs will warn about their data
    call, (plan, registry) = study.call, study.plan()
    print(plan_text(plan, screen_width()), flush=True)  # probes take minutes
    if plan.shard:
        print(shard_text(plan))
    shared = shared_files(plan, registry)
    print(f"\n{shared_text(shared)}", flush=True)
    if not options.no_probe:
        makings = measure(shared, plan, call, on_progress=lambda found: print(making_line(found), file=sys.stderr))
        if makings:
            print(f"\n{making_text(makings, jobs=options.jobs)}")
        probes = probe(plan, call, registry, on_progress=lambda found: print(probe_line(found), file=sys.stderr))
        print(f"\n{estimate_text(probes, jobs=options.jobs)}")
    return 0


def _status(options: argparse.Namespace) -> int:
    from ...library.studies import outcome_rows
    from ...logs import start_log
    from ..text import plan_text

    start_log(None, "study", level="WARNING", verbose=False)
    plan, _ = _study(options).plan()
    if options.json:
        print_json(outcome_rows(plan.outcomes()))
    else:
        print(plan_text(plan, screen_width()))
    return 0


def _table(options: argparse.Namespace) -> int:
    from ...report.plots import leaderboard_plots, need_matplotlib
    from ...report.tables import render

    if options.plots:
        need_matplotlib()
    board = _findings(options)
    write(render(board, layout=options.layout, format=options.format), options.output)
    if options.plots:
        for path in leaderboard_plots(board, options.plots):
            print(path, file=sys.stderr)
    return 0


def _page(options: argparse.Namespace) -> int:
    from ...disk.writing import write_output
    from ...report.page import page

    print(write_output(options.output, page(_findings(options)).encode()))
    return 0


def _findings(options: argparse.Namespace) -> Leaderboard:
    """The leaderboard of the study so far."""
    from ...logs import start_log

    start_log(None, "study", level="ERROR", verbose=False)  # the runs warn about their data
    return _study(options).leaderboard()


def _study(options: argparse.Namespace) -> Study:
    """The study that the flags name, with the folder of its runs."""
    from ...library.studies import open_study

    flags = {"data_path": options.data_path, "device": options.device}
    return open_study(
        options.study, configs=options.configs, out=options.out, plugins=options.plugins,
        overrides={key: value for key, value in flags.items() if value is not None},
    )  # fmt: skip
