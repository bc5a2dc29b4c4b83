"""Commands that the documentation shows exist, with every option it gives them."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from longcat.cli.main import COMMANDS, load
from longcat.cli.pages import Fence, split_page

ROOT = Path(__file__).resolve().parents[2]


def commands(page: Path) -> list[tuple[int, str]]:
    """(line, command) of each `longcat ...` and `make ...` in the shell fences of a page."""
    found = []
    for block in split_page(page.read_text(encoding="utf-8")):
        if isinstance(block, Fence) and block.language in ("bash", "sh", "console"):
            for offset, line in enumerate(block.code.splitlines()):
                if re.match(r"(longcat|make) ", line):
                    found.append((block.line + offset, line))
    return found


def fault(command: str) -> str | None:
    """What is wrong with a command line, None if nothing is."""
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = [w for w in words[1:] if "=" not in w]
        unknown = [t for t in targets if not re.search(rf"^{t}:", makefile, re.MULTILINE)]
        return f"no target {unknown}" if unknown else None
    if words[1] not in COMMANDS:
        return f"no command {words[1]}"
    target: Any = load(words[1])
    rest = words[2:]
    while hasattr(target, "commands") and rest:
        if rest[0] not in target.commands:
            return f"{words[1]} has no {rest[0]}"
        target, rest = target.commands[rest[0]], rest[1:]
    known = {option for p in target.params for option in (*p.opts, *p.secondary_opts)}
    unknown = [w for w in rest if w.startswith("--") and w.split("=")[0] not in known]
    return f"no option {unknown}" if unknown else None


def test_every_command_of_the_page_exists(page: Path) -> None:
    faults = {f"{page.name}:{line}": fault(command) for line, command in commands(page)}
    assert {place: what for place, what in faults.items() if what} == {}


@pytest.mark.parametrize(
    "command",
    [
        "longcat fly",
        "longcat info longcat-flash --jsn",
        "longcat demo rooter",
        "make tea",
    ],
)
def test_a_command_that_does_not_exist_is_found(command: str) -> None:
    assert fault(command) is not None
    assert fault("longcat info longcat-flash --json") is None


def test_pages_that_show_commands_are_seen() -> None:
    assert len(commands(ROOT / "docs" / "install.md")) >= 3
