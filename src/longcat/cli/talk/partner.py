"""Who answers: what the chat needs of a model, here or behind a server."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from longcat.chat import CallDelta, TextDelta
from longcat.cli.talk.session import Session


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Something of a reply, and what became of the draft head's guess for it."""

    delta: TextDelta | CallDelta
    drafted: bool = False
    refused: bool = False


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What a reply took; add turns up with +. None is what nobody tells."""

    tokens: int | None = None
    seconds: float = 0.0
    drafted: int | None = None
    accepted: int | None = None
    seed: int | None = None

    def __add__(self, other: "Turn") -> "Turn":
        return Turn(
            tokens=_sum(self.tokens, other.tokens),
            seconds=self.seconds + other.seconds,
            drafted=_sum(self.drafted, other.drafted),
            accepted=_sum(self.accepted, other.accepted),
        )

    def words(self) -> str:
        """In one line."""
        parts = [f"{self.seconds:.1f} s"]
        if self.tokens is not None:
            parts = [f"{self.tokens} tokens in {parts[0]}"]
            if self.seconds:
                parts.append(f"{self.tokens / self.seconds:.1f} tokens/s")
        if self.drafted:
            parts.append(f"{(self.accepted or 0) / self.drafted:.0%} of drafts accepted")
        if self.seed is not None:
            parts.append(f"seed {self.seed}")
        return ", ".join(parts)


class Partner(Protocol):
    """One model to talk with.

    name      as the screen calls it
    chats     whether it has learned a chat format; without, it continues what was written
    drafts    whether /draft means something to it
    turn      what the reply under way, or the last one, took
    finished  whether that reply came to its own end
    """

    name: str
    chats: bool
    drafts: bool
    turn: Turn
    finished: bool

    def reply(self, session: Session) -> Iterator[Piece]:
        """The reply to the session's messages, as it comes.

        Raises ValueError, in one sentence, for messages that cannot be answered.
        """
        ...


def _sum(a: int | None, b: int | None) -> int | None:
    return a if b is None else (a or 0) + b


def written(session: Session) -> str:
    """All that was said as one text: what a model without a chat format continues."""
    lines = []
    for message in session.messages:
        end = "\n" if message["role"] == "assistant" else ""
        lines.append(f"{message['content'] or ''}{end}")
    return "".join(lines)
