"""Line charts and bars as inline SVG: no script, no font, nothing from elsewhere.

Colours are CSS variables of the report's style sheet, so charts follow light and dark.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape

from longcat.train.report_style import STYLE

WIDTH, HEIGHT = 640, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 26
SERIES_COLOURS = ("ffn", "net", "good", "bad", "zero")


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str,
    target: float | None = None,
    target_label: str = "",
    logarithmic: bool = False,
    limits: tuple[float, float] | None = None,
    x_ticks: Mapping[float, str] | None = None,
) -> str:
    """Curves through (x, y) points, with an optional dashed target line.

    Args:
        logarithmic: base-10 vertical axis; points that are not positive are left out.
        limits: lowest and highest y; by default those of all points and the target.
        x_ticks: labels of a horizontal axis that runs from the first of them to the last, for
            few points that are marked each; by default the axis runs from 0 and nothing is marked.
    """
    points = {
        name: [(x, _scaled(y, logarithmic)) for x, y in pairs if _shown(y, logarithmic)]
        for name, pairs in series.items()
    }
    values = [y for pairs in points.values() for _, y in pairs]
    goal = None if target is None else _scaled(target, logarithmic)
    if goal is not None:
        values.append(goal)
    if not values:
        return "<p>nothing was measured</p>"
    low, high = limits or _with_air(min(values), max(values))
    left = min(x_ticks) if x_ticks else 0.0
    right = max((x for pairs in points.values() for x, _ in pairs), default=1.0) or 1.0
    right = max(x_ticks) if x_ticks else right

    def at(x: float, y: float) -> tuple[float, float]:
        share = (min(max(y, low), high) - low) / (high - low)
        return (
            _LEFT + (x - left) / (right - left) * (WIDTH - _LEFT - _RIGHT),
            HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM),
        )

    marks = x_ticks or {share * right: f"{share * right:,.0f}" for share in (0.0, 0.5, 1.0)}
    marks = {**marks, right: f"{marks[right]} {x_label}"}
    parts = [_axes(low, high, logarithmic), *(_x_tick(at(x, 0)[0], marks[x]) for x in marks)]
    if goal is not None:
        y = at(0, goal)[1]
        parts.append(
            f'<line class="target" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{WIDTH - _RIGHT}" y="{y - 4:.1f}" text-anchor="end">'
            f"{escape(target_label)}</text>"
        )
    for i, pairs in enumerate(points.values()):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*p) for p in _thinned(pairs)))
        colour = SERIES_COLOURS[i % len(SERIES_COLOURS)]
        parts.append(f'<polyline points="{path}" style="stroke:var(--{colour})"/>')
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" style="fill:var(--{colour})"/>'
            for x, y in (at(*p) for p in pairs if x_ticks)
        ]
    return _svg(parts, HEIGHT) + _legend(list(series))


def bar_chart(
    bars: Sequence[tuple[str, float, str]], *, highlight: str = "", target: float | None = None
) -> str:
    """Horizontal bars of (label, value, text at the end); `highlight` names the one in colour.

    Args:
        target: a dashed vertical line.
    """
    if not bars:
        return "<p>nothing was measured</p>"
    top = max([value for _, value, _ in bars] + ([target] if target else [])) or 1.0
    label_width, row = 190, 24
    span = WIDTH - label_width - 80
    parts = []
    for i, (label, value, text) in enumerate(bars):
        y = i * row + 4
        colour = "ffn" if label == highlight or not highlight else "zero"
        width = max(0.0, value / top * span)
        end = max(width, (target or 0.0) / top * span) + 6  # clear of the dashed line too
        parts.append(
            f'<text class="label" x="{label_width - 8}" y="{y + 13}" text-anchor="end">'
            f"{escape(label)}</text>"
            f'<rect x="{label_width}" y="{y}" width="{width:.1f}" height="17" '
            f'style="fill:var(--{colour})"/>'
            f'<text class="label" x="{label_width + end:.1f}" y="{y + 13}">'
            f"{escape(text)}</text>"
        )
    height = len(bars) * row + 6
    if target is not None:
        x = label_width + target / top * span
        parts.append(f'<line class="target" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>')
    return _svg(parts, height)


def standalone(chart: str, title: str) -> str:
    """The first drawing of a chart as a file of its own: styled, titled, on its own paper."""
    head, _, rest = chart.partition(">")
    body = rest[: rest.index("</svg>")]
    return (
        f'{head} xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
        f'<rect width="100%" height="100%" style="fill:var(--paper)"/>{body}</svg>\n'
    )


def smoothed(
    points: Sequence[tuple[float, float]], weight: float = 0.95
) -> list[tuple[float, float]]:
    """An exponential moving average along the points, unbiased at its beginning."""
    result, mean, mass = [], 0.0, 0.0
    for x, y in points:
        mean, mass = weight * mean + (1 - weight) * y, weight * mass + (1 - weight)
        result.append((x, mean / mass))
    return result


def _axes(low: float, high: float, logarithmic: bool) -> str:
    bottom = HEIGHT - _BOTTOM
    parts = [f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>']
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = bottom - share * (bottom - _TOP)
        value = low + share * (high - low)
        shown = f"{10**value:.2g}" if logarithmic else f"{value:.3g}"
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{shown}</text>'
        )
    return "".join(parts)


def _x_tick(x: float, text: str) -> str:
    """A label below the horizontal axis, kept inside the drawing."""
    anchor = "start" if x < _LEFT + 9 else "end" if x > WIDTH - _RIGHT - 9 else "middle"
    return (
        f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )


def _svg(parts: Sequence[str], height: float) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img">{"".join(parts)}</svg>'


def _legend(names: Sequence[str]) -> str:
    if len(names) < 2:
        return ""
    items = [
        f'<span><i style="background:var(--{SERIES_COLOURS[i % len(SERIES_COLOURS)]})"></i>'
        f"{escape(name)}</span>"
        for i, name in enumerate(names)
    ]
    return f'<p class="legend">{"".join(items)}</p>'


def _thinned(points: Sequence[tuple[float, float]], most: int = 600) -> list[tuple[float, float]]:
    stride = max(1, math.ceil(len(points) / most))
    kept = list(points[::stride])
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]


def _with_air(low: float, high: float) -> tuple[float, float]:
    air = 0.05 * (high - low) or abs(high) * 0.1 or 1.0
    return low - air, high + air


def _shown(y: float, logarithmic: bool) -> bool:
    return math.isfinite(y) and (y > 0 or not logarithmic)


def _scaled(y: float, logarithmic: bool) -> float:
    return math.log10(y) if logarithmic else y
