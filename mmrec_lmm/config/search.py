"""Random search: as many points of every model's space, drawn instead of a grid's product.

A space has a list of values or a range for each key. Each key has a stream of its own, whose seed is the search's, the
model and the key, so more trials keep the first ones, and a new key leaves the others' values alone. Points are drawn
before any run starts, and see no result.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigValueError
from ..typed_json import plain

LINEAR, LOGARITHMIC = "linear", "log"
SCALES = (LINEAR, LOGARITHMIC)
DIGITS = 4  # significant ones of a number that is drawn
MISSES = 1000  # draws in a row that repeat a point before a space counts as too small


@dataclass(frozen=True)
class Search:
    """A random search of `trials` points. `scales` has the keys that are ranges, whose two values are the ends."""

    trials: int
    seed: int
    scales: Mapping[str, str]


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; `whole` ones for a key of type int."""

    low: float
    high: float
    scale: str
    whole: bool

    @property
    def size(self) -> float:
        return self.high - self.low + 1 if self.whole else math.inf

    def value(self, share: float) -> float:
        """The number at a share from 0 to 1 of the range."""
        half = 0.5 if self.whole else 0.0  # both ends then come as often as other numbers
        low, high = self.low - half, self.high + half
        if self.scale == LOGARITHMIC:
            number = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            number = low + share * (high - low)
        number = min(max(number, self.low), self.high)
        return round(number) if self.whole else min(max(float(f"{number:.{DIGITS}g}"), self.low), self.high)


Values = Sequence[Any] | Range


def make_range(key: str, ends: Sequence[Any], hint_is_whole: bool | None, scale: str) -> Range:
    """The range between two values of a key. ConfigValueError if there is none; `hint_is_whole` is None for a key that
    takes no numbers."""
    if hint_is_whole is None:
        raise ConfigValueError(key, "expected a list of values, got a range, which is for numbers")
    numbers = [one for one in ends if isinstance(one, int | float) and not isinstance(one, bool)]
    if len(numbers) != 2 or not numbers[0] < numbers[1] or math.isinf(numbers[1]):
        got = " to ".join(map(str, ends if len(ends) == 2 else [*ends, *ends]))
        raise ConfigValueError(key, f"expected a range from a number to a larger one, got {got}")
    low, high = numbers
    if scale == LOGARITHMIC and not low > 0:
        raise ConfigValueError(key, f"expected a range from above 0 for scale: log, got {low}; try scale: linear")
    return Range(low, high, scale, hint_is_whole)


def draw(space: Mapping[str, Values], search: Search, model: str) -> list[dict[str, Any]]:
    """As many different points as there are trials. ConfigValueError (of `trials`) if the space has fewer."""
    size = math.prod(values.size if isinstance(values, Range) else len(values) for values in space.values())
    if search.trials > size:
        raise ConfigValueError(
            "trials", f"expected at most {size:,.0f} for {model}, whose grid has so many points, got {search.trials:,}"
        )
    streams = {key: random.Random(f"{search.seed} {model} {key}") for key in space}
    points: dict[str, dict[str, Any]] = {}
    misses, most = 0, max(MISSES, 20 * search.trials)
    while len(points) < search.trials:
        point = {key: _drawn(values, streams[key].random()) for key, values in space.items()}
        misses = misses + 1 if points.setdefault(repr(plain(point)), point) is not point else 0
        if misses > most:
            raise ConfigValueError(
                "trials",
                f"expected a grid of {model} with {search.trials:,} points that differ in {DIGITS} digits, got "
                f"{len(points):,}; try wider ranges",
            )
    return list(points.values())


def _drawn(values: Values, share: float) -> Any:
    return values.value(share) if isinstance(values, Range) else values[int(share * len(values))]
