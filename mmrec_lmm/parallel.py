"""Processes that torchrun started to share one work: what each takes of it, and how they exchange tensors.

A batch is split by rows. Each process computes its share of the batch's loss, and shares add up: to the loss that one
process would compute of the whole batch, as the sums of their gradients do to its gradient. A loss that compares rows
with all of the batch asks for them by `gathered`, through which the gradient flows back to the process that owns a row.

Outside of torchrun, and outside of `sharing`, one process holds the whole batch, and everything here is the identity.

Or the first process alone goes through the work, and others do parts of it: each holds a copy of an object, and calls
of its methods that are marked `everywhere` are made in all. The first process works within `leading`, where the others
are in `serve`.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import MMRecError

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Self = TypeVar("_Self")

_sharing: ContextVar[bool] = ContextVar("sharing", default=False)
_amid_call: ContextVar[bool] = ContextVar("amid_call", default=False)

#: How long a process waits for the others, one of which may train for hours by itself. A dead one is noticed at once.
_PATIENCE = timedelta(days=30)


class OutOfStep(MMRecError):
    """The first process failed in a call that others have begun too: they can't be told to go on to something else."""


def processes() -> int:
    """How many processes torchrun started to share a work; 1 where it didn't."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this one is, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first_process() -> bool:
    """Whether this one of them is to speak for all."""
    return rank() == 0


def join(device: torch.device) -> None:
    """Meet the other processes, once: over NCCL for what is on GPUs, over gloo for all else."""
    if processes() > 1 and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)


@contextlib.contextmanager
def sharing() -> Iterator[None]:
    """Within it, each process holds its own rows of one batch, and all call `gathered` and `summed` in step."""
    token = _sharing.set(processes() > 1)
    try:
        yield
    finally:
        _sharing.reset(token)


def own_rows(count: int) -> slice:
    """This process' share of a batch of `count` rows: shares differ by a row at most, the first are the larger."""
    if not _sharing.get():
        return slice(0, count)
    return _share(count, rank())


def gathered(rows: Tensor) -> Tensor:
    """The whole batch (B, ...) of which this process holds the rows (b, ...), in order, with gradient."""
    if not _sharing.get():
        return rows
    found: Tensor = _Gather.apply(rows)
    return found


def summed(values: Tensor) -> Tensor:
    """The sum of all processes' `values`, without gradient."""
    if not _sharing.get():
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Give every process the sum of all processes' gradients; a parameter that got none anywhere keeps none."""
    if not _sharing.get():
        return
    got = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.float32)
    got = got.to(parameters[0].device)
    dist.all_reduce(got)
    trained = [parameter for parameter, some in zip(parameters, got.tolist(), strict=True) if some]
    parts = [torch.zeros_like(each) if each.grad is None else each.grad for each in trained]
    if not parts:
        return
    flat = torch.cat([part.flatten() for part in parts])
    dist.all_reduce(flat)
    for parameter, part in zip(trained, flat.split([part.numel() for part in parts]), strict=True):
        parameter.grad = part.view_as(parameter)


def told(value: _T, *, source: int = 0) -> _T:
    """What process `source` gives for `value` (picklable plain data, such as whether a file exists), in all."""
    if processes() == 1:
        return value
    held: list[Any] = [value]
    dist.broadcast_object_list(held, src=source)
    said: _T = held[0]
    return said


def everywhere(method: Callable[Concatenate[_Self, _P], _T]) -> Callable[Concatenate[_Self, _P], _T]:
    """Have a call of `method` that the first process makes be made by all, each on its own copy of the object.

    Arguments are tensors, plain data, and mappings to these by name; tensors reach the others on the CPU.
    """

    @functools.wraps(method)
    def call(self: _Self, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        if processes() > 1 and is_first_process():
            _amid_call.set(True)
            told((method.__name__, _on_cpu(args), _on_cpu(kwargs)))
        result = method(self, *args, **kwargs)
        _amid_call.set(False)
        return result

    return call


@contextlib.contextmanager
def leading(device: torch.device) -> Iterator[None]:
    """Within it, the first process' calls of what is marked `everywhere` find the others in `serve`, which returns when
    it ends, be it by an error. One in the midst of such a call becomes OutOfStep: then nothing but the end of this
    process ends the call of the others."""
    join(device)
    try:
        yield
    except Exception as error:
        if _amid_call.get():
            raise OutOfStep(f"{error} (in what {processes()} processes do together, so that all end here)") from error
        raise
    finally:
        if processes() > 1 and not _amid_call.get():
            told(None)


def serve(device: torch.device, build: Callable[[], object]) -> None:
    """Make the calls of the first process, as long as that is within `leading`, on what `build` gives; it is built for
    the first of them."""
    join(device)
    target = None
    while (asked := told(None)) is not None:
        name, args, kwargs = asked
        target = target or build()
        getattr(target, name)(*args, **kwargs)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, Mapping):
        return {key: _on_cpu(each) for key, each in value.items()}
    return tuple(map(_on_cpu, value)) if isinstance(value, tuple) else value


def _share(count: int, number: int) -> slice:
    each, more = divmod(count, processes())
    first = number * each + min(number, more)
    return slice(first, first + each + (number < more))


class _Gather(torch.autograd.Function):
    """Rows of all processes. Backward: the sum of what all processes send back for one's own."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        counts = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(processes())]
        dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
        sizes = [int(count) for count in counts]
        longest = max(sizes)
        padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])]).contiguous()
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        first = sum(sizes[: rank()])
        ctx.own = slice(first, first + len(rows))
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        own: Tensor = total[ctx.own]
        return own
