"""`run` and `demo`: train and evaluate models."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ...config.choices import PROTOCOLS
from ..parser import add_verb, as_json, runs_folder, what_to_run
from ..shared import flag_for, importing, print_json, runs_of

if TYPE_CHECKING:
    from ..parser import Verbs


def add(verbs: Verbs) -> None:
    run = add_verb(verbs, "run", _run, "Train and evaluate a model, or each point of a grid.", keys=True)
    what_to_run(run)
    _how_to_run(run)
    run.add_argument("--grid", metavar="NAME", help="run a published grid: mmrec or lmm")
    run.add_argument("--plots", type=Path, metavar="DIR", help="also draw its learning curves and metrics by cutoff")
    as_json(run)

    demo = add_verb(
        verbs,
        "demo",
        _demo,
        "Make the demo data and show the content gain on it: VBPR with its own, no and shuffled features.",
        keys=True,
    )
    demo.add_argument("--data-path", default="data", metavar="DIR", help="folder of data sets (default: data)")
    runs_folder(demo)


def _how_to_run(parser: argparse.ArgumentParser) -> None:
    """Add the flags that change no result."""
    runs_folder(parser)
    parser.add_argument("--resume", action="store_true", help="continue a run that was stopped")
    parser.add_argument("--force", action="store_true", help="run finished runs again")
    parser.add_argument(
        "--protocol", choices=PROTOCOLS, help="mmrec: also show the result of selecting on test, as MMRec does"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show the log on stderr")


def _run(options: argparse.Namespace) -> int:
    from datetime import UTC, datetime

    with importing():
        from ...distributed import is_first_process
        from ...library.request import unread_keys
        from ...logs import start_log
        from ...running.grid import document_of, help_grid, run_grid
        from ...running.run_folder import document
        from ..text import grid_text, run_text

    registry, resolved = runs_of(options)
    if not is_first_process():
        start_log(None, "help", level="ERROR", verbose=False)  # the first process prints for all
        help_grid(resolved.runs, registry)
        return 0
    if options.plots:
        from ...report import plots

        plots.need_matplotlib()
    first = resolved.runs[0]
    log = start_log(
        options.out / "log", f"{first.model}-{first.dataset}", level=first.settings.state, verbose=options.verbose
    )
    for note in unread_keys(resolved):
        print(f"note: {note}", file=sys.stderr)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    grid = run_grid(resolved.runs, registry, out=options.out, resume=options.resume, force=options.force, progress=True)
    stored = sum(result.record.finished < started for result in grid.results)
    if stored:
        print(f"note: {stored} of {len(grid.results)} finished before; --force runs them again", file=sys.stderr)
    if options.json:
        print_json(document(grid.best) if len(resolved.runs) == 1 else document_of(grid))
    else:
        print(run_text(grid.best) if len(resolved.runs) == 1 else grid_text(grid, first.settings.valid_metric))
        print(f"\n{grid.best.path}/" + (f"  log: {log}" if log else ""))
        where = flag_for("--out", options.out, "runs")
        print(f"next: mmrec-lmm recommend {grid.best.run_id}{where} --users ID,ID,...")
    if options.plots:
        plots.run_plots(grid.best.path, options.plots)
    for point, reason in grid.failures:
        print(f"error: {dict(point)}: {reason}", file=sys.stderr)
    return 1 if grid.failures else 0


def _demo(options: argparse.Namespace) -> int:
    from ...config.yaml_layers import shipped
    from ...library.studies import open_study
    from ...logs import start_log
    from ...studies.leaderboard import FINISHED
    from ..text import content_text, study_text

    study = open_study(
        str(shipped() / "study" / "content.yaml"), configs=None, out=options.out, plugins=options.plugins,
        overrides={"data_path": options.data_path, **options.overrides},
    ).from_now()  # fmt: skip
    plan, registry = study.plan()
    start_log(options.out / "log", study.name, level=study.call.level, verbose=False)
    outcomes = study.do(plan, registry, progress=True).outcomes()
    if any(outcome.state != FINISHED for outcome in outcomes):
        print(study_text(outcomes), file=sys.stderr)
        return 1
    print(content_text(study.leaderboard(), options.out))
    return 0
