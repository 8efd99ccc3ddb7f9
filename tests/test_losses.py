"""The shared loss terms, on numbers that can be checked by hand."""

import math

import pytest
import torch

from mmrec_lmm.losses import batch_norms, bpr


def test_bpr_of_equal_scores_is_log_two_and_falls_as_the_positive_rises() -> None:
    assert bpr(torch.zeros(3), torch.zeros(3)).item() == pytest.approx(math.log(2))
    assert bpr(torch.tensor([math.log(3)]), torch.zeros(1)).item() == pytest.approx(math.log(4 / 3))


def test_bpr_stays_finite_where_the_sigmoid_underflows() -> None:
    assert bpr(torch.tensor([-1000.0]), torch.tensor([1000.0])).item() == pytest.approx(-math.log(1e-10))


def test_batch_norms_are_not_squared_and_are_divided_by_the_rows_of_the_batch() -> None:
    rows = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert batch_norms(rows).item() == pytest.approx(5 / 2)
    assert batch_norms(rows, rows, 2 * rows).item() == pytest.approx(20 / 2)
