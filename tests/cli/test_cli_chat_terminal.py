"""Claims about `longcat chat` that need a terminal: pasted lines, and keys pressed too early."""

import os
import select
import signal
import sys
from contextlib import closing

import pytest

pty = pytest.importorskip("pty")
pytest.importorskip("readline")

PASTED = """
from longcat.cli.talk.lines import read_message, reader
print("got", repr(read_message(reader())))
"""
TYPED = """
import time
from longcat.cli.talk.lines import reader, unseen
read = reader()
with unseen():
    print("writing", flush=True)
    time.sleep(0.3)
    print("written", flush=True)
print("got", repr(read("> ")))
"""


class Terminal:
    """Python on a pseudo-terminal: what it prints, and what is typed."""

    def __init__(self, code: str) -> None:
        self.shown = ""
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:  # pragma: no cover  (the child)
            os.environ["TERM"] = "xterm"
            os.execv(sys.executable, [sys.executable, "-c", code])

    def until(self, mark: str) -> str:
        """What it has printed before the mark."""
        while mark not in self.shown:
            ready = select.select([self._terminal], [], [], 20)[0]
            assert ready, f"no {mark!r}: {self.shown!r}"
            self.shown += os.read(self._terminal, 1024).decode()
        return self.shown.partition(mark)[0]

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def close(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._terminal)


def test_pasted_lines_are_one_message() -> None:
    with closing(Terminal(PASTED)) as terminal:
        terminal.until("> ")
        terminal.type("\x1b[200~one\ntwo\x1b[201~")
        terminal.type("\r")
        terminal.until("got 'one\\ntwo'")


def test_what_is_typed_while_a_reply_is_written_waits_for_the_next_prompt() -> None:
    with closing(Terminal(TYPED)) as terminal:
        terminal.until("writing")
        terminal.type("early\r")
        assert "early" not in terminal.until("written"), "an echo would stand in the reply"
        terminal.until("got 'early'")
