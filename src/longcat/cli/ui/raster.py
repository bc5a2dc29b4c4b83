"""A grid of coloured characters, and the quadrant glyphs that give it 2x2 pixels per cell."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

from rich.segment import Segment
from rich.style import Style

# Index bits: 1 upper left, 2 upper right, 4 lower left, 8 lower right.
QUADRANTS = " ▘▝▀▖▌▞▛▗▚▐▜▄▙▟█"
EIGHTHS = " ▁▂▃▄▅▆▇█"
_UPPER, _LOWER = (1, 2, 3), (4, 8, 12)


class Grid:
    """Rows of (character, style) that know how to become rich segments."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._cells: list[list[tuple[str, Style | None]]] = [
            [(" ", None)] * width for _ in range(height)
        ]

    def put(self, column: int, row: int, glyph: str, style: Style | None = None) -> None:
        """Set one cell; row 0 is the top."""
        self._cells[row][column] = (glyph, style)

    def dash(self, row: int, ascii_only: bool) -> None:
        """A dashed line along a whole row."""
        for column in range(self.width):
            self.put(column, row, "-" if ascii_only else "╌", Style(dim=True))

    def draw(self, pixels: Iterable[tuple[int, int]], pen: Style) -> None:
        """Set pixels (x, y) of half a cell each, over what is there.

        A cell has one foreground. Where one curve keeps to its upper half and another to its
        lower half, the lower one becomes the background; otherwise the new curve hides the old.
        """
        bits: dict[tuple[int, int], int] = {}
        for x, y in pixels:
            cell = (x // 2, y // 2)
            bits[cell] = bits.get(cell, 0) | (1 << (x % 2 + 2 * (y % 2)))
        for (column, row), new in bits.items():
            glyph, other = self._cells[row][column]
            old = QUADRANTS.find(glyph)
            if other is None or other.bgcolor is not None or old <= 0:
                self.put(column, row, QUADRANTS[new], pen)
            elif new in _UPPER and old in _LOWER:
                self.put(column, row, "▀", Style(color=pen.color, bgcolor=other.color))
            elif new in _LOWER and old in _UPPER:
                self.put(column, row, "▀", Style(color=other.color, bgcolor=pen.color))
            else:
                self.put(column, row, QUADRANTS[new], pen)

    def get(self, column: int, row: int) -> str:
        """The character of one cell."""
        return self._cells[row][column][0]

    def segments(self, row: int) -> Iterator[Segment]:
        """One row as segments, neighbours of the same style joined."""
        text, current = "", None
        for glyph, style in self._cells[row]:
            if style != current and text:
                yield Segment(text, current)
                text = ""
            text, current = text + glyph, style
        if text:
            yield Segment(text, current)


def resample(values: Sequence[float], columns: int, length: int) -> list[float | None]:
    """`values` on `columns` points that stand for `length` samples; None where there are none.

    With more samples than columns each column takes the mean of its samples, with fewer the
    points between are interpolated. Values that are not finite leave a gap.
    """
    if not values or columns < 1:
        return [None] * columns
    scale = (columns - 1) / max(length - 1, 1)
    sums, hits = [0.0] * columns, [0] * columns
    for i, value in enumerate(values[:length]):
        if math.isfinite(value):
            column = min(columns - 1, round(i * scale))
            sums[column] += value
            hits[column] += 1
    points = [s / n if n else None for s, n in zip(sums, hits, strict=True)]
    known = [c for c, point in enumerate(points) if point is not None]
    # Interpolate only over spans that hold no sample at all: a sample that is not finite stays
    # a gap, for hiding a NaN is the last thing a loss curve should do.
    step = math.ceil(scale) if scale > 1 else 1
    for left, right in itertools.pairwise(known):
        if 1 < right - left <= step:
            a, b = sums[left] / hits[left], sums[right] / hits[right]
            for c in range(left + 1, right):
                points[c] = a + (b - a) * (c - left) / (right - left)
    return points


def trace(
    points: Sequence[float | None], low: float, high: float, rows: int
) -> Iterator[tuple[int, int]]:
    """Pixels (x, y), y = 0 at the top, of the connected curve through `points`."""
    previous: int | None = None
    for x, value in enumerate(points):
        if value is None:
            previous = None
            continue
        share = (value - low) / (high - low)
        y = min(rows - 1, max(0, math.floor((1 - share) * rows)))
        start = y
        if previous is not None and abs(previous - y) > 1:
            start = previous + (1 if previous < y else -1)
        for pixel in range(min(start, y), max(start, y) + 1):
            yield x, pixel
        previous = y
