"""Line charts as inline SVG: no script, no font, nothing to fetch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 32, 14, 42


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its points in ascending x, the number of its colour (a run), and whether it is dashed."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """Where values go between 0 and 1, and which of them are written at the axis."""

    place: Callable[[float], float]
    ticks: Sequence[tuple[float, str]]


def linear_axis(high: float) -> Axis:
    """From 0 to at least ``high`` in round steps."""
    high = high if high > 1e-9 else 1.0
    step = _round_step(high / 5)
    top = math.ceil(high / step - 1e-9) * step
    ticks = [(number * step, short(number * step)) for number in range(round(top / step) + 1)]
    return Axis(lambda value: value / top, ticks)


def time_axis(end: float) -> Axis:
    """From 0 to exactly ``end``, with round steps on the way."""
    whole = linear_axis(end)
    ticks = [tick for tick in whole.ticks if tick[0] <= end * (1 + 1e-9)]
    return Axis(lambda value: min(1.0, value / end) if end > 0 else 0.0, ticks)


def log_axis(low: float, high: float) -> Axis:
    """Decades from below ``low`` (above 0) to above ``high``, with 2 and 5 written when there are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    last = max(last, first + 1)
    marks = (1, 2, 5) if last - first <= 3 else (1,)
    ticks = [
        (mark * 10.0**exponent, short(mark * 10.0**exponent))
        for exponent in range(first, last + 1)
        for mark in marks
        if mark * 10.0**exponent <= 10.0**last
    ]
    bottom = 10.0**first
    return Axis(lambda value: (math.log10(max(value, bottom)) - first) / (last - first), ticks)


def quantile_axis(part_max: float) -> Axis:
    """Parts from 0 to ``part_max`` with 90 %, 99 %, 99.9 % ... at equal distances."""
    nines = max(1, math.ceil(-math.log10(max(1e-9, 1 - part_max)) - 1e-9))
    ticks = [(0.0, "0"), (0.5, "50%")]
    ticks += [(1 - 10.0**-n, f"{100 - 10.0 ** (2 - n):.{max(0, n - 2)}f}%") for n in range(1, nines + 1)]
    return Axis(lambda part: min(1.0, -math.log10(max(1e-12, 1 - part)) / nines), ticks)


def _round_step(least: float) -> float:
    """The least of 1, 2, 2.5, 5 times a power of ten that is not below ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least * (1 - 1e-9))


def short(value: float) -> str:
    """A number as an axis has room for: 1500 is 1.5k."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.4g}{unit}"
    return f"{value:.4g}"


def chart(lines: Sequence[Line], x_axis: Axis, y_axis: Axis, x_label: str, y_label: str, title: str) -> str:
    """The chart as an ``<svg>`` element; colours come from the page's ``.c0`` ... classes."""
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(value: float) -> float:
        return round(_LEFT + width * x_axis.place(value), 1)

    def y(value: float) -> float:
        return round(_TOP + height * (1 - y_axis.place(value)), 1)

    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title, {chr(34): "&quot;"})}">',
        f"<title>{escape(title)}</title>",
    ]
    for value, text in y_axis.ticks:
        parts.append(f'<path class="grid" d="M{_LEFT} {y(value)}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(value) + 4}" text-anchor="end">{escape(text)}</text>')
    for value, text in x_axis.ticks:
        parts.append(f'<path class="grid" d="M{x(value)} {_TOP}V{_TOP + height}"/>')
        parts.append(
            f'<text x="{x(value)}" y="{_TOP + height + 16}" text-anchor="middle">{escape(text)}</text>'
        )
    parts.append(
        f'<text x="{_LEFT + width / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text transform="translate(13 {_TOP + height / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    for line in lines:
        if line.points:
            path = "L".join(f"{x(a)} {y(b)}" for a, b in line.points)
            dash = " dash" if line.dashed else ""
            parts.append(
                f'<path class="line c{line.colour % 8}{dash}" d="M{path}"><title>{escape(line.label)}</title></path>'
            )
    parts.append("</svg>")
    return "".join(parts)
