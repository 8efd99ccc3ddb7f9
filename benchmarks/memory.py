"""A process's peak of resident memory. Without torch, since this measures what importing torch takes."""

import resource
import sys
from pathlib import Path


def peak_bytes() -> int:
    """The peak of this process's resident memory, in bytes.

    On Linux it is read from /proc: `ru_maxrss` there starts at the parent's size when it forked.
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
