"""Line plots and bars for the terminal, drawn with block glyphs.

Notable:
- both are rich renderables: print them, or put them in a table, a panel or a `Live`;
- they fill the width they are given; `height` counts the rows of the drawing itself;
- a dashed line marks the target;
- block glyphs, not braille: they survive every terminal font and the SVG recordings;
- without colour the marks differ (see `theme.is_plain`), in ASCII all of it is ASCII.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass

from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.segment import Segment

from longcat.cli.ui import axes
from longcat.cli.ui.raster import EIGHTHS, Grid, resample, trace
from longcat.cli.ui.theme import CYCLE, ROLES, is_plain, spell, style

_MARKS = "●○▲△■"
_ASCII_MARKS = "*o+x#"
_MIN_WIDTH = 24


@dataclass(frozen=True)
class Line:
    """Curves over steps, with an optional dashed target.

    Args:
        series: name -> values, one per step; the first named lies on top. Values that are not
            finite leave a gap.
        target: drawn as a dashed line and labelled on the axis.
        height: rows of the drawing.
        title: stands above, with the legend beside it.
        length: steps the horizontal axis stands for (fixed, so that a live curve grows into its
            frame); by default the longest series.
        roles: name -> role of `theme.ROLES`; by default in the order of `theme.CYCLE`.
        limits: lowest and highest value shown (the upper one may move up by a row, to have the
            target well inside its row); by default all of the data and the target.
        x_label: unit of the horizontal axis.
        ends: what stands at the two ends of that axis, in place of 0 and the length.
    """

    series: Mapping[str, Sequence[float]]
    target: float | None = None
    _: KW_ONLY
    height: int = 10
    title: str = ""
    length: int | None = None
    roles: Mapping[str, str] | None = None
    limits: tuple[float, float] | None = None
    x_label: str = "step"
    ends: tuple[str, str] | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        width, ascii_only = options.max_width, options.ascii_only
        plain = ascii_only or (is_plain(console, options) and len(self.series) > 1)
        marks = _ASCII_MARKS if ascii_only else _MARKS
        names = list(self.series)
        role_of = {name: CYCLE[i % len(CYCLE)] for i, name in enumerate(names)}
        role_of.update(self.roles or {})
        legend = [
            (marks[i % len(marks)] if plain else "▀", name, style(role_of[name]))
            for i, name in enumerate(names)
            if len(names) > 1 or not self.title
        ]
        yield from axes.header(self.title, legend, width, ascii_only)

        low, high = self.limits or axes.limits(self.series.values(), self.target)
        if self.target is not None:
            high = axes.snapped(low, high, self.target, self.height, 0.75)
        ticks = axes.ticks(low, high, self.height, self.target)
        label_width = max(len(text) for text in ticks.values())
        columns = max(1, width - label_width - 2)
        length = self.length or max((len(v) for v in self.series.values()), default=0)

        grid = Grid(columns, self.height)
        if self.target is not None:
            grid.dash(axes.row_of(self.target, low, high, self.height), ascii_only)
        for i, name in reversed(list(enumerate(names))):
            pen = style(role_of[name])
            if plain:
                points = resample(self.series[name], columns, length)
                for x, y in trace(points, low, high, self.height):
                    grid.put(x, y, marks[i % len(marks)], pen)
            else:
                points = resample(self.series[name], 2 * columns, length)
                grid.draw(trace(points, low, high, 2 * self.height), pen)
        yield from axes.framed(grid, ticks, label_width, ascii_only)
        first, last = self.ends or ("0", f"{self.x_label} {length:,}")
        yield from axes.footer(first, last, label_width, columns, ascii_only)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(_MIN_WIDTH, options.max_width), options.max_width)


@dataclass(frozen=True)
class Bars:
    """One vertical bar per value, with an optional dashed target.

    Args:
        values: heights, at least 0; anything not finite is drawn as 0. With more values than
            columns each bar is the highest of its neighbours (the peak is what one looks for).
        labels: one per value, printed below where they fit.
        target: drawn as a dashed line behind the bars and labelled on the axis.
        height: rows of the drawing.
        title: stands above, with the legend beside it.
        roles: one role per value; by default all "ffn".
        legend: role -> what it stands for.
        top: value at the upper edge (see `Line.limits`); by default the largest value or target.
    """

    values: Sequence[float]
    labels: Sequence[str] | None = None
    target: float | None = None
    _: KW_ONLY
    height: int = 10
    title: str = ""
    roles: Sequence[str] | None = None
    legend: Mapping[str, str] | None = None
    top: float | None = None

    def __post_init__(self) -> None:
        for name, given in (("labels", self.labels), ("roles", self.roles)):
            if given is not None and len(given) != len(self.values):
                raise ValueError(
                    f"Bars: {name} needs one entry per value, {len(self.values)}; got {len(given)}"
                )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        width, ascii_only = options.max_width, options.ascii_only
        plain = is_plain(console, options)
        roles = list(self.roles or ["ffn"] * len(self.values))
        legend = [
            (_fill(role, plain, ascii_only) if plain else "▀", text, style(role))
            for role, text in (self.legend or {}).items()
        ]
        yield from axes.header(self.title, legend, width, ascii_only)

        highest = max([v for v in self.values if v < float("inf")] + [self.target or 0.0])
        top = self.top or highest or 1.0
        if self.target is not None:
            top = axes.snapped(0.0, top, self.target, self.height, 0.5)
        ticks = axes.ticks(0.0, top, self.height, self.target)
        label_width = max(len(text) for text in ticks.values())
        columns = max(1, width - label_width - 2)
        grid = Grid(columns, self.height)
        if self.target is not None:
            grid.dash(axes.row_of(self.target, 0.0, top, self.height), ascii_only)
        groups = axes.groups(len(self.values), columns)
        for first, last, start, end in groups:
            value = max((v for v in self.values[first:last] if v == v), default=0.0)
            self._draw(grid, value / top, roles[first], start, end, plain, ascii_only)
        yield from axes.framed(grid, ticks, label_width, ascii_only)
        yield from axes.labels(self.labels, groups, label_width, columns, ascii_only)

    def _draw(
        self, grid: Grid, share: float, role: str, start: int, end: int, plain: bool, ascii_: bool
    ) -> None:
        """Fill columns start..end-1 from the bottom up to `share` of the height."""
        pen, full = style(role), _fill(role, plain, ascii_)
        eighths = round(min(1.0, max(0.0, share)) * self.height * 8)
        for row in range(self.height):
            level = min(8, eighths - 8 * (self.height - 1 - row))
            if level <= 0:
                continue
            glyph = full if level == 8 else EIGHTHS[level]
            if plain and (full != "█"):
                glyph = full if level >= 4 else grid.get(start, row)
            for column in range(start, end):
                grid.put(column, row, glyph, pen)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(_MIN_WIDTH, options.max_width), options.max_width)


def _fill(role: str, plain: bool, ascii_only: bool) -> str:
    """The glyph of a full cell: solid, or without colour hatched for anything but FFN."""
    if not plain:
        return "█"
    solid = role == next(iter(ROLES))
    return spell("█" if solid else "▒", ascii_only=ascii_only)
