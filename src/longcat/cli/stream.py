"""Tokens to the screen as they come: whole characters only, and colour only on a terminal."""

import codecs
import re
from collections.abc import Callable

from rich.console import Console

# Control characters that could move the cursor or change the terminal; newline and tab stay.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def harmless(text: str) -> str:
    """The text with a replacement character for each character that could."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


class TokenPrinter:
    """Prints a prompt and then tokens. A token may end inside a UTF-8 character: its bytes wait.

    On a terminal the prompt is dim and drafted-and-accepted tokens are green, or underlined where
    there is no colour; tokens that stand where a draft was refused are orange, or bold. Elsewhere
    the exact text is written, and nothing else.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        if console.no_color or console.color_system is None:
            self._drafted, self._refused = "underline", "bold"
        elif console.color_system == "standard":
            # Sixteen colours hold nothing near the theme's; the terminal's own will do.
            self._drafted, self._refused = "green", "yellow"
        else:
            self._drafted, self._refused = "good", "net"
        self._decode: Callable[..., str] = codecs.getincrementaldecoder("utf-8")("replace").decode

    def prompt(self, data: bytes) -> None:
        """Print the text that is being continued."""
        self._write(data.decode("utf-8", "replace"), "note")

    def token(self, data: bytes, drafted: bool, refused: bool = False) -> None:
        """Print the bytes of one token, as far as they are whole characters."""
        style = self._drafted if drafted else self._refused if refused else None
        self._write(self._decode(data), style)

    def close(self) -> None:
        """Print what is left, and end the line."""
        self._write(self._decode(b"", final=True), None)
        self._console.out("", highlight=False)

    def _write(self, text: str, style: str | None) -> None:
        if not text:
            return
        if self._console.is_terminal:
            text = harmless(text)
            self._console.out(text, style=style, end="", highlight=False)
        else:
            self._console.file.write(text)
        self._console.file.flush()
