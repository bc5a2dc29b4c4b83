"""What went wrong, as one sentence on standard error and an exit code.

    2  the input is at fault: an unknown name, a damaged checkpoint, a prompt that is too long
    1  the input was fine and it failed all the same: the disk is full, the memory used up

Our own code raises ValueError (ConfigError, CheckpointError, ...) with a sentence that says what
was expected, what came and what to do. Anything else than that and OSError is a mistake of ours,
and says so. LONGCAT_DEBUG=1 shows the traceback in every case.
"""

import errno
import os
import sys
import warnings
from typing import TextIO

# The system's fault rather than the input's.
_FAILED = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.ENOMEM, errno.EMFILE}
_HINT = "(LONGCAT_DEBUG=1 shows where)"


def debugging() -> bool:
    """Whether tracebacks are wanted."""
    return os.environ.get("LONGCAT_DEBUG", "") not in ("", "0")


def exit_code(error: Exception) -> int:
    """2 when the input is at fault, 1 when it is not."""
    system: BaseException | None = error
    while system is not None:
        if isinstance(system, OSError) and system.errno in _FAILED:
            return 1
        system = system.__cause__
    return 2 if isinstance(error, ValueError | OSError) else 1


def sentence(error: Exception) -> str:
    """The error in one line, never empty."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        said = f"{where}{error.strerror}"
    elif isinstance(error, ValueError | OSError):
        said = str(error)
    elif isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        said = f"not enough memory: {error}; use a smaller model, batch or dtype"
    else:
        said = f"this is a mistake in longcat: {type(error).__name__}: {error} {_HINT}"
    from longcat.cli.stream import harmless

    # What a file or a server is called, and what a server says, may hold anything.
    said = harmless(" ".join(said.split()))
    return said or f"{type(error).__name__} {_HINT}"


def report(error: Exception) -> int:
    """Print the sentence to standard error; returns the exit code."""
    from rich.text import Text

    from longcat.cli.ui.theme import make_console

    message = Text.assemble(("error: ", "bad"), sentence(error))
    make_console(stderr=True).print(message, soft_wrap=True)
    return exit_code(error)


def install_warnings() -> None:
    """Show warnings as one line without file and source, since their reader is not a programmer."""

    if not debugging():
        warnings.showwarning = _show_warning


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"warning: {' '.join(str(message).split())}", file=file or sys.stderr)
