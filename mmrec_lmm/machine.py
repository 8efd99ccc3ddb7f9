"""The machine under a run: its device, and how much memory was used."""

import resource
import sys

import torch

from .errors import ConfigError
from .settings import Settings

TORCH_THREADS = torch.get_num_threads()  # what torch chose for this machine, before any run changed it


def cpu_threads(settings: Settings) -> int:
    """The number of CPU threads that a run computes with."""
    return settings.threads or TORCH_THREADS


def choose_device(settings: Settings) -> torch.device:
    """The device of `--device`. "auto" is CUDA where there is one, else the CPU: MPS only on request, as untested."""
    if settings.device == "auto":
        cuda = settings.use_gpu and torch.cuda.is_available()
        return torch.device("cuda", settings.gpu_id) if cuda else torch.device("cpu")
    try:
        device = torch.device(settings.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device {settings.device} can't be used here: {reason}; `doctor` lists the devices"
        ) from None
    return device


def peak_memory(device: torch.device) -> int:
    """The most memory that this process has held, in bytes: on the GPU if it used one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
