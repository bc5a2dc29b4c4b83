"""The loop: read a message, carry out a command or get a reply, again."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console

from longcat.chat import Call, CallDelta, Reply
from longcat.cli.stream import harmless
from longcat.cli.talk.commands import Leave, Talk, run
from longcat.cli.talk.lines import read_message, unseen
from longcat.cli.talk.partner import Piece
from longcat.cli.talk.screen import MarkdownScreen, PlainScreen


class Loop:
    """One run of `longcat chat`.

    Args:
        talk: with whom, and what was said.
        out: where replies go. notes: where everything else goes.
        read: read(prompt) gives the next line.
        interactive: somebody is at a terminal: mistakes are told and forgiven, replies rendered.
    """

    def __init__(
        self,
        talk: Talk,
        out: Console,
        notes: Console,
        read: Callable[[str], str],
        interactive: bool,
    ) -> None:
        self._talk = talk
        self._out = out
        self._notes = notes
        self._read = read
        self._interactive = interactive

    def run(self) -> None:
        """Until the input ends or /exit.

        Raises ValueError for what cannot be done, where nobody is there to try again.
        """
        while True:
            try:
                text = self._again() or read_message(self._read)
                self._take(text)
            except Leave:
                return
            except EOFError:
                self._note("\nbye" if self._interactive else "")
                return
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                self._note("\n(/exit or Ctrl-D leaves)")
            except (ValueError, OSError) as error:
                if not self._interactive:
                    raise
                self._note(_sentence(error), "bad")

    def _again(self) -> str | None:
        text, self._talk.again = self._talk.again, None
        return text

    def _take(self, text: str) -> None:
        if not text.strip():
            return
        if text.startswith("/"):
            self._note(run(self._talk, text))
            return
        self._converse(text)

    def _converse(self, text: str) -> None:
        """Ask, show the reply, keep both; without a reply the question is taken back."""
        session = self._talk.session
        before = list(session.messages)
        session.ask(text)
        if session.open_calls:
            self._note(f"and the answer to {_names_of(session.open_calls)}?")
            return
        heard = Heard()
        self._talk.unanswered = text
        try:
            pieces = self._talk.partner.reply(session)
            stopped = self._show(pieces, heard)
        except BaseException:
            if heard.empty:
                session.messages = before
            raise
        finally:
            if not heard.empty:
                self._talk.unanswered = None
                session.answer(heard.reply(self._talk.partner.finished))
                self._after()
        if stopped:
            self._note("stopped; what was said stays")
        elif self._interactive and self._cut_off and not heard.empty:
            self._note("cut off; /max_tokens allows more")
        if heard.empty:
            session.messages = before
            self._note("(no reply)")
        elif session.open_calls:
            self._note("type what the function gives back")

    @property
    def _cut_off(self) -> bool:
        """Whether the reply met its limit; a text that is only continued has no end of its own."""
        return self._talk.partner.chats and not self._talk.partner.finished

    def _after(self) -> None:
        talk = self._talk
        talk.total += talk.partner.turn
        if talk.file is not None:
            talk.session.save(talk.file)
        if self._interactive:
            self._note(f"{talk.partner.turn.words()}\n")

    def _show(self, pieces: Iterator[Piece], heard: "Heard") -> bool:
        """Print the reply as it comes; True when it was stopped."""
        render = self._interactive and self._talk.partner.chats and not self._talk.colour
        screen: MarkdownScreen | PlainScreen
        screen = (
            MarkdownScreen(self._out)
            if render
            else PlainScreen(self._out, colour=self._talk.colour)
        )
        try:
            with unseen():
                for piece in pieces:
                    heard.add(piece)
                    screen.show(piece)
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            return True
        finally:
            screen.close()
            close: Any = getattr(pieces, "close", None)
            if close is not None:  # hangs up on a server
                close()
        return False

    def _note(self, text: str, style: str = "note") -> None:
        if text:
            text = harmless(text)  # names and errors of a server
            self._notes.print(text, style=style, soft_wrap=not self._interactive, markup=False)


class Heard:
    """A reply put together from its pieces."""

    def __init__(self) -> None:
        self._text = ""
        self._calls: list[tuple[str, str]] = []

    @property
    def empty(self) -> bool:
        """Whether nothing has come."""
        return not self._text and not self._calls

    def add(self, piece: Piece) -> None:
        """One more piece."""
        delta = piece.delta
        if not isinstance(delta, CallDelta):
            self._text += delta.text
            if delta.withdraws:
                self._calls = []
            return
        if delta.name is not None:
            self._calls.append((delta.name, ""))
        name, arguments = self._calls[-1]
        self._calls[-1] = (name, arguments + delta.arguments)

    def reply(self, finished: bool) -> Reply:
        """All of it; calls that were cut off are no calls."""
        try:
            calls = tuple(Call(name=n, arguments=json.loads(a)) for n, a in self._calls)
        except ValueError:
            calls = ()
        return Reply(text=self._text, finished=finished, calls=calls)


def _names_of(calls: list[str]) -> str:
    return "the next call" if len(calls) == 1 else f"the next of {len(calls)} calls"


def _sentence(error: Exception) -> str:
    from longcat.cli.errors import sentence

    return sentence(error)
