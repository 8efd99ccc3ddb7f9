"""ItemFeatures: the same model code on constants and on leaves that are trained."""

import pytest
import torch
from torch import Tensor

from mmrec_lmm.plugin.item_features import ItemFeatures, distinct, project
from mmrec_lmm.testing import checkerboard_features

IMAGES = torch.arange(12.0).reshape(4, 3)
PRESENT = torch.tensor([True, True, False, True])


def features(*, joint: bool = False) -> ItemFeatures:
    return ItemFeatures({"image": IMAGES.clone()}, {"image": PRESENT}, joint=joint)


def test_tables_become_tensors_by_modality_with_their_masks() -> None:
    tables = checkerboard_features(6)
    made = ItemFeatures.from_tables(tables)
    assert made.modalities == tuple(made) == ("image", "text")
    assert len(made) == 2
    assert made.dims == {"image": 5, "text": 6}
    for modality, table in tables.items():
        assert made()[modality].tolist() == table.values.tolist()
        assert made.present[modality].tolist() == table.present.tolist()


def test_frozen_tables_are_not_copied_and_carry_no_gradient() -> None:
    tables = checkerboard_features(6)
    made = ItemFeatures.from_tables(tables)
    assert made()["image"].data_ptr() == tables["image"].values.ctypes.data
    assert not made()["image"].requires_grad


@pytest.mark.parametrize("joint", [False, True])
def test_rows_are_the_tables_rows_in_the_order_asked_for(joint: bool) -> None:
    made = features(joint=joint)
    for items in ([2], [3, 0], [0, 1, 2, 3], [1, 1, 1, 1, 1, 1, 0], [3]):
        assert made.rows(torch.tensor(items))["image"].tolist() == IMAGES[items].tolist()


@pytest.mark.filterwarnings("error")
def test_more_rows_may_be_asked_for_than_there_are_items() -> None:
    made = features()
    for length in (3, 9, 30):
        items = torch.arange(length) % 4
        assert made.rows(items)["image"].tolist() == IMAGES[items].tolist()


def test_frozen_rows_stand_in_a_buffer_that_is_used_again() -> None:
    made = features()
    first = made.rows(torch.tensor([0, 1]))["image"]
    assert made.rows(torch.tensor([2]))["image"].data_ptr() == first.data_ptr()


def test_a_loss_on_joint_rows_leaves_its_gradient_in_the_table_and_none_in_rows_not_used() -> None:
    made = features(joint=True)
    (2 * made.rows(torch.tensor([3, 0, 3]))["image"]).sum().backward()
    gradient = made()["image"].grad
    assert gradient is not None
    assert gradient.sum(dim=1).tolist() == [6, 0, 0, 12]


def test_frozen_features_derive_once() -> None:
    made, calls = features(), []

    def normalized() -> Tensor:
        calls.append("computed")
        return torch.nn.functional.normalize(made()["image"], dim=1)

    first = made.derived("normalized", normalized)
    assert made.derived("normalized", normalized) is first
    assert made.derived("other", lambda: 7) == 7
    assert calls == ["computed"]


def test_joint_features_derive_at_each_call_so_that_gradient_flows() -> None:
    made = features(joint=True)
    for _ in range(2):
        made.derived("doubled", lambda: 2 * made()["image"]).sum().backward()
    gradient = made()["image"].grad
    assert gradient is not None
    assert gradient.unique().tolist() == [4]


def test_what_carries_no_gradient_derives_once_per_version_of_joint_features() -> None:
    made, calls = features(joint=True), []

    def nearest() -> Tensor:
        calls.append(made.version)
        return (made()["image"] @ made()["image"].T).argmax(dim=1)

    for _ in range(3):
        assert not made.derived("nearest", nearest, differentiable=False).requires_grad
    made.refresh("image", torch.tensor([0]), torch.tensor([[9.0, 9.0, 9.0]]))
    for _ in range(3):
        made.derived("nearest", nearest, differentiable=False)
    assert calls == [0, 1]


def test_the_rows_of_one_step_leave_what_carries_no_gradient_until_the_next_full_refresh() -> None:
    made = features(joint=True)
    largest = made.derived("largest", lambda: made()["image"].max(), differentiable=False)
    made.refresh("image", torch.tensor([0]), torch.full((1, 3), 99.0), partial=True)
    assert made()["image"][0].tolist() == [99.0] * 3
    assert made.derived("largest", lambda: made()["image"].max(), differentiable=False) is largest
    made.refresh("image", torch.tensor([1]), torch.zeros(1, 3))
    assert made.derived("largest", lambda: made()["image"].max(), differentiable=False) == 99


def test_a_refresh_is_seen_at_the_next_call_and_absent_items_stay_zero() -> None:
    made = features(joint=True)
    held = made()["image"]
    made.refresh("image", torch.tensor([1, 2]), torch.full((2, 3), 5.0))
    assert made()["image"].tolist() == [[0, 1, 2], [5, 5, 5], [0, 0, 0], [9, 10, 11]]
    assert made()["image"] is held  # the optimizer's and the model's leaf, not a new one
    assert held.requires_grad
    assert held.is_leaf
    assert made.version == 1


def test_joint_features_leave_the_tables_that_they_were_made_of_alone() -> None:
    tables = checkerboard_features(6)
    before = tables["image"].values.copy()
    made = ItemFeatures.from_tables(tables, joint=True)
    made.refresh("image", torch.arange(6), torch.ones(6, 5))
    assert tables["image"].values.tolist() == before.tolist()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("n", [1, 256, 600])
def test_a_projection_is_a_product_in_value_and_gradient(n: int, threads: int) -> None:
    torch.manual_seed(0)
    table, weight = (torch.randn(size, 9, dtype=torch.float64, requires_grad=True) for size in (n, 4))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours, theirs = project(table, weight), table @ weight.T
        torch.testing.assert_close(ours, theirs)
        upstream = torch.randn_like(ours)
        found = (torch.autograd.grad(out, (table, weight), upstream) for out in (ours, theirs))
        for mine, other in zip(*found, strict=True):
            torch.testing.assert_close(mine, other)
        constant = project(table.detach(), weight)
        torch.testing.assert_close(torch.autograd.grad(constant, weight, upstream)[0], upstream.T @ table)
    finally:
        torch.set_num_threads(before)


def test_distinct_ids_come_with_their_places_and_counts() -> None:
    ids = torch.tensor([5, 2, 5, 9, 5])
    found, place, counts = distinct(ids)
    assert place is not None
    assert counts is not None
    assert found[place].tolist() == ids.tolist()
    assert dict(zip(found.tolist(), counts.tolist(), strict=True)) == {2: 1, 5: 3, 9: 1}


def test_on_a_gpu_all_ids_are_kept_since_their_number_would_have_to_be_waited_for() -> None:
    ids = torch.empty(5, dtype=torch.long, device="meta")
    found, place, counts = distinct(ids)
    assert found is ids
    assert (place, counts) == (None, None)
