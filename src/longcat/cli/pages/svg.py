"""The strokes that the documentation's figures are drawn with: labels, axes, the frame around them.

Colours are the page's CSS (`--ffn`, `--zero`, ... and `currentColor`), so one drawing serves the
light and the dark palette; the theme's values are the fallback elsewhere.
"""

import math
from collections.abc import Sequence
from html import escape

from longcat.cli.ui.theme import ROLES


def paint(role: str) -> str:
    """The colour of a role of the theme; the text's own for ""."""
    return f"var(--{role},{ROLES[role]})" if role else "currentColor"


def text(
    x: float, y: float, words: str, anchor: str, *, fill: str = "currentColor", strong: bool = False
) -> str:
    """A label at (x, y); anchor "start", "middle" or "end" of it is there."""
    weight = ' font-weight="600"' if strong else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="fill:{fill}"{weight}>'
        f"{escape(words)}</text>"
    )


def svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """The whole figure, with a title that screen readers read aloud and all others see below."""
    # One line and no blank ones: a blank line would end the HTML block in Markdown.
    return (
        f'<figure class="figure"><svg viewBox="0 0 {width} {height}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{escape(title)}</title>{"".join(parts)}</svg>'
        f"<figcaption>{escape(title)}</figcaption></figure>\n"
    )


def nice_axis(low: float, high: float) -> tuple[float, float, list[float]]:
    """Limits and ticks at a step of 1, 2 or 5 times a power of ten, three to six of them."""
    span = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * m for m in (1, 2, 5, 10) if span / (power * m) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = [round(i * step, 10) for i in range(first, last + 1)]
    return ticks[0], ticks[-1], ticks


def spread(
    labels: Sequence[tuple[float, str, str]], lowest_allowed: float = math.inf
) -> list[tuple[float, str, str]]:
    """Push labels apart downwards until each has a line of its own, and all up if that is too far.

    Args:
        labels: (height, words, role). lowest_allowed: height that the last one may reach.
    """
    placed: list[tuple[float, str, str]] = []
    for height, name, role in sorted(labels):
        lowest = placed[-1][0] + 17 if placed else -math.inf
        placed.append((max(height, lowest), name, role))
    too_far = max(0.0, placed[-1][0] - lowest_allowed) if placed else 0.0
    return [(height - too_far, name, role) for height, name, role in placed]
