"""What is asked of the machine under a run."""

import os
import platform
import subprocess
import sys
from typing import Any, ClassVar

import pytest
import torch

from mmrec_lmm.config.settings import Settings
from mmrec_lmm.machine import encode_batch, loader_processes, to_device

FAULTS = """
import resource, torch
from mmrec_lmm.machine import keep_freed_memory
keep_freed_memory()
for _ in range(21):  # the first ones fetch pages, those after them find them
    torch.ones(2**24)  # 64 MB: 16,384 pages, and more than the largest threshold of glibc
    if _ == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment: str) -> int:
    own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env=own | environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc keeps its own ways")
def test_tensors_find_the_memory_of_those_before_them_unless_the_environment_says_otherwise() -> None:
    assert faults() < 2000
    assert faults(MALLOC_TRIM_THRESHOLD_="100000", MALLOC_MMAP_THRESHOLD_="100000") > 9 * 16_000


PEAKS = """
import torch
from mmrec_lmm.machine import forget_peak_memory, keep_freed_memory, peak_memory
keep_freed_memory()
device = torch.device("cpu")
large = [torch.ones(2**20) for _ in range(75)]  # 4 MB each, which the C library keeps when they are freed
first = peak_memory(device)
del large
forget_peak_memory(device)
torch.ones(2**22)
print(first, peak_memory(device))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only Linux forgets a peak")
def test_the_peak_of_a_run_is_not_that_of_the_run_before_it_in_the_same_process() -> None:
    done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True)
    first, second = map(int, done.stdout.split())
    assert 200e6 < first - second < 300e6


FORKED = """
import os, sys, torch
from mmrec_lmm.machine import forget_peak_memory, peak_memory, share_libraries_of
device = torch.device("cpu")
if not os.fork():
    forget_peak_memory(device)
    before = peak_memory(device)
    share_libraries_of(os.getppid())
    print(before, peak_memory(device), flush=True)
    os._exit(0)
os.wait()
print(peak_memory(device))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")
def test_a_forked_process_counts_the_libraries_that_it_shares() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=True)
    alone, shared, whole = map(int, done.stdout.split())
    assert 0.8 * whole < shared < 1.2 * whole
    assert alone <= shared


# What depends on the device

CPU, GPU = torch.device("cpu"), torch.device("cuda:1")


def test_a_gpu_gets_larger_batches_and_the_cores_that_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (encode_batch(Settings(), CPU), encode_batch(Settings(), GPU)) == (64, 256)
    assert loader_processes(Settings(), CPU) == 0
    for cores, together, processes in ((1, 1, 0), (4, 1, 3), (16, 1, 8), (16, 2, 7), (2, 4, 0)):
        monkeypatch.setattr("os.sched_getaffinity", lambda pid, cores=cores: range(cores), raising=False)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(together))
        assert loader_processes(Settings(), GPU) == processes


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_what_the_user_sets_holds_on_any_device(device: torch.device) -> None:
    settings = Settings(workers=0, encode_batch_size=7)
    assert (loader_processes(settings, device), encode_batch(settings, device)) == (0, 7)


class Watched(torch.Tensor):
    """A tensor that notes how it is moved, as no GPU is here."""

    moves: ClassVar[list[Any]] = []

    def pin_memory(self) -> "Watched":  # type: ignore[override]
        Watched.moves.append("pin")
        return self

    def to(self, device: torch.device, **more: Any) -> "Watched":  # type: ignore[override]
        Watched.moves.append((device, more))
        return self


def test_a_copy_to_a_gpu_starts_in_page_locked_memory_and_is_not_waited_for() -> None:
    Watched.moves.clear()
    tensor = torch.ones(2).as_subclass(Watched)
    to_device(tensor, GPU)
    assert Watched.moves == ["pin", (GPU, {"non_blocking": True})]
    assert to_device(plain := torch.ones(2), CPU) is plain
