"""How often a study without true differences gets a star: 2,000 simulated studies of each kind, through `compare`.

    python -m benchmarks.null_studies --out null.jsonl
    python -m benchmarks.null_studies --out null.jsonl --part 2/4      # a part of the blocks, for one of four processes
    python -m benchmarks.null_studies --out null.jsonl --report        # the table of what the file holds
    python -m benchmarks.null_studies --power 0.04 --studies 200       # how often a true difference is found

The numbers by user are simulated, in memory; the rest is what `study table` does: pairs, seeds, correction, stars. Each
block of studies is a line of the file, from a generator of its own; blocks that the file has aren't repeated.

A user's value is a hit with the user's own chance, times a factor of the run's seed. Tastes differ by row and user:
rows differ for each user, but are equally good on average.
"""

import argparse
import dataclasses
import itertools
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmrec_lmm.disk.writing import write_json
from mmrec_lmm.running.run_folder import CONFIG
from mmrec_lmm.studies.comparison import SPLIT, USERS, Entry, Method, compare
from mmrec_lmm.types import UNRECORDED, Axes, EncoderName, RunResult

METRIC = "recall@20"
STUDIES, BLOCK = 2_000, 100
N_USERS = 400
SETTINGS = {"valid_metric": "Recall@20", "epochs": 100, "eval_step": 1}


@dataclass(frozen=True)
class Kind:
    """One kind of null study."""

    rows: int  # tested
    seeds: int
    seed_sd: float  # of a seed's factor, of all rows
    ratio: float  # of the baseline's to that


KINDS = [
    Kind(rows, seeds, seed_sd, ratio)
    for rows, seeds, (seed_sd, ratio) in itertools.product((12, 60), (3, 5), ((0.3, 1), (0.1, 4), (0.1, 2)))
]


def hits(kind: Kind, rng: np.random.Generator, users: int = N_USERS) -> np.ndarray:
    """The numbers of one study (rows, S, U), the baseline's first."""
    chance = rng.beta(0.4, 4, users) * 0.55  # of a hit: 0.05 in the mean, most users far below
    tastes = 1 + 0.8 * rng.choice([-1, 1], (kind.rows + 1, 1, users))
    spread = np.full((kind.rows + 1, 1, 1), kind.seed_sd)
    spread[0] *= kind.ratio
    factors = 1 + spread * rng.normal(size=(kind.rows + 1, kind.seeds, 1))
    found = rng.random((kind.rows + 1, kind.seeds, users)) < chance * tastes
    return np.asarray(found * factors)


class Studies:
    """Null studies in a folder that holds no more than the configuration of each row."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        self.kind = kind
        self.entries = [self._entry(folder, row) for row in range(kind.rows + 1)]

    def _entry(self, folder: Path, row: int) -> Entry:
        runs = []
        for seed in range(self.kind.seeds):
            path = folder / f"{row}-{seed}"
            if not seed:  # the others have the same one
                write_json(path / CONFIG, {"settings": SETTINGS})
            record = dataclasses.replace(UNRECORDED, seed=seed)
            runs.append(RunResult(path.name, path, {}, {METRIC: 0.0}, {}, 50, 71, "patience", record))
        return Entry(Axes("VBPR", "invented", EncoderName(f"encoder{row}"), modalities=("text",)), runs=runs)

    def found(self, rng: np.random.Generator, *, test: str = "t-test", lift: float = 0.0) -> tuple[bool, bool]:
        """Simulate a study; return if it has any star, and if it has any significant loss.

        With a `lift`, the first row is better by so much in truth, and only its star and its loss count.
        """
        values = hits(self.kind, rng)
        values[1] += lift
        tables = {
            run.path: {USERS: np.arange(values.shape[2]), SPLIT + METRIC: values[row, seed]}
            for row, entry in enumerate(self.entries)
            for seed, run in enumerate(entry.runs)
        }
        board = compare(
            self.entries, Method(metrics=[METRIC], baseline={"encoder": "encoder0"}, test=test),
            study="null", load=tables.__getitem__,
        )  # fmt: skip
        scores = [row.scores[METRIC] for row in board.rows[1 : 2 if lift else None]]
        losses = [score.p is not None and score.p < board.alpha and _below(score.difference) for score in scores]
        return any(score.star for score in scores), any(losses)


def _below(difference: object) -> bool:
    return getattr(difference, "mean", 0.0) < 0


def counts(kind: Kind, *, studies: int, seed: Sequence[int], test: str = "t-test", lift: float = 0.0) -> dict[str, int]:
    """How many studies of a kind have a star, a sure loss, and either; with a `lift`, on the row that has it."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        null = Studies(kind, Path(folder))
        found = np.array([null.found(rng, test=test, lift=lift) for _ in range(studies)])
    return {
        "studies": studies,
        "stars": int(found[:, 0].sum()),
        "losses": int(found[:, 1].sum()),
        "either": int(found.any(axis=1).sum()),
    }


