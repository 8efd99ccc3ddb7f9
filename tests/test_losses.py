"""The shared loss terms, on numbers that can be checked by hand."""

import math

import pytest
import torch

from mmrec_lmm.losses import _block_rows, batch_norms, bpr, contrastive_scale, info_nce, symmetric_info_nce


def test_bpr_of_equal_scores_is_log_two_and_falls_as_the_positive_rises() -> None:
    assert bpr(torch.zeros(3), torch.zeros(3)).item() == pytest.approx(math.log(2))
    assert bpr(torch.tensor([math.log(3)]), torch.zeros(1)).item() == pytest.approx(math.log(4 / 3))


def test_bpr_stays_finite_where_the_sigmoid_underflows() -> None:
    assert bpr(torch.tensor([-1000.0]), torch.tensor([1000.0])).item() == pytest.approx(-math.log(1e-10))


def test_batch_norms_are_not_squared_and_are_divided_by_the_rows_of_the_batch() -> None:
    rows = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert batch_norms(rows).item() == pytest.approx(5 / 2)
    assert batch_norms(rows, rows, 2 * rows).item() == pytest.approx(20 / 2)


def test_bpr_without_gamma_is_the_logarithm_of_the_sigmoid_however_far_down() -> None:
    assert bpr(torch.tensor([math.log(3)]), torch.zeros(1), gamma=0).item() == pytest.approx(math.log(4 / 3))
    assert bpr(torch.tensor([-1000.0]), torch.tensor([1000.0]), gamma=0).item() == pytest.approx(2000)


def test_info_nce_by_hand() -> None:
    """Anchor 0 likes its own candidate by ln 3, anchor 1 finds both equal."""
    anchors, candidates = torch.tensor([[math.log(3)], [0.0]]), torch.tensor([[1.0], [0.0]])
    expected = (math.log(4 / 3) + math.log(2)) / 2
    assert info_nce(anchors, candidates, temperature=1.0).item() == pytest.approx(expected)
    assert info_nce(anchors / 10, candidates, temperature=0.1).item() == pytest.approx(expected)
    assert info_nce(1e4 * anchors[:1], candidates[:1], temperature=1.0).item() == 0  # a batch of one has no negative


@pytest.mark.parametrize(("n", "more"), [(1, 0), (7, 0), (300, 0), (300, 123)])  # 256 rows are a block
def test_info_nce_is_a_cross_entropy_in_value_and_gradient(n: int, more: int) -> None:
    torch.manual_seed(0)
    ours = [torch.randn(size, 5, dtype=torch.float64, requires_grad=True) for size in (n, n + more)]
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    loss = info_nce(*ours, temperature=0.3)
    expected = torch.nn.functional.cross_entropy(theirs[0] @ theirs[1].T / 0.3, torch.arange(n))
    (2 * loss).backward()
    (2 * expected).backward()
    assert loss.item() == pytest.approx(expected.item())
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_info_nce_of_trained_logits_is_a_cross_entropy_too() -> None:
    """Products of vectors that aren't normalized: most logits are hundreds below the largest, where exp is denormal."""
    torch.manual_seed(0)
    ours = [(10 * torch.randn(300, 8)).requires_grad_() for _ in range(2)]
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    loss = info_nce(*ours, temperature=1.0)
    expected = torch.nn.functional.cross_entropy(theirs[0] @ theirs[1].T, torch.arange(300))
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item())
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_rows_given_once_with_their_counts_are_worth_the_repeated_rows() -> None:
    torch.manual_seed(0)
    ids = torch.randint(400, (600,)).sort().values
    _, place, counts = ids.unique(return_inverse=True, return_counts=True)
    assert counts.max() > 2
    once = [torch.randn(len(counts), 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    users = torch.randn(len(ids), 5, dtype=torch.float64, requires_grad=True)
    often = [rows[place] for rows in once]
    expected = info_nce(*often, temperature=0.3) + info_nce(users, often[1], temperature=0.3)
    reference = torch.autograd.grad(expected, [*once, users])
    loss = info_nce(*once, temperature=0.3, repeats=counts, counts=counts)
    loss = loss + info_nce(users, once[1], temperature=0.3, positives=place, counts=counts)
    assert loss.item() == pytest.approx(expected.item())
    for mine, other in zip(torch.autograd.grad(loss, [*once, users]), reference, strict=True):
        torch.testing.assert_close(mine, other)


def test_a_gpu_compares_a_batch_in_one_block_while_it_is_small_enough() -> None:
    candidates = torch.empty(2048, 64, device="meta")
    assert _block_rows(candidates) >= len(candidates)
    assert _block_rows(torch.empty(2**24, 64, device="meta")) * 2**24 * 4 <= 2**28
    assert _block_rows(torch.empty(2048, 64)) < 2048


def test_contrastive_logits_are_not_rounded_under_autocast() -> None:
    rows = torch.nn.functional.normalize(torch.randn(2, 32, 16, generator=torch.Generator().manual_seed(0)), dim=2)
    exact = symmetric_info_nce(*rows, scale=torch.tensor(100.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(symmetric_info_nce(*rows, scale=torch.tensor(100.0)), exact)
        assert symmetric_info_nce(*rows.bfloat16(), scale=torch.tensor(100.0)).dtype == torch.float32
    assert symmetric_info_nce(*rows.double(), scale=torch.tensor(100.0)).dtype == torch.float64


@pytest.mark.parametrize(("start", "least", "expected"), [(1.0, None, math.e), (9.0, 0, 100.0), (-1.0, 0, 1.0)])
def test_a_learned_scale_is_brought_within_its_bounds_and_keeps_its_gradient(
    start: float, least: float | None, expected: float
) -> None:
    log_scale = torch.nn.Parameter(torch.tensor(start))
    scale = contrastive_scale(log_scale, least=least)
    scale.backward()
    assert scale.item() == pytest.approx(expected, rel=1e-6)
    assert log_scale.exp().item() == scale.item()
    assert log_scale.grad == scale
