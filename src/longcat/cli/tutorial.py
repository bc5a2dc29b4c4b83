"""`longcat tutorial`: read a tutorial in the terminal, its code executed as you go.

The page is the one the site is built from: prose, then a fence, then what the fence printed. At
each section it waits for Enter, and before each answer of the exercises too.
"""

import json
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.padding import Padding
from rich.syntax import Syntax
from rich.text import Text

from longcat.cli.pages import Fence, Prose, list_tutorials, open_tutorial, run_fence, split_page
from longcat.cli.pages.plain import plain_markdown
from longcat.cli.ui.theme import make_console


def command(
    number: Annotated[
        str | None, typer.Argument(help="01, or the start of a name; leave out for a list.")
    ] = None,
    pause: Annotated[
        bool, typer.Option("--pause/--no-pause", help="Wait for Enter at each section.")
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the list of tutorials as JSON.")
    ] = False,
) -> None:
    """Read a tutorial here, its code executed as you go.

    Example: longcat tutorial 01
    """
    if number is None or as_json:
        _print_list(as_json)
        return
    tutorial = open_tutorial(number)
    console = make_console()
    raise typer.Exit(play(tutorial.path, console, pause=pause and sys.stdin.isatty()))


def play(page: Path, console: Console, *, pause: bool) -> int:
    """Show a page block by block; returns 0, or 1 when a fence fails (the failure is printed)."""
    namespace: dict[str, Any] = {}
    inside_box = False
    for block in split_page(page.read_text(encoding="utf-8")):
        if isinstance(block, Prose):
            text, titles, inside_box = plain_markdown(block.text, inside_box=inside_box)
            for part in _sections(text, titles):
                if pause and not _wait(console, part):
                    return 0
                console.print()
                console.print(Markdown(part, code_theme="ansi_dark"))
            continue
        inside_box = inside_box and block.indent > 0
        if block.is_shown:
            _show_code(block, console)
        if block.is_python and not _run(block, namespace, page, console):
            return 1
    return 0


def _print_list(as_json: bool) -> None:
    tutorials = list_tutorials()
    if as_json:
        print(json.dumps([{"number": t.number, "title": t.title} for t in tutorials]))
        return
    console = make_console()
    for tutorial in tutorials:
        console.print(Text.assemble((tutorial.number, "ffn"), f"  {tutorial.title}"))
    console.print(Text(f"\nread one: longcat tutorial {tutorials[0].number}", "note"))


def _show_code(fence: Fence, console: Console) -> None:
    code = Syntax(
        fence.code.rstrip("\n"), fence.language or "text", theme="ansi_dark", word_wrap=True
    )
    console.print(Padding(code, (1, 0, 0, 2)))


def _run(fence: Fence, namespace: dict[str, Any], page: Path, console: Console) -> bool:
    """Execute a fence and show its output; False when it raised."""
    figures: list[Any] = []
    if fence.options.get("html") == "1":
        # A figure prints as SVG on the site and draws itself when a console prints it.
        namespace["print"] = figures.append
    try:
        output = run_fence(fence, namespace, page).rstrip("\n")
    except Exception as error:
        # Whatever a fence may raise, the reader needs the page's line, not our own frames.
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(page)]
        line = frames[-1].lineno if frames else getattr(error, "lineno", None) or fence.line
        kind = type(error).__name__
        console.print(Text(f"{page}:{line}: {kind}: {error}", "bad"), soft_wrap=True)
        return False
    finally:
        namespace.pop("print", None)
    for figure in figures:
        console.print(Padding(figure, (1, 0)))
    if not output:
        console.print()
    elif fence.options.get("result") or fence.is_shown:
        rows = Text("\n").join(Text.assemble(("  │ ", "ffn"), row) for row in output.split("\n"))
        console.print("\n", rows, "\n", sep="", soft_wrap=True)  # a Padding would cut long lines
    else:
        console.print(Markdown(plain_markdown(output)[0], code_theme="ansi_dark"))
    return True


def _sections(text: str, boxes: list[str]) -> Iterator[str]:
    """Cut prose before each heading of level 2 and before each box."""
    part: list[str] = []
    stops = {f"**{title}**" for title in boxes}
    for line in text.split("\n"):
        if (line.startswith("## ") or line in stops) and "".join(part).strip():
            yield "\n".join(part)
            part = []
        part.append(line)
    if "".join(part).strip():
        yield "\n".join(part)


def _wait(console: Console, part: str) -> bool:
    """Pause before a section or a box; False when the reader has had enough."""
    first = part.strip().split("\n", 1)[0]
    if not (first.startswith("## ") or (first.startswith("**") and first.endswith("**"))):
        return True
    console.print(Text(f"\nEnter for: {first.strip('#* ')}   (q to stop)", "note"), end=" ")
    try:
        return not input().strip().lower().startswith("q")
    except (EOFError, KeyboardInterrupt):
        console.print()
        return False
