"""What `make demo` shows: on data whose content matters, what is a model's content worth?

The same model is trained on three seeds with the items' own features, with the same features shuffled among the items,
and with none, which leaves it the ids alone. The differences in Recall@20 on test come with a 95 % bootstrap interval
over users. Shuffled features are a handicap rather than a neutral twin: they tempt a model to learn what isn't there.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from . import results
from .config import Request, resolve
from .errors import ConfigError
from .grid import run_grid
from .registry import Registry
from .report import table
from .statistics import bootstrap, percentile_interval
from .types import RunResult

SEEDS = (1, 2, 3)
METRIC = "recall@20"
CONTROLS = ("shuffled", "none")


def demo(registry: Registry, overrides: Mapping[str, str], *, data_path: str, out: Path) -> str:
    """Run VBPR with the `basic` encoder on the demo data and its twins without content; the table as text."""
    runs: dict[str | None, dict[int, RunResult]] = {}
    for control in (None, *CONTROLS):
        request = Request(
            model="VBPR",
            dataset="demo",
            encoder="basic",
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
    rows = [
        _row(seed, control, runs[None][seed], twin)
        for control in CONTROLS
        for seed, twin in runs[control].items()
        if seed in runs[None]
    ]
    title = f"VBPR on the demo data: {METRIC} on test with the items' own features, and of twins without content"
    return f"{title}\n\n{table(rows)}"


def _row(seed: int, control: str, content: RunResult, twin: RunResult) -> dict[str, object]:
    differences = _test_values(content) - _test_values(twin)  # (U,)
    low, high = percentile_interval(bootstrap(differences[:, None]))[:, 0]
    mine, theirs = content.test[METRIC], twin.test[METRIC]
    return {
        "seed": seed,
        "own features": mine,
        "twin": control,
        "of twin": theirs,
        "gain": f"{100 * (mine / theirs - 1):+.0f} %",
        "difference": mine - theirs,
        "95 % interval": f"{low:.4f} ... {high:.4f}",
    }


def _test_values(result: RunResult) -> np.ndarray:
    """Per-user values; both runs of a pair evaluate the same users in the same order."""
    return results.load_per_user(result.path)[f"test/{METRIC}"]
