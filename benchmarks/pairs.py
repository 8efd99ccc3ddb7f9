"""The pairs of rows behind a study's claims, each with its difference and the 95 % interval of that.

    python -m benchmarks.pairs posters --data-path DIR [--out RUNS] [--metric recall@20]
    python -m benchmarks.pairs joint-warm --over joint --data-path DIR

`study table --layout claims` counts such pairs; this prints them: a section for each claim, a line for each two
finished rows that differ in nothing else. With `--over` a pair is one row of the study and the same row of another,
which differs in its settings. The intervals count users and seeds as the study's own do. They aren't corrected for
their number: whoever picks the largest of many differences reads too much into its interval.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmrec_lmm import study
from mmrec_lmm.evaluation.statistics import SeedVariance, paired, seed_variance
from mmrec_lmm.running.run_folder import load_per_user
from mmrec_lmm.studies.claims import claims_of
from mmrec_lmm.studies.leaderboard import FINISHED, Row
from mmrec_lmm.types import AXES


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--data-path", metavar="DIR")
    parser.add_argument("--out", default="runs", metavar="RUNS")
    parser.add_argument("--metric", default="recall@20")
    parser.add_argument("--over", metavar="STUDY", help="compare each row with that of another study")
    given = parser.parse_args(arguments)

    def rows(name: str) -> Sequence[Row]:
        return study(name, data_path=given.data_path, out=given.out).leaderboard().rows

    found = Values(Path(given.out), given.metric)
    if given.over:
        shown = of_two_studies((given.study, rows(given.study)), (given.over, rows(given.over)), found)
    else:
        shown = of_claims(rows(given.study), found)
    print("\n".join(shown))


@dataclass(frozen=True)
class Values:
    """One metric of runs by seed and user."""

    out: Path
    metric: str

    def __call__(self, row: Row) -> np.ndarray:
        """Those of a row (S, U)."""
        return read(self.out, self.metric, row.runs)


@cache  # a row is in many pairs
def read(out: Path, metric: str, runs: tuple[str, ...]) -> np.ndarray:
    return np.stack([load_per_user(out / run)[f"test/{metric}"] for run in runs])


class Pair(NamedTuple):
    better: Row
    than: Row


def of_claims(rows: Sequence[Row], values: Values) -> Iterator[str]:
    """The sections of a study's claims, in Markdown."""
    done = {row.key: row for row in rows if finished(row)}
    seeds = variances([*done.values()], values)
    for asked in claims_of(rows, baseline={}, streams={}):
        if asked.pairs and not asked.within:
            pairs = [Pair(done[better], done[than]) for better, than in asked.pairs]
            shown = [axis for axis in AXES if axis != asked.axis]
            yield f"\n## {asked.axis}: {asked.better} over {asked.than}\n"
            yield from section((asked.better, asked.than), shown, pairs, seeds, values)


def of_two_studies(ours: tuple[str, Sequence[Row]], theirs: tuple[str, Sequence[Row]], values: Values) -> Iterator[str]:
    """One section, of the rows that both studies have, by other runs."""
    others = {row.key: row for row in theirs[1] if finished(row)}
    both = [Pair(row, others[row.key]) for row in ours[1] if finished(row) and row.key in others]
    pairs = [pair for pair in both if pair.better.runs != pair.than.runs]
    seeds = variances([row for pair in pairs for row in pair], values)
    yield f"\n## {ours[0]} over {theirs[0]}\n"
    if pairs:
        yield from section((ours[0], theirs[0]), AXES, pairs, seeds, values)
    else:
        yield "no row that both have finished with other settings"


def finished(row: Row) -> bool:
    return row.state == FINISHED and bool(row.runs)


def variances(rows: Sequence[Row], values: Values) -> dict[str, SeedVariance | None]:
    """The variance between seeds, by what rows are tested on."""
    found: dict[str, list[np.ndarray]] = {}
    for row in rows:
        found.setdefault(row.axes.tested_on, []).append(values(row))
    return {where: seed_variance(each) for where, each in found.items()}


def section(
    names: tuple[str, str],
    axes: Sequence[str],
    pairs: Sequence[Pair],
    seeds: Mapping[str, SeedVariance | None],
    values: Values,
) -> Iterator[str]:
    """A line for each pair, and the mean over them."""
    yield f"| {' | '.join(axes)} | {' | '.join(names)} | difference, 95 % |"
    yield f"|{'---|' * (len(axes) + 3)}"
    differences = []
    for pair in pairs:
        better, than = (values(row) for row in pair)
        found = paired(better, than, seeds[pair.better.axes.tested_on])
        low, high = found.interval()
        differences.append(found.mean)
        own = " | ".join(pair.better.axes.value(axis) or "-" for axis in axes)
        yield f"| {own} | {better.mean():.4f} | {than.mean():.4f} | {found.mean:+.4f} ({low:+.4f} to {high:+.4f}) |"
    above = sum(difference > 0 for difference in differences)
    yield f"\n{values.metric}: {above} of {len(differences)} above 0, mean {np.mean(differences):+.4f}"


if __name__ == "__main__":
    main()
