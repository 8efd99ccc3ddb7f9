"""Where the time of small runs goes: `python -m benchmarks.small_runs [start | study] [--beside PYTHON] [--quick]`.

start   a run of two epochs on the demo data, from the start of its process: seconds until all is imported, the
        command line is ready to gather inputs, the first batch is trained, and the command is done
study   100 such runs (four models, 25 seeds) by `study run`: the share of the time in training, validation, final
        ranking, the rest of runs, and around them

Each measurement is a process of its own, on one thread. `--beside` takes the Python of another environment, such as
that of an earlier version, and measures both by turns. docs/performance.md says how to read it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STARTED = ("BPR", "VBPR")
MODELS = ("BPR", "LightGCN", "VBPR", "SLMRec")
MOMENTS = ("imports", "ready", "first batch", "end")
PARTS = ("training", "validation", "ranking", "rest of runs", "around")


@dataclass(frozen=True)
class Study:
    """A study's wall-clock seconds, those of its processes together, and how they are spent: part -> seconds."""

    wall: float
    slots: float  # wall-clock seconds times processes
    parts: Mapping[str, float]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.small_runs", description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("start", "study"), help="default: both")
    parser.add_argument(
        "--beside", metavar="PYTHON", help="another environment's Python, measured by turns with this one"
    )
    parser.add_argument("--rounds", type=int, default=5, help="times that each is measured (default: 5; studies: 1)")
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2], metavar="N", help="default: 1 2")
    parser.add_argument("--quick", action="store_true", help="one round, two seeds: shows that it runs")
    options = parser.parse_args(argv)
    pythons = {"this": sys.executable} | ({"beside": options.beside} if options.beside else {})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _prepare(folder, pythons)
        if options.what != "study":
            print(_starts(folder, pythons, rounds=1 if options.quick else options.rounds), flush=True)
        if options.what != "start":
            print(_studies(folder, pythons, seeds=2 if options.quick else 25, jobs=options.jobs))


def _prepare(folder: Path, pythons: Mapping[str, str]) -> None:
    """Make the demo data and its features, and let Python compile what it imports: later runs find all that."""
    _command(folder, sys.executable, "data", "demo")
    for which, python in pythons.items():
        _command(folder, python, "run", "-m", "VBPR", "-d", "demo", "--epochs=1", "--out", f"first-{which}")


