"""The pairs of rows behind a study's claims, each with its difference and the 95 % interval of that.

    python -m benchmarks.pairs posters --data-path DIR [--out RUNS] [--metric recall@20]

`study table --layout claims` counts such pairs; this prints them: a section for each claim, a line for each two
finished rows that differ in nothing else. The intervals count users and seeds as the study's own do. They aren't
corrected for their number: whoever picks the largest of many differences reads too much into its interval.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mmrec_lmm import study
from mmrec_lmm.evaluation.statistics import SeedVariance, paired, seed_variance
from mmrec_lmm.running.run_folder import load_per_user
from mmrec_lmm.studies.claims import Asked, claims_of
from mmrec_lmm.studies.leaderboard import FINISHED, Row
from mmrec_lmm.types import AXES


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--data-path", metavar="DIR")
    parser.add_argument("--out", default="runs", metavar="RUNS")
    parser.add_argument("--metric", default="recall@20")
    given = parser.parse_args(arguments)
    rows = study(given.study, data_path=given.data_path, out=given.out).leaderboard().rows
    print("\n".join(lines(rows, Path(given.out), given.metric)))


def lines(rows: Sequence[Row], out: Path, metric: str) -> Iterator[str]:
    """The sections, in Markdown."""
    finished = {row.key: row for row in rows if row.state == FINISHED and row.runs}
    values = {key: values_of(row, out, metric) for key, row in finished.items()}
    seeds: dict[str, SeedVariance | None] = {}
    for where in dict.fromkeys(row.axes.tested_on for row in finished.values()):
        seeds[where] = seed_variance([values[key] for key, row in finished.items() if row.axes.tested_on == where])
    for asked in claims_of(rows, baseline={}, streams={}):
        if asked.pairs and not asked.within:
            yield from section(asked, finished, values, seeds, metric)


def section(
    asked: Asked,
    rows: dict[str, Row],
    values: dict[str, np.ndarray],
    seeds: dict[str, SeedVariance | None],
    metric: str,
) -> Iterator[str]:
    """The pairs of one claim, and the mean over them."""
    shown = [axis for axis in AXES if axis != asked.axis]
    yield f"\n## {asked.axis}: {asked.better} over {asked.than}\n"
    yield f"| {' | '.join(shown)} | {asked.better} | {asked.than} | difference, 95 % |"
    yield f"|{'---|' * (len(shown) + 3)}"
    differences = []
    for better, than in asked.pairs:
        row = rows[better]
        found = paired(values[better], values[than], seeds[row.axes.tested_on])
        low, high = found.interval()
        differences.append(found.mean)
        names = " | ".join(row.axes.value(axis) or "-" for axis in shown)
        means = " | ".join(f"{values[key].mean():.4f}" for key in (better, than))
        yield f"| {names} | {means} | {found.mean:+.4f} ({low:+.4f} to {high:+.4f}) |"
    above = sum(difference > 0 for difference in differences)
    yield f"\n{metric}: {above} of {len(differences)} above 0, mean {np.mean(differences):+.4f}"


def values_of(row: Row, out: Path, metric: str) -> np.ndarray:
    """The metric by seed and user (S, U)."""
    return np.stack([load_per_user(out / run)[f"test/{metric}"] for run in row.runs])


if __name__ == "__main__":
    main()
