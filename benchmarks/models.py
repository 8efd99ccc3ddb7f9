"""The models' time and memory: `python -m benchmarks.models [WHAT] [--quick] [--threads 1]`.

table   a training epoch and an evaluation of each at Amazon Baby's size, the time that their arithmetic takes at the
        machine's own rates, and their peak of memory (`make bench` prints this)
epochs  each of a model's first epochs, whole: does it slow down as its weights are trained? (--epochs 6)
growth  a step, and the search for nearest neighbors, at 1, 2, 4 and 8 times Baby; --plot draws them as SVG
large   LATTICE at 63,000 items with memory-mapped features; its neighbors exact, then approximate
neighbors   exact and approximate ones of up to 1,000,000 items: time, recall and memory
ranking the ranking of 2,000 of 200,000 users among 100,000 items, beside the time of its arithmetic
million 20 steps of BPR and of LightGCN on 10,000,000 rows of 1,000,000 users and 200,000 items, and a ranking of
        10,000 users; epoch and evaluation are extrapolated from them

Data are synthetic and seeded; `epochs` trains on a real Baby's interactions with --data-path. Each measurement is a
process of its own (jobs.py): its peak is its own, and what importing torch takes is subtracted. docs/performance.md
says how to read it.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .growth import Series, svg
from .host import processor
from .jobs import ROUNDS

#: A row's name -> the model, and options other than its defaults.
ROWS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "BPR": ("BPR", {}),
    "LightGCN": ("LightGCN", {}),
    "VBPR": ("VBPR", {}),
    "SLMRec": ("SLMRec", {}),
    "MMGCL": ("MMGCL", {}),
    "MMGCL, paper": ("MMGCL", {"variant": "paper"}),
    "UGNN": ("MMGCL", {"dense": False, "latent_dim": 384, "ssl_alpha": 0.4, "dropout_rate": 0.3}),  # of preset ugnn
    "LATTICE": ("LATTICE", {}),
    "FREEDOM": ("FREEDOM", {}),
    "BM3": ("BM3", {}),
    "MGCN": ("MGCN", {}),
    "MMGCN": ("MMGCN", {}),
    "MMGCN, frozen ids": ("MMGCN", {"trainable_id": False}),  # as MMRec and LMM4Rec have it
}
BABY_WIDTHS = {"image": 4096, "text": 384}
GROWTH_WIDTHS = {"image": 128, "text": 128}  # narrow, to show what grows with the graph and not with the features
FACTORS = (1, 2, 4, 8)
BABY_ITEMS = 7_050
NEIGHBOR_ITEMS, PROBES, EXACT_LIMIT = (7_050, 100_000, 1_000_000), (8, 16), 100_000
RANKING = {"users": 200_000, "items": 100_000, "rows": 3_000_000, "steps": 5, "ranked": 2_000}
RANKING_AIM = 1.5  # times the floor
MILLION = {"users": 1_000_000, "items": 200_000, "rows": 10_000_000, "steps": 20, "ranked": 10_000}
TINY = {"users": 300, "items": 1_000, "rows": 3_000, "steps": 2, "ranked": 50}
LARGE_ITEMS, LARGE_WIDTHS, LARGE_LIMIT_GB = 63_000, {"image": 512, "text": 512}, 6.0


class Bench:
    """Starts measurements, one at a time, all with the same number of threads (0: torch's choice)."""

    def __init__(self, *, threads: int, steps: int, quick: bool) -> None:
        self._threads, self._steps, self._quick = threads, steps, quick
        self._torch = int(self._run("benchmarks.memory"))  # bytes that importing torch takes

    def train(self, row: str, *, factor: int = 1, widths: Mapping[str, int] = BABY_WIDTHS, **more: Any) -> Any:
        model, options = ROWS[row]
        request = {"model": model, "options": options, "factor": factor, "widths": widths, **more}
        return self.job("train", steps=self._steps, quick=self._quick, **request)

    def epochs(self, model: str, **arguments: Any) -> Sequence[float]:
        taken: Sequence[float] = self.job("epochs", model=model, quick=self._quick, **arguments)["seconds"]
        return taken

    def job(self, name: str, **arguments: Any) -> Any:
        """A job's result, its `peak` in GB over what importing torch takes."""
        request = {"job": name, "threads": self._threads, "arguments": arguments}
        result = json.loads(self._run("benchmarks.jobs", json.dumps(request)))
        return result | {"peak": (result["peak"] - self._torch) / 1e9}

    def _run(self, module: str, *arguments: str) -> str:
        threads = {"OMP_NUM_THREADS": str(self._threads)} if self._threads else {}
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=Path(__file__).parent.parent,
            env=os.environ | threads,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return done.stdout


def table(bench: Bench, rows: Sequence[str]) -> None:
    """Print a line per model as it is measured: an epoch and an evaluation, each with its floor."""
    print(
        "| model | start, s | first batch, ms | step, ms | epoch, s | floor, s | ratio "
        "| evaluation, s | floor, s | ratio | peak, GB | epoch: GFLOP | sparse | moved, GB |\n"
        "|---|" + "---:|" * 13
    )
    rates = []
    for row in rows:
        result = bench.train(row)
        rates.append(result["rates"])
        times, floors, n = result["seconds"], result["floor"], result["batches"]
        epoch, least = (part["first"] + (n - 1) * part["step"] for part in (times, floors))
        work = {
            name: (result["work"]["first"][name] + (n - 1) * result["work"]["step"][name]) / 1e9
            for name in ("flops", "sparse_flops", "moved")
        }
        evaluation, at_least = times["evaluation"], floors["evaluation"]
        print(
            f"| {row} | {times['start']:.1f} | {1000 * times['first']:,.0f} | {1000 * times['step']:,.1f} "
            f"| {epoch:.2f} | {least:.2f} | {epoch / least:.2f} "
            f"| {evaluation:.2f} | {at_least:.2f} | {evaluation / at_least:.2f} | {result['peak']:.2f} "
            f"| {work['flops']:,.1f} | {work['sparse_flops']:,.1f} | {work['moved']:,.1f} |",
            flush=True,
        )
    print("\nRates that the machine reached beside these:", rates_line(rates))


def epochs(
    bench: Bench, rows: Sequence[str], number: int, *, widths: Mapping[str, int], data_path: Path | None
) -> None:
    """Print a line per model: the seconds of each of its first epochs, and the slowest after the first over the
    first."""
    print(f"| model | {' | '.join(f'epoch {epoch}' for epoch in range(1, number + 1))} | slowest / first |")
    print("|---|" + "---:|" * (number + 1))
    for row in rows:
        model, options = ROWS[row]
        place = None if data_path is None else str(data_path.resolve())
        taken = bench.epochs(model, options=options, number=number, widths=widths, data_path=place)
        cells = [f"{each:.2f}" for each in taken] + [f"{max(taken[1:]) / taken[0]:.2f}"]
        print(f"| {row} | {' | '.join(cells)} |", flush=True)


def rates_line(rates: Sequence[Mapping[str, float]]) -> str:
    """The range of each rate over the measurements."""
    units = {"product": ("large product", "GFLOP/s"), "sparse": ("sparse product", "GFLOP/s"), "copy": ("copy", "GB/s")}
    parts = []
    for kind in dict.fromkeys(kind for rate in rates for kind in rate):
        found = [rate[kind] for rate in rates if kind in rate]
        name, unit = units.get(kind, (f"{kind} of each row", "thousand million numbers/s"))
        parts.append(f"{name} {min(found):.3g} - {max(found):.3g} {unit}")
    return ", ".join(parts)


def growth(bench: Bench, rows: Sequence[str], factors: Sequence[int], *, items: int, plot: Path | None) -> None:
    """Print a line per model, and one for the search for neighbors: time and memory at each size."""
    sizes = " | ".join(f"{factor} x" for factor in factors)
    print(f"| | step, ms: {sizes} | | peak, GB: {sizes} | |\n|---|" + "---:|" * (2 * len(factors) + 2))
    series = []
    for row in rows:
        results = [bench.train(row, factor=factor, widths=GROWTH_WIDTHS, steps_only=True) for factor in factors]
        times = [1000 * result["seconds"]["step"] for result in results]
        series.append(_grown(row, times, [result["peak"] for result in results], factors))
    found = [bench.job("neighbors", items=factor * items) for factor in factors]
    times, peaks = [1000 * result["seconds"] for result in found], [result["peak"] for result in found]
    series.append(_grown("exact neighbors", times, peaks, factors))
    if plot:
        plot.write_text(svg(series))


def _grown(name: str, times: Sequence[float], peaks: Sequence[float], factors: Sequence[int]) -> Series:
    """Print a line; the columns after the sizes give the ratio of the last to the first."""
    cells = [f"{time:,.1f}" for time in times] + [f"**{times[-1] / times[0]:.1f}**"]
    cells += [f"{peak:.2f}" for peak in peaks] + [f"**{peaks[-1] / peaks[0]:.1f}**"]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return Series(name, tuple(factors), tuple(times), tuple(peaks))


def large(bench: Bench, items: int) -> None:
    """Print LATTICE's times and peak at a size where items x items would be 16 GB: exact, and approximate."""
    for options in ({}, {"knn_probes": PROBES[-1]}):
        result = bench.train(
            "LATTICE", options=options, factor=9, widths=LARGE_WIDTHS, items=items, mapped=True, steps_only=True
        )
        times, peak = result["seconds"], result["peak"]
        verdict = "ok" if peak <= LARGE_LIMIT_GB else "miss"
        widths = " + ".join(str(width) for width in LARGE_WIDTHS.values())
        print(
            f"LATTICE, {items:,} items, {options or 'exact neighbors'}, nine times Baby's users and interactions, "
            f"features {widths} memory-mapped: "
            f"start with the fixed graphs {times['start']:.1f} s, first batch of an epoch {times['first']:.1f} s, "
            f"step {1000 * times['step']:,.1f} ms, peak {peak:.2f} GB of {LARGE_LIMIT_GB:.0f} GB: {verdict}",
            flush=True,
        )


def neighbors(bench: Bench, sizes: Sequence[int], widths: Sequence[int]) -> None:
    """Print a line per size, width and way of search. A size that takes too long exactly is extrapolated."""
    print("| items | width | neighbors | s | recall | peak, GB |\n|---:|---:|---|---:|---:|---:|")
    for width in widths:
        exact = 0.0
        for items in sizes:
            for probes in (None, *PROBES):
                name = "exact" if probes is None else f"approximate, probes {probes}"
                if probes is None and items > EXACT_LIMIT:
                    seconds = exact * (items / EXACT_LIMIT) ** 2
                    print(f"| {items:,} | {width} | {name}, extrapolated | {seconds:,.0f} | | |", flush=True)
                    continue
                found = bench.job("neighbors", items=items, width=width, probes=probes)
                exact = found["seconds"] if probes is None else exact
                print(
                    f"| {items:,} | {width} | {name} | {found['seconds']:,.2f} | {found['recall']:.4f} "
                    f"| {found['peak']:.2f} |",
                    flush=True,
                )


def ranking(bench: Bench, numbers: Mapping[str, int]) -> None:
    """Print the time of a ranking at size, its floor and their ratio."""
    result = bench.job("at_size", model="BPR", **numbers)
    taken, floor = result["seconds"]["evaluation"], result["floor"]
    verdict = "ok" if taken <= RANKING_AIM * floor else "miss"
    print(
        f"{numbers['ranked']:,} of {numbers['users']:,} users, {numbers['items']:,} items: {taken:.2f} s, "
        f"floor {floor:.2f} s, ratio {taken / floor:.2f} of {RANKING_AIM}: {verdict}; "
        f"extrapolated to all users {taken * numbers['users'] / numbers['ranked']:,.0f} s; peak {result['peak']:.2f} GB"
    )


def million(bench: Bench, numbers: Mapping[str, int]) -> None:
    """Print a line per model: what was measured, and what it amounts to for a whole epoch and a whole evaluation."""
    print(
        f"{numbers['users']:,} users, {numbers['items']:,} items, {numbers['rows']:,} training rows; "
        f"{numbers['steps']} steps, {numbers['ranked']:,} ranked users\n\n"
        "| model | rows, s | model, s | evaluator, s | first batch, s | step, s | ranking, s | floor, s | ratio "
        "| peak, GB | epoch, extrapolated, min | evaluation, extrapolated, min |\n|---|" + "---:|" * 11
    )
    for model in ("BPR", "LightGCN"):
        result = bench.job("at_size", model=model, **numbers)
        times, floor = result["seconds"], result["floor"]
        ranked = times["evaluation"] - times["vectors"]
        epoch = times["first"] + (result["batches"] - 1) * times["step"]
        evaluation = times["vectors"] + (ranked + times["metrics"]) * numbers["users"] / numbers["ranked"]
        starts = " | ".join(f"{times[part]:.1f}" for part in ("rows", "model", "evaluator", "first"))
        print(
            f"| {model} | {starts} | {times['step']:.3f} | {ranked:.2f} | {floor:.2f} | {ranked / floor:.2f} "
            f"| {result['peak']:.2f} | {epoch / 60:,.1f} | {evaluation / 60:,.1f} |",
            flush=True,
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words = ("table", "epochs", "growth", "large", "neighbors", "ranking", "million")
    parser.add_argument("what", nargs="?", choices=words, default="table")
    parser.add_argument("--models", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME", help="default: all")
    parser.add_argument("--threads", type=int, default=0, help="of torch (default: as many as it chooses)")
    parser.add_argument(
        "--steps", type=int, default=5, help="timed in each round, after an epoch's first batch (default: %(default)s)"
    )
    parser.add_argument("--factors", type=int, nargs="+", default=FACTORS, help="sizes of growth, in Babys")
    parser.add_argument("--items", type=int, nargs="+", default=NEIGHBOR_ITEMS, help="sizes of neighbors")
    parser.add_argument("--widths", type=int, nargs="+", default=[64], help="of vectors of neighbors (default: 64)")
    parser.add_argument("--epochs", type=int, default=6, help="of `epochs`, 2 or more (default: %(default)s)")
    parser.add_argument("--text-only", action="store_true", help="`epochs` without images")
    parser.add_argument("--data-path", type=Path, help="of the folder `baby` that `epochs` trains on")
    parser.add_argument("--plot", type=Path, help="write growth as SVG")
    parser.add_argument("--quick", action="store_true", help="a tiny size: shows that it runs, measures nothing")
    options = parser.parse_args(argv)
    clock = "one thread, processor time" if options.threads == 1 else f"{options.threads or 'default'} threads"
    rounds = f"{ROUNDS} rounds" if options.what == "table" else "one round"
    extent = "whole epochs" if options.what == "epochs" else f"{rounds} of {options.steps} steps"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(
        f"{processor()}, {os.cpu_count()} cores{load}; {clock}; {extent}\n",
        flush=True,
    )
    bench = Bench(threads=options.threads, steps=options.steps, quick=options.quick)
    if options.what == "table":
        table(bench, options.models)
    elif options.what == "epochs":
        widths = {"text": BABY_WIDTHS["text"]} if options.text_only else BABY_WIDTHS
        epochs(bench, options.models, options.epochs, widths=widths, data_path=options.data_path)
    elif options.what == "growth":
        items = 200 if options.quick else BABY_ITEMS
        growth(bench, options.models, options.factors, items=items, plot=options.plot)
    elif options.what == "neighbors":
        neighbors(bench, (200, 2_000) if options.quick else options.items, options.widths)
    elif options.what in ("ranking", "million"):
        print_size, numbers = (ranking, RANKING) if options.what == "ranking" else (million, MILLION)
        print_size(bench, {**(TINY if options.quick else numbers), "quick": options.quick})
    else:
        large(bench, 2_000 if options.quick else LARGE_ITEMS)


if __name__ == "__main__":
    main()
