"""Do the probes foresee a recommender's result? `python -m benchmarks.probes --data-path DIR [--out DIR]`.

For each variant of an encoder on MovieLens-100K: the probes of its image and text features, and Recall@20 on test of
VBPR and LATTICE trained on them, the mean over three seeds. Then Spearman's rank correlation between each probe and
each result, with the percentile interval of the bootstrap over variants; with and without the controls, which every
probe should put last.

Most variants have random weights, as no others are needed to ask the question; see docs/findings.md. Finished runs are
kept in the folder of runs: after a kill the same command continues. About twenty minutes on one free core. `--report`
prints what is finished, and trains nothing.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import stats

from mmrec_lmm.checking.probes import Agreement, Probed, Retrieval, Similarity, probe
from mmrec_lmm.config.resolve import Request, resolve_request
from mmrec_lmm.errors import MMRecError
from mmrec_lmm.evaluation.statistics import percentile_interval
from mmrec_lmm.plugin.registry import Registry, load_registry
from mmrec_lmm.running.grid import run_grid
from mmrec_lmm.running.inputs import gather
from mmrec_lmm.running.marks import marks
from mmrec_lmm.running.provenance import run_id
from mmrec_lmm.running.run_folder import load_result
from mmrec_lmm.types import EncoderName, Inputs, RunResult, RunSpec

DATASET, METRIC, SEEDS = "ml100k", "recall@20", (1, 2, 3)
RESAMPLES = 10_000
PROBES = ("image neighbors", "text neighbors", "neighbors, mean", "image-text recall@10", "CKA")

#: At these rates VBPR is best after some 20 epochs of 40 batches, and LATTICE after some 50.
TRAINING = {"learning_rate": "5e-3", "eval_step": "2", "stopping_step": "7", "min_steps": "800", "threads": "1"}
EPOCHS = {"VBPR": "60", "LATTICE": "100"}


@dataclass(frozen=True)
class Variant:
    """An encoder with its keys, or a control of its features."""

    encoder: str
    keys: Mapping[str, str] = field(default_factory=dict)
    control: str | None = None

    @property
    def title(self) -> str:
        keys = [f"{key}={value}" for key, value in self.keys.items()]
        return ", ".join([self.encoder, *keys, *([self.control] if self.control else [])])


VARIANTS = (
    Variant("basic"),
    Variant("basic", {"encoder.image_size": "4", "encoder.text_dim": "128"}),
    Variant("clip:tiny"),
    Variant("clip:tiny", {"encoder.pool": "pre_proj"}),
    Variant("vlmo:tiny"),
    Variant("vlmo:tiny", {"encoder.pool": "cls"}),
    Variant("beit3:tiny"),
    Variant("beit3:tiny", {"encoder.pool": "cls"}),
    Variant("cnn_sbert:tiny"),
    Variant("cnn_sbert:projected-tiny"),
    Variant("cnn_sbert:lite"),
    Variant("cnn_sbert:projected-lite"),
    Variant("cnn_sbert:tiny", control="shuffled"),
    Variant("cnn_sbert:tiny", control="random"),
)


@dataclass(frozen=True)
class Row:
    """A variant with its probes and results, each a number or None, and the marks of its runs."""

    variant: Variant
    probes: Mapping[str, float | None]
    results: Mapping[str, float | None]  # by model
    marked: tuple[str, ...] = ()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what isn't finished, and print two Markdown tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probes", description=__doc__.splitlines()[0])
    parser.add_argument("--data-path", default="data", metavar="DIR", help="folder of data sets (default: data)")
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="folder of runs (default: runs)")
    parser.add_argument("--part", default="1/1", help="which of how many parts of the variants, for several processes")
    parser.add_argument("--report", action="store_true", help="train nothing")
    options = parser.parse_args(arguments)
    part, parts = map(int, options.part.split("/"))
    registry, rows = load_registry(), []
    for variant in VARIANTS[part - 1 :: parts]:
        try:
            rows.append(measured(variant, registry, options.data_path, options.out, train=not options.report))
        except MMRecError as error:
            print(f"{variant.title}: left out: {str(error).splitlines()[0]}", flush=True)
            continue
        print(f"{variant.title}: {rows[-1].probes} {rows[-1].results}", flush=True)
    print(f"\n{report(rows)}")


def measured(variant: Variant, registry: Registry, data_path: str, out: Path, *, train: bool) -> Row:
    """The probes and results of a variant; a result is None if its runs aren't finished. Raises what a run does."""
    results: dict[str, float | None] = {}
    probes: dict[str, float | None] = {}
    marked: list[str] = []
    for model in EPOCHS:
        specs = requested(variant, model, registry, data_path)
        inputs = gather(specs[0], registry)
        if not probes:
            probes = numbers(probe(inputs.tables, inputs.dataset.train))
        if train:
            run_grid(specs, registry, out=out, resume=True)
        runs = finished(specs, registry, inputs, out)
        complete = len(runs) == len(specs)
        results[model] = float(np.mean([run.test[METRIC] for run in runs])) if complete else None
        marked += [f"{model}: {reason}" for run in runs for reason in marks(run)]
    return Row(variant, probes, results, tuple(dict.fromkeys(marked)))


