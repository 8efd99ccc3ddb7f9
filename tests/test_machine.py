"""What is asked of the machine under a run."""

import os
import platform
import subprocess
import sys

import pytest

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
