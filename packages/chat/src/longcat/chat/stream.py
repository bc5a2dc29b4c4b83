"""A reply as it is generated: text in pieces of any size, deltas of content and of tool calls out.

    parser = ReplyParser("longcat")
    for piece in generated:
        for delta in parser.feed(piece):
            ...                       # TextDelta or CallDelta
    deltas = parser.close()           # what was held back
    parser.reply                      # what parse_reply gives for the whole

A call's name comes once it is complete, its arguments as the model writes them. So a call is
announced before it can be known to be in form. If it turns out not to be (the reply was cut off in
it, or text follows it), one `TextDelta` with `withdraws` takes back every call announced and gives
their text. A client that acts on calls only when the reply has ended never sees the difference.

Notable:
- nothing is emitted that the next piece could turn into a marker: a tail that may begin one waits;
- arguments pass as raw text, never through a number or string of ours: 12 cannot become 1.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from longcat.chat.parse import Reply, parse_call, parse_reply
from longcat.chat.templates import template_named


@dataclass(frozen=True, kw_only=True)
class TextDelta:
    """More of the reply's text; `withdraws`: every call announced so far was text, and is in it."""

    text: str
    withdraws: bool = False


@dataclass(frozen=True, kw_only=True)
class CallDelta:
    """More of call number `index`: its name, once and first, then fragments of its arguments."""

    index: int
    name: str | None = None
    arguments: str = ""


Delta = TextDelta | CallDelta
_State = Callable[[int, bool], Iterator[Delta]]

# How a call begins whose arguments can be passed on as they come. One with its keys the other way
# round is announced when it is complete.
_HEAD = re.compile(
    r'\s*\{\s*"name"\s*:\s*(?P<name>"(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)', re.DOTALL
)


