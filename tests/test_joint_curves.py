"""The curves of joint training: their gradients are those of back-propagation, and they run to their end."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import joint, joint_curves
from mmrec_lmm.plugin.registry import Registry

pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def _on_toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(joint_curves, "DATASET", "toy")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def begun(registry: Registry, data_path: Path) -> joint_curves.Joint:
    keys = {
        **joint_curves.TRAINING,
        **joint_curves.RATE,
        "seed": "1",
        "train_batch_size": "16",
        "ete.refresh_epochs": "9",
    }
    (spec,) = joint_curves.requested(registry, keys, str(data_path))
    found = joint_curves.prepared(spec, registry)
    for epoch in range(2):  # of which the second leaves rows stale
        found.trainer.train_epoch(epoch)
    return found


def test_the_full_gradient_is_that_of_model_and_encoder_together(registry: Registry, data_path: Path) -> None:
    run = begun(registry, data_path)
    features, worker = run.callback._features, run.callback._worker
    stale = {modality: table.detach().clone() for modality, table in features().items()}
    found = joint_curves.full_gradient(run)
    assert all(table.equal(stale[modality]) for modality, table in features().items()), "F is left as it was"

    everything = torch.arange(len(stale["image"]))
    rows = worker._encoder(worker._batch(everything))
    features._tables = {m: rows[m] * features.present[m].unsqueeze(1) for m in stale}
    losses = [torch.stack([*run.trainer._model.training_loss(batch).values()]).sum() for batch in run.batches]
    worker._optimizer.zero_grad()
    torch.stack(losses).mean().backward()
    torch.testing.assert_close(found, joint_curves.flat_gradient(run), rtol=1e-4, atol=1e-8)


def test_estimates_from_more_rows_vary_less(registry: Registry, data_path: Path) -> None:
    found = [*joint_curves.variances(begun(registry, data_path), (2, 8), 40)]
    assert [rows for rows, *_ in found] == [2, 8]
    for of_two, of_eight in zip(found[0][1:], found[1][1:], strict=True):
        assert 2 < of_two / of_eight < 8, "by one over the number of rows, for which 4 is due"


@pytest.mark.parametrize("what", ["gradients", "variance", "recall"])
def test_each_curve_prints_its_lines(what: str, data_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    joint.main([what, "--quick", "--data-path", str(data_path), "--out", str(tmp_path / "runs")])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(lines) >= 2
    assert "nan" not in "".join(lines)
