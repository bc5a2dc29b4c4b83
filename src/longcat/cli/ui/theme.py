"""Five colours with a meaning each, and the console that every command prints through.

Notable:
- a role is a meaning, not a colour: ffn (work done), zero (work skipped), net (traffic, and other
  things beside the point), good and bad (verdicts);
- the colours keep 0.08 apart in OKLab under protanopia, deuteranopia and tritanopia, with a
  contrast of 2.7 or better on white and on near-black, so one set serves the terminal, plots
  and the site's light and dark pages;
- colour is never the only carrier: without it (NO_COLOR, a pipe, --ascii) glyphs differ instead.
"""

from typing import IO

from rich.console import Console, ConsoleOptions
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.theme import Theme

ROLES: dict[str, str] = {
    "ffn": "#299fcd",
    "zero": "#7d8490",
    "net": "#d98a2e",
    "good": "#098356",
    "bad": "#d73337",
}
PAPER = "#0e1218"  # background of recordings
INK = "#d6dbe3"  # text of recordings

# Order in which unnamed series of a plot take their colours.
CYCLE: tuple[str, ...] = ("ffn", "net", "good", "bad", "zero")

THEME = Theme({**ROLES, "title": "bold", "note": "dim"})

RECORDING_THEME = TerminalTheme(
    background=(0x0E, 0x12, 0x18),
    foreground=(0xD6, 0xDB, 0xE3),
    normal=[
        (0x0E, 0x12, 0x18),
        (0xD7, 0x33, 0x37),
        (0x09, 0x83, 0x56),
        (0xD9, 0x8A, 0x2E),
        (0x29, 0x9F, 0xCD),
        (0xA7, 0x7B, 0xC9),
        (0x29, 0x9F, 0xCD),
        (0xD6, 0xDB, 0xE3),
    ],
)

# What --ascii, and terminals that cannot do better, get instead.
_SPELLING = {
    "μ": "mu",
    "Δ": "d",
    "γ": "gamma",
    "Σ": "sum ",
    "·": "*",
    "×": "x",
    "−": "-",
    "–": "-",
    "—": "-",
    "≠": "!=",
    "≤": "<=",
    "≥": ">=",
    "±": "+-",
    "→": "->",
    "…": "...",
    "₁": "1",
    "ₑ": "_e",
    "ᵢ": "_i",
    "✓": "ok",
    "✗": "FAIL",
    "╌": "-",
    "─": "-",
    "▀": "-",
    "█": "#",
    "▆": "#",
    "▒": ":",
}


def style(role: str, **extra: bool) -> Style:
    """The style of a role: its colour, and rich's attributes (`bold=True`) on top."""
    return Style.parse(ROLES[role]) + Style(**extra)  # type: ignore[arg-type]


def spell(text: str, *, ascii_only: bool) -> str:
    """`text` as it is, or with every glyph spelled in ASCII; unknown glyphs become '?'."""
    if not ascii_only:
        return text
    spelled = "".join(_SPELLING.get(glyph, glyph) for glyph in text)
    return spelled.encode("ascii", "replace").decode("ascii")


def is_plain(console: Console, options: ConsoleOptions) -> bool:
    """Whether glyphs must carry what colour cannot: ASCII only, NO_COLOR, or no colour at all."""
    return options.ascii_only or console.no_color or console.color_system is None


def blend(low: str, high: str, amount: float) -> str:
    """The hex colour `amount` of the way (0..1) from `low` to `high`, mixed in sRGB."""
    amount = min(1.0, max(0.0, amount))
    pairs = zip(_channels(low), _channels(high), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * amount):02x}" for a, b in pairs)


def ink_on(background: str) -> str:
    """Near-black or near-white, whichever contrasts more with a hex background."""
    linear = [(c / 255) ** 2.2 for c in _channels(background)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # The two contrasts (L+.05)/(dark+.05) and (light+.05)/(L+.05) are equal near L = 0.18.
    return "#0b0f14" if luminance > 0.18 else "#eef2f7"


def _channels(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


class _AsciiConsole(Console):
    """A console that claims an ASCII terminal, so boxes, bars and plots of rich and ours agree."""

    @property
    def encoding(self) -> str:
        return "ascii"


def make_console(
    *,
    ascii_only: bool = False,
    file: IO[str] | None = None,
    stderr: bool = False,
    width: int | None = None,
    record: bool = False,
) -> Console:
    """A console with the theme, at most 120 columns wide.

    Args:
        ascii_only: draw with ASCII even where the terminal could do more.
        file: where to print; standard output (or `stderr`) by default.
        width: columns; the terminal's by default, and never above 120 (lines get hard to read).
        record: keep what is printed, in full colour whatever the terminal, for `ui.record`.
    """
    kind = _AsciiConsole if ascii_only else Console
    console = kind(
        theme=THEME,
        file=file,
        stderr=stderr,
        width=width,
        record=record,
        highlight=False,
        force_terminal=True if record else None,
        color_system="truecolor" if record else "auto",
        no_color=False if record else None,
        force_interactive=False if record else None,
    )
    if width is None and console.width > 120:
        console.width = 120
    return console
