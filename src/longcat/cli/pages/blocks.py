"""A Markdown page as a list of blocks, and the execution of its Python fences.

The site, the tests and `longcat tutorial` all run the same fences of the same file. A fence is
compiled with as many empty lines in front as the page has, under the page's own name, so that a
traceback points at the page's own line.
"""

import contextlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Opening ticks, everything up to the same ticks at the same indentation. Longer runs of ticks win
# because matches are taken from the top: an example inside four ticks stays text.
_FENCE = re.compile(
    r"^(?P<indent> *)(?P<ticks>`{3,})(?P<info>[^`\n]*)\n(?P<body>.*?)^(?P=indent)(?P=ticks) *$",
    re.MULTILINE | re.DOTALL,
)
_OPTION = re.compile(r'([\w-]+)="([^"]*)"')


@dataclass(frozen=True, kw_only=True)
class Prose:
    """Markdown text between fences; `line` is the page line of its first character."""

    line: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Fence:
    """A fenced block.

    Attributes:
        line: page line (from 1) of the first line of code.
        language: the first word after the ticks, "" if there is none.
        options: the key="value" pairs after it (exec, source, result, html, session, ...).
        code: the body without its indentation.
        indent: columns the fence was indented by, 4 inside an admonition.
    """

    line: int
    language: str
    options: Mapping[str, str] = field(default_factory=dict)
    code: str
    indent: int = 0

    @property
    def is_python(self) -> bool:
        """True for fences that are to be executed."""
        return self.language in ("python", "py")

    @property
    def is_shown(self) -> bool:
        """False for fences whose source the site hides (executed without a `source` option)."""
        return "exec" not in self.options or bool(self.options.get("source"))


Block = Prose | Fence


def split_page(text: str) -> list[Block]:
    """Split a page into prose and fences, in order; nothing is lost but the fences' ticks."""
    blocks: list[Block] = []
    end = 0
    for match in _FENCE.finditer(text):
        if text[end : match.start()].strip():
            blocks.append(Prose(line=_line(text, end), text=text[end : match.start()]))
        language, _, rest = match["info"].strip().partition(" ")
        indent = len(match["indent"])
        body = "".join(line[indent:] or "\n" for line in match["body"].splitlines(keepends=True))
        blocks.append(
            Fence(
                line=_line(text, match.start("body")),
                language=language,
                options=dict(_OPTION.findall(rest)),
                code=body,
                indent=indent,
            )
        )
        end = match.end()
    if text[end:].strip():
        blocks.append(Prose(line=_line(text, end), text=text[end:]))
    return blocks


def run_fence(fence: Fence, namespace: dict[str, Any], page: Path) -> str:
    """Execute a Python fence in `namespace` and return what it printed.

    Raises:
        whatever the fence raises, with the page's path and line in the traceback.
    """
    namespace.setdefault("__name__", "__main__")
    code = compile("\n" * (fence.line - 1) + fence.code, str(page), "exec")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, namespace)
    return printed.getvalue()


def _line(text: str, offset: int) -> int:
    return text.count("\n", 0, offset) + 1