def requested(variant: Variant, model: str, registry: Registry, data_path: str) -> tuple[RunSpec, ...]:
    """One run for each seed."""
    request = Request(
        model=model,
        dataset=DATASET,
        encoder=EncoderName.parse(variant.encoder),
        modalities=("image", "text"),
        control=variant.control,
        overrides={
            **TRAINING,
            **variant.keys,
            "epochs": EPOCHS[model],
            "data_path": data_path,
            "seed": f"[{', '.join(map(str, SEEDS))}]",
        },
    )
    return resolve_request(request, registry).runs


def finished(specs: Sequence[RunSpec], registry: Registry, inputs: Inputs, out: Path) -> list[RunResult]:
    """The results of those runs that are finished."""
    found = []
    for spec in specs:
        own = inputs if spec.control is None else gather(spec, registry)  # a control draws by its seed
        result = load_result(out / run_id(spec, own, registry))
        found += [result] if result is not None else []
    return found


def numbers(probed: Probed) -> dict[str, float | None]:
    """One number for each of PROBES; None where there is none."""
    agreement = [
        found.recall.value if isinstance(found := probed.neighbors[modality], Agreement) else None
        for modality in ("image", "text")
    ]
    known = [value for value in agreement if value is not None]
    recall = probed.retrieval
    ways = [way["recall@10"].value for way in recall.recall.values()] if isinstance(recall, Retrieval) else []
    cka = probed.similarity["image-text"]
    values = (
        *agreement,
        float(np.mean(known)) if len(known) == len(agreement) else None,
        float(np.mean(ways)) if ways else None,
        cka.cka.value if isinstance(cka, Similarity) else None,
    )
    return dict(zip(PROBES, values, strict=True))


def rank_correlation(probe: np.ndarray, result: np.ndarray, *, seed: int = 0) -> tuple[float, float, float]:
    """Spearman's correlation over variants (V,) and the ends of its 95 % bootstrap interval; resamples of one value,
    for which there is none, don't count."""
    chosen = np.random.default_rng(seed).integers(0, len(probe), size=(RESAMPLES, len(probe)))
    ranks = [stats.rankdata(values[chosen], axis=1) for values in (probe, result)]  # (RESAMPLES, V) each
    one, other = (values - values.mean(axis=1, keepdims=True) for values in ranks)
    scale = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    drawn = (one * other).sum(axis=1)[scale > 0] / scale[scale > 0]
    low, high = percentile_interval(drawn[:, None])[:, 0]
    return float(stats.spearmanr(probe, result).statistic), float(low), float(high)


def report(rows: Sequence[Row]) -> str:
    """The table of variants and that of correlations, in Markdown."""
    lines = [
        f"| variant | {' | '.join(PROBES)} | {' | '.join(EPOCHS)} |",
        f"|---|{'---:|' * (len(PROBES) + len(EPOCHS))}",
    ]
    for row in rows:
        cells = [*row.probes.values(), *row.results.values()]
        lines.append(f"| {row.variant.title} | {' | '.join('-' if one is None else f'{one:.4f}' for one in cells)} |")
    lines += ["", "| probe | result | all variants | without controls |", "|---|---|---|---|"]
    own = [row for row in rows if row.variant.control is None]
    for name in PROBES:
        for model in EPOCHS:
            lines.append(f"| {name} | {model} | {_correlated(rows, name, model)} | {_correlated(own, name, model)} |")
    lines += [f"\n{row.variant.title}: {reason}" for row in rows for reason in row.marked]
    return "\n".join(lines)


def _correlated(rows: Sequence[Row], name: str, model: str) -> str:
    pairs = [
        (value, result)
        for row in rows
        if (value := row.probes[name]) is not None and (result := row.results[model]) is not None
    ]
    if len(pairs) < 4:
        return f"{len(pairs)} variants"
    value, low, high = rank_correlation(*np.array(pairs).T)
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f}), {len(pairs)}"


if __name__ == "__main__":
    main()