def _starts(folder: Path, pythons: Mapping[str, str], *, rounds: int) -> str:
    """A Markdown table of the moments of a run, wall-clock and processor seconds: medians of `rounds`."""
    found: dict[tuple[str, str], list[Any]] = {(model, which): [] for model in STARTED for which in pythons}
    for _ in range(rounds):
        for (model, which), moments in found.items():
            moments.append(_moments(folder, pythons[which], model))
    lines = [
        f"| a run of two epochs | {' | '.join(f'{moment}, s (CPU)' for moment in MOMENTS)} |",
        f"|---|{'---:|' * len(MOMENTS)}",
    ]
    for (model, which), rounds_of in found.items():
        cells = []
        for moment in MOMENTS:
            wall, cpu = (statistics.median(one[moment][kind] for one in rounds_of) for kind in (0, 1))
            cells.append(f"{wall:.2f} ({cpu:.2f})")
        lines.append(f"| {model}{_named(which, pythons)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _moments(folder: Path, python: str, model: str) -> dict[str, tuple[float, float]]:
    """Each moment of a run, in wall-clock and processor seconds since its process was started."""
    started = time.time()
    arguments = (
        str(Path(__file__)),
        "moments",
        str(started),
        "run",
        "-m",
        model,
        "-d",
        "demo",
        "--epochs=2",
        "--force",
    )
    printed = _process(folder, python, *arguments)
    moments: dict[str, tuple[float, float]] = json.loads(printed.splitlines()[-1])
    return moments


def _print_moments(started: float, arguments: Sequence[str]) -> None:
    """The measured process: the command line with `arguments`, which notes its moments."""
    moments: dict[str, tuple[float, float]] = {}

    def note(moment: str) -> None:
        moments.setdefault(moment, (time.time() - started, time.process_time()))

    from mmrec_lmm.cli.verbs import run as verb

    runs_of = verb.runs_of  # type: ignore[attr-defined]

    def noted_runs_of(options: Any) -> Any:
        note("imports")
        from mmrec_lmm.data.sampling import TrainingRows
        from mmrec_lmm.running import grid

        gather, epoch = grid.gather, TrainingRows.epoch  # type: ignore[attr-defined]

        def noted_gather(*positional: Any, **named: Any) -> Any:
            note("ready")
            return gather(*positional, **named)

        def noted_epoch(rows: Any, generator: Any) -> Any:
            for batch in epoch(rows, generator):
                yield batch
                note("first batch")  # the trainer asks for the next one

        setattr(grid, "gather", noted_gather)  # noqa: B010
        setattr(TrainingRows, "epoch", noted_epoch)  # noqa: B010
        return runs_of(options)

    setattr(verb, "runs_of", noted_runs_of)  # noqa: B010
    from mmrec_lmm.cli import main as command_line

    command_line(arguments)
    note("end")
    print(json.dumps(moments))


def _studies(folder: Path, pythons: Mapping[str, str], *, seeds: int, jobs: Sequence[int]) -> str:
    """A Markdown table of the shares of a study's time, with each number of processes."""
    runs = len(MODELS) * seeds
    file = folder / "small.yaml"
    file.write_text(
        f"title: Many small runs\nmodels: [{', '.join(MODELS)}]\ndatasets: [demo]\n"
        f"seeds: [{', '.join(map(str, range(1, seeds + 1)))}]\nmetrics: [Recall@20]\nsettings: {{epochs: 2}}\n"
    )
    lines = [
        f"| {runs} runs of two epochs | s | {' | '.join(f'{part}, %' for part in PARTS)} |",
        f"|---|---:|{'---:|' * len(PARTS)}",
    ]
    for count in jobs:
        for which, python in pythons.items():
            study = _study(folder / f"{which}-{count}", folder, python, file, jobs=count)
            shares = " | ".join(f"{100 * study.parts[part] / study.slots:.0f}" for part in PARTS)
            lines.append(f"| `--jobs {count}`{_named(which, pythons)} | {study.wall:.1f} | {shares} |")
    return "\n".join(lines)


def _study(out: Path, folder: Path, python: str, file: Path, *, jobs: int) -> Study:
    """Do a study, and add up what its runs and its own records say."""
    started = time.perf_counter()
    _command(folder, python, "study", "run", str(file), "--jobs", str(jobs), "--out", str(out))
    wall = time.perf_counter() - started
    histories = [json.loads(line) for path in out.glob("*/history.jsonl") for line in path.read_text().splitlines()]
    results = [json.loads(path.read_text()) for path in out.glob("*/result.json")]
    in_runs = sum(json.loads(path.read_text())["seconds"] for path in (out / "study" / file.stem).glob("*.json"))
    parts = {
        "training": sum(epoch["train_seconds"] for epoch in histories),
        "validation": sum(epoch["valid_seconds"] for epoch in histories),
        "ranking": sum(result["record"]["seconds"]["rank"] for result in results),
    }
    parts |= {"rest of runs": in_runs - sum(parts.values()), "around": wall * jobs - in_runs}
    return Study(wall, wall * jobs, parts)


def _named(which: str, pythons: Mapping[str, str]) -> str:
    return f", {which}" if len(pythons) > 1 else ""


def _command(folder: Path, python: str, *arguments: str) -> str:
    return _process(folder, python, "-m", "mmrec_lmm", *arguments)


def _process(folder: Path, python: str, *arguments: str) -> str:
    """What a process prints, whose data, cache and runs are in `folder`."""
    own = {"MMREC_LMM_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    others = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([python, *arguments], cwd=folder, env=others | own, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr}")
    return done.stdout


if __name__ == "__main__":
    if sys.argv[1:2] == ["moments"]:
        _print_moments(float(sys.argv[2]), sys.argv[3:])
    else:
        main()
