"""`python -m tests.fuzz --inputs 3000`: damage inputs, run commands on them, and count what goes wrong."""

import argparse
import random
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from . import judge, typed
from .damage import damage
from .kinds import KINDS
from .workspace import Workspace, wrongs

KEYS, FLAGS = "keys", "flags"
ORDER = tuple(name for kind in KINDS for name in (kind, KEYS, FLAGS))[: 3 * len(KINDS)]


@dataclass
class Report:
    """What happened to the inputs so far."""

    inputs: Counter[str] = field(default_factory=Counter)  # by kind
    faults: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    peak: int = 0

    def summary(self) -> str:
        lines = [f"{self.inputs.total()} inputs of {len(self.inputs)} kinds"]
        lines += [f"  {self.faults[fault]:5}  {text}" for fault, text in FAULTS.items()]
        lines += ["answers", *(f"  {self.answers[answer]:5}  {text}" for answer, text in ANSWERS.items())]
        return "\n".join([*lines, f"at most {self.slowest:.1f} s and {self.peak / 2**20:.0f} MiB for an input"])


FAULTS = {
    "traceback": "tracebacks",
    "hang": "took more than 30 s",
    "exit code": "undocumented exit codes",
    "memory": "needed more than 2 GiB",
    "processes": f"started more than {judge.PROCESSES} processes",
    "silence": "failed without a word",
    "changed": "changed earlier results or inputs",
    "left": "left a temporary file",
}
ANSWERS = {
    "refused": "refused, with the name of the file, key or flag",
    "unnamed": "refused without that name",
    "warned": "done, with a message that has the name",
    "accepted": "done without a message",
    "stopped": "long work that was asked for, stopped by SIGTERM",
}


def try_input(
    seed: int, number: int, workspace: Workspace, report: Report, *, seconds: float = 30, show: Collection[str] = ()
) -> judge.Outcome:
    """Try one input, which depends on `seed` and `number` alone, and count what it does; print it if it is at fault,
    or has an answer of those to `show`."""
    rng = random.Random(f"{seed}:{number}")
    name = ORDER[number % len(ORDER)]
    any_run = rng.choice(workspace.files("runs/*-toy-*/result.json")).removesuffix("/result.json")
    if name in (KEYS, FLAGS):
        argv, names = typed.key_command(rng) if name == KEYS else typed.flag_command(rng)
        argv = [word.replace("{run}", any_run) for word in argv]
        what, may_change = "", typed.MAY_CHANGE
    else:
        kind = KINDS[name]
        if kind.after:
            judge.run(shlex.split(kind.after), workspace.folder)
        file = rng.choice(workspace.files(*kind.files))
        run = "/".join(file.split("/")[:2]) if file.startswith("runs/") else any_run
        places = {"file": file, "folder": file.rpartition("/")[0], "run": run}
        argv = [word.format_map(places) for word in shlex.split(rng.choice(kind.commands))]
        names = [file.rpartition("/")[2]]
        what = f"{file} {damage(workspace.folder / file, kind.format, rng)}: "
        may_change = (*(pattern.format_map(places) for pattern in kind.may_change), *_renewed(file))
    before = workspace.scan()
    outcome = judge.run(argv, workspace.folder, seconds=seconds)
    faults = outcome.faults(may_take_long=name in (KEYS, FLAGS) or KINDS[name].may_wait)
    if outcome.code >= 0 and "hang" not in faults:
        faults += wrongs(before, workspace.scan(), may_change=may_change)
    answer = _answer(outcome, names)
    for fault in [*faults, *({answer}.intersection(show))]:
        print(f"{fault}: --seed {seed} --input {number} ({name})\n  {what}{shlex.join(argv)[:300]!r}")
        print(f"  -> {outcome.code}: {(outcome.err.splitlines() or [''])[-1][:300]!r}", flush=True)
    report.faults.update({fault.split()[0] if fault.startswith(("changed", "left")) else fault for fault in faults})
    report.inputs[name] += 1
    report.answers[answer] += 1
    report.slowest, report.peak = max(report.slowest, outcome.seconds), max(report.peak, outcome.peak)
    return outcome


def _renewed(file: str) -> tuple[str, ...]:
    """The damaged file, if it is one that is made again where it is missing."""
    return (file,) if file.startswith(("home/", "runs/study/", "runs/index")) else ()


def _answer(outcome: judge.Outcome, names: Collection[str]) -> str:
    if outcome.stopped:
        return "stopped"
    named = any(name and name in outcome.said for name in names)
    return ("warned" if named else "accepted") if outcome.code == 0 else ("refused" if named else "unnamed")


def main() -> int:
    """Try inputs and print what was found; 1 if something was."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=150, metavar="N", help="how many (default: 150)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of all damages (default: 1)")
    parser.add_argument(
        "--input", type=int, metavar="N", help="try the input of this number alone, and show its output"
    )
    parser.add_argument("--only", choices=(*KINDS, KEYS, FLAGS), metavar="KIND", help="inputs of one kind alone")
    parser.add_argument("--seconds", type=float, default=30, metavar="S", help="until an input hangs (default: 30)")
    parser.add_argument("--show", nargs="+", choices=ANSWERS, default=(), metavar="ANSWER", help="print these, too")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="keep the files that are damaged there, to look at")
    options = parser.parse_args()
    judge.import_all()
    temporary = tempfile.mkdtemp()  # a TemporaryDirectory would be removed by each forked process at its end
    try:
        workspace = Workspace((options.folder or Path(temporary)).resolve())
        report, began = Report(), time.monotonic()
        if options.input is not None:
            outcome = try_input(options.seed, options.input, workspace, report, seconds=options.seconds)
            print(outcome.said)
        else:
            _try_many(options, workspace, report)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"\n{report.summary()}\n{time.monotonic() - began:.0f} s in all")
    return bool(report.faults)


def _try_many(options: argparse.Namespace, workspace: Workspace, report: Report) -> None:
    number = 0
    while report.inputs.total() < options.inputs:
        if options.only in (None, ORDER[number % len(ORDER)]):
            try_input(options.seed, number, workspace, report, seconds=options.seconds, show=options.show)
            workspace.restore()
            if sys.stderr.isatty():
                print(f"\r{report.inputs.total()} of {options.inputs}", end="\r", file=sys.stderr)
        number += 1


if __name__ == "__main__":
    sys.exit(main())
