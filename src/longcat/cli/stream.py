"""Tokens to the screen as they come: whole characters only, and colour only on a terminal."""

import codecs
import re
from collections.abc import Callable

from rich.console import Console

# Control characters that could move the cursor or change the terminal; newline and tab stay.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class TokenPrinter:
    """Prints a prompt and then tokens. A token may end inside a UTF-8 character: its bytes wait.

    On a terminal the prompt is dim and drafted-and-accepted tokens are green, or underlined where
    there is no colour. Elsewhere the exact text is written, and nothing else.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        if console.no_color or console.color_system is None:
            self._drafted = "underline"
        else:
            # Sixteen colours hold nothing near the theme's green; the terminal's own will do.
            self._drafted = "green" if console.color_system == "standard" else "good"
        self._decode: Callable[..., str] = codecs.getincrementaldecoder("utf-8")("replace").decode

    def prompt(self, data: bytes) -> None:
        """Print the text that is being continued."""
        self._write(data.decode("utf-8", "replace"), "note")

    def token(self, data: bytes, drafted: bool) -> None:
        """Print the bytes of one token, as far as they are whole characters."""
        self._write(self._decode(data), self._drafted if drafted else None)

    def close(self) -> None:
        """Print what is left, and end the line."""
        self._write(self._decode(b"", final=True), None)
        self._console.out("", highlight=False)

    def _write(self, text: str, style: str | None) -> None:
        if not text:
            return
        if self._console.is_terminal:
            text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
            self._console.out(text, style=style, end="", highlight=False)
        else:
            self._console.file.write(text)
        self._console.file.flush()
