"""What the reader types: one line, or several."""

import sys
from collections.abc import Callable
from contextlib import suppress

_BLOCK = '"""'


def read_message(read: Callable[[str], str], prompt: str = "> ", more: str = ". ") -> str:
    r"""One message: a line, lines that end with \, or a block between lines of three quotes.

    read(prompt) gives the next line, as `input` does.
    Raises EOFError at the end of the input; a block that is open then is what was typed.
    """
    line = read(prompt)
    if line.strip().startswith(_BLOCK):
        return _block(read, line.strip().removeprefix(_BLOCK), more)
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1].removesuffix("\\")
        try:
            lines.append(read(more))
        except EOFError:
            break
    return "\n".join(lines)


def _block(read: Callable[[str], str], first: str, more: str) -> str:
    lines = [first] if first else []
    if first.endswith(_BLOCK):
        return first.removesuffix(_BLOCK)
    while True:
        try:
            line = read(more)
        except EOFError:
            return "\n".join(lines)
        if line.rstrip().endswith(_BLOCK):
            last = line.rstrip().removesuffix(_BLOCK)
            return "\n".join([*lines, last] if last else lines)
        lines.append(line)


def reader() -> Callable[[str], str]:
    """`input` with a history on a terminal; lines of standard input without a prompt elsewhere."""
    if sys.stdin.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401  (editing and history, by being imported)
        return input
    return lambda prompt: input()
