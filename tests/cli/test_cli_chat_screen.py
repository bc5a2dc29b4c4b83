"""Claims about the screen of `longcat chat`: streamed Markdown, control characters, drafts."""

import io
import re
from typing import Any

import pytest
from rich.console import Console

from longcat.chat import CallDelta, TextDelta
from longcat.cli.talk.partner import Piece
from longcat.cli.talk.screen import MarkdownScreen, PlainScreen, markdown
from longcat.cli.ui.theme import THEME

MARKDOWN = """# Title

Some *text* with `code`.

- one

- two

```python
x = 1

y = 2
```

The end."""


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_markdown_that_streams_ends_as_markdown_that_was_whole(size: int) -> None:
    def console() -> Console:
        return Console(file=io.StringIO(), width=60, height=8, force_terminal=True, no_color=True)

    streamed, whole = console(), console()
    screen = MarkdownScreen(streamed)
    for at in range(0, len(MARKDOWN), size):
        screen.show(Piece(delta=TextDelta(text=MARKDOWN[at : at + size])))
    screen.close()
    whole.print(markdown(MARKDOWN))
    assert lasting(streamed) == lasting(whole)


def lasting(console: Console) -> list[str]:
    """The lines that stay on a terminal after cursor movements and erased lines."""
    assert isinstance(console.file, io.StringIO)
    lines, row = [""], 0
    text = console.file.getvalue()
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[^\x1b\n\r]+|\n|\r", text):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1] or 1)
        elif part == "\x1b[2K":
            lines[row] = ""
        elif not part.startswith("\x1b") and part != "\r":
            lines[row] += part
    return [line.strip() for line in lines if line.strip()]


def test_control_characters_do_not_reach_a_terminal() -> None:
    console = Console(file=io.StringIO(), width=60, force_terminal=True, no_color=True)
    for kind in (MarkdownScreen, PlainScreen):
        for delta in (
            TextDelta(text="a\x1b]0;title\x07b"),
            CallDelta(index=0, name="f\x1b]0;title\x07", arguments='{"a": "\x1b]0;title\x07"}'),
        ):
            screen = kind(console)
            screen.show(Piece(delta=delta))
            screen.close()
    assert isinstance(console.file, io.StringIO)
    assert "\x1b]" not in console.file.getvalue()


def test_html_in_a_reply_is_text() -> None:
    console = Console(file=io.StringIO(), width=60, force_terminal=True, no_color=True)
    screen = MarkdownScreen(console)
    screen.show(Piece(delta=TextDelta(text="A <br> breaks a line.\n\n<div>\nblock\n</div>\n")))
    screen.close()
    shown = "\n".join(lasting(console))
    assert "A <br> breaks a line." in shown
    assert "<div> block </div>" in shown


@pytest.mark.parametrize("colours", ["truecolor", "standard", None])
def test_drafted_refused_and_other_tokens_look_different(colours: Any) -> None:
    looks = set()
    for fate in ({"drafted": True}, {"refused": True}, {}):
        console = Console(
            file=io.StringIO(),
            force_terminal=True,
            theme=THEME,
            color_system=colours or "truecolor",
            no_color=colours is None,
        )
        screen = PlainScreen(console, colour=True)
        screen.show(Piece(delta=TextDelta(text="a"), **fate))
        screen.close()
        assert isinstance(console.file, io.StringIO)
        looks.add(console.file.getvalue())
    assert len(looks) == 3
