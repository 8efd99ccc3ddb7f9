"""A process's peak of resident memory. It imports no torch: what that takes is measured with it."""

import resource
import sys
from pathlib import Path


def peak_bytes() -> int:
    """The most that this process ever had resident.

    On Linux from the process's own high-water mark: `ru_maxrss` starts there at what the parent had at the fork.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) << 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


if __name__ == "__main__":
    import torch  # noqa: F401

    print(peak_bytes())
