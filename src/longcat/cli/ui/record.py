"""Recordings: what a console printed, as one SVG that needs nothing from another host.

Notable:
- rich's export names web fonts on another host; that block is dropped and local fonts are named;
- block and line glyphs become rectangles: their size in a font and the line height rarely agree,
  and bars and curves would show seams. So a recording looks the same with every font.
"""

import html
import os
import re
import tempfile
from pathlib import Path

from rich.console import Console

from longcat.cli.ui.raster import EIGHTHS, QUADRANTS
from longcat.cli.ui.theme import RECORDING_THEME

_FONTS = '"JetBrains Mono", ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace'
_TEXT = re.compile(r'<text class="([^"]+)" x="([^"]+)" y="([^"]+)" [^>]*>([^<]*)</text>')

# rich's geometry: characters of 12.2 x 20, lines of 24.4, the cell's top 18.5 above the baseline.
_CELL_WIDTH, _CELL_HEIGHT, _ASCENT = 12.2, 24.4, 18.5
_OVERLAP = 0.25  # of stacked rectangles, against seams from rounding

Box = tuple[float, float, float, float]  # left, top, width, height in parts of a cell

_THIN, _MIDDLE = 0.05, 0.475
_DOWN: Box = (0.45, 0.0, 0.1, 1.0)
_LINES: dict[str, list[Box]] = {
    "│": [_DOWN],
    "┤": [_DOWN, (0.0, _MIDDLE, 0.45, _THIN)],
    "└": [(0.45, 0.0, 0.1, 0.5), (0.45, _MIDDLE, 0.55, _THIN)],
    "─": [(0.0, _MIDDLE, 1.0, _THIN)],
    "╌": [(0.05, _MIDDLE, 0.35, _THIN), (0.55, _MIDDLE, 0.35, _THIN)],
}


def svg(console: Console, title: str) -> str:
    """The recording of a console made with `make_console(record=True)`, as SVG text."""
    text = console.export_svg(title=title, theme=RECORDING_THEME, clear=False)
    text = re.sub(r"@font-face\s*\{.*?\}", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family:\s*[^;]+;", f"font-family: {_FONTS};", text)
    return _TEXT.sub(_draw_blocks, text)


def write(path: Path, text: str) -> None:
    """Write `text` to `path` whole or not at all.

    Raises:
        OSError: when the folder is missing or cannot be written.
    """
    name = ""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException as error:
        if name:
            os.unlink(name)
        if isinstance(error, OSError):
            # The reader knows the name that was asked for, not the temporary one.
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _boxes(glyph: str) -> list[Box] | None:
    """The filled parts of a block glyph's cell; None for any other glyph."""
    if glyph in QUADRANTS[1:]:
        index = QUADRANTS.index(glyph)
        if index == 15:
            return [(0.0, 0.0, 1.0, 1.0)]
        return [
            (0.5 * (corner % 2), 0.5 * (corner // 2), 0.5, 0.5)
            for corner in range(4)
            if index & (1 << corner)
        ]
    if glyph in EIGHTHS[1:]:
        share = EIGHTHS.index(glyph) / 8
        return [(0.0, 1 - share, 1.0, share)]
    return _LINES.get(glyph)


def _draw_blocks(match: re.Match[str]) -> str:
    """One text element as rectangles for its block glyphs and text for the rest."""
    css, content = match[1], html.unescape(match[4])
    if all(_boxes(glyph) is None for glyph in content):
        return match[0]
    left, top = float(match[2]), float(match[3]) - _ASCENT
    clip = re.search(r'clip-path="[^"]+"', match[0])
    parts: list[str] = []
    boxes: list[Box] = []
    for i, glyph in enumerate(content):
        x = left + i * _CELL_WIDTH
        found = _boxes(glyph)
        if found is None:
            if glyph not in "\u00a0 ":
                escaped = html.escape(glyph)
                parts.append(
                    f'<text class="{css}" x="{x:g}" y="{match[3]}" '
                    f'textLength="{_CELL_WIDTH}" {clip[0] if clip else ""}>{escaped}</text>'
                )
            continue
        for dx, dy, w, h in found:
            box = (x + dx * _CELL_WIDTH, dy, w * _CELL_WIDTH, h)
            last = boxes[-1] if boxes else None
            # Join neighbours of equal height: fewer elements, and no seams between them.
            if last and last[1::2] == box[1::2] and abs(last[0] + last[2] - box[0]) < 0.01:
                boxes[-1] = (last[0], last[1], last[2] + box[2], last[3])
            else:
                boxes.append(box)
    for x, dy, width, share in boxes:
        parts.append(
            f'<rect class="{css}" x="{x:.2f}" y="{top + dy * _CELL_HEIGHT:.2f}" '
            f'width="{width:.2f}" height="{share * _CELL_HEIGHT + _OVERLAP:.2f}" '
            f'shape-rendering="crispEdges"/>'
        )
    return "".join(parts)
