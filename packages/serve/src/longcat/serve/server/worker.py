"""The engine's process: take requests in, step, hand deltas out.

It lives as long as its end of the channel: when the front is gone it ends, whatever the reason.
Signals are the front's business. A Ctrl-C reaches the whole group, and a drain must let the engine
finish, so both are ignored here.

A request that the engine refuses fails alone. An error in a step is fatal: the state of the engine
is unknown then, so the process ends and the front starts another.
"""

import select
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from longcat.serve.request import Delta
from longcat.serve.server.wire import (
    Abort,
    EngineInfo,
    Failed,
    Progress,
    Ready,
    ToEngine,
    frame,
    receive,
)
from longcat.serve.serving import Serving

# Counts are sent with the deltas, but no more often than this many seconds.
STATS_EVERY = 0.2

EngineFactory = Callable[[], Serving]


def work(factory: EngineFactory, channel: socket.socket) -> None:
    """The whole life of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    answer(factory, channel)


def answer(factory: EngineFactory, channel: socket.socket) -> None:
    """Build the engine and serve the channel until its other end is closed."""
    with channel, suppress(BrokenPipeError, ConnectionResetError):
        try:
            engine = factory()
        except (ValueError, OSError) as error:
            channel.sendall(frame(Failed(sentence=" ".join(str(error).split()))))
            return
        try:
            channel.sendall(frame(Ready(info=_info(engine))))
            _Worker(engine, channel).run()
        finally:
            engine.close()


def _info(engine: Serving) -> EngineInfo:
    config, model = engine.config, engine.model
    return EngineInfo(
        vocab_size=model.vocab_size,
        max_position=model.max_position,
        eos_token_id=model.eos_token_id,
        max_running=config.max_running,
        pool_tokens=engine.pages.room,
        has_draft_head=model.has_draft_head,
        speculative=model.has_draft_head and config.num_drafts != 0,
    )


class _Worker:
    """One engine and one channel."""

    def __init__(self, engine: Serving, channel: socket.socket) -> None:
        self._engine = engine
        self._channel = channel
        self._refused: list[tuple[str, str]] = []
        self._told = 0.0
        self._prefill_was_alive: bool | None = None

    def run(self) -> None:
        """Until the front closes the channel."""
        self._hand_out([], idle=True)
        while self._take_in():
            deltas = self._engine.step() if self._engine.has_work else []
            idle = not self._engine.has_work
            if idle:
                self._engine.check_integrity()
            self._hand_out(deltas, idle)

    def _take_in(self) -> bool:
        """Take all messages that have come, waiting for one if there is nothing else to do, or for
        the end of a process of the engine's, so that the front hears of it.
        """
        watched: list[socket.socket | int] = [self._channel]
        patience = 0.0 if self._engine.has_work else None
        if patience is None:
            if (sentinel := self._engine.sentinel) is not None:
                watched.append(sentinel)
            elif self._prefill_was_alive:
                patience = 0.0  # it died after the front was last told of it
        while self._channel in select.select(watched, [], [], patience)[0]:
            message = receive(self._channel)
            if message is None:
                return False
            self._obey(message)
            patience = 0.0
        return True

    def _obey(self, message: ToEngine) -> None:
        if isinstance(message, Abort):
            self._engine.abort(message.request_id)
            return
        try:
            self._engine.add(message)
        except ValueError as error:
            self._refused.append((message.request_id, str(error)))

    def _hand_out(self, deltas: list[Delta], idle: bool) -> None:
        now = time.monotonic()
        due = idle or now - self._told >= STATS_EVERY
        if not (deltas or self._refused or due):
            return
        if due:
            self._told = now
        stats = self._engine.stats() if due else None
        if stats is not None:
            self._prefill_was_alive = stats.prefill_alive
        refused, self._refused = tuple(self._refused), []
        self._channel.sendall(frame(Progress(deltas=tuple(deltas), refused=refused, stats=stats)))
