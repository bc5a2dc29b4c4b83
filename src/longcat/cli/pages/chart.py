"""Figures of the documentation: `print(figure)` is an SVG on the site, a drawing in a terminal.

The SVG takes its colours from the page's CSS (`--ffn`, `--zero`, ... and `currentColor`), so one
file serves the light and the dark palette; the theme's values are the fallback elsewhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field

from rich.console import Group
from rich.text import Text

from longcat.cli.pages.svg import nice_axis, paint, spread, svg, text
from longcat.cli.ui.plot import Line
from longcat.cli.ui.theme import CYCLE, style

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 46, 150, 16, 40


@dataclass(frozen=True)
class Curves:
    """Curves over steps with an optional dashed target.

    Args:
        series: name -> one value per step (all of equal length, at least two values).
        target: value of the dashed line.
        title: one sentence that says what the figure shows; read aloud by screen readers.
        y_label: what is drawn, above the axis.
        roles: name -> role of the theme; by default in the theme's order.
        height: of the SVG, in its own units (it is 720 wide).
    """

    series: Mapping[str, Sequence[float]]
    target: float | None = None
    _: KW_ONLY
    title: str
    y_label: str = ""
    roles: Mapping[str, str] = field(default_factory=dict)
    height: int = 260

    def _role(self, index: int, name: str) -> str:
        return self.roles.get(name, CYCLE[index % len(CYCLE)])

    def __rich__(self) -> Line:
        roles = {name: self._role(i, name) for i, name in enumerate(self.series)}
        return Line(self.series, self.target, title=self.y_label, roles=roles)

    def __str__(self) -> str:
        values = [v for one in self.series.values() for v in one]
        if self.target is not None:
            values.append(self.target)
        low, high, ticks = nice_axis(min(values), max(values))
        steps = max(len(one) for one in self.series.values()) - 1
        right, bottom = _WIDTH - _RIGHT, self.height - _BOTTOM

        def x(step: float) -> float:
            return _LEFT + (right - _LEFT) * step / max(1, steps)

        def y(value: float) -> float:
            return bottom - (bottom - _TOP - 14) * (value - low) / (high - low)

        parts = []
        for tick in ticks:
            parts.append(f'<path class="grid" d="M{_LEFT} {y(tick):.1f}H{right}"/>')
            parts.append(text(_LEFT - 8, y(tick) + 4, f"{tick:g}", "end"))
        for step in (0, steps // 2, steps):
            parts.append(text(x(step), bottom + 18, str(step), "middle"))
        parts.append(text((_LEFT + right) / 2, bottom + 34, "step", "middle"))
        parts.append(text(_LEFT - 34, _TOP, self.y_label, "start", strong=True))
        if self.target is not None:
            parts.append(f'<path class="target" d="M{_LEFT} {y(self.target):.1f}H{right}"/>')
        labels = []
        for index, (name, one) in enumerate(self.series.items()):
            role = self._role(index, name)
            points = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(one))
            parts.append(f'<polyline style="stroke:{paint(role)}" points="{points}"/>')
            labels.append((y(one[-1]), name, role))
        if self.target is not None:
            labels.append((y(self.target), f"target {self.target:g}", ""))
        for height, name, role in spread(labels, bottom):
            parts.append(text(right + 8, height + 4, name, "start", fill=paint(role)))
        return svg(_WIDTH, self.height, self.title, parts)


@dataclass(frozen=True)
class Choices:
    """Which experts each token chose: one row per token, FFN experts left, identity right.

    Args:
        rows: token label -> the expert indices it chose.
        n_ffn: FFN experts N. n_experts: all experts E.
        title: one sentence that says what the figure shows.
    """

    rows: Mapping[str, Sequence[int]]
    n_ffn: int
    n_experts: int
    _: KW_ONLY
    title: str

    def __rich__(self) -> Group:
        lines = []
        for label, chosen in self.rows.items():
            line = Text(f"{label:>10} ")
            for expert in range(self.n_experts):
                ffn = expert < self.n_ffn
                line.append("│ " if expert == self.n_ffn else "")
                picked = "█ " if ffn else "▒ "
                line.append(picked if expert in chosen else "· ", style("ffn" if ffn else "zero"))
            line.append(f" {sum(e < self.n_ffn for e in chosen)} FFN")
            lines.append(line)
        return Group(*lines)

    def __str__(self) -> str:
        cell, left, top = 28, 96, 34
        gap = 18  # between FFN and identity experts
        parts = [
            text(left, 20, f"{self.n_ffn} FFN experts", "start", fill=paint("ffn")),
            text(
                left + self.n_ffn * cell + gap,
                20,
                f"{self.n_experts - self.n_ffn} identity experts",
                "start",
                fill=paint("zero"),
            ),
        ]
        for row, (label, chosen) in enumerate(self.rows.items()):
            y = top + row * cell
            parts.append(text(left - 12, y + 18, label, "end"))
            for expert in range(self.n_experts):
                x = left + expert * cell + (gap if expert >= self.n_ffn else 0)
                role = "ffn" if expert < self.n_ffn else "zero"
                look = f"fill:{paint(role)}" if expert in chosen else ""
                kind = "cell" if expert in chosen else "cell empty"
                parts.append(
                    f'<rect class="{kind}" x="{x}" y="{y}" width="{cell - 5}" '
                    f'height="{cell - 5}" rx="4" style="{look}"/>'
                )
            used = sum(e < self.n_ffn for e in chosen)
            x = left + self.n_experts * cell + gap + 10
            parts.append(text(x, y + 18, f"{used} FFN", "start", fill=paint("ffn")))
        width = left + self.n_experts * cell + gap + 80
        return svg(width, top + len(self.rows) * cell + 6, self.title, parts)
