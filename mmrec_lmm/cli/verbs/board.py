"""`submit`, `verify` and `board`: bundles of evidence, and leaderboards made of them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ...board.tiers import NOTHING, TIERS
from ..parser import (
    add_group,
    add_verb,
    as_json,
    condition,
    configs_folder,
    folder_name,
    names,
    runs_folder,
    world_seed,
)
from ..shared import importing, once, print_json, registry_of, registry_of_run

if TYPE_CHECKING:
    from ..parser import Verbs


def add(verbs: Verbs) -> None:
    submit = add_verb(verbs, "submit", _submit, "Pack a finished run or study, with all that proves it, as one file.")
    submit.add_argument("what", metavar="WHAT", help="a run's id or folder, or a study's file or name")
    submit.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE", help="the file to write")
    submit.add_argument(
        "--where", type=condition, action="extend", nargs="+", default=[], metavar="AXIS=VALUE",
        help="of a study, only rows with these values",
    )  # fmt: skip
    submit.add_argument("--note", default="", metavar="TEXT", help="a remark for readers")
    submit.add_argument("--data-path", metavar="DIR", help="folder of data sets (default: the study's)")
    configs_folder(submit)
    runs_folder(submit)

    verify = add_verb(verbs, "verify", _verify, "Verify a bundle: what its numbers rest on, and what stops it.")
    verify.add_argument("bundle", type=Path, metavar="BUNDLE", help="a file that `submit` wrote")
    verify.add_argument(
        "--tier", choices=TIERS, default="recomputed", help="how far to go; the last two train (default: recomputed)"
    )
    verify.add_argument("--baseline", metavar="NAME", help="the model beside it in the tier fresh (default: Pop)")
    _how_to_verify(verify)
    as_json(verify)

    best = add_verb(verbs, "best", _best, "Print the best setting of a model on a board, as a study that runs.")
    best.add_argument("-m", "--model", required=True, metavar="NAME", help="the model")
    best.add_argument(
        "-d", "--dataset", dest="of_data", required=True, type=folder_name, metavar="NAME", help="the data set"
    )
    best.add_argument(
        "--board", type=Path, metavar="FOLDER", help="the board (default: that of the data set in boards/)"
    )
    best.add_argument("-o", "--output", type=Path, metavar="FILE", help="write to FILE (default: stdout)")

    board = add_group(verbs, "board", "Keep a leaderboard of verified bundles in a folder.")
    new = add_verb(board, "new", _new, "Begin a board: write the protocol of a data set as it is here.")
    _which_board(new)
    new.add_argument("-d", "--dataset", required=True, type=folder_name, metavar="NAME", help="the data set")
    new.add_argument("--name", required=True, metavar="NAME", help="the board's name")
    new.add_argument("--split", metavar="RULE", help="the split's rule (default: the labels of the data set's file)")
    new.add_argument("--baseline", default="Pop", metavar="NAME", help="the model of the tier fresh (default: Pop)")
    new.add_argument(
        "--metrics", type=names, default=("Recall@20", "NDCG@20"), metavar="A@K,B@K", help="default: Recall@20,NDCG@20"
    )
    new.add_argument("--data-path", metavar="DIR", help="folder of data sets (default: data)")
    put = add_verb(board, "add", _add, "Verify a bundle and add it to a board.")
    _which_board(put)
    put.add_argument("bundle", type=Path, metavar="BUNDLE", help="a file that `submit` wrote")
    put.add_argument("--tier", choices=TIERS[1:], help="how far to verify, at least as the board asks (default: that)")
    put.add_argument("--supersedes", metavar="ID", help="the submission that this one corrects")
    put.add_argument("--note", default="", metavar="TEXT", help="why it does, for readers")
    _how_to_verify(put)
    look = add_verb(board, "check", _check, "Verify all submissions of a board again.")
    _which_board(look)
    look.add_argument("--tier", choices=TIERS, default="recomputed", help="how far to go (default: recomputed)")
    look.add_argument("--data-path", metavar="DIR", help="folder of data sets (default: data)")
    look.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or mps")
    as_json(look)
    build = add_verb(board, "build", _build, "Make a board's page, tables, CSV and JSON, and what changed in them.")
    _which_board(build)


def _which_board(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the board's folder")


def _how_to_verify(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a verification."""
    parser.add_argument(
        "--seed", type=world_seed, metavar="N", help="of the fresh world, to repeat one (default: drawn now)"
    )
    parser.add_argument("--data-path", metavar="DIR", help="folder of data sets (default: data)")
    parser.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or mps (default: the run's)")


def _submit(options: argparse.Namespace) -> int:
    from ...errors import ConfigError
    from ...logs import start_log
    from ...studies.file import find_study

    start_log(None, "submit", level="ERROR", verbose=False)  # the runs have warned about their data
    is_run = (Path(options.what) / "result.json").exists()
    try:
        study = None if is_run else find_study(options.what, options.configs)
    except ConfigError:
        study = None
    with importing():
        from ...board.submit import submit_run, submit_study
        from ...library.studies import open_study
        from ...running.run_folder import find_run

    if study is not None:
        overrides = {"data_path": options.data_path} if options.data_path else {}
        opened = open_study(
            options.what, configs=options.configs, out=options.out, plugins=options.plugins, overrides=overrides
        )
        where = once("--where", options.where)
        print(submit_study(*opened.plan(), options.output, where=where, note=options.note))
        return 0
    if options.where:
        raise ConfigError(f"--where: expected a study, whose rows it picks, got {options.what}; try it without --where")
    options.run = str(find_run(options.out, options.what))
    print(submit_run(Path(options.run), registry_of_run(options), options.output, note=options.note))
    return 0


def _verify(options: argparse.Namespace) -> int:
    with importing():
        from ...board.verify import Baseline, verify
    from ...errors import DataError
    from ...logs import start_log
    from ...typed_json import plain
    from ..text import verification_text

    start_log(None, "verify", level="ERROR", verbose=False)
    registry = registry_of(options)
    baseline = Baseline(registry.models.get(options.baseline).name) if options.baseline else None
    found = verify(
        options.bundle, registry, tier=options.tier, data_path=options.data_path, device=options.device,
        baseline=baseline, seed=options.seed, progress=True,
    )  # fmt: skip
    if options.json:
        print_json({**plain(found), "passed": found.passed})
    else:
        print(verification_text(found))
    if found.passed:
        return 0
    return DataError.exit_code if found.tier == NOTHING else 1


def _best(options: argparse.Namespace) -> int:
    with importing():
        from ...board.best import best, board_of
    from ...logs import start_log
    from ..shared import write

    start_log(None, "board", level="ERROR", verbose=False)
    registry = registry_of(options)
    model = registry.models.get(options.model).name
    write(best(board_of(options.of_data, options.board, registry), model, registry), options.output)
    return 0


def _new(options: argparse.Namespace) -> int:
    with importing():
        from ...board.folder import new_board
    from ...logs import start_log

    start_log(None, "board", level="ERROR", verbose=False)
    print(
        new_board(
            options.folder, registry_of(options), name=options.name, dataset=options.dataset, split=options.split,
            data_path=options.data_path, baseline=options.baseline, metrics=options.metrics,
        )
    )  # fmt: skip
    return 0


def _add(options: argparse.Namespace) -> int:
    with importing():
        from ...board.folder import add as add_to
        from ...board.folder import open_board
    from ...logs import start_log
    from ..text import verification_text

    start_log(None, "board", level="ERROR", verbose=False)
    registry = registry_of(options)
    entered = add_to(
        open_board(options.folder, registry), options.bundle, registry, tier=options.tier,
        supersedes=options.supersedes, note=options.note, data_path=options.data_path, device=options.device,
        seed=options.seed, progress=True,
    )  # fmt: skip
    print(verification_text(entered.verification))
    print(entered.folder)
    return 0


def _check(options: argparse.Namespace) -> int:
    with importing():
        from ...board.folder import check, open_board
    from ...logs import start_log
    from ...typed_json import plain

    start_log(None, "board", level="ERROR", verbose=False)
    registry = registry_of(options)
    found = []
    for one in check(
        open_board(options.folder, registry), registry, tier=options.tier, data_path=options.data_path,
        device=options.device, progress=True,
    ):  # fmt: skip
        found.append(one)
        if not options.json:
            print(f"{one.id}: {one.problem or f'as recorded, {one.tier}'}")
            sys.stdout.flush()
    wrong = sum(bool(one.problem) for one in found)
    if options.json:
        print_json(plain(found))
    else:
        print(f"{len(found)} submissions, {wrong} with a problem")
    return 1 if wrong else 0


def _build(options: argparse.Namespace) -> int:
    with importing():
        from ...board.folder import open_board
        from ...board.site import build
    from ...logs import start_log

    start_log(None, "board", level="ERROR", verbose=False)
    registry = registry_of(options)
    built = build(open_board(options.folder, registry), registry)
    for line in built.changes:
        print(line)
    print(f"{built.folder}/")
    return 0
