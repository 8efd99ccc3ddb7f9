"""The machine under a run: its device, and how much memory was used."""

import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from .config.settings import Settings
from .errors import ConfigError
from .formatting import first_line

TORCH_THREADS = torch.get_num_threads()  # what torch chose for this machine, before any run changed it


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


def forget_peak_memory(device: torch.device) -> None:
    """Restart the measurement of `peak_memory`, if the system can: one process may do many runs."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # another C library, or no permission
            ctypes.CDLL(None).malloc_trim(0)  # memory that keep_freed_memory retains isn't the next run's
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """The most memory, in bytes, that this process has held since `forget_peak_memory`: GPU memory on a GPU, else
    resident memory. If the system can't restart the measurement, it covers the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
