"""What the front and the engine's process say to each other, and how it is framed.

A frame is four bytes of length, big end first, and that many bytes of pickle. Both ends are
processes of ours, joined by a socket pair that nobody else can reach.
"""

import asyncio
import pickle
import socket
import struct
from dataclasses import dataclass

from longcat.serve.config import EngineStats
from longcat.serve.request import Delta, Request

_LENGTH = struct.Struct(">I")


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """What the front needs to know of an engine that is ready.

    max_position    positions that the model knows
    eos_token_id    the token that ends a text, or None
    max_running     sequences that are computed together
    pool_tokens     tokens that the latent cache holds in all
    has_draft_head  whether the model could draft
    speculative     whether it does
    """

    vocab_size: int
    max_position: int
    eos_token_id: int | None
    max_running: int
    pool_tokens: int
    has_draft_head: bool
    speculative: bool

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, prompt and generated ones together."""
        return min(self.max_position, self.pool_tokens)


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The engine has been built."""

    info: EngineInfo


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The engine could not be built, and why, in one sentence."""

    sentence: str


@dataclass(frozen=True, kw_only=True)
class Abort:
    """Stop this request and free its pages."""

    request_id: str


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What one step brought: deltas, refused requests and why, and now and then counts."""

    deltas: tuple[Delta, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    stats: EngineStats | None = None


ToEngine = Request | Abort
FromEngine = Ready | Failed | Progress


def frame(message: ToEngine | FromEngine) -> bytes:
    """A message as it goes over the socket."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


def receive(channel: socket.socket) -> ToEngine | None:
    """The next message, waiting for it; None when the other end is gone."""
    head = _exactly(channel, _LENGTH.size)
    body = None if head is None else _exactly(channel, *_LENGTH.unpack(head))
    if body is None:
        return None
    message: ToEngine = pickle.loads(body)
    return message


def _exactly(channel: socket.socket, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        try:
            part = channel.recv(count - len(parts))
        except ConnectionResetError:
            return None
        if not part:
            return None
        parts += part
    return bytes(parts)


async def read(reader: asyncio.StreamReader) -> FromEngine | None:
    """The next message of an engine; None when it is gone."""
    try:
        head = await reader.readexactly(_LENGTH.size)
        body = await reader.readexactly(*_LENGTH.unpack(head))
    except (asyncio.IncompleteReadError, ConnectionError):  # a write may have found it out first
        return None
    message: FromEngine = pickle.loads(body)
    return message
