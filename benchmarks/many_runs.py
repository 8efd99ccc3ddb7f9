"""What 5,000 runs in a folder cost: `python -m benchmarks.many_runs [--runs 500 5000]`.

A study of four rows (BPR, VBPR, and VBPR with shuffled and random features) is run on the demo data, one short run a
row. Each row's run then stands for all points and seeds of the row: its folder is copied under other ids, with
`result.json` and `config.json` of its own (seed, point) and links to its other files, and the study gets their records.

Each command is a process of its own, on one thread, run twice: the quicker one's seconds, its processor's seconds, and
its peak memory.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from mmrec_lmm.running.run_folder import load_result
from mmrec_lmm.studies.executor import Call, Job
from mmrec_lmm.studies.file import load_study
from mmrec_lmm.studies.leaderboard import FINISHED

NAME, ROWS, SEEDS = "many", 4, 25
MODELS = ("BPR", "VBPR")
COMMANDS = (
    ("list runs", "list", "runs"),
    ("results index", "results", "index"),
    ("results export", "results", "export", "--format", "csv", "-o", "runs.csv"),
    ("results query", "results", "query", "SELECT count(*) FROM runs"),
    ("study status", "study", "status", f"{NAME}.yaml"),
    ("study page", "study", "page", f"{NAME}.yaml"),
    ("clean", "clean"),
)

# The peak memory of a process counts the process that it was forked from, so that one must be small.
WATCH = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss]))
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_runs", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, nargs="+", default=[500, 5000], metavar="N", help="default: 500 5000")
    options = parser.parse_args(argv)
    columns = [f"{count:,} runs" for count in options.runs]
    measured = []
    for count in options.runs:
        with tempfile.TemporaryDirectory() as folder:
            measured.append(_measured(Path(folder), count))
    print(f"| command | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for place, (title, *_) in enumerate(COMMANDS):
        print(f"| `{title}` | {' | '.join(found[place] for found in measured)} |")


def _measured(folder: Path, count: int) -> list[str]:
    """Seconds and peak memory of each command over so many runs."""
    environment = os.environ | {"MMREC_LMM_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    _command(environment, folder, "data", "demo")
    _write_study(folder, points=1, seeds=1)
    _command(environment, folder, "study", "run", f"{NAME}.yaml")
    _multiply(folder, environment, count)
    return [_cost(environment, folder, *command) for _, *command in COMMANDS]


def _write_study(folder: Path, *, points: int, seeds: int) -> None:
    study = {
        "title": "Many runs",
        "datasets": ["demo"],
        "models": list(MODELS),
        "encoders": ["basic"],
        "controls": ["shuffled", "random"],
        "seeds": list(range(seeds)),
        "baseline": {"model": "BPR"},
        "settings": {"epochs": 2},
        "grids": {model: {"learning_rate": [(1 + point) / 1000 for point in range(points)]} for model in MODELS},
    }
    (folder / f"{NAME}.yaml").write_text(yaml.safe_dump(study))


def _multiply(folder: Path, environment: dict[str, str], count: int) -> None:
    """Give each job of the study with more points and seeds the run of its row."""
    os.environ.update(environment)
    here = Path.cwd()
    os.chdir(folder)
    try:
        originals = {}
        for path in Path("runs").glob("*/result.json"):
            result = load_result(path.parent)
            assert result is not None
            originals[result.record.axes.model, result.record.axes.control] = path.parent
        _write_study(folder, points=count // (ROWS * SEEDS), seeds=SEEDS)
        plan, _ = Call(load_study(folder / f"{NAME}.yaml"), folder, Path("runs"), ()).plan()
        shutil.rmtree(plan.folder)
        plan.folder.mkdir()
        for number, job in enumerate(plan.jobs.values()):
            original = originals[job.axes.model, job.axes.control]
            run = Path("runs", f"{job.axes.model}-demo-{number:08x}")
            _copy(original, run, job)
            record = {"state": FINISHED, "run_id": run.name, "reason": "", "seconds": 1.0, "at": time.time()}
            (plan.folder / f"{job.key}.json").write_text(json.dumps(record))
        for original in originals.values():
            shutil.rmtree(original)
    finally:
        os.chdir(here)


def _copy(original: Path, run: Path, job: Job) -> None:
    run.mkdir()
    for path in original.iterdir():
        if path.suffix != ".json":
            os.link(path, run / path.name)
    result, config = (json.loads((original / name).read_text()) for name in ("result.json", "config.json"))
    result |= {"run_id": run.name, "parameters": job.spec.point}
    result["record"] |= {"seed": job.spec.settings.seed}
    config["settings"] |= {"seed": job.spec.settings.seed}
    config |= {"point": job.spec.point}
    (run / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    (run / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _cost(environment: dict[str, str], folder: Path, *command: str) -> str:
    """`seconds (of processor) MiB` of the quicker of two calls."""
    seconds, processor, memory = min(
        json.loads(
            subprocess.run(
                [sys.executable, "-c", WATCH, sys.executable, "-m", "mmrec_lmm", *command],
                cwd=folder, env=environment, check=True, stdout=subprocess.PIPE,
            ).stdout
        )
        for _ in range(2)
    )  # fmt: skip
    return f"{seconds:.1f} s ({processor:.1f}), {memory / (2**20 if sys.platform == 'darwin' else 2**10):,.0f} MiB"


def _command(environment: dict[str, str], folder: Path, *command: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "mmrec_lmm", *command], cwd=folder, env=environment, check=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


if __name__ == "__main__":
    main()
