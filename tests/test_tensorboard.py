"""The observer for TensorBoard: what it writes of real runs, read back by TensorBoard's own reader."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmrec_lmm.errors import PluginError
from mmrec_lmm.plugin.registry import Registry, load_registry
from mmrec_lmm.running import runner
from mmrec_lmm.testing.conformance import checks_of, outcome
from mmrec_lmm.types import RunSpec

Specs = Callable[..., tuple[RunSpec, ...]]
PLUGIN = "mmrec_lmm_plugins.tensorboard"


@pytest.fixture
def tracking() -> Registry:
    pytest.importorskip("tensorboard")
    return load_registry([PLUGIN])


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The steps and values of each tag of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read: Any = EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(one.step, one.value) for one in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_each_run_is_one_tracked_run_with_its_losses_and_metrics(
    specs: Specs, tracking: Registry, tmp_path: Path
) -> None:
    spec, other = specs(model="BPR", known=tracking, seed="[1, 2]")
    result, _ = (runner.run(one, tracking, out=tmp_path) for one in (spec, other))
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    found = scalars(tmp_path / "tensorboard" / result.run_id)
    assert {"loss/bpr", "loss/reg", "valid/recall@20", "test/recall@20", "seconds/train"} <= found.keys()
    assert [step for step, _ in found["loss/bpr"]] == [0, 1, 2]
    best = dict(found["valid/recall@20"])[result.best_epoch]
    assert best == pytest.approx(result.valid["recall@20"])
    assert found["test/recall@20"] == [(result.best_epoch, pytest.approx(result.test["recall@20"]))]


def test_a_run_that_resumes_continues_and_one_that_is_made_again_starts_over(
    specs: Specs, tracking: Registry, tmp_path: Path
) -> None:
    [spec] = specs(model="BPR", known=tracking, epochs="4", checkpoint_seconds="0")

    class Stops:
        notify_start = staticmethod(tracking.notify_start)
        notify_run = staticmethod(tracking.notify_run)

        def notify_epoch(self, run: RunSpec, epoch: Any) -> None:
            tracking.notify_epoch(run, epoch)
            if epoch.epoch == 1:
                raise KeyboardInterrupt

    with pytest.raises(runner.Interrupted):
        runner.run(spec, tracking, out=tmp_path, observers=Stops())
    result = runner.run(spec, tracking, out=tmp_path, resume=True)
    folder = tmp_path / "tensorboard" / result.run_id
    assert [step for step, _ in scalars(folder)["loss/bpr"]] == [0, 1, 2, 3]
    runner.run(spec, tracking, out=tmp_path, force=True)
    assert [step for step, _ in scalars(folder)["loss/bpr"]] == [0, 1, 2, 3]
    assert len(list(folder.glob("events.*"))) == 1


def test_a_model_without_training_has_its_test_metrics(specs: Specs, tracking: Registry, tmp_path: Path) -> None:
    [spec] = specs(model="Pop", known=tracking)
    result = runner.run(spec, tracking, out=tmp_path)
    found = scalars(tmp_path / "tensorboard" / result.run_id)
    assert found["test/recall@20"] == [(0, pytest.approx(result.test["recall@20"]))]


@pytest.mark.usefixtures("tracking")
def test_it_passes_the_kit() -> None:
    [check] = [one for one in checks_of([PLUGIN]) if one.kind == "observer"]
    assert outcome(check) == ("ok", "")


def test_without_the_package_the_plugin_is_one_error_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util
    import sys

    found = importlib.util.find_spec
    monkeypatch.delitem(sys.modules, PLUGIN, raising=False)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: found(name, *more) if name != "tensorboard" else None
    )
    with pytest.raises(PluginError, match=r"tensorboard: expected the package tensorboard, got none; try pip install"):
        load_registry([PLUGIN])
