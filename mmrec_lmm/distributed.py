"""Processes that torchrun started to share one work: what each takes of it, and how they exchange tensors.

A batch is split by rows. Each process computes its share of the batch's loss, and shares add up: to the loss that one
process would compute of the whole batch, as the sums of their gradients do to its gradient. A loss that compares rows
with all of the batch asks for them by `all_gather`, through which the gradient flows back to the process that owns a
row.

Outside of torchrun, and outside of `sharing`, one process holds the whole batch, and everything here is the identity.

Or the first process alone goes through the work, and others do parts of it: each holds a copy of an object, and calls
of its methods that are marked `everywhere` are made in all. The first process works within `leading`, where the others
are in `serve`.
"""

import atexit
import contextlib
import datetime
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import OutOfStep, RunError
from .formatting import first_line

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Self = TypeVar("_Self")

#: Of one process for the others. Long, as they may wait while the first prepares a catalog or trains a recommender;
#: a process that fails needs none, since its end is noticed.
_PATIENCE = datetime.timedelta(days=7)
_sharing: ContextVar[bool] = ContextVar("sharing", default=False)
#: Whether the first process is in a call that the others have begun too; an error leaves it true for good.
_amid_call: ContextVar[bool] = ContextVar("amid_call", default=False)


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
    """Meet the other processes, once: they exchange GPUs' tensors over NCCL, all others over gloo."""
    if processes() > 1 and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)  # NCCL takes the current one for its own
        with _together():
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
        atexit.register(dist.destroy_process_group)


@contextlib.contextmanager
def sharing() -> Iterator[None]:
    """Within it, each process holds its own rows of one batch, and all call `all_gather` and `all_reduce` in step."""
    token = _sharing.set(processes() > 1)
    try:
        yield
    finally:
        _sharing.reset(token)


def local_slice(count: int) -> slice:
    """This process' share of a batch of `count` rows: shares differ by a row at most, the first are the larger."""
    if not _sharing.get():
        return slice(0, count)
    each, more = divmod(count, processes())
    first = rank() * each + min(rank(), more)
    return slice(first, first + each + (rank() < more))


def all_gather(rows: Tensor) -> Tensor:
    """The whole batch (B, ...) of which this process holds the rows (b, ...), in order, with gradient."""
    if not _sharing.get():
        return rows
    found: Tensor = _Gather.apply(rows)
    return found


def all_reduce(values: Tensor) -> Tensor:
    """The sum of all processes' `values`, without gradient."""
    if not _sharing.get():
        return values
    return _sum(values.detach().clone())


def common_generator(device: torch.device) -> torch.Generator:
    """A new generator in the same state in all processes, for what is drawn of a whole batch: masks, negatives.

    The state is drawn from the first process' default generator.
    """
    seeds = all_gather(torch.randint(2**62, (1,)))
    return torch.Generator(device).manual_seed(int(seeds[0]))


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Give every process the sum of all processes' gradients; a parameter that got none anywhere keeps none."""
    if not _sharing.get():
        return
    holders = _sum(torch.tensor([int(parameter.grad is not None) for parameter in parameters]))
    trained = [parameter for parameter, some in zip(parameters, holders.tolist(), strict=True) if some]
    if not trained:
        return
    parts = [torch.zeros_like(each) if each.grad is None else each.grad for each in trained]
    flat = _sum(torch.cat([part.flatten() for part in parts]))
    for parameter, part in zip(trained, flat.split([part.numel() for part in parts]), strict=True):
        parameter.grad = part.view_as(parameter)


def broadcast(value: _T) -> _T:
    """What the first process gives for `value`, in all, which wait for it; plain data, as whether a file exists."""
    if processes() == 1:
        return value
    held: list[Any] = [value]
    with _together():
        dist.broadcast_object_list(held, src=0, device=torch.device("cpu"))
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
            broadcast((method.__name__, _on_cpu(args), _on_cpu(kwargs)))
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
            broadcast(None)


def serve(device: torch.device, build: Callable[[], object]) -> None:
    """Make the calls of the first process, as long as that is within `leading`, on what `build` gives; it is built for
    the first of them."""
    join(device)
    target = None
    while (asked := broadcast(None)) is not None:
        name, args, kwargs = asked
        target = target or build()
        getattr(target, name)(*args, **kwargs)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, Mapping):
        return {key: _on_cpu(each) for key, each in value.items()}
    return tuple(map(_on_cpu, value)) if isinstance(value, tuple) else value


def _sum(values: Tensor) -> Tensor:
    """`values`, in place the sum of all processes'."""
    with _together():
        dist.all_reduce(values)
    return values


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """RunError where the others can't be reached: most often since one has failed, and said why."""
    try:
        yield
    except RuntimeError as error:
        raise RunError(
            f"process {rank()} of the {processes()} that share this work has lost another, whose own message, if there "
            f"is one, says why; finished epochs are kept ({first_line(error)})"
        ) from None


class _Gather(torch.autograd.Function):
    """Rows of all processes. Backward: the sum of what all processes send back for one's own."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        counts = _sum(torch.tensor([len(rows) * (number == rank()) for number in range(processes())])).tolist()
        padded = torch.cat([rows, rows.new_zeros(max(counts) - len(rows), *rows.shape[1:])])
        parts = [torch.empty_like(padded) for _ in counts]
        with _together():
            dist.all_gather(parts, padded)
        first = sum(counts[: rank()])
        ctx.own = slice(first, first + len(rows))
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        own: Tensor = _sum(gradient.clone(memory_format=torch.contiguous_format))[ctx.own]
        return own
