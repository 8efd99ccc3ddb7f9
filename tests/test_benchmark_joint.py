"""The benchmark of joint training runs, and its floor is the arithmetic that it says. Nothing here looks at a clock."""

import numpy as np
import torch
from torch import Tensor

from benchmarks import joint, timing
from benchmarks.encoders import make_catalog
from mmrec_lmm.features.prepared import PreparedItems
from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.testing import TinyEncoder
from mmrec_lmm.types import RawItem


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
    assert min(*found.timing.real, *found.timing.floor) > 0


def test_reading_and_making_are_timed_by_the_work_that_they_are(tmp_path, monkeypatch) -> None:
    """Each kind of work moves the clock by its own number of seconds an item, so that the rates are known."""
    clock = [0]
    batches: list[tuple[list[int], dict[str, Tensor]]] = []
    read = PreparedItems.batch

    class Slow(TinyEncoder):
        def prepare(self, item: RawItem) -> dict[str, Tensor]:
            clock[0] += 5
            return super().prepare(item)

        def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            clock[0] += 100 * len(batch["length"])
            return super().forward(batch)

    def batch(self: PreparedItems, items: np.ndarray, own: slice = slice(None)) -> dict[str, Tensor]:
        clock[0] += 2 * len(items)
        batches.append((items.tolist(), read(self, items, own)))
        return batches[-1][1]

    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path))
    monkeypatch.setattr(PreparedItems, "batch", batch)
    monkeypatch.setattr(timing, "now", lambda: clock[0])
    catalog, encoder = make_catalog(tmp_path, 40, 40), Slow()
    found = joint.loading(catalog, encoder, name="some", rounds=2, computed=8)
    assert found == joint.Loading(computed=1 / (100 + 2), read=1 / 2, made=1 / 5)
    every = sorted(item for items, _ in batches for item in items)
    assert every == sorted(3 * [*range(40), *range(8)]), "all items are read, and some computed, once untimed and twice"
    for items, tensors in batches:
        lengths = torch.tensor([[len(catalog.fields["title"][item]) / 100] for item in items])
        torch.testing.assert_close(tensors["length"], lengths)


def test_what_an_epoch_costs_is_told_in_seconds_of_its_parts(monkeypatch) -> None:
    clock = [0]

    class Slow(TinyEncoder):
        def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            clock[0] += len(batch["length"])
            return super().forward(batch)

    monkeypatch.setattr(timing, "now", lambda: clock[0])
    items = PreparedItems({"pixels": np.ones((24, 3), np.float32), "length": np.ones((24, 1), np.float32)}, {})
    found = joint.epochs("VBPR", Slow(), items, load_registry(), joint.QUICK, repeats=2, batch=30)
    assert found.timing.real == found.timing.floor == [2 * found.rows] * 2, "each row forward twice"
    assert (found.recommender, found.refresh) == (0, 24), "the encoder has no part in the one, and all in the other"
