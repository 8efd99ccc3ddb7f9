"""The seconds that parts of a training take in turn, measured without making a GPU wait."""

import time
from collections.abc import Callable
from itertools import pairwise

import torch


class PartClock:
    """Books the time since the last call under a part's name; parts add up to the time from `start` to the last `lap`.

    On a CUDA GPU a call records an event on the current stream, and seconds are those between events as the GPU reached
    them: work of the host counts where the GPU waited for it, and not where the GPU was busy meanwhile. Elsewhere they
    are those of the host's clock. Until it is started nothing is measured.
    """

    def __init__(self, device: torch.device) -> None:
        self._now: Callable[[], float | torch.cuda.Event] = time.perf_counter
        if device.type == "cuda":
            self._now = lambda: _recorded(device)
        self._laps: list[tuple[str, float | torch.cuda.Event]] = []  # each part's name, and when it ended

    def start(self) -> None:
        """Begin; what wasn't taken is forgotten."""
        self._laps = [("", self._now())]

    def lap(self, part: str) -> None:
        """The time since the last call was that of `part`."""
        if self._laps:
            self._laps.append((part, self._now()))

    def take(self) -> dict[str, float]:
        """The seconds by part since `start`, and stop. On a GPU the host waits for the last of them."""
        laps, self._laps = self._laps, []
        seconds: dict[str, float] = {}
        for (_, before), (part, now) in pairwise(laps):
            seconds[part] = seconds.get(part, 0.0) + _between(before, now)
        return seconds


def _recorded(device: torch.device) -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _between(before: float | torch.cuda.Event, now: float | torch.cuda.Event) -> float:
    if isinstance(before, torch.cuda.Event) and isinstance(now, torch.cuda.Event):
        now.synchronize()
        return before.elapsed_time(now) / 1000  # it is in milliseconds
    assert isinstance(before, float)
    assert isinstance(now, float)
    return now - before
