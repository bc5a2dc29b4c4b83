"""A passage of text whose tokens are shaded by a count, as HTML for the documentation.

The shade is the page's own colour for FFN experts, more or less transparent, so one drawing serves
the light and the dark palette; every token also carries its count as a title.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from longcat.cli.pages.svg import paint

_STRONGEST = 80  # per cent of the colour, the text on it still readable
_BEND = 1.6  # most tokens lie in the upper half, where neighbours would look alike


def scale(most: int, target: float) -> str:
    """The shades of 0 to `most` experts, with the mean that training holds."""
    marks = "".join(_span(f" {n} ", n, most) for n in range(most + 1))
    words = f"FFN experts of a token; held at {target:g} on average"
    return f'<p class="heat-scale"><code>{marks}</code> {words}</p>\n'


def passage(pieces: Sequence[str], counts: Sequence[int], *, most: int, caption: str) -> str:
    """The text with its shades, and a caption below.

    Args:
        pieces: tokens as text; joined they are the passage. counts: one per token.
        most: the count with the strongest shade.

    Raises:
        ValueError: when there is not one count per token.
    """
    marks = "".join(_span(p, n, most) for p, n in zip(pieces, counts, strict=True))
    # A blank line would end the HTML block in Markdown.
    whole = marks.replace("\n", "&#10;")
    style = "white-space:pre-wrap;overflow-wrap:anywhere;text-align:left"
    return (
        f'<figure class="figure"><pre class="heat" style="{style}"><code>{whole}</code></pre>'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    )


def _span(piece: str, count: int, most: int) -> str:
    """Blanks around a token belong to the text and are not shaded, but a blank token is."""
    body = piece.strip(" \n") or piece.strip("\n")
    if not body:
        return escape(piece)
    before, after = piece.split(body, 1)
    share = round(_STRONGEST * (count / most) ** _BEND)
    look = f"background:color-mix(in srgb,{paint('ffn')} {share}%,transparent)"
    return f'{before}<span style="{look}" title="{count}">{escape(body)}</span>{after}'
