"""The curves of `python -m benchmarks.joint`: what each approximation of end-to-end training costs, and what it buys.

gradients  the cosine between an encoder step's gradient and that of the mean loss over all training rows, with no row
           stale, at the same weights: by encoder_every, rows and refresh_epochs
variance   of a step's gradient by the number of rows: drawn by gradient norm, as `ete` draws them, and uniformly
recall     Recall@20 on test by the same keys, three seeds
tunes      Recall@20, seconds by part, parameters and peak memory of each `ete.tune`, with and without a warm start

The data set is demo, and the encoder is small, of random weights: the curves judge the method,
not an encoder. Runs are kept in the folder --out: after a kill the same command continues.

Shapes: I items, D feature width, P parameters of the encoder.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from torch import Tensor

from mmrec_lmm.config.resolve import Request, resolve_request
from mmrec_lmm.data.sampling import TrainingRows
from mmrec_lmm.evaluation.statistics import paired, seed_variance
from mmrec_lmm.plugin.registry import Registry
from mmrec_lmm.running.grid import run_grid
from mmrec_lmm.running.inputs import gather
from mmrec_lmm.running.run_folder import load_per_user
from mmrec_lmm.running.runner import build_model, prepare_machine
from mmrec_lmm.training.end_to_end import JointEncoder, draw_rows
from mmrec_lmm.training.loop import Validation
from mmrec_lmm.training.trainer import Trainer
from mmrec_lmm.types import Batch, EncoderName, RunResult, RunSpec

METRIC, SEEDS, BATCH = "recall@20", (1, 2, 3), 512
RARELY = 10_000
DATASET = "demo"
ENCODER, MODEL = "hf:tiny", "VBPR"  # the smallest encoder of images and texts that ships
TRAINING = {
    "train_batch_size": str(BATCH),
    "min_steps": "400",
    "eval_step": "2",
    "stopping_step": "10",
    "threads": "1",
}
RATE = {"ete.learning_rate": "1e-3"}  # for random weights

#: One key varies at a time, from the defaults encoder_every 4, rows 256, refresh_epochs 1.
SETTINGS: Sequence[Mapping[str, int]] = (
    {},
    {"encoder_every": 1},
    {"encoder_every": 2},
    {"encoder_every": 8},
    {"encoder_every": RARELY},  # once an epoch
    {"rows": 32},
    {"rows": 128},
    {"rows": 0},  # all that have a gradient
    {"encoder_every": 1, "rows": 0},  # exact, but for rows outside the step
    {"refresh_epochs": 5},
    {"refresh_epochs": RARELY},  # only before an evaluation
)
TUNES = ("full", "lora", "side", "last:1")
WARM = ("0", "auto")


def title(setting: Mapping[str, int]) -> str:
    """The keys of a setting that differ from the defaults, as the tables show them."""
    words = {("rows", 0): "all", ("encoder_every", RARELY): "an epoch", ("refresh_epochs", RARELY): "an evaluation"}
    shown = [f"{key} {words.get((key, value), value)}" for key, value in setting.items()]
    return ", ".join(shown) or "defaults (4, 256, 1)"


@dataclass(frozen=True)
class Joint:
    """A joint run, about to be trained: its trainer and what it trains."""

    trainer: Trainer
    callback: JointEncoder
    batches: Sequence[Batch]  # one pass over all training rows, with negatives that stay
    items: Tensor  # (I',) that have content

    @property
    def trained(self) -> list[torch.nn.Parameter]:
        return self.callback._worker._trained


def requested(
    registry: Registry, keys: Mapping[str, str], data_path: str, *, model: str = MODEL, paradigm: str = "ete"
) -> tuple[RunSpec, ...]:
    """The runs of one model on the demo data, one for each seed in `keys`."""
    request = Request(
        model=model, dataset=DATASET, encoder=EncoderName.parse(ENCODER), modalities=("image", "text"),
        paradigm=paradigm, overrides={"data_path": data_path, **keys},
    )  # fmt: skip
    return resolve_request(request, registry).runs


def prepared(spec: RunSpec, registry: Registry) -> Joint:
    """The run's model, encoder and trainer, as the runner builds them."""
    inputs = gather(spec, registry)
    device = prepare_machine(spec.settings)
    model = build_model(spec, inputs, registry, device)
    callback = registry.paradigm(spec).callback(spec, inputs, model.features, registry)
    assert isinstance(callback, JointEncoder)
    dataset, settings = inputs.dataset, spec.settings
    rows = TrainingRows(dataset.train, dataset.n_users, settings.train_batch_size, device)
    trainer = Trainer(
        model, rows, settings, validate=lambda: Validation(0.0, {}),
        generator=torch.Generator().manual_seed(settings.seed), callback=callback,
    )  # fmt: skip
    batches = [*rows.epoch(torch.Generator().manual_seed(0))]
    return Joint(trainer, callback, batches, callback._items)


def flat_gradient(joint: Joint) -> Tensor:
    """The encoder's gradient (P,) in float64."""
    return torch.cat([parameter.grad.double().flatten() for parameter in joint.trained if parameter.grad is not None])


