"""Leaderboards with invented numbers, for the page and its tests: seeded, so that each call gives the same rows.

`python tests/sample_leaderboards.py FILE.json [ROWS]` writes one, to look at.
"""

import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mmrec_lmm.studies.leaderboard import (
    FAILED,
    NOT_APPLICABLE,
    PARTIAL,
    Claim,
    Interval,
    Leaderboard,
    ReproducibilityRecord,
    Row,
    Score,
)
from mmrec_lmm.types import Axes, EncoderName

MODELS = {"VBPR": 0.0, "MMGCN": -0.004, "MMGCL": 0.006, "SLMRec": 0.009, "LATTICE": 0.012}
ENCODERS = {"cnn_sbert": 0.0, "clip": 0.003, "vlmo": 0.004, "beit3": 0.005}
PARADIGMS = {"pt": 0.0, "ft": 0.0015, "ete": 0.003}
DATASETS = {"baby": 0.062, "sports": 0.070}
METRICS = {"recall@20": 1.0, "ndcg@20": 0.44, "recall@10": 0.64, "ndcg@10": 0.35}  # as shares of recall@20
USERS = {"baby": 19445, "sports": 35598}
SEEDS = (1, 2, 3)
CLAIMS = (
    Claim("encoder", "any other", "cnn_sbert", 30, 120, 94, 41, 26, 3, 120),
    Claim("encoder", "dual-stream", "unified", 59, 236, 88, 12, 148, 31, 232, marked=8),
    Claim("paradigm", "ft", "pt", 30, 120, 78, 9, 42, 1, 120),
    Claim("paradigm", "ft", "pt", 10, 40, 29, 6, 11, 0, 40, encoder="clip"),
    Claim("paradigm", "ft", "pt", 10, 40, 25, 3, 15, 0, 40, encoder="vlmo"),
    Claim("control", "own features", "shuffled", 40, 160, 157, 120, 3, 0, 0),
)
BASELINE = "cnn_sbert"  # of the same model and data set, pre-trained