def ratio_of_variances(kind: Kind, *, draws: int = 200) -> float:
    """The variance that seeds bring to a row's difference from the baseline, over that which users bring."""
    rng = np.random.default_rng(0)
    means, errors = [], []
    for _ in range(draws):
        values = hits(dataclasses.replace(kind, rows=1), rng).mean(axis=1)  # (2, U)
        means.append(np.diff(values.mean(axis=1))[0])
        errors.append(np.diff(values, axis=0).var(ddof=1) / values.shape[1])
    return float(max(0.0, np.var(means, ddof=1) / np.mean(errors) - 1))


def blocks(path: Path) -> Iterator[tuple[int, int, dict[str, int]]]:
    """Of a file: place of the kind, number of the block, its counts."""
    for line in path.read_text().splitlines() if path.is_file() else ():
        one = json.loads(line)
        yield KINDS.index(Kind(**one["kind"])), one["block"], one["counts"]


def report(path: Path) -> str:
    """The table of what a file holds, in Markdown."""
    lines = [
        "| rows tested | seeds | baseline's seeds vary | seeds : users | studies | star | sure loss | either |",
        "|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    found = list(blocks(path))
    for place, kind in enumerate(KINDS):
        own = [one for at, _, one in found if at == place]
        if not own:
            continue
        total = {name: sum(one[name] for one in own) for name in own[0]}
        shares = " | ".join(f"{total[name] / total['studies']:.1%}" for name in ("stars", "losses", "either"))
        ratio = f"{ratio_of_variances(kind, draws=2000):.1f}"
        lines.append(f"| {kind.rows} | {kind.seeds} | {_varies(kind)} | {ratio} | {total['studies']:,} | {shares} |")
    return "\n".join(lines)


def power(*, studies: int, lift: float) -> str:
    """How often a row that is better by `lift` gets a star among 12, in Markdown."""
    lines = ["| seeds | seeds vary | baseline's | found |", "|---:|---:|---|---:|"]
    for seeds, (seed_sd, ratio) in itertools.product((3, 5), ((0.03, 1), (0.1, 1), (0.3, 1), (0.1, 2), (0.1, 4))):
        kind = Kind(12, seeds, seed_sd, ratio)
        found = counts(kind, studies=studies, seed=(seeds, int(100 * seed_sd), int(ratio)), lift=lift)
        lines.append(f"| {seeds} | {seed_sd:.0%} | {_varies(kind)} | {found['stars'] / studies:.0%} |")
    return "\n".join(lines)


def _varies(kind: Kind) -> str:
    return "as the rows'" if kind.ratio == 1 else f"{kind.ratio:g} times as much"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("null.jsonl"), help="the file of blocks, which is continued")
    parser.add_argument("--part", default="1/1", help="which of how many parts of the blocks")
    parser.add_argument("--studies", type=int, default=STUDIES, help="of each kind (default: %(default)s)")
    parser.add_argument("--report", action="store_true", help="only print what the file holds")
    parser.add_argument("--power", type=float, metavar="LIFT", help="how often a row that is so much better is found")
    options = parser.parse_args(arguments)
    if options.power:
        print(power(studies=options.studies, lift=options.power))
        return
    part, parts = map(int, options.part.split("/"))
    done = {(place, block) for place, block, _ in blocks(options.out)}
    # kinds take turns: a run that is stopped has some of each; the extremes come first
    left = sorted(
        itertools.product(range(-(-options.studies // BLOCK)), range(len(KINDS))),
        key=lambda one: (KINDS[one[1]].ratio == 2, one),
    )
    for number, (block, place) in enumerate(left):
        if options.report or number % parts != part - 1 or (place, block) in done:
            continue
        found = counts(KINDS[place], studies=BLOCK, seed=(place, block))
        line = {"kind": dataclasses.asdict(KINDS[place]), "block": block, "counts": found}
        with options.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
    print(report(options.out))


if __name__ == "__main__":
    main()
