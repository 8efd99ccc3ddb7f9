"""What processes share: shares of a batch add up to the whole, in value and gradient, and nobody waits for the dead."""

import pytest
import torch
from helpers import finish, start_together
from torch import nn

from mmrec_lmm import distributed
from mmrec_lmm.distributed import (
    all_gather,
    all_reduce,
    broadcast,
    common_generator,
    local_slice,
    sharing,
    sum_gradients,
)

# Seven rows on two processes: 4 and 3. Each compares its results with those of the whole, made without sharing.
TOGETHER = """
import torch
from torch import nn
from mmrec_lmm.losses import sigmoid_loss, symmetric_info_nce
from mmrec_lmm.distributed import *

join(torch.device("cpu"))
torch.manual_seed(0)
inputs = torch.randn(2, 7, 5, dtype=torch.float64)
weights = [nn.Parameter(torch.randn(5, 4, dtype=torch.float64)) for _ in range(4)]
scale, bias, of_one, of_none = (nn.Parameter(torch.tensor(x, dtype=torch.float64)) for x in (3.0, -1.0, 2.0, 5.0))
parameters = [*weights, scale, bias, of_one, of_none]


def losses(rows):
    first, second, third, fourth = (inputs[at % 2][rows] @ weight for at, weight in enumerate(weights))
    return torch.stack([
        symmetric_info_nce(first, second, scale=scale),
        sigmoid_loss(third, fourth, scale=scale, bias=bias),
        3 * of_one if rank() == 0 or rows == slice(None) else torch.zeros((), dtype=torch.float64),
    ])


whole = losses(slice(None))
expected = torch.autograd.grad(whole.sum(), parameters, allow_unused=True)
with sharing():
    share = losses(local_slice(7))
    share.sum().backward()
    torch.testing.assert_close(all_reduce(share), whole.detach(), atol=1e-12, rtol=0)
    sum_gradients(parameters)
    torch.manual_seed(rank())
    draws = torch.rand(1, 3, generator=common_generator(torch.device("cpu")))
    assert torch.equal(all_gather(draws), draws.expand(2, 3))
for parameter, gradient in zip(parameters, expected):
    if gradient is None:
        assert parameter.grad is None
    else:
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-12, rtol=0)
assert broadcast(["a", rank()]) == ["a", 0]
print("alike", rank())
"""
FAILING = """
import torch
from mmrec_lmm.errors import RunError
from mmrec_lmm.distributed import *

join(torch.device("cpu"))
if rank() == 1:
    raise SystemExit("broken")
rows = torch.ones(2, requires_grad=True)
with sharing():
    try:
        all_gather(rows)
    except RunError as error:
        raise SystemExit(str(error))
"""


def test_shares_of_losses_and_gradients_add_up_to_those_of_the_whole_batch() -> None:
    answers = finish(start_together("-c", TOGETHER))
    assert [answer.out for answer in answers] == ["alike 0\n", "alike 1\n"], answers


@pytest.mark.slow
def test_a_process_that_waits_for_one_that_failed_ends_and_says_so() -> None:
    waiting, failed = finish(start_together("-c", FAILING))
    assert failed.err == "broken\n"
    assert "process 0 of 2 has lost the connection to another, whose own message" in waiting.err
    assert waiting.code == 1


def test_one_process_holds_the_whole_batch_and_exchanges_nothing() -> None:
    rows = torch.ones(3, 2)
    with sharing():
        assert all_gather(rows) is rows
        assert all_reduce(rows) is rows
        assert local_slice(3) == slice(0, 3)
        sum_gradients([nn.Parameter(rows)])
    assert broadcast("so") == "so"


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [0, 1, 7, 8, 64])
def test_shares_follow_each_other_and_differ_by_a_row_at_most(
    count: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(count))
    shares = []
    for number in range(count):
        monkeypatch.setenv("RANK", str(number))
        assert local_slice(rows) == slice(0, rows)  # outside of a shared work
        with sharing():
            shares.append(local_slice(rows))
    assert [share.start for share in shares] == [0, *(share.stop for share in shares[:-1])]
    assert shares[-1].stop == rows
    sizes = [share.stop - share.start for share in shares]
    assert sorted(sizes, reverse=True) == sizes
    assert sizes[0] - sizes[-1] <= 1


def test_a_common_generator_goes_on_from_the_default_one() -> None:
    def draws() -> list[torch.Tensor]:
        torch.manual_seed(4)
        return [torch.rand(2, generator=common_generator(torch.device("cpu"))) for _ in range(2)]

    first, second = draws()
    assert not torch.equal(first, second)
    assert torch.equal(torch.stack(draws()), torch.stack([first, second]))


@pytest.mark.parametrize(("gpus", "backend"), [(0, "gloo"), (1, "gloo"), (2, "cpu:gloo,cuda:nccl")])
def test_processes_that_share_a_gpu_meet_over_gloo(gpus: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    chosen = []
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("torch.cuda.set_device", lambda device: None)
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda backend, **more: chosen.append(backend))
    monkeypatch.setattr(distributed.atexit, "register", lambda work: None)
    distributed.join(torch.device("cuda:0" if gpus else "cpu"))
    assert chosen == [backend]
