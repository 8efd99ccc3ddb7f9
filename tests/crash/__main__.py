"""`python -m tests.crash`: prints a row of counts for each command, and each point at which something went wrong."""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch

from .commands import COMMANDS, TOGETHER
from .harness import Damage, Workspace, interruptions, prepare, sample

COUNTS = ("differing", "lost", "leftovers", "failed")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--command", choices=[*COMMANDS], action="append", help="only this one; default: all")
    parser.add_argument("--point", type=int, metavar="N", help="only this point, as --list numbers them")
    parser.add_argument("--list", action="store_true", help="print the points")
    parser.add_argument("--sample", type=int, metavar="N", help="only N points of each command")
    parser.add_argument("--signals", type=int, metavar="N", default=4, help="points for SIGTERM and SIGINT each (4)")
    parser.add_argument("--random", type=int, metavar="N", default=0, help="only N random kills under --jobs 2")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (0)")
    options = parser.parse_args()
    prepare()
    print("| command | points | kills | signals | " + " | ".join(COUNTS) + " | seconds |")
    print("|---|" + "---|" * (len(COUNTS) + 4), flush=True)
    with tempfile.TemporaryDirectory(prefix="crash-") as scratch:
        wrong = (_at_random if options.random else _at_points)(options, Path(scratch))
    return 1 if wrong else 0


def _at_points(options: argparse.Namespace, scratch: Path) -> int:
    wrong = 0
    for name in options.command or COMMANDS:
        began = time.monotonic()
        workspace = Workspace(scratch, COMMANDS[name])
        numbered = dict(zip(workspace.points, range(len(workspace.points)), strict=True))
        if options.list:
            for point, number in numbered.items():
                print(number, point)
            continue
        chosen = workspace.points
        if options.point is not None:
            chosen = [chosen[options.point]]
        elif options.sample is not None:
            chosen = sample(chosen, options.sample, options.seed)
        signals = [] if options.point is not None else interruptions(workspace.points, options.signals, options.seed)
        found: list[Damage] = []
        for point in (*chosen, *signals):
            found.append(workspace.kill(point))
            if found[-1]:
                print(f"{name}: {numbered.get(point, '')} {point}: {found[-1]}", file=sys.stderr, flush=True)
        wrong += _print_row(name, len(numbered), len(chosen), len(signals), found, time.monotonic() - began)
    return wrong


def _at_random(options: argparse.Namespace, scratch: Path) -> int:
    import random

    wrong = 0
    for command in TOGETHER:
        began = time.monotonic()
        workspace = Workspace(scratch, command)
        first, last = workspace.span()
        draw = random.Random(options.seed)
        found: list[Damage] = []
        for moment in (draw.uniform(first, last) for _ in range(options.random // len(TOGETHER))):
            found.append(workspace.kill_together(moment))
            if found[-1]:
                print(f"{command.name}: killed after {moment:.3f} s: {found[-1]}", file=sys.stderr, flush=True)
        wrong += _print_row(command.name, 0, len(found), 0, found, time.monotonic() - began)
    return wrong


def _print_row(name: str, points: int, kills: int, signals: int, found: list[Damage], seconds: float) -> int:
    """Print a command's row, and return how many of its kills left something wrong."""
    counts = [sum(len(getattr(damage, count)) for damage in found) for count in COUNTS]
    print(f"| {name} | {' | '.join(map(str, (points, kills, signals, *counts)))} | {seconds:.0f} |", flush=True)
    return sum(map(bool, found))


if __name__ == "__main__":
    sys.exit(main())
