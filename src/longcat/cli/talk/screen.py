"""A reply on the screen while it comes: Markdown on a terminal, the exact text elsewhere.

Notable:
- a block of Markdown (a paragraph, a list, a fenced piece of code) is printed for good once the
  next one begins, so that the scrollback is whole; only the block under way is redrawn;
- of a block taller than the screen its end is shown until it is complete;
- HTML is text: rich would leave its tags out, and what is said about <div> would lose a word.
"""

import time

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text

from longcat.chat import CallDelta
from longcat.cli.stream import TokenPrinter, harmless
from longcat.cli.talk.partner import Piece

_REDRAWS_PER_SECOND = 12
_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])


class PlainScreen:
    """Text as it comes, and nothing else; with `colour`, drafts are told apart on a terminal."""

    def __init__(self, console: Console, *, colour: bool = False) -> None:
        self._console = console
        self._printer = TokenPrinter(console)
        self._colour = colour
        self._empty = True

    def show(self, piece: Piece) -> None:
        """Print one more piece of the reply."""
        if isinstance(piece.delta, CallDelta):
            text = _call_text(piece.delta, first=self._empty)
        else:
            text = piece.delta.text
        self._empty = self._empty and not text
        shown = self._colour
        self._printer.token(
            text.encode(), drafted=shown and piece.drafted, refused=shown and piece.refused
        )

    def close(self) -> None:
        """The reply is over."""
        self._printer.close()


class MarkdownScreen:
    """Markdown, rendered as it comes; calls of tools stand in a line each."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._block = ""  # the block under way
        self._empty = True
        self._drawn = 0.0
        self._live = Live(
            console=console, auto_refresh=False, transient=True, vertical_overflow="visible"
        )
        self._live.start()

    def show(self, piece: Piece) -> None:
        """Print one more piece of the reply."""
        if isinstance(piece.delta, CallDelta):
            text = _call_text(piece.delta, first=self._empty)
        else:
            text = piece.delta.text
        self._add(harmless(text))

    def close(self) -> None:
        """The reply is over: what is left is printed for good."""
        self._live.update(Text())
        self._live.stop()
        if self._block.strip():
            self._console.print(markdown(self._block))

    def _add(self, text: str) -> None:
        self._empty = self._empty and not text
        self._block += text
        complete, self._block = _split(self._block)
        if complete.strip():
            self._live.update(Text(), refresh=True)
            self._console.print(markdown(complete))
            self._console.print()
        now = time.monotonic()
        if complete or now - self._drawn > 1 / _REDRAWS_PER_SECOND:
            self._live.update(_End(self._block), refresh=True)
            self._drawn = now


def markdown(text: str) -> Markdown:
    """Markdown for the screen, with HTML as the text that it is."""
    shown = Markdown(text)
    shown.parsed = _PARSER.parse(text)
    return shown


class _End:
    """The last lines of some Markdown, as many as the screen holds."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(markdown(self._text), options.update(height=None), pad=False)
        for line in lines[-max(1, console.height - 2) :]:
            yield from line
            yield Segment.line()


def _split(text: str) -> tuple[str, str]:
    """(the blocks that are complete, the one under way) of some Markdown."""
    fence, border, start = "", 0, 0
    for line in text.splitlines(keepends=True):
        bare = line.strip()
        if bare.startswith(("```", "~~~")):
            fence = "" if fence and bare.startswith(fence) else fence or bare[:3]
        start += len(line)
        # A list or an indented piece goes on behind an empty line: only then is the end certain.
        if not fence and not bare and line.endswith("\n"):
            border = start
    rest = text[border:]
    if rest[:1] in " \t-*+>" or rest[:1].isdigit():
        border = 0
    return (text[:border], text[border:]) if rest.strip() else ("", text)


def _call_text(delta: CallDelta, *, first: bool) -> str:
    if delta.name is None:
        return delta.arguments
    return f"{'' if first else chr(10) * 2}call of {delta.name}: {delta.arguments}"
