"""Plot curves as inline SVG, readable in light and dark mode, without scripts or external fonts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

CurvePoint = tuple[float, float]
Formatter = Callable[[float], str]

WIDTH, HEIGHT = 520, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 12, 30
_MOST_POINTS = 400


@dataclass(frozen=True)
class Series:
    """One curve. ``style``: line, faint (a thin background line), dots, or planned (a dashed horizontal line)."""

    label: str
    points: Sequence[CurvePoint]
    style: Literal["line", "faint", "dots", "planned"] = "line"
    colour: int = 0  # index in the page's palette


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers that cover [low, high], about ``count`` of them."""
    if not high - low > abs(low) * 1e-9:  # too close together for the digits of the ticks
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / max(count - 1, 1)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def thin(points: Sequence[CurvePoint], most: int = _MOST_POINTS) -> list[CurvePoint]:
    """Return at most ``most`` points, with the minimum and maximum of every interval, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    kept: list[CurvePoint] = []
    width = 2 * len(points) / most
    for index in range(most // 2):
        part = points[int(index * width) : int((index + 1) * width)]
        ends = {part.index(min(part, key=lambda p: p[1])), part.index(max(part, key=lambda p: p[1]))}
        kept += [part[position] for position in sorted(ends)]
    return kept


def smooth(points: Sequence[CurvePoint], share: float = 0.03) -> list[CurvePoint]:
    """Return an exponential moving average over about ``share`` of the points, unbiased at the start."""
    keep = math.exp(-1 / max(1.0, len(points) * share))
    total = weight = 0.0
    smoothed = []
    for x, y in points:
        total, weight = total * keep + y, weight * keep + 1.0
        smoothed.append((x, total / weight))
    return smoothed


@dataclass(frozen=True)
class _Frame:
    """Converts data coordinates to SVG coordinates."""

    xs: tuple[float, float]
    ys: tuple[float, float]

    def x(self, value: float) -> float:
        return _LEFT + (value - self.xs[0]) / (self.xs[1] - self.xs[0]) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - (value - self.ys[0]) / (self.ys[1] - self.ys[0]) * (HEIGHT - _TOP - _BOTTOM)


def chart(series: Sequence[Series], form: Formatter, *, marks: Sequence[float] = (), zero: bool = False) -> str:
    """Return an SVG of the series over steps; ``marks`` are vertical lines (restarts), ``zero`` starts y at 0.

    Returns an empty string if there is nothing to draw.
    """
    points = [point for one in series if one.style != "planned" for point in one.points]
    if not points:
        return ""
    heights = [y for one in series for _, y in one.points]
    ticks = nice_ticks(0.0 if zero else min(heights), max(heights))
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    if not right - left > abs(left) * 1e-9:
        margin = max(1.0, abs(left) * 1e-6)
        left, right = left - margin, right + margin
    frame = _Frame((left, right), (ticks[0], ticks[-1]))
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(_describe(series, form))}">']
    parts += [_horizontal(frame, tick, form) for tick in ticks]
    parts += [_vertical(frame, tick) for tick in nice_ticks(left, right, 6) if left <= tick <= right]
    parts += [_mark(frame, step) for step in marks if left <= step <= right]
    parts += [_draw(frame, one, form) for one in series if one.points]
    return "\n".join([*parts, "</svg>"])


def _describe(series: Sequence[Series], form: Formatter) -> str:
    return "; ".join(f"{one.label}: {form(one.points[-1][1])}" for one in series if one.points)


def _horizontal(frame: _Frame, value: float, form: Formatter) -> str:
    y = frame.y(value)
    line = f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return f'{line}<text class="tick" x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{escape(form(value))}</text>'


def _vertical(frame: _Frame, value: float) -> str:
    where = f'x="{frame.x(value):.1f}" y="{HEIGHT - _BOTTOM + 16}"'
    return f'<text class="tick" {where} text-anchor="middle">{value:,.10g}</text>'


def _mark(frame: _Frame, step: float) -> str:
    x = frame.x(step)
    return (
        f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}">'
        f"<title>restarted from step {step:g}</title></line>"
    )


def _draw(frame: _Frame, one: Series, form: Formatter) -> str:
    colour = f'style="--c:var(--s{one.colour})"'
    if one.style == "planned":
        y = frame.y(one.points[0][1])
        return (
            f'<line class="planned" {colour} x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}">'
            f"<title>{escape(one.label)}: {escape(form(one.points[0][1]))}</title></line>"
        )
    points = thin(one.points)
    if one.style == "dots" or len(points) == 1:
        return "".join(
            f'<circle class="dot" {colour} cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3.5">'
            f"<title>step {x:g}: {escape(form(y))}</title></circle>"
            for x, y in points
        )
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
    return f'<polyline class="{one.style}" {colour} points="{path}"/>'
