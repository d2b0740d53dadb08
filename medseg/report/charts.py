"""Charts as inline SVG: no script, no outside file, readable on paper.

All text is escaped here: names of labels and cases come from files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

_WIDTH, _LEFT, _RIGHT = 760, 190, 20
_ROW = 24
_NAME_CHARACTERS = 26
_MOST_POINTS = 400
_CURVES_PX = 230


@dataclass(frozen=True)
class Strip:
    """One row of a strip chart: a label, with the value of each case.

    Attributes:
        name: At the left.
        points: (case, value); only finite values.
        ceiling: A mark to compare with, such as how well two readers agree; None for none.
    """

    name: str
    points: Sequence[tuple[str, float]]
    ceiling: float | None = None


@dataclass(frozen=True)
class Curve:
    """One line of a curve chart.

    Attributes:
        name: In the legend.
        points: (x, y) in the order in which they are joined; those that are not finite are
            left out.
        colour: As ``#rrggbb``.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: str


def curve_chart(curves: Sequence[Curve], *, title: str, across: str, unit: str = "") -> str:
    """Draw lines over a common axis, with a legend below.

    Args:
        curves: What to draw, the first undermost.
        title: What the chart shows.
        across: What the horizontal axis counts.
        unit: Of the values.

    Returns:
        SVG markup; an empty text where there is nothing to draw.
    """
    shown = [(c, np.array([p for p in c.points if np.isfinite(p).all()])) for c in curves]
    shown = [(curve, points) for curve, points in shown if len(points)]
    if not shown:
        return ""
    every = np.concatenate([points for _, points in shown])
    names = [(curve.name, curve.colour) for curve, _ in shown]
    legend, rows = _legend(names, top=_CURVES_PX + 44)
    height = _CURVES_PX + 40 + 20 * rows
    x_axis = _Axis.over(every[:, 0], 70, _WIDTH - _RIGHT)
    y_axis = _Axis.over(every[:, 1], _CURVES_PX - 10, 14)
    parts = [_grid(x_axis, top=14, bottom=_CURVES_PX - 10, unit=escape(across)), legend]
    for tick in y_axis.ticks:
        y = y_axis(tick)
        parts.append(
            f'<line x1="{x_axis.start}" x2="{x_axis.stop}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
            f'<text x="{x_axis.start - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    parts.append(f'<text x="{x_axis.start}" y="10">{escape(unit)}</text>')
    for curve, points in shown:
        # Of a very long run every n-th point is enough, and always the last.
        kept = points[np.unique(np.linspace(0, len(points) - 1, _MOST_POINTS).astype(int))]
        places = " ".join(f"{x_axis(x):.1f},{y_axis(y):.1f}" for x, y in kept)
        name, colour = escape(curve.name), escape(curve.colour)
        if len(kept) == 1:
            left, top = places.split(",")
            parts.append(f'<circle cx="{left}" cy="{top}" r="3" fill="{colour}"/>')
        parts.append(
            f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="1.6">'
            f"<title>{name}</title></polyline>"
        )
    return _svg(parts, height, title)


def _legend(names: Sequence[tuple[str, str]], *, top: int) -> tuple[str, int]:
    """Names with their colours, row by row; the markup and the number of rows."""
    parts, left, row = [], 70, 0
    for name, colour in names:
        short = name if len(name) <= _NAME_CHARACTERS else name[:25] + "…"
        width = 34 + 7 * len(short)
        if left + width > _WIDTH and left > 70:
            left, row = 70, row + 1
        y = top + 20 * row
        parts.append(
            f'<rect x="{left}" y="{y - 9}" width="14" height="9" fill="{escape(colour)}"/>'
            f'<text x="{left + 19}" y="{y}">{escape(short)}</text>'
        )
        left += width
    return "".join(parts), row + 1


def strip_chart(strips: Sequence[Strip], *, title: str, unit: str = "") -> str:
    """Draw a row per label: every case a dot, over a box of quartiles with the median.

    Args:
        strips: The rows, from above.
        title: What the chart shows.
        unit: Of the values, for the axis.

    Returns:
        SVG markup; an empty text where there is nothing to draw.
    """
    shown = [strip for strip in strips if strip.points]
    if not shown:
        return ""
    values = np.concatenate([[value for _, value in strip.points] for strip in shown])
    axis = _Axis.over(values, _LEFT, _WIDTH - _RIGHT)
    height = _ROW * len(shown) + 50
    parts = [_grid(axis, top=8, bottom=height - 40, unit=unit)]
    for row, strip in enumerate(shown):
        parts.append(_strip(strip, axis, middle=20 + row * _ROW))
    return _svg(parts, height, title)


def bland_altman(points: Sequence[tuple[str, float, float]], *, title: str) -> str:
    """Draw the difference of two volumes over their mean, with the limits of agreement.

    J. Bland, D. Altman, "Statistical methods for assessing agreement between two methods of
    clinical measurement", 1986; in percent of the mean, since organs differ in size.

    Args:
        points: (name, prediction, reference) in ml; those with neither are left out.
        title: What the chart shows.

    Returns:
        SVG markup; an empty text where there is nothing to draw.
    """
    rows = [(name, a, b) for name, a, b in points if np.isfinite([a, b]).all() and a + b > 0]
    if not rows:
        return ""
    means = np.array([(a + b) / 2 for _, a, b in rows])
    percent = np.array([200 * (a - b) / (a + b) for _, a, b in rows])
    bias, spread = float(percent.mean()), float(percent.std(ddof=1)) if len(rows) > 1 else 0.0
    limits = (bias - 1.96 * spread, bias, bias + 1.96 * spread)
    height = 330
    across = _Axis.over(np.log10(means), 70, _WIDTH - 130)
    down = _Axis.over(np.append(percent, limits), height - 50, 14)
    parts = [_frame_of(across, down)]
    for value, name in zip(limits, ("-1.96 sd", "mean", "+1.96 sd"), strict=True):
        y = down(value)
        dash = "" if name == "mean" else ' stroke-dasharray="5 4"'
        parts.append(
            f'<line x1="{across.start}" x2="{across.stop}" y1="{y:.1f}" y2="{y:.1f}" '
            f'class="mark"{dash}/><text x="{across.stop + 6}" y="{y + 4:.1f}">{name} '
            f"{value:+.1f} %</text>"
        )
    for (name, mine, theirs), x, y in zip(rows, np.log10(means), percent, strict=True):
        note = escape(f"{name}: {mine:.3g} ml against {theirs:.3g} ml")
        parts.append(
            f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="3" class="dot">'
            f"<title>{note}</title></circle>"
        )
    return _svg(parts, height, title)


@dataclass(frozen=True)
class _Axis:
    """From values to places in the picture."""

    low: float
    high: float
    step: float
    start: int
    stop: int

    @classmethod
    def over(cls, values: NDArray[np.float64], start: int, stop: int) -> _Axis:
        low, high = float(np.min(values)), float(np.max(values))
        if high - low < 1e-9:
            low, high = low - 0.05 * max(1.0, abs(low)), high + 0.05 * max(1.0, abs(high))
        raw = (high - low) / 5
        power = 10 ** np.floor(np.log10(raw))
        step = float(power * min((1, 2, 5, 10), key=lambda nice: abs(nice - raw / power)))
        return cls(
            float(np.floor(low / step) * step), float(np.ceil(high / step) * step), step,
            start, stop,
        )  # fmt: skip

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return float(self.start + share * (self.stop - self.start))

    @property
    def ticks(self) -> list[float]:
        count = round((self.high - self.low) / self.step)
        return [round(self.low + n * self.step, 10) for n in range(count + 1)]


def _grid(axis: _Axis, *, top: int, bottom: int, unit: str) -> str:
    lines = [
        f'<line x1="{axis(tick):.1f}" x2="{axis(tick):.1f}" y1="{top}" y2="{bottom}" class="grid"/>'
        f'<text x="{axis(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>'
        for tick in axis.ticks
    ]
    middle = (axis.start + axis.stop) / 2
    lines.append(f'<text x="{middle:.0f}" y="{bottom + 34}" text-anchor="middle">{unit}</text>')
    return "".join(lines)


def _strip(strip: Strip, axis: _Axis, *, middle: int) -> str:
    name = strip.name if len(strip.name) <= _NAME_CHARACTERS else strip.name[:25] + "…"
    values = np.array([value for _, value in strip.points])
    low, median, high = (axis(value) for value in np.percentile(values, [25, 50, 75]))
    parts = [
        f'<text x="{_LEFT - 12}" y="{middle + 4}" text-anchor="end">{escape(name)}'
        f"<title>{escape(strip.name)}</title></text>",
        f'<rect x="{low:.1f}" y="{middle - 7}" width="{max(high - low, 0.5):.1f}" height="14" '
        'class="box"/>',
        f'<line x1="{median:.1f}" x2="{median:.1f}" y1="{middle - 7}" y2="{middle + 7}" '
        'class="median"/>',
    ]
    # Of very many cases the farthest out and an even choice of the rest are drawn.
    order = np.argsort(values)
    chosen = order[np.unique(np.linspace(0, len(order) - 1, _MOST_POINTS).astype(int))]
    for place, index in enumerate(chosen):
        case, value = strip.points[int(index)]
        y = middle + (place * 5 % 9 - 4)
        parts.append(
            f'<circle cx="{axis(value):.1f}" cy="{y}" r="2.4" class="dot">'
            f"<title>{escape(case)}: {value:.4g}</title></circle>"
        )
    if strip.ceiling is not None:
        x = axis(min(max(strip.ceiling, axis.low), axis.high))
        parts.append(
            f'<path d="M{x:.1f} {middle - 9} l4 -5 h-8 z" class="ceiling">'
            f"<title>second reader: {strip.ceiling:.4g}</title></path>"
        )
    return "".join(parts)


def _frame_of(across: _Axis, down: _Axis) -> str:
    parts = []
    for tick in down.ticks:
        y = down(tick)
        parts.append(
            f'<line x1="{across.start}" x2="{across.stop}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
            f'<text x="{across.start - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    parts += [
        f'<text x="{across(tick):.1f}" y="{down.start + 18}" text-anchor="middle">'
        f"{float(f'{10**tick:.2g}'):g}</text>"
        for tick in across.ticks
    ]
    middle = (across.start + across.stop) / 2
    parts.append(
        f'<text x="{middle:.0f}" y="{down.start + 40}" text-anchor="middle">'
        "mean volume, ml (logarithmic)</text>"
        f'<text x="16" y="{(down.start + down.stop) / 2:.0f}" text-anchor="middle" '
        f'transform="rotate(-90 16 {(down.start + down.stop) / 2:.0f})">'
        "prediction - reference, % of mean</text>"
    )
    return "".join(parts)


def _svg(parts: Sequence[str], height: int, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
