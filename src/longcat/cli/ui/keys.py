"""Single key presses from a terminal, and the wish to stop."""

import os
import sys
import time
from types import TracebackType
from typing import Any, Self


class Stopped(Exception):
    """The reader pressed q."""


class Keys:
    """Reads keys without Enter while it is open; on anything but a terminal there are none.

    The terminal's settings come back however the block ends. Ctrl-C keeps its meaning.
    """

    def __init__(self) -> None:
        self._saved: Any = None

    def __enter__(self) -> Self:
        if not sys.stdin.isatty():
            return self
        try:
            import termios
            import tty
        except ImportError:  # not a Unix terminal: the demo runs, only q does not work
            return self
        self._saved = termios.tcgetattr(sys.stdin)
        tty.setcbreak(sys.stdin)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._saved is not None:
            import termios

            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._saved)
            self._saved = None

    def poll(self, seconds: float) -> str | None:
        """The key pressed within `seconds`, else None.

        Raises:
            Stopped: when the key is q.
        """
        if self._saved is None:
            time.sleep(max(0.0, seconds))
            return None
        import select

        ready, _, _ = select.select([sys.stdin], [], [], max(0.0, seconds))
        if not ready:
            return None
        # Past Python's buffer, which `select` cannot see. Nothing at all is the end of input.
        key = os.read(sys.stdin.fileno(), 1).decode("ascii", "replace")
        if key in ("q", "Q", ""):
            raise Stopped
        return key

    def wait(self) -> str | None:
        """The next key, however long it takes; None at once where there are no keys."""
        if self._saved is None:
            return None
        while (key := self.poll(60.0)) is None:
            pass
        return key
