"""The machine under a run: its device, what is chosen by it, and how much memory was used."""

import ctypes
import math
import os
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .config.settings import Settings
from .errors import ConfigError
from .formatting import first_line

TORCH_THREADS = torch.get_num_threads()  # what torch chose for this machine, before any run changed it

_libraries = 0  # bytes of files, such as libraries, that the process had in memory that this one was forked from


def cpu_threads(settings: Settings) -> int:
    """The number of CPU threads that a run computes with."""
    return settings.threads or TORCH_THREADS


def keep_freed_memory() -> None:
    """Let the C library keep the memory that tensors free, for the tensors after them.

    By default glibc gives blocks of some MB back to the system at once, and each new tensor then pays for fresh pages:
    up to half of a graph model's step. Settings in the environment (MALLOC_...) take precedence; a C library other than
    glibc is left as it is. The process never holds more than its peak, which holes between blocks may raise a little.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-1, 2**30)  # M_TRIM_THRESHOLD: free bytes at the heap's end before any go back
        mallopt(-4, 0)  # M_MMAP_MAX: no block, however large, gets a mapping of its own, which would go back


@contextmanager
def precision(device: torch.device, dtype: str) -> Iterator[None]:
    """A context with arithmetic in `dtype`, by autocast unless that is float32. float32 has full precision here:
    by default a GPU would round the inputs of convolutions to 10 bits."""
    autocast = torch.autocast(device.type, dtype=getattr(torch, dtype), enabled=dtype != "float32")
    with autocast, torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def choose_device(settings: Settings) -> torch.device:
    """The device of `--device`. "auto" is CUDA where there is one, else the CPU. MPS is untested, so only on request.

    Of the processes that torchrun started, each gets a GPU of its own while there are enough.
    """
    name, own = settings.device, os.environ.get("LOCAL_RANK")
    if name == "auto":
        name = f"cuda:{settings.gpu_id}" if settings.use_gpu and torch.cuda.is_available() else "cpu"
    if own is not None and name != "cpu" and settings.device in ("auto", "cuda"):
        name = f"cuda:{int(own) % max(1, torch.cuda.device_count())}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device: expected one of this machine, got {settings.device} ({first_line(error)}); try one "
            "that `doctor` lists"
        ) from None
    torch.backends.cudnn.allow_tf32 = False  # no rounding in backward passes either (see `precision`)
    return device


def loader_processes(settings: Settings, device: torch.device) -> int:
    """The number of processes that prepare items for an encoder on `device`.

    A CPU takes longer to encode an item than to prepare it. A GPU doesn't, so it gets the cores that are left, at most
    eight; processes of torchrun share them.
    """
    if settings.workers is not None:
        return settings.workers
    if device.type != "cuda":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(8, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))


def encode_batch(settings: Settings, device: torch.device) -> int:
    """The number of items that an encoder takes at once on `device`."""
    return settings.encode_batch_size or (256 if device.type == "cuda" else 64)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`. A copy to a GPU starts from page-locked memory, and the host doesn't wait for it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def forget_peak_memory(device: torch.device) -> None:
    """Restart the measurement of `peak_memory`, if the system can: one process may do many runs."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # another C library, or no permission
            ctypes.CDLL(None).malloc_trim(0)  # memory that keep_freed_memory retains isn't the next run's
            Path("/proc/self/clear_refs").write_text("5")


class OneAllocation(TorchFunctionMode):
    """A context in which torch's constructors (`torch.empty`, `zeros`, ...) refuse a tensor that can't fit into memory.

    Linux would promise the memory, and kill the process when it is used.

    Raises ConfigError, which begins with `owner`.
    """

    def __init__(self, owner: str) -> None:
        super().__init__()
        self._owner = owner

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _CONSTRUCTORS:
            self._check(kwargs.get("size", args[0] if args and isinstance(args[0], list | tuple) else args), kwargs)
        return func(*args, **kwargs)

    def _check(self, size: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        shape = [length for length in size if isinstance(length, int)]
        dtype = kwargs.get("dtype") or torch.get_default_dtype()
        size_of_one = getattr(dtype, "itemsize", 1 if dtype is bool else 8)  # torch takes Python's types, too
        needed = math.prod(shape) * size_of_one
        if needed < _NEVER_TOO_LARGE or kwargs.get("device") not in (None, "cpu", torch.device("cpu")):
            return
        free = available_memory()
        if free is not None and needed > free:
            raise ConfigError(
                f"{self._owner}: expected tensors of at most {free / 1e9:,.1f} GB, the free memory, got one of "
                f"{needed / 1e9:,.1f} GB, {' x '.join(f'{length:,}' for length in shape)}; try smaller sizes"
            )


_CONSTRUCTORS = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn})
_NEVER_TOO_LARGE = 2**27  # bytes: smaller tensors aren't looked at


def available_memory() -> int | None:
    """Bytes that this process can still use at most, by the system and the limit of a container; None if unknown."""
    found = []
    with suppress(OSError, KeyError, ValueError):
        lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
        sizes = {words[0]: int(words[1]) * 1024 for words in lines}
        found.append(sizes["MemAvailable:"] + sizes["SwapFree:"])
    with suppress(OSError, ValueError):  # "max" is no limit
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(found, default=None)


def peak_memory(device: torch.device) -> int:
    """The most memory, in bytes, that this process has held since `forget_peak_memory`: GPU memory on a GPU, else
    resident memory. If the system can't restart the measurement, it covers the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, StopIteration):
        return _status("VmHWM") + max(0, _libraries - _status("RssFile"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def share_libraries_of(pid: int) -> None:
    """Let `peak_memory` count the libraries of the process that this one was forked from.

    They aren't resident here before they are used; counted, a run has the same peak however its process was started.
    """
    global _libraries
    with suppress(OSError, StopIteration):
        _libraries = _status("RssFile", pid)


def _status(field: str, pid: int | str = "self") -> int:
    """Bytes of a field of a process's status, on Linux."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) * 1024