def feature_gradient(joint: Joint, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """dL/dF (I, D) by modality of the mean loss over some batches."""
    model, features = joint.trainer._model, joint.callback._features
    leaves = features()
    totals = {modality: torch.zeros_like(leaf) for modality, leaf in leaves.items()}
    for batch in batches:
        loss = torch.stack([*model.training_loss(batch).values()]).sum() / len(batches)
        for total, gradient in zip(totals.values(), torch.autograd.grad(loss, [*leaves.values()]), strict=True):
            total += gradient
    return {modality: total * features.present[modality].unsqueeze(1) for modality, total in totals.items()}


def encoder_gradient(joint: Joint, rows: Tensor, gradients: Mapping[str, Tensor]) -> Tensor:
    """The encoder's gradient (P,) for feature gradients (R, D) of rows (R,); no weight changes."""
    worker = joint.callback._worker
    worker._optimizer.zero_grad()
    for places in torch.arange(len(rows)).split(64):
        worker._objective(rows[places], {m: each[places] for m, each in gradients.items()}, len(rows)).backward()
    return flat_gradient(joint)


def full_gradient(joint: Joint) -> Tensor:
    """The gradient (P,) of the mean loss over all training rows at the current weights, with every row of F fresh.

    F and the random state are left as they were.
    """
    features = joint.callback._features
    stale = {modality: table.detach().clone() for modality, table in features().items()}
    everything = torch.arange(len(next(iter(stale.values()))))
    wanted = {modality: table.requires_grad for modality, table in features().items()}
    with torch.random.fork_rng([]):
        joint.callback._write(joint.items, partial=True)
        for table in features().values():
            table.requires_grad_(True)
        gradients = feature_gradient(joint, joint.batches)
        found = encoder_gradient(joint, joint.items, {m: each[joint.items] for m, each in gradients.items()})
    for modality, table in features().items():
        table.requires_grad_(wanted[modality])
        features.refresh(modality, everything, stale[modality], partial=True)
    return found


def cosines(registry: Registry, data_path: str, setting: Mapping[str, int], *, epochs: int, model: str) -> list[float]:
    """The cosine of eight encoder steps' gradients with the full one, spread over `epochs` epochs after the first."""
    keys = {**TRAINING, **RATE, "seed": "1", **{f"ete.{key}": str(value) for key, value in setting.items()}}
    (spec,) = requested(registry, keys, data_path, model=model)
    joint = prepared(spec, registry)
    worker, step = joint.callback._worker, joint.callback._worker.step
    of_epoch = math.ceil(len(joint.batches) / spec.paradigm_config.encoder_every)
    due = {*np.linspace(of_epoch, of_epoch * (1 + epochs) - 1, 8).round().astype(int).tolist()}
    found: list[float] = []
    steps = itertools.count()

    def compared(rows: Tensor, gradients: Mapping[str, Tensor], rate: float) -> float:
        if next(steps) in due:
            whole = full_gradient(joint)
            found.append(torch.cosine_similarity(encoder_gradient(joint, rows, gradients), whole, dim=0).item())
        return step(rows, gradients, rate)

    worker.step = compared  # type: ignore[method-assign]
    for epoch in range(1 + epochs):
        joint.trainer.train_epoch(epoch)
    return found


def variances(joint: Joint, budgets: Sequence[int], draws: int) -> Iterator[tuple[int, float, float]]:
    """For each number of rows E |g - gradient|^2 / |gradient|^2 of estimates g: by norm, and uniformly.

    The gradient is that of the mean loss over four batches, as a step collects them.
    """
    gradients = feature_gradient(joint, joint.batches[:4])
    norms = torch.stack([torch.linalg.vector_norm(each, dim=1).double() for each in gradients.values()]).sum(0)
    rows = norms.nonzero().squeeze(1)
    whole = encoder_gradient(joint, rows, {modality: each[rows] for modality, each in gradients.items()})
    for budget in budgets:
        if budget >= len(rows):
            continue
        by_norm, uniform = (
            _relative_error(joint, gradients, odds, budget, draws, whole) for odds in (norms, (norms > 0).double())
        )
        yield budget, by_norm, uniform


def _relative_error(
    joint: Joint, gradients: Mapping[str, Tensor], odds: Tensor, budget: int, draws: int, whole: Tensor
) -> float:
    """The mean squared error of estimates from `budget` rows drawn by `odds` (I,), in squares of `whole`'s norm."""
    generator = torch.Generator().manual_seed(0)
    squares = []
    for _ in range(draws):
        drawn, weights = draw_rows(odds, budget, generator)
        scale = weights.float().unsqueeze(1)
        own = encoder_gradient(joint, drawn, {m: each[drawn] * scale for m, each in gradients.items()})
        squares.append((own - whole).square().sum().item())
    return mean(squares) / whole.square().sum().item()


def print_gradients(registry: Registry, data_path: str, out: Path, quick: bool) -> None:
    """A line for each setting and model."""
    print(
        "| setting | model | cosine with the full gradient, mean | least | steps compared |\n|---|---|---:|---:|---:|"
    )
    for model in ("VBPR",) if quick else ("VBPR", "MMGCN"):
        for setting in SETTINGS[:2] if quick else SETTINGS:
            found = cosines(registry, data_path, setting, epochs=1 if quick else 8, model=model)
            print(f"| {title(setting)} | {model} | {mean(found):.3f} | {min(found):.3f} | {len(found)} |", flush=True)


def print_variance(registry: Registry, data_path: str, out: Path, quick: bool) -> None:
    """A line for each number of rows, after two epochs of training."""
    print("| model | rows | by gradient norm | uniform | uniform / by norm |\n|---|---:|---:|---:|---:|")
    for model in ("VBPR",) if quick else ("VBPR", "MMGCN"):
        (spec,) = requested(registry, {**TRAINING, **RATE, "seed": "1"}, data_path, model=model)
        joint = prepared(spec, registry)
        for epoch in range(1 if quick else 2):
            joint.trainer.train_epoch(epoch)
        for rows, by_norm, uniform in variances(joint, (4,) if quick else (32, 64, 128, 256, 512), 2 if quick else 30):
            print(f"| {model} | {rows} | {by_norm:.3f} | {uniform:.3f} | {uniform / by_norm:.2f} |", flush=True)


def measured(specs: Sequence[RunSpec], registry: Registry, out: Path) -> Sequence[RunResult]:
    """The results of these runs, which differ in their seed; finished ones are read."""
    return run_grid(specs, registry, out=out, resume=True).results


def difference(ours: Sequence[RunResult], theirs: Sequence[RunResult]) -> str:
    """How much more ours have on test, with the 95 % interval over users, and over seeds if there are several."""
    rows = [np.stack([load_per_user(run.path)[f"test/{METRIC}"] for run in runs]) for runs in (ours, theirs)]  # (S, U)
    found = paired(rows[0], rows[1], seed_variance(rows))
    low, high = found.interval()
    return f"{found.mean:+.4f} ({low:+.4f} to {high:+.4f})"


def scores(runs: Sequence[RunResult]) -> str:
    """Their mean on test, and the deviation over seeds."""
    values = [run.test[METRIC] for run in runs]
    spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
    return f"{mean(values):.4f}{spread}"


def with_seeds(keys: Mapping[str, str], quick: bool) -> dict[str, str]:
    """The keys of a training to its end, as a grid over seeds."""
    seeds = SEEDS[:1] if quick else SEEDS
    short = {"epochs": "2", "min_steps": "0"} if quick else {}
    return {**TRAINING, **keys, **short, "seed": f"[{', '.join(map(str, seeds))}]"}


def print_recall(registry: Registry, data_path: str, out: Path, quick: bool) -> None:
    """A line for each setting."""
    print(
        "| setting | Recall@20 on test, mean ± deviation over seeds | above the defaults, 95 % interval | best epochs "
        "| seconds an epoch |\n|---|---|---|---|---:|"
    )
    defaults: Sequence[RunResult] = ()
    for setting in SETTINGS[:2] if quick else SETTINGS:
        keys = {**RATE, **{f"ete.{key}": str(value) for key, value in setting.items()}}
        runs = measured(requested(registry, with_seeds(keys, quick), data_path), registry, out)
        defaults = defaults or runs  # the first setting's
        above = difference(runs, defaults) if runs is not defaults else ""
        epochs = ", ".join(str(run.best_epoch) for run in runs)
        seconds = mean(run.record.seconds.train / run.epochs for run in runs)
        print(f"| {title(setting)} | {scores(runs)} | {above} | {epochs} | {seconds:.2f} |", flush=True)


def print_tunes(registry: Registry, data_path: str, out: Path, quick: bool) -> None:
    """A line for each way of training the encoder, and for each with a warm start."""
    print(
        "| tune | warm_epochs | Recall@20 on test, mean ± deviation over seeds | above pt, 95 % interval | best epochs "
        "| seconds an epoch | parameters trained | peak memory, MB |\n|---|---|---|---|---|---:|---:|---:|"
    )
    frozen: Sequence[RunResult] = ()
    ways = [("pt", "")] + [(tune, warm) for tune in (TUNES[:1] if quick else TUNES) for warm in WARM]
    for tune, warm in ways:
        paradigm, keys = ("ete", {**RATE, "ete.tune": tune, "ete.warm_epochs": warm}) if warm else ("pt", {})
        specs = requested(registry, with_seeds(keys, quick), data_path, paradigm=paradigm)
        runs = measured(specs, registry, out)
        frozen = frozen or runs
        cost = runs[0].record.encoder_cost
        cells = (
                tune, warm, scores(runs), difference(runs, frozen) if runs is not frozen else "",
                ", ".join(str(run.best_epoch) for run in runs),
                f"{mean(run.record.seconds.train / run.epochs for run in runs):.2f}",
                f"{cost.parameters_trained or 0:,}" if cost else "",
                f"{max(run.record.peak_memory_bytes or 0 for run in runs) / 1e6:,.0f}",
            )  # fmt: skip
        print(f"| {' | '.join(cells)} |", flush=True)
