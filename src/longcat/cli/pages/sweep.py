"""A figure of the documentation for a few settings in a row, each marked and named on the axis."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field

from longcat.cli.pages.svg import nice_axis, paint, spread, svg, text
from longcat.cli.ui.plot import Line
from longcat.cli.ui.theme import CYCLE

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 260, 46, 180, 16, 40


@dataclass(frozen=True)
class Sweep:
    """One value per setting and series, at equal distances.

    Args:
        settings: the settings' names, left to right.
        series: name -> one value per setting.
        title: one sentence that says what the figure shows; read aloud by screen readers.
        x_label, y_label: what is varied, what is drawn.
        roles: name -> role of the theme; by default in the theme's order.
    """

    settings: Sequence[str]
    series: Mapping[str, Sequence[float]]
    _: KW_ONLY
    title: str
    x_label: str
    y_label: str
    roles: Mapping[str, str] = field(default_factory=dict)

    def _role(self, index: int, name: str) -> str:
        return self.roles.get(name, CYCLE[index % len(CYCLE)])

    def __rich__(self) -> Line:
        roles = {name: self._role(i, name) for i, name in enumerate(self.series)}
        ends = (self.settings[0], f"{self.x_label} {self.settings[-1]}")
        return Line(self.series, title=self.y_label, roles=roles, ends=ends)

    def __str__(self) -> str:
        values = [v for one in self.series.values() for v in one]
        low, high, ticks = nice_axis(min(values), max(values))
        right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
        pitch = (right - _LEFT) / len(self.settings)

        def x(place: int) -> float:
            return _LEFT + pitch * (place + 0.5)

        def y(value: float) -> float:
            return bottom - (bottom - _TOP - 14) * (value - low) / (high - low)

        parts = []
        for tick in ticks:
            parts.append(f'<path class="grid" d="M{_LEFT} {y(tick):.1f}H{right}"/>')
            parts.append(text(_LEFT - 8, y(tick) + 4, f"{tick:g}", "end"))
        for place, name in enumerate(self.settings):
            parts.append(text(x(place), bottom + 18, name, "middle"))
        parts.append(text((_LEFT + right) / 2, bottom + 34, self.x_label, "middle"))
        parts.append(text(_LEFT - 34, _TOP, self.y_label, "start", strong=True))
        labels = []
        for index, (name, one) in enumerate(self.series.items()):
            role = self._role(index, name)
            spots = [(x(place), y(value)) for place, value in enumerate(one)]
            line = " ".join(f"{a:.1f},{b:.1f}" for a, b in spots)
            parts.append(f'<polyline style="stroke:{paint(role)}" points="{line}"/>')
            parts += [
                f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" style="fill:{paint(role)}"/>'
                for a, b in spots
            ]
            labels.append((spots[-1][1], name, role))
        for height, name, role in spread(labels, bottom):
            parts.append(text(right + 8, height + 4, name, "start", fill=paint(role)))
        return svg(_WIDTH, _HEIGHT, self.title, parts)
