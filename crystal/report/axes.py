"""Axes, ticks, lines and text as SVG: the little of plotting that this report needs.

The surprise: a plot is drawn once for a page and once for a phone, each in CSS pixels, because an SVG that is merely
scaled down takes its text with it. Colours are CSS variables (palette.css): one drawing serves light, dark and paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

XY = tuple[float, float]


def si(value: float) -> str:
    """Three significant digits and a thousands letter: 38_100_000 -> '38.1 M' (unbroken). Below 1000 as it is."""
    for letter, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{_three(value / size)}\N{NO-BREAK SPACE}{letter}"
    return f"{value:g}"


def _three(value: float) -> str:
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def linear_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers between `low` and `high`."""
    rough = (high - low) / max(count, 1) or 1.0
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= rough * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic axis: sparse over decades, dense within one."""
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 5, 7), (1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9)):
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [d * 10.0**e for e in exponents for d in digits if low <= d * 10.0**e <= high]
        if len(ticks) >= 4:
            return ticks
    return linear_ticks(low, high, 4)


def thin(points: Sequence[XY], limit: int) -> list[XY]:
    """At most about `limit` points that keep the lowest and the highest of every stretch, so no spike is lost."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(2 * len(points) / limit)
    kept: list[XY] = []
    for at in range(0, len(points), size):
        stretch = points[at : at + size]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return kept


def text(x: float, y: float, content: str, css: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}">{escape(content)}</text>'


def rule(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def svg(width: float, height: float, title: str, body: Iterable[str]) -> str:
    """One drawing in CSS pixels that shrinks with its place. No namespace: HTML needs none, `standalone` adds it."""
    return (
        f'<svg class="plot" role="img" aria-label="{escape(title)}" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}">\n' + "\n".join(body) + "\n</svg>"
    )


def standalone(drawing: str, css: str) -> str:
    """An inline drawing as a file of its own, with its stylesheet inside."""
    head, body = drawing.split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>\n{css}</style>{body}\n'


@dataclass(frozen=True)
class Panel:
    """A rectangle of the drawing (`left`, `top`, `width`, `height`, pixels) with its data ranges `x` and `y`."""

    left: float
    top: float
    width: float
    height: float
    x: XY
    y: XY
    log: bool = False

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def bottom(self) -> float:
        return self.top + self.height

    def px(self, x: float) -> float:
        low, high = self.x
        return self.left + self.width * (x - low) / (high - low)

    def py(self, y: float) -> float:
        low, high, y = (math.log(v) for v in (*self.y, y)) if self.log else (*self.y, y)
        return self.bottom - self.height * (y - low) / (high - low)

    def line(self, points: Sequence[XY], css: str) -> str:
        path = "L".join(f"{self.px(x):.1f} {self.py(y):.1f}" for x, y in points)
        return f'<path d="M{path}" class="{css}"/>' if points else ""

    def dot(self, point: XY, radius: float, css: str, title: str = "") -> str:
        hint = f"<title>{escape(title)}</title>" if title else ""
        x, y = self.px(point[0]), self.py(point[1])
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" class="{css}">{hint}</circle>'

    def grid(self, ticks: Iterable[float]) -> list[str]:
        """A line across the panel for each tick, with its value at the left."""
        marks = []
        for tick in ticks:
            y = self.py(tick)
            marks += [rule(self.left, y, self.right, y, "grid"), text(self.left - 7, y + 4, si(tick), "tick", "end")]
        return marks

    def x_axis(self, ticks: Iterable[float], label: str) -> list[str]:
        marks = [rule(self.left, self.bottom, self.right, self.bottom, "axis")]
        for tick in ticks:
            x = self.px(tick)
            marks += [
                rule(x, self.bottom, x, self.bottom + 4, "axis"),
                text(x, self.bottom + 17, si(tick), "tick", "middle"),
            ]
        return [*marks, text(self.right, self.bottom + 35, label, "label", "end")]