def leaderboard(rows: int | None = None) -> Leaderboard:
    """The grid of all names with twins, failures and cells that don't apply; or that many plain rows of it, repeated
    under other models' names."""
    generator = np.random.default_rng(7)
    copies = 1 if rows is None else -(-rows // 120)
    models = [(f"{name}{copy or ''}", level) for copy in range(copies) for name, level in MODELS.items()]
    cells = list(itertools.product(models, ENCODERS, PARADIGMS, DATASETS))[:rows]
    made = [_row(generator, *cell) for cell in cells]
    twins = [_twin(generator, row) for row in made if rows is None and row.scores and row.axes.paradigm == "pt"]
    return Leaderboard(
        study="sample",
        title="Large multi-modal encoders for recommendation",
        metrics=tuple(METRICS),
        rows=_best([*made, *twins]),
        baseline="the same model on pre-trained cnn_sbert features",
        comparisons=110,
        detectable={name: {metric: 0.0021 * share for metric, share in METRICS.items()} for name in DATASETS},
        users=USERS,
        claims=CLAIMS if rows is None else (),
        claim_comparisons=736,
        notes=("Sample data: every number on this page is invented.",),
    )


def _row(generator: np.random.Generator, model: tuple[str, float], encoder: str, paradigm: str, dataset: str) -> Row:
    name, level = model
    axes = Axes(name, dataset, EncoderName(encoder), paradigm, ("image", "text"))
    if name.startswith("LATTICE") and dataset == "sports" and paradigm == "ete":
        reason = "out of memory at a batch of 1: 14.8 GiB asked for, 11.2 GiB free"
        return Row(axes, state=FAILED, reason=reason)
    if encoder == "cnn_sbert" and paradigm != "pt":
        reason = "cnn_sbert has no losses of its own and takes no gradient: it can only be used as pre-trained"
        return Row(axes, state=NOT_APPLICABLE, reason=reason)
    partial = name == "MMGCN" and encoder == "beit3" and paradigm == "ete"
    seeds = SEEDS[:2] if partial else SEEDS
    recall = DATASETS[dataset] + level + ENCODERS[encoder] + PARADIGMS[paradigm] + generator.normal(0, 0.002)
    first = encoder == BASELINE and paradigm == "pt"
    against = None if first else f"{name}/{dataset}/{BASELINE}/pt/image+text"
    ahead = recall - DATASETS[dataset] - level
    scores = {
        metric: _score(generator, recall * share, ahead * share, seeds=seeds, against=against)
        for metric, share in METRICS.items()
    }
    seconds = float(np.exp(generator.normal(4.5 + 120 * level, 0.3)) * {"pt": 1, "ft": 1.1, "ete": 9}[paradigm])
    run = f"{name}-{dataset}-{generator.integers(1 << 32):08x}"
    return Row(
        axes,
        state=PARTIAL if partial else "finished",
        reason="seed 3 was killed" if partial else "",
        parameters={"learning_rate": 1e-3, "reg_weight": float(generator.choice([0.1, 0.01, 1e-4]))},
        scores=scores,
        slices={
            part: {metric: _interval(generator, recall * share * level_of) for metric, share in METRICS.items()}
            for part, level_of in (("cold items", 0.3), ("long tail", 0.6))
        },
        content_gain={"shuffled": {metric: _interval(generator, 0.01 * share) for metric, share in METRICS.items()}},
        runs=tuple(f"{run[:-1]}{seed}" for seed in seeds),
        seeds=seeds,
        seconds=seconds,
        encoder_seconds=340.0,
        memory=int(seconds * 4e6 + 9e8),
        parameters_trained=2_400_000,
        reproducibility=ReproducibilityRecord(
            replay=(f"mmrec-lmm replay {run}",),
            config={"train_batch_size": 2048, "epochs": 1000, "stopping_step": 20, "topk": [10, 20]},
            data="5d1f" * 8,
            features={"image": "90ab" * 8, "text": "77e2" * 8},
            code={"host": "c0de" * 16},
            versions={"mmrec_lmm": "0.1.0", "python": "3.11.9", "torch": "2.15.0"},
            device="cpu",
            threads=2,
            finished="2026-01-31T12:00:00+00:00",
        ),
    )


def _twin(generator: np.random.Generator, row: Row) -> Row:
    """The row's twin with shuffled features."""
    scores = {
        metric: _score(generator, score.mean * 0.85, 0.0, seeds=row.seeds, against=None)
        for metric, score in row.scores.items()
    }
    return replace(row, axes=replace(row.axes, control="shuffled"), content_gain={}, slices={}, scores=scores)


def _score(
    generator: np.random.Generator, mean: float, ahead: float, *, seeds: Sequence[int], against: str | None
) -> Score:
    values = tuple(float(mean + generator.normal(0, 0.0006)) for _ in seeds)
    mean = float(np.mean(values))
    if against is None:
        return Score(mean, _interval(generator, mean), values)
    difference = Interval(ahead, ahead - 0.0015, ahead + 0.0015)
    p = float(np.clip(np.exp(-abs(ahead) / 0.0012), 1e-6, 1))
    return Score(
        mean,
        _interval(generator, mean),
        values,
        against=against,
        difference=difference,
        effect=ahead / 0.05,
        p=p,
        star=p < 0.05 and ahead > 0,
    )


def _interval(generator: np.random.Generator, mean: float) -> Interval:
    half = 0.0018 * (mean / 0.06) ** 0.5 * float(generator.uniform(0.8, 1.2))
    return Interval(mean, mean - half, mean + half)


def _best(rows: list[Row]) -> list[Row]:
    """The rows, the highest score of each data set and metric marked."""
    winners = {
        (dataset, metric): max(
            (row.scores[metric].mean for row in rows if row.scores and row.axes.dataset == dataset), default=None
        )
        for dataset in DATASETS
        for metric in METRICS
    }
    return [
        replace(
            row,
            scores={
                metric: replace(score, best=score.mean == winners[row.axes.dataset, metric])
                for metric, score in row.scores.items()
            },
        )
        for row in rows
    ]


if __name__ == "__main__":
    sample = leaderboard(int(sys.argv[2]) if len(sys.argv) > 2 else None)
    Path(sys.argv[1]).write_text(json.dumps(sample.document(), indent=1), encoding="utf-8")
