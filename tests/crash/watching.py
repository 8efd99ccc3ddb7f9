"""Counts the calls with which a process changes files, by Python's audit events, and ends it at one of them.

Calls are the same if they come from the same line of our code, for paths that differ in numbers and hashes only.
"""

import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
OURS = tuple(f"{ROOT / package}{os.sep}" for package in ("mmrec_lmm", "data_tools", "plugins"))

#: Audit events of calls that change files: the places of the path and of its folder's descriptor in their arguments.
EVENTS = {
    "open": (0, None),
    "os.rename": (1, 3),
    "os.remove": (0, 1),
    "os.mkdir": (0, 2),
    "os.rmdir": (0, 1),
    "os.link": (1, 3),
    "os.symlink": (1, 2),
    "os.truncate": (0, None),
    "os.chmod": (0, 2),
    "os.utime": (0, 3),
    "shutil.rmtree": (0, None),
    "shutil.copyfile": (1, None),
    "safetensors.write": (0, None),  # these two of `audit_safetensors`
    "safetensors.written": (0, None),
}

#: Moments: before the call; after it; before it, when half of the file had been written that it renames. The last only
#: where the call before was the one that wrote this file.
When = Literal["before", "after", "half"]


class Call(NamedTuple):
    """A distinct call."""

    event: str
    site: str  # file:line of our code
    path: str  # within the workspace, with N for numbers and H for hashes

    def __str__(self) -> str:
        return f"{self.event} {self.path} at {self.site}"


@dataclass(frozen=True)
class Point:
    """A moment to end a process at: the `nth` call of its kind."""

    call: Call
    nth: int
    when: When = "before"
    signal: int = signal.SIGKILL

    def __str__(self) -> str:
        return f"{signal.Signals(self.signal).name} {self.when} call {self.nth} of {self.call}"


class Watch:
    """An audit hook for one process, which it ends at `point`. Of each call it keeps the count, and if it renames a
    file that the call before wrote."""

    def __init__(self, folder: Path, point: Point | None = None) -> None:
        self.folder, self.point = folder, point
        self.counts: Counter[Call] = Counter()
        self.renames_written: set[Call] = set()
        self._last = ""  # the path of the call before
        self._busy = False

    def start(self) -> None:
        """Watch this process until it ends."""
        sys.addaudithook(self._hook)

    def points(self) -> list[Point]:
        """Moments at the first and the last of each distinct call, in the order of the calls."""
        return [
            Point(call, nth, when)
            for call, count in self.counts.items()
            for nth in sorted({1, count})
            for when in ("before", "half", "after")
            if when != "half" or call in self.renames_written
        ]

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in EVENTS or self._busy:
            return
        self._busy = True
        try:
            path = self._path(event, args)
            if path is not None:
                self._called(Call(event, _site(), _pattern(path)), args)
                self._last = os.path.join(self.folder, path)
        finally:
            self._busy = False

    def _called(self, call: Call, args: tuple[Any, ...]) -> None:
        self.counts[call] += 1
        if call.event == "os.rename" and os.path.abspath(args[0]) == self._last and os.path.isfile(args[0]):
            self.renames_written.add(call)
        point = self.point
        if point is None or call != point.call or self.counts[call] != point.nth:
            return
        if point.when == "after":
            sys.setprofile(_kill_outside)
            return
        if point.when == "half":
            os.truncate(args[0], os.path.getsize(args[0]) // 2)
        os.kill(os.getpid(), point.signal)

    def _path(self, event: str, args: tuple[Any, ...]) -> str | None:
        """The path that a call changes, within the workspace; None if it is elsewhere, or only read."""
        if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return None
        place, descriptor = EVENTS[event]
        path = args[place]
        if isinstance(path, int):  # a descriptor: its opening was seen
            return None
        path = os.fsdecode(path)
        if descriptor is not None and args[descriptor] not in (-1, None):
            path = os.path.join(os.readlink(f"/proc/self/fd/{args[descriptor]}"), path)
        path = os.path.abspath(path)
        return os.path.relpath(path, self.folder) if path.startswith(f"{self.folder}{os.sep}") else None


def audit_safetensors() -> None:
    """Raise audit events before and after safetensors writes a file, which it does without Python's `open`."""
    import safetensors.numpy
    import safetensors.torch

    def audited(write: Callable[..., None]) -> Callable[..., None]:
        def serialize_file(tensors: Any, path: Any, **options: Any) -> None:
            sys.audit("safetensors.write", path)
            write(tensors, path, **options)
            sys.audit("safetensors.written", path)

        return serialize_file

    for module in (safetensors.numpy, safetensors.torch):
        vars(module)["serialize_file"] = audited(vars(module)["serialize_file"])


def _kill_outside(frame: FrameType, event: str, arg: object) -> None:
    """A profiler that kills the process as soon as the call that was seen has returned."""
    if frame.f_code.co_filename != __file__:
        os.kill(os.getpid(), signal.SIGKILL)


def _site() -> str:
    """file:line of the innermost frame of our code."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(OURS):
            return f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def _pattern(path: str) -> str:
    path = re.sub(r"\btmp/?[a-z0-9_]{8}$", "tmp/R", path)  # the names that Python's tempfile draws
    return re.sub(r"\d+", "N", re.sub(r"[0-9a-f]{8,}", "H", path))
