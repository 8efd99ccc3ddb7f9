"""Work shared by the processes that torchrun started: the part of each, and how they exchange tensors.

A batch is split by rows. Each process computes its share of the batch's loss. The shares sum to the loss that one
process would compute of the whole batch, and their gradients to its gradient. A loss that compares rows with the whole
batch gets it from `all_gather`; the gradient flows back through that to the process that owns a row.

Outside of torchrun, and outside of `sharing`, one process holds the whole batch, and everything here is the identity.

Another way: the first process alone runs the work, and the others compute parts of it. Each process holds a copy of an
object, and a call of a method marked `everywhere` is made in all. The first process works within `leading`; the others
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

#: How long a process waits for another. Long, because the first may prepare a catalog or train a recommender meanwhile;
#: a process that fails is noticed without it.
_PATIENCE = datetime.timedelta(days=7)
_sharing: ContextVar[bool] = ContextVar("sharing", default=False)
#: True while the first process is in a call that the others have begun too. It stays True after an error in the call.
_amid_call: ContextVar[bool] = ContextVar("amid_call", default=False)


def processes() -> int:
    """The number of processes that torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number among them, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first_process() -> bool:
    """True in the process of rank 0, which reports for all."""
    return rank() == 0


def join(device: torch.device) -> None:
    """Connect to the other processes, once: tensors on GPUs are exchanged over NCCL, all others over gloo. Processes
    that share a GPU have gloo alone, as NCCL wants a GPU for each."""
    if processes() > 1 and not dist.is_initialized():
        backend = "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)  # NCCL uses the current device
            if int(os.environ.get("LOCAL_WORLD_SIZE", processes())) <= torch.cuda.device_count():
                backend = "cpu:gloo,cuda:nccl"
        with _together():
            dist.init_process_group(backend, timeout=_PATIENCE)
        atexit.register(dist.destroy_process_group)


@contextlib.contextmanager
def sharing() -> Iterator[None]:
    """A context in which each process holds some rows of a batch, and all call `all_gather` and `all_reduce` alike."""
    token = _sharing.set(processes() > 1)
    try:
        yield
    finally:
        _sharing.reset(token)


def local_slice(count: int) -> slice:
    """This process's share of a batch of `count` rows; shares differ by at most one row, and the first are larger."""
    if not _sharing.get():
        return slice(0, count)
    each, more = divmod(count, processes())
    first = rank() * each + min(rank(), more)
    return slice(first, first + each + (rank() < more))


def all_gather(rows: Tensor) -> Tensor:
    """The whole batch (B, ...), in order and with gradient; `rows` (b, ...) are those of this process."""
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
    """A new generator with the same state in all processes, for random choices over a whole batch: masks, negatives.

    The state is drawn from the first process's default generator.
    """
    seeds = all_gather(torch.randint(2**62, (1,)))
    return torch.Generator(device).manual_seed(int(seeds[0]))


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its sum over all processes; a parameter without one in any process keeps none."""
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
    """The first process's `value`, in all processes, which wait for it; plain data, such as whether a file exists."""
    if processes() == 1:
        return value
    held: list[Any] = [value]
    with _together():
        dist.broadcast_object_list(held, src=0, device=torch.device("cpu"))
    received: _T = held[0]
    return received


def everywhere(method: Callable[Concatenate[_Self, _P], _T]) -> Callable[Concatenate[_Self, _P], _T]:
    """Make each call of `method` in the first process a call in all processes, each on its own copy of the object.

    Arguments are tensors, plain data, and mappings of names to these; the others get tensors on the CPU.
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
    """A context for the first process, in which the others, in `serve`, join its calls of methods marked `everywhere`.

    Leaving it ends `serve`, also after an error. Only an error within such a call doesn't, and becomes OutOfStep:
    the others are still in the call, and only the end of this process ends that.
    """
    join(device)
    try:
        yield
    except Exception as error:
        if _amid_call.get():
            raise OutOfStep(f"{error} (in a step that {processes()} processes share, so all end here)") from error
        raise
    finally:
        if processes() > 1 and not _amid_call.get():
            broadcast(None)


def serve(device: torch.device, build: Callable[[], object]) -> None:
    """Make the calls of the first process, while it is within `leading`, on the object that `build` returns. It is
    built at the first call."""
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
    """`values`, replaced in place by their sum over all processes."""
    with _together():
        dist.all_reduce(values)
    return values


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """A context that raises RunError if another process can't be reached: mostly because it failed, and said why."""
    try:
        yield
    except RuntimeError as error:
        raise RunError(
            f"process {rank()} of {processes()} has lost the connection to another, whose own message, if there is "
            f"one, says why; finished epochs are kept ({first_line(error)})"
        ) from None


class _Gather(torch.autograd.Function):
    """The rows of all processes. Backward: the sum of all processes' gradients for this process's rows."""

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
