"""Tokens to text as they come: never half a character, never a part of a stop string.

A token is released together with its text. Text is held back while it might become a stop string,
or while the bytes of a character are incomplete; what turns out to be a stop string is dropped, and
with it the tokens that hold nothing else.
"""

import codecs
from collections import deque
from collections.abc import Sequence

from longcat.serve.request import Token


class TextStream:
    """The text of one sequence.

    Args:
        table: the bytes of every token id.
        stop: texts that end the sequence.

    Attributes:
        stopped_by: the stop string that was found, or None.
    """

    def __init__(self, table: Sequence[bytes], stop: Sequence[str] = ()) -> None:
        self._table = table
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._text = ""  # decoded, not released
        self._tokens: deque[tuple[Token, int, int]] = deque()  # with begin and end in characters
        self._decoded = 0  # characters so far, and those released
        self._released = 0
        self.stopped_by: str | None = None

    def add(self, token: Token, *, may_stop: bool = True) -> bool:
        """Take one more token -> whether a stop string is now complete."""
        data = self._table[token.id] if token.id < len(self._table) else b""
        text = self._decoder.decode(data)
        begin = self._decoded
        self._decoded += len(text)
        # A token that leaves a character open ends with it, inside the text of a later token.
        end = self._decoded + bool(self._decoder.getstate()[0])
        self._tokens.append((token, begin, end))
        before = len(self._text)
        self._text += text
        if may_stop:
            self._find_stop(before)
        return self.stopped_by is not None

    def _find_stop(self, before: int) -> None:
        """Look for a stop string that ends in what came last; the one that begins first wins."""
        found = []
        for stop in self._stop:
            at = self._text.find(stop, max(0, before - len(stop) + 1))
            if at >= 0:
                found.append((at, stop))
        if found:
            at, self.stopped_by = min(found)
            self._text = self._text[:at]
            self._decoded = self._released + at

    def take(self, *, final: bool = False) -> tuple[tuple[Token, ...], str]:
        """What may be released now: everything that is no stop string, where it is `final`."""
        if final:
            if self.stopped_by is None:
                tail = self._decoder.decode(b"", final=True)
                self._text += tail
                self._decoded += len(tail)
            count = len(self._text)
        else:
            count = len(self._text) - self._held()
        text, self._text = self._text[:count], self._text[count:]
        self._released += count
        tokens = []
        while self._tokens and self._is_out(final):
            tokens.append(self._tokens.popleft()[0])
        if final and self.stopped_by is None:
            tokens += [token for token, _, _ in self._tokens]
            self._tokens.clear()
        return tuple(tokens), text

    def _is_out(self, final: bool) -> bool:
        """Whether the first token goes out: with all its text, or, at a stop, with a part of it."""
        _, begin, end = self._tokens[0]
        if final and self.stopped_by is not None:
            return begin < self._released or end <= self._released
        return end <= self._released

    def _held(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self._text)), longest, -1):
                if self._text.endswith(stop[:length]):
                    longest = length
                    break
        return longest