class ReplyParser:
    """The incremental form of `parse_reply`; see the module's text.

    For every way to cut a text into pieces, the text deltas joined and the calls put together are
    those of `parse_reply` on the whole.

    Raises ValueError for an unknown template.
    """

    def __init__(self, template: str = "longcat") -> None:
        self._form = template_named(template)
        opening, self._closing = self._form.call
        # In text, a call's opening takes the joint before it along.
        self._openings = tuple(dict.fromkeys((self._form.joint + opening, opening)))
        self._whole = ""
        self._place = 0  # everything before it has been dealt with
        self._state: _State = self._in_text
        self._ended = False
        # Calls: where the first one's text begins, how many are closed, whether any was announced.
        self._first_call = 0
        self._closed = 0
        self._announced = False
        self._arguments = _Arguments()

    @property
    def reply(self) -> Reply:
        """What `parse_reply` gives for all that was fed."""
        return parse_reply(self._whole, self._form.name)

    @property
    def ended(self) -> bool:
        """Whether the reply is over: its end marker has come, or it was closed."""
        return self._ended

    def feed(self, piece: str) -> list[Delta]:
        """What this piece of the reply settles; nothing after the format's end marker."""
        if self._ended:
            return []
        start = max(0, len(self._whole) - len(self._form.end) + 1)
        self._whole += piece
        end, length = self._whole.find(self._form.end, start), len(self._whole)
        if end >= 0:
            return [*self._run(end, last=True)]
        held = _tail(self._whole, self._place, length, self._form.end)
        return [*self._run(length - held, last=False)]

    def close(self) -> list[Delta]:
        """The reply is over, with or without its end marker: what was held back."""
        return [] if self._ended else [*self._run(len(self._whole), last=True)]

    def _run(self, stop: int, *, last: bool) -> Iterator[Delta]:
        """Deal with the text up to `stop`; `last`: no more will come."""
        moved = True
        while moved:
            state, place = self._state, self._place
            yield from self._state(stop, last)
            moved = (state, place) != (self._state, self._place)
        self._ended = last

    def _in_text(self, stop: int, last: bool) -> Iterator[Delta]:
        """Text until a call opens."""
        found = [self._whole.find(opening, self._place, stop) for opening in self._openings]
        if any(at >= 0 for at in found):
            at = min(at for at in found if at >= 0)
            yield from self._text(at)
            self._first_call = at
            self._place = self._whole.index(self._form.call[0], at) + len(self._form.call[0])
            self._arguments, self._state = _Arguments(), self._in_call
        else:
            held = 0 if last else _tail(self._whole, self._place, stop, *self._openings)
            yield from self._text(stop - held)

    def _in_call(self, stop: int, last: bool) -> Iterator[Delta]:
        """A call until it closes."""
        end = self._whole.find(self._closing, self._place, stop)
        if end < 0 and not last:
            held = _tail(self._whole, self._place, stop, self._closing)
            yield from self._arguments_until(stop - held)
            return
        call = parse_call(self._whole[self._place : end]) if end >= 0 else None
        if call is None:  # damaged, or the reply ended in it
            yield from self._withdraw(stop)
            return
        yield from self._arguments_until(end)
        if not self._arguments.begun:
            self._announced = True
            written = json.dumps(call.arguments, ensure_ascii=False)
            yield CallDelta(index=self._closed, name=call.name, arguments=written)
        self._closed += 1
        self._place, self._state = end + len(self._closing), self._after_call

    def _arguments_until(self, end: int) -> Iterator[CallDelta]:
        first = not self._arguments.begun
        fragment = self._arguments.read(self._whole, self._place, end)
        if self._arguments.begun and first:
            self._announced = True
            yield CallDelta(index=self._closed, name=self._arguments.name)
        if fragment:
            yield CallDelta(index=self._closed, arguments=fragment)

    def _after_call(self, stop: int, last: bool) -> Iterator[Delta]:
        """Behind a call only the next one may stand."""
        rest = self._whole[self._place : stop]
        next_call = self._openings[0]
        if rest.startswith(next_call):
            self._place += len(next_call)
            self._arguments, self._state = _Arguments(), self._in_call
        elif rest and (last or not next_call.startswith(rest)):
            yield from self._withdraw(stop)

    def _withdraw(self, stop: int) -> Iterator[TextDelta]:
        """None of it was a call: from the first one on, everything is text."""
        yield TextDelta(text=self._whole[self._first_call : stop], withdraws=self._announced)
        self._place, self._state = stop, self._in_plain_text

    def _in_plain_text(self, stop: int, last: bool) -> Iterator[Delta]:
        """Text in which calls no longer open."""
        yield from self._text(stop)

    def _text(self, stop: int) -> Iterator[TextDelta]:
        if stop > self._place:
            yield TextDelta(text=self._whole[self._place : stop])
            self._place = stop


class _Arguments:
    """The name and the raw arguments of one call, read as far as they have come."""

    def __init__(self) -> None:
        self.name = ""
        self.begun = False
        self._place = 0
        self._depth = 0
        self._in_string = self._escaped = self._complete = False

    def read(self, whole: str, start: int, end: int) -> str:
        """More of the arguments' text in whole[start:end], the call so far."""
        if not self.begun:
            head = _HEAD.match(whole[start:end])
            if head is None:
                return ""
            try:
                self.name = json.loads(head["name"])
            except ValueError:  # a damaged string: the whole call will be found damaged
                return ""
            self.begun, self._place = True, start + head.end()
        first = self._place
        while self._place < end and not self._complete:
            self._pass(whole[self._place])
            self._place += 1
        return whole[first : self._place]

    def _pass(self, character: str) -> None:
        """Follow strings and braces, to know where the object ends."""
        if self._escaped:
            self._escaped = False
        elif character == '"':
            self._in_string = not self._in_string
        elif self._in_string:
            self._escaped = character == "\\"
        elif character in "{}":
            self._depth += 1 if character == "{" else -1
            self._complete = self._depth == 0


def _tail(text: str, start: int, stop: int, *markers: str) -> int:
    """How many of the last characters of text[start:stop] may be the beginning of a marker."""
    longest = min(stop - start, max(map(len, markers)) - 1)
    return next(
        (
            n
            for n in range(longest, 0, -1)
            if any(m.startswith(text[stop - n : stop]) for m in markers)
        ),
        0,
    )
