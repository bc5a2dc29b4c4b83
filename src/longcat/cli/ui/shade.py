"""Text whose tokens are shaded by a number, such as the FFN experts each of them used.

Notable:
- with colour a token's background says how much; without it the number stands under the token;
- spaces and line ends belong to the text and are not shaded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style

from longcat.cli.ui.theme import ROLES, blend, ink_on, is_plain, spell

_IDLE = "#1d242e"  # the shade of the lowest value: dark slate, readable on any background
_Row = list[tuple[str, float | None]]


@dataclass(frozen=True)
class Shade:
    """Shaded text with a scale below it.

    Args:
        tokens: the text in pieces; joined they are the text. A piece may contain line ends.
        values: one number per token.
        low, high: values with the faintest and the strongest shade.
        role: colour of the strongest shade.
        unit: what the number counts, for the scale.
    """

    tokens: Sequence[str]
    values: Sequence[float]
    _: KW_ONLY
    low: float
    high: float
    role: str = "ffn"
    unit: str = ""

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.values):
            raise ValueError(
                f"Shade: needs one value per token; got {len(self.tokens)} tokens "
                f"and {len(self.values)} values"
            )

    def shade(self, value: float) -> Style:
        """Background and readable foreground of one value."""
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        # The strongest shade is a lighter tint, and the curve bends: neighbours tell apart better.
        strongest = blend(ROLES[self.role], "#ffffff", 0.3)
        background = blend(_IDLE, strongest, max(0.0, share) ** 1.3)
        return Style.parse(f"{ink_on(background)} on {background}")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        plain = is_plain(console, options)
        for row in self._rows(options.max_width, options.ascii_only):
            used, below = 0, ""
            for text, value in row:
                shaded = value is not None and not plain
                yield Segment(text, self.shade(value) if shaded and value is not None else None)
                if value is not None:
                    below = below.ljust(used) + f"{value:.0f}"
                used += cell_len(text)
            yield Segment(" " * (options.max_width - used))
            yield Segment.line()
            if plain:
                yield Segment(below[: options.max_width].ljust(options.max_width), Style(dim=True))
                yield Segment.line()
        yield from self._scale(plain, options)

    def _rows(self, width: int, ascii_only: bool) -> Iterator[_Row]:
        """Lines of (piece, value or None for blanks), broken between tokens at `width` columns."""
        row: _Row = []
        used = 0
        for token, value in zip(self.tokens, self.values, strict=True):
            for i, line in enumerate(spell(token, ascii_only=ascii_only).split("\n")):
                if i:
                    yield row
                    row, used = [], 0
                for piece, blank in _pieces(line):
                    for start in range(0, len(piece), width):
                        part = piece[start : start + width]
                        if used + cell_len(part) > width:
                            yield row
                            row, used = [], 0
                            if blank:
                                continue
                        row.append((part, None if blank else value))
                        used += cell_len(part)
        if row:
            yield row

    def _scale(self, plain: bool, options: ConsoleOptions) -> Iterator[Segment]:
        """The five shades from low to high with their values; only the unit without colour."""
        width = options.max_width
        unit = spell(self.unit, ascii_only=options.ascii_only)
        text = f"(below: {unit})" if plain else unit + "  "
        text = text[:width]
        used = cell_len(text)
        yield Segment(text, Style(dim=True))
        for i in range(0 if plain else 5):
            value = self.low + (self.high - self.low) * i / 4
            mark = f" {value:g} "
            if used + len(mark) <= width:
                yield Segment(mark, self.shade(value))
                used += len(mark)
        yield Segment(" " * (width - used))
        yield Segment.line()

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(20, options.max_width), options.max_width)


def _pieces(line: str) -> Iterator[tuple[str, bool]]:
    """A token's leading blanks, its body and its trailing blanks; True marks blanks."""
    body = line.strip(" ")
    if not body:
        if line:
            yield line, True
        return
    lead = len(line) - len(line.lstrip(" "))
    tail = len(line) - lead - len(body)
    if lead:
        yield " " * lead, True
    yield body, False
    if tail:
        yield " " * tail, True
