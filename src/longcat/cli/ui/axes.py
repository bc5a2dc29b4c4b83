"""What surrounds a plot: title and legend, labelled axis, frame and footer."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style

from longcat.cli.ui.raster import Grid
from longcat.cli.ui.theme import spell

_DIM = Style(dim=True)
_BOLD = Style(bold=True)
Legend = Sequence[tuple[str, str, Style]]  # glyph, text, style
Groups = list[tuple[int, int, int, int]]  # first value, end value, first column, end column


def limits(series: Iterable[Sequence[float]], target: float | None) -> tuple[float, float]:
    """Lowest and highest finite value (and the target), with a little air; never equal."""
    values = [v for one in series for v in one if math.isfinite(v)]
    if target is not None:
        values.append(target)
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    air = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return low - air, high + air


def row_of(value: float, low: float, high: float, height: int) -> int:
    """The row (0 = top) whose span holds `value`."""
    share = (value - low) / ((high - low) or 1.0)
    return min(height - 1, max(0, math.floor((1 - share) * height)))


def snapped(low: float, high: float, target: float, height: int, part: float) -> float:
    """The least upper limit from `high` on with which `target` lies `part` down into its row.

    At the very edge of a row a curve that hugs the target would flicker between two rows.
    """
    if not low < target <= high:
        return high
    row = math.ceil((high - target) / (high - low) * height - part) + part
    return high if row >= height else (height * target - row * low) / (height - row)


def ticks(low: float, high: float, height: int, target: float | None) -> dict[int, str]:
    """Row -> label: the ends, the middle where it is free, and the target, which goes first."""
    digits = min(6, max(0, 2 - math.floor(math.log10(max(abs(high), abs(low), 1e-9)))))
    chosen: dict[int, str] = {}
    wanted = [target] if target is not None else []
    for value in [*wanted, high, low, (high + low) / 2]:
        row = row_of(value, low, high, height)
        if all(abs(row - other) > 1 for other in chosen):
            chosen[row] = f"{value:.{digits}f}"
    return chosen


def header(title: str, legend: Legend, width: int, ascii_only: bool) -> Iterator[Segment]:
    """The title, and the legend on its right or, where that is too narrow, on lines below."""
    title = spell(title, ascii_only=ascii_only)
    entries = [
        (f"{glyph} {spell(text, ascii_only=ascii_only)}", pen) for glyph, text, pen in legend
    ]
    if not title and not entries:
        return
    long = sum(cell_len(text) + 2 for text, _ in entries)
    used = min(cell_len(title), width)
    yield Segment(set_cell_size(title, used), _BOLD)
    if entries and used + long > width:
        yield from _rest(width - used)
        used = 0
    elif entries:
        yield Segment(" " * (width - used - long))
        used = width - long
    for text, pen in entries:
        if used + cell_len(text) + 2 > width and used:
            yield from _rest(width - used)
            used = 0
        cut = set_cell_size(text, max(1, min(cell_len(text), width - used - 2)))
        yield Segment("  " + cut, pen)
        used += 2 + cell_len(cut)
    yield from _rest(width - used)


def framed(
    grid: Grid, labels: Mapping[int, str], label_width: int, ascii_only: bool
) -> Iterator[Segment]:
    """The grid's rows behind the vertical axis and its labels."""
    plain, marked = ("|", "+") if ascii_only else ("│", "┤")
    for row in range(grid.height):
        text = labels.get(row)
        yield Segment(f"{text or '':>{label_width}} {marked if text else plain}", _DIM)
        yield from grid.segments(row)
        yield Segment.line()


def footer(
    first: str, last: str, label_width: int, columns: int, ascii_only: bool
) -> Iterator[Segment]:
    """The horizontal axis with the labels of its two ends."""
    yield _axis(label_width, columns, ascii_only)
    yield Segment.line()
    first, last = (spell(text, ascii_only=ascii_only) for text in (first, last))
    room = columns - len(first)
    text = first + last.rjust(room) if room > len(last) else ""
    yield Segment(" " * (label_width + 2) + set_cell_size(text, columns), _DIM)
    yield Segment.line()


def groups(values: int, columns: int) -> Groups:
    """Which values share a bar, and which columns the bar takes, with gaps where there is room."""
    if values == 0:
        return []
    if values > columns:
        edges = [round(c * values / columns) for c in range(columns + 1)]
        return [(edges[c], edges[c + 1], c, c + 1) for c in range(columns)]
    pitch = min(8, columns // values)
    gap = 0 if pitch == 1 else 1
    return [(i, i + 1, i * pitch, (i + 1) * pitch - gap) for i in range(values)]


def labels(
    texts: Sequence[str] | None, places: Groups, label_width: int, columns: int, ascii_only: bool
) -> Iterator[Segment]:
    """The horizontal axis, and below it each bar's label as far as they all fit."""
    yield _axis(label_width, columns, ascii_only)
    yield Segment.line()
    if texts is None:
        return
    line, end = "", -1
    for first, _, start, _ in places:
        text = spell(texts[first], ascii_only=ascii_only)
        if start > end and start + cell_len(text) <= columns:
            line = set_cell_size(line, start) + text
            end = start + cell_len(text)
    yield Segment(" " * (label_width + 2) + set_cell_size(line, columns), _DIM)
    yield Segment.line()


def _axis(label_width: int, columns: int, ascii_only: bool) -> Segment:
    corner, dash = ("+", "-") if ascii_only else ("└", "─")
    return Segment(" " * (label_width + 1) + corner + dash * columns, _DIM)


def _rest(width: int) -> Iterator[Segment]:
    yield Segment(" " * max(0, width))
    yield Segment.line()
