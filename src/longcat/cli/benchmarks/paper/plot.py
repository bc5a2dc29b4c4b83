"""Curves with intervals, in panels side by side that share the vertical axis, as inline SVG.

Beside its colour every series has a pattern of dashes of its own. A curve of many points shows its
intervals as a band, one of few points as bars.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from longcat.cli.benchmarks.paper.results import Point
from longcat.cli.pages.svg import nice_axis, paint, svg, text
from longcat.cli.ui.theme import CYCLE

WIDTH = 720
_LEFT, _RIGHT, _GAP, _BOTTOM = 54, 14, 22, 40
_DASHES = ("", "8 3", "2 3", "9 3 2 3", "5 3")
_FEW = 12  # up to so many points: dots with bars
_LETTER = 7.2  # width of a letter of the legend


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One set of axes.

    Args:
        series: name -> points; the same names in every panel of a plot. x_label: under the axis.
        log_x: decades instead of equal steps.
    """

    series: Mapping[str, Sequence[Point]]
    x_label: str
    log_x: bool = False


def plot(
    panels: Sequence[Panel],
    *,
    title: str,
    y_label: str,
    target: float | None = None,
    log_y: bool = False,
    limits: tuple[float, float] | None = None,
    roles: Mapping[str, str] | None = None,
    height: int = 250,
) -> str:
    """The figure as one line of HTML.

    Args:
        title: one sentence that says what is seen. target: value of a dashed line.
        limits: lowest and highest y shown; the data's by default. Intervals may add half of the
            range of the means on either side, and are cut off there: see `_range`.
        roles: name -> role of the theme; by default in the theme's order.
        height: of the axes, in units of which the plot is 720 wide.
    """
    names = list(dict.fromkeys(name for panel in panels for name in panel.series))
    look = {
        name: _Look(
            colour=paint((roles or {}).get(name, CYCLE[i % len(CYCLE)])),
            dashes=_DASHES[i // len(CYCLE) if len(names) > len(_DASHES) else i],
        )
        for i, name in enumerate(names)
    }
    legend, top = _legend(look, target)
    parts = [text(_LEFT - 44, 14, y_label, "start", strong=True), *legend]
    shown = [q for p in panels for points in p.series.values() for q in points]
    values = _range(shown, [] if target is None else [target], log_y)
    y_axis = _axis(values, log_y, limits, top + height, top)
    span = (WIDTH - _LEFT - _RIGHT - _GAP * (len(panels) - 1)) / len(panels)
    for i, panel in enumerate(panels):
        left = _LEFT + i * (span + _GAP)
        parts += _frame(panel, y_axis, left, left + span, target, labels=i == 0)
        xs = [q.x for points in panel.series.values() for q in points]
        low = min(xs) if panel.log_x else 0.0
        x_axis = _axis([low, *xs], panel.log_x, (low, max(xs)) if xs else None, left, left + span)
        parts += _ticks(x_axis, y_axis.bottom)
        for name, points in panel.series.items():
            parts += _curve(points, x_axis, y_axis, look[name])
    return svg(WIDTH, round(top + height + _BOTTOM), title, parts)


@dataclass(frozen=True, kw_only=True)
class _Look:
    colour: str
    dashes: str

    @property
    def style(self) -> str:
        dashes = f";stroke-dasharray:{self.dashes}" if self.dashes else ""
        return f"stroke:{self.colour}{dashes}"


@dataclass(frozen=True, kw_only=True)
class _Axis:
    low: float
    high: float
    ticks: Sequence[float]
    log: bool
    bottom: float  # where `low` is
    top: float  # where `high` is

    def at(self, value: float) -> float:
        scaled = _scaled(value, self.log)
        share = (scaled - self.low) / ((self.high - self.low) or 1.0)
        return self.bottom + min(max(share, 0.0), 1.0) * (self.top - self.bottom)

    def show(self, tick: float) -> str:
        if self.log:
            leading, power = f"{10**tick:.0e}".split("e")
            return (
                f"{float(f'{leading}e{power}'):g}" if -4 < tick < 4 else f"{leading}e{int(power)}"
            )
        for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
            if max(abs(self.low), abs(self.high)) >= 2 * size:
                return f"{tick / size:g}{letter}" if tick else "0"
        return f"{tick:g}"


def _scaled(value: float, log: bool) -> float:
    return math.log10(max(value, 1e-300)) if log else value


def _axis(
    values: Sequence[float],
    log: bool,
    limits: tuple[float, float] | None,
    bottom: float,
    top: float,
) -> _Axis:
    low, high = limits or (min(values), max(values))
    if log:
        low, high = _scaled(low, True), _scaled(high, True)
        ticks = _decades(low, high)
        if limits is None:
            low, high = low - 0.03 * (high - low), high + 0.03 * (high - low)
    else:
        first, last, ticks = nice_axis(low, high)
        if limits is None:
            low, high = first, last
        else:
            ticks = [t for t in ticks if low <= t <= high]
    return _Axis(low=low, high=high, ticks=ticks, log=log, bottom=bottom, top=top)


def _decades(low: float, high: float) -> list[float]:
    """Logarithms of round values: powers of ten, and 2 and 5 times these where there are few."""
    first, last = math.floor(low), math.ceil(high)
    fine = high - low < 2
    marks = [
        d + math.log10(m) for d in range(first, last + 1) for m in ((1, 2, 5) if fine else (1,))
    ]
    inside = [mark for mark in marks if low - 1e-9 <= mark <= high + 1e-9]
    return inside[:: max(1, math.ceil(len(inside) / 6))]


def _frame(
    panel: Panel, y_axis: _Axis, left: float, right: float, target: float | None, *, labels: bool
) -> list[str]:
    parts = []
    for tick in y_axis.ticks:
        y = y_axis.at(10**tick if y_axis.log else tick)
        parts.append(f'<path class="grid" d="M{left:.1f} {y:.1f}H{right:.1f}"/>')
        if labels:
            parts.append(text(left - 8, y + 4, y_axis.show(tick), "end"))
    if target is not None:
        y = y_axis.at(target)
        parts.append(f'<path class="target" d="M{left:.1f} {y:.1f}H{right:.1f}"/>')
    middle = (left + right) / 2
    return [*parts, text(middle, y_axis.bottom + 34, panel.x_label, "middle")]


def _ticks(x_axis: _Axis, bottom: float) -> list[str]:
    every = max(1, math.ceil(len(x_axis.ticks) * 48 / (x_axis.top - x_axis.bottom)))
    parts = []
    for tick in x_axis.ticks[::every]:
        x = x_axis.at(10**tick if x_axis.log else tick)
        # A label at an end stays inside, clear of the next panel's.
        anchor = "start" if x < x_axis.bottom + 8 else "end" if x > x_axis.top - 8 else "middle"
        parts.append(text(x, bottom + 17, x_axis.show(tick), anchor))
    return parts


def _range(points: Sequence[Point], others: Sequence[float], log: bool) -> list[float]:
    """What the vertical axis must show: all means, and intervals as far as they leave the means
    readable. On a logarithmic axis the means alone.
    """
    means = [p.y.mean for p in points] + list(others)
    if log or not means:
        return means or [0.0, 1.0]
    low, high = min(means), max(means)
    room = 0.5 * (high - low) or math.inf
    ends = [end for p in points for end in _ends(p)]
    lowest, highest = max(min(ends), low - room), min(max(ends), high + room)
    return [low, high, max(0.0, lowest) if low >= 0 else lowest, highest]


def _ends(point: Point) -> tuple[float, float]:
    return point.y.low, point.y.high


def _curve(points: Sequence[Point], x_axis: _Axis, y_axis: _Axis, look: _Look) -> list[str]:
    at = [(x_axis.at(p.x), y_axis.at(p.y.mean), *(y_axis.at(v) for v in _ends(p))) for p in points]
    if not at:
        return []
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in at)
    parts = [f'<polyline style="{look.style}" points="{line}"/>']
    if len(at) <= _FEW:
        for x, y, low, high in at:
            parts.append(
                f'<path style="stroke:{look.colour};stroke-width:1.5" '
                f'd="M{x:.1f} {low:.1f}V{high:.1f}"/>'
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" style="fill:{look.colour}"/>'
            )
        return parts
    edge = [f"{x:.1f},{high:.1f}" for x, _, _, high in at]
    edge += [f"{x:.1f},{low:.1f}" for x, _, low, _ in reversed(at)]
    band = f'<polygon style="fill:{look.colour};fill-opacity:.16" points="{" ".join(edge)}"/>'
    return [band, *parts]


def _legend(look: Mapping[str, _Look], target: float | None) -> tuple[list[str], float]:
    """The names in rows under the label of the vertical axis, and where the axes may begin."""
    entries = [(name, one.colour, one.style) for name, one in look.items()]
    if target is not None:
        entries.append((f"target {target:g}", "currentColor", "stroke:currentColor"))
    if len(entries) < 2:
        return [], 28.0
    parts, x, y = [], float(_LEFT), 34.0
    for name, colour, style in entries:
        wide = 30 + _LETTER * len(name) + 16
        if x > _LEFT and x + wide > WIDTH - _RIGHT:
            x, y = float(_LEFT), y + 18
        kind = ' class="target"' if colour == "currentColor" else ""
        parts.append(f'<path{kind} style="{style};stroke-width:2" d="M{x:.1f} {y - 4:.1f}h22"/>')
        parts.append(text(x + 28, y, name, "start", fill=colour))
        x += wide
    return parts, y + 18
