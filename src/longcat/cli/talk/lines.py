"""What the reader types: one line, or several; and that it waits while a reply is written."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
    """`input` with a history on a terminal; lines of standard input without a prompt elsewhere.

    What is pasted there is one message, whatever lines it has, once Enter is pressed.
    """
    if not sys.stdin.isatty():
        return lambda prompt: input()
    try:
        import readline  # gives `input` editing and history, by being imported
    except ImportError:
        return input
    readline.parse_and_bind("set enable-bracketed-paste on")  # Python alone turns it off
    return input


@contextmanager
def unseen() -> Iterator[None]:
    """What is typed meanwhile is not echoed, and stands at the next prompt.

    An echo would stand in the midst of a reply, and move the lines that are drawn again.
    """
    try:
        import termios
    except ImportError:  # not a Unix terminal
        termios = None  # type: ignore[assignment]
    if termios is None or not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    quiet = termios.tcgetattr(sys.stdin)
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
