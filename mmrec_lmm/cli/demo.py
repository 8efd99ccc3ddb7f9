"""What `make demo` shows: on data whose content matters, what is a model's content worth?

The same model is trained on three seeds with the items' own features, with none, which leaves it the ids alone, and
with the same features shuffled among the items. The differences in Recall@20 on test come with a 95 % interval that
counts users and seeds. A model with shuffled features begins to learn late, since they tempt it to learn what isn't
there: stopped early, it would make any content look good.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..config.resolve import Request, resolve
from ..errors import ConfigError
from ..evaluation.statistics import Paired, paired, seed_variance
from ..plugin.registry import Registry
from ..running import run_folder
from ..running.grid import run_grid
from ..running.marks import marks_of
from ..types import EncoderName, RunResult
from .text import table

SEEDS = (1, 2, 3)
METRIC = "recall@20"
CONTROLS = ("none", "shuffled")


def demo(registry: Registry, overrides: Mapping[str, str], *, data_path: str, out: Path) -> str:
    """Run VBPR with the `basic` encoder on the demo data and its twins without content; the table as text."""
    runs: dict[str | None, dict[int, RunResult]] = {}
    for control in (None, *CONTROLS):
        request = Request(
            model="VBPR",
            dataset="demo",
            encoder=EncoderName("basic"),
            control=control,
            overrides={"data_path": data_path, "seed": str(list(SEEDS)), **overrides},
        )
        resolved = resolve(
            request,
            model=registry.models.get(request.model),
            encoder=registry.encoders.get("basic"),
            dataset=registry.datasets.get(request.dataset),
        )
        settings = resolved.runs[0].settings
        if (
            set(resolved.axes) != {"seed"}
            or "recall" not in map(str.lower, settings.metrics)
            or 20 not in settings.topk
        ):
            raise ConfigError(
                f"the demo compares {METRIC} by seed: leave metrics and topk as they are, and no other axes"
            )
        finished = run_grid(resolved.runs, registry, out=out, resume=True, progress=True).results
        runs[control] = {result.parameters["seed"]: result for result in finished}
    own, seeds = runs[None], sorted(set.intersection(*(set(of_seed) for of_seed in runs.values())))
    values = {control: np.stack([_test_values(of_seed[seed]) for seed in seeds]) for control, of_seed in runs.items()}
    spread = seed_variance([*values.values()])
    rows = [
        {
            "twin": control,
            "own features": float(values[None].mean()),
            "of twin": float(values[control].mean()),
            "gain": f"{100 * (values[None].mean() / values[control].mean() - 1):+.0f} %",
            **_difference(paired(values[None], values[control], spread), len(seeds)),
            "best epochs": ", ".join(str(runs[control][seed].best_epoch) for seed in seeds),
        }
        for control in CONTROLS
    ]
    epochs = ", ".join(str(own[seed].best_epoch) for seed in seeds)
    marked = [
        f"marked: {control or 'own features'}: {reason}"
        for control, of_seed in runs.items()
        for reason in marks_of([of_seed[seed] for seed in seeds])
    ]
    title = (
        f"VBPR on the demo data: {METRIC} on test with the items' own features, and of twins without content; mean of\n"
        f"seeds {', '.join(map(str, seeds))}. Own features: best epochs {epochs}"
    )
    return "\n".join([title, "", table(rows), *marked])


def _difference(found: Paired, seeds: int) -> dict[str, object]:
    low, high = found.interval()
    return {"difference": found.mean, "95 % interval": f"{low:.4f} ... {high:.4f}" if seeds > 1 else "needs two seeds"}


def _test_values(result: RunResult) -> np.ndarray:
    """Per-user values (U,); all runs evaluate the same users in the same order."""
    return run_folder.load_per_user(result.path)[f"test/{METRIC}"]
