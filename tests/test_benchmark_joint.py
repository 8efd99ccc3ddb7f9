"""The benchmark of joint training runs, and its floor is the arithmetic that it says. Nothing here looks at a clock."""

import numpy as np
import torch
from torch import Tensor

from benchmarks import joint
from benchmarks.encoders import catalogue
from mmrec_lmm.features.prepared import PreparedItems
from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.testing import TinyEncoder


class Counting(TinyEncoder):
    """Notes how many items it is given, with gradient and without."""

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append((torch.is_grad_enabled(), len(batch["length"])))
        return super().forward(batch)


seen: list[tuple[bool, int]] = []


def test_the_floor_passes_each_row_twice_forward_and_once_backward_in_micro_batches() -> None:
    items = PreparedItems({"pixels": np.ones((50, 3), np.float32), "length": np.ones((50, 1), np.float32)}, {})
    encoder = Counting()
    seen.clear()
    joint.forward_twice_and_backward(encoder, items, torch.arange(40))
    assert seen == [(True, 32), (True, 8), (False, 40)]
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_a_joint_epoch_stands_beside_its_floor_over_the_rows_that_it_touched() -> None:
    items = PreparedItems({"pixels": np.ones((24, 3), np.float32), "length": np.ones((24, 1), np.float32)}, {})
    found = joint.epochs("VBPR", Counting(), items, load_registry(), joint.QUICK, repeats=2, batch=30)
    assert 24 < found.rows <= 2 * 24  # eight batches, a step for each four, of all items with a gradient
    assert len(found.timing.real) == len(found.timing.floor) == 2
    assert min(found.timing.ratio, found.recommender, found.refresh) > 0


def test_what_is_read_from_the_store_was_made_for_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path))
    found = joint.loading(catalogue(tmp_path, 4, 4), TinyEncoder(), name="some", rounds=2, computed=4)
    assert min(found.computed, found.read, found.made) > 0
