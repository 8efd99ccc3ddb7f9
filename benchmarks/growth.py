"""Draws growth.svg: time and peak memory against size, both axes logarithmic, one line per series. Needs no library."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

COLORS = ("#4477aa", "#66ccee", "#228833", "#997700", "#ee6677", "#aa3377", "#ee8866", "#222255", "#777777", "#000000")
WIDTH, HEIGHT = 330, 300  # of a panel's axes, in pixels
LEFT, TOP, GAP = 60, 40, 80
LEGEND = 170


@dataclass(frozen=True)
class Series:
    """Milliseconds and GB of one thing at each size factor."""

    name: str
    factors: tuple[int, ...]
    milliseconds: tuple[float, ...]
    gigabytes: tuple[float, ...]


def svg(series: Sequence[Series]) -> str:
    """Two panels, time and memory, with a legend; dashed guides grow in proportion to the size and to its square."""
    width, height = LEFT + 2 * WIDTH + GAP + LEGEND, TOP + HEIGHT + 50
    panels = [
        _panel(LEFT, "time, ms", series, lambda line: line.milliseconds),
        _panel(LEFT + WIDTH + GAP, "peak memory, GB", series, lambda line: line.gigabytes),
    ]
    x, y, legend = width - LEGEND + 25, TOP, []
    for place, (line, color) in enumerate(zip(series, COLORS, strict=False)):
        y = TOP + 10 + 20 * place
        legend.append(f'<line x1="{x}" y1="{y}" x2="{x + 18}" y2="{y}" stroke="{color}" stroke-width="2"/>')
        legend.append(f'<text x="{x + 24}" y="{y + 4}">{line.name}</text>')
    legend.append(f'<text x="{x}" y="{y + 30}" fill="#777777">dashed: in proportion,</text>')
    legend.append(f'<text x="{x}" y="{y + 46}" fill="#777777">and as the square</text>')
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
            'font-size="12">',
            '<rect width="100%" height="100%" fill="white"/>',
            *panels,
            *legend,
            "</svg>\n",
        ]
    )


def _panel(left: float, title: str, series: Sequence[Series], values: Callable[[Series], Sequence[float]]) -> str:
    """Axes, guides and lines."""
    factors = series[0].factors
    every = [value for line in series for value in values(line)]
    lowest, highest = math.floor(math.log10(min(every))), math.ceil(math.log10(max(every)))
    across = math.log(factors[-1] / factors[0]) or 1.0

    def at(factor: float, value: float) -> tuple[float, float]:
        up = (math.log10(value) - lowest) / (highest - lowest)
        return left + WIDTH * math.log(factor / factors[0]) / across, TOP + HEIGHT * (1 - up)

    bottom = TOP + HEIGHT
    parts = [f'<text x="{left}" y="{TOP - 15}" font-weight="bold">{title}</text>']
    for power in range(lowest, highest + 1):
        y = at(factors[0], 10.0**power)[1]
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + WIDTH}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    for factor in factors:
        x = at(factor, 10.0**lowest)[0]
        parts.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#dddddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{factor} x</text>')
    parts.append(f'<text x="{left + WIDTH / 2}" y="{bottom + 38}" text-anchor="middle">size, in Amazon Babys</text>')
    for slope in (1, 2):
        last = min(factors[-1], factors[0] * (10.0 ** (highest - lowest)) ** (1 / slope))
        ends = at(factors[0], 10.0**lowest), at(last, 10.0**lowest * (last / factors[0]) ** slope)
        parts.append(_line(ends, "#999999", dashed=True))
    for line, color in zip(series, COLORS, strict=False):
        parts.append(_line([at(*point) for point in zip(line.factors, values(line), strict=True)], color))
    return "\n".join(parts)


def _line(points: Sequence[tuple[float, float]], color: str, *, dashed: bool = False) -> str:
    style = 'stroke-width="1" stroke-dasharray="4 4"' if dashed else 'stroke-width="2"'
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{joined}" fill="none" stroke="{color}" {style}/>'
