"""The engine as the front sees it: a process that is watched, and started again when it dies.

What was being computed when it died is lost, and its clients are told so. What had not been sent
yet waits for the next process, and so does what comes meanwhile: until the engine has died
`PATIENCE` times in a row, from when on requests are turned away until it is back.
"""

import asyncio
import atexit
import logging
import multiprocessing
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, Protocol

from longcat.serve.config import EngineStats
from longcat.serve.request import Request
from longcat.serve.server.call import Call
from longcat.serve.server.errors import ApiError, shutting_down
from longcat.serve.server.wire import Abort, EngineInfo, Failed, Progress, Ready, frame, read
from longcat.serve.server.worker import EngineFactory, work

log = logging.getLogger("longcat.serve")

PATIENCE = 3
FIRST_WAIT, LONGEST_WAIT = 0.25, 30.0
# A process that lived this many seconds was sound: the next wait is the first one again.
SOUND = 60.0

# Seconds that a process has to end by itself once its channel is closed.
_LAST_BREATH = 5.0

State = Literal["starting", "up", "restarting", "stopped"]


class EngineClient(Protocol):
    """What the endpoints need of an engine; `EngineProcess` is one."""

    state: State
    info: EngineInfo
    stats: EngineStats | None
    restarts: int

    async def start(self) -> None:
        """Return when it can take requests; ValueError when it cannot be built."""
        ...

    async def stop(self) -> None:
        """End it, and what it is computing."""
        ...

    def open(self, requests: Sequence[Request]) -> Call:
        """Start these; 503 when there is no engine to start them on."""
        ...

    def close(self, call: Call) -> None:
        """Abort what of a call has not ended."""
        ...


class EngineProcess:
    """An engine in a process of its own, built there by `factory` (which can be pickled).

    Attributes: state; info (once started); stats (the newest, or None); restarts; pid.
    """

    info: EngineInfo

    def __init__(self, factory: EngineFactory) -> None:
        self.state: State = "starting"
        self.stats: EngineStats | None = None
        self.restarts = 0
        self._factory = factory
        self._calls: dict[str, Call] = {}
        self._unsent: dict[str, Request] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._process: multiprocessing.process.BaseProcess | None = None
        self._starting: asyncio.Future[None] | None = None
        self._deaths = 0
        self._keeper: asyncio.Task[None] | None = None
        self._at_exit: Callable[[], None] | None = None

    @property
    def pid(self) -> int | None:
        """The process that holds the model."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Start the process and wait until the model is loaded.

        Raises ValueError with the engine's sentence when it cannot be built.
        """
        reader = await self._spawn()
        self._keeper = asyncio.create_task(self._keep(reader), name="engine keeper")

    async def stop(self) -> None:
        """End the process, at once."""
        self.state = "stopped"
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self._bury()
        for call in set(self._calls.values()):
            call.fail(shutting_down("the server is shutting down"))
        self._calls.clear()
        self._unsent.clear()

    def open(self, requests: Sequence[Request]) -> Call:
        """Start these requests; what they give is taken from the call.

        Raises ApiError (503) when the engine keeps dying or has been stopped.
        """
        if self.state == "stopped" or (self.state != "up" and self._deaths >= PATIENCE):
            raise ApiError(
                503,
                "the engine is not running; it is being started again",
                code="engine_down",
                retry_after=max(1, round(self._wait())),
            )
        call = Call(requests)
        for request in requests:
            self._calls[request.request_id] = call
            self._unsent[request.request_id] = request
        self._send_waiting()
        return call

    def close(self, call: Call) -> None:
        """Abort what of this call has not ended; the engine frees its pages."""
        for request_id in call.unfinished:
            if self._calls.pop(request_id, None) is None:
                continue
            if self._unsent.pop(request_id, None) is None and self._writer is not None:
                self._writer.write(frame(Abort(request_id=request_id)))

    def _send_waiting(self) -> None:
        if self.state != "up" or self._writer is None:
            return
        for request in self._unsent.values():
            self._writer.write(frame(request))
        self._unsent.clear()

    async def _spawn(self) -> asyncio.StreamReader:
        """A new process, ready; ValueError when it cannot be built or dies before."""
        try:
            reader = await self._launch()
        except OSError as error:  # no memory, no file descriptor or no process is left
            await self._bury()
            raise ValueError(f"the engine's process cannot be started: {error}") from None
        first = await read(reader)
        if not isinstance(first, Ready):
            process = self._process
            await self._bury()
            code = None if process is None else process.exitcode
            raise ValueError(
                first.sentence
                if isinstance(first, Failed)
                else f"the engine's process ended while it was being built (exit code {code})"
            )
        self.info, self.state = first.info, "up"
        self._send_waiting()
        return reader

    async def _launch(self) -> asyncio.StreamReader:
        """A new process, and what it says; OSError when it cannot be started."""
        ours, theirs = socket.socketpair()
        # spawn: a fork of a process with threads (torch has some) may deadlock.
        process = multiprocessing.get_context("spawn").Process(
            target=work, args=(self._factory, theirs), name="longcat-engine", daemon=False
        )
        self._process = process
        # No daemon, which could have no process of its own to compute prompts in. So whoever leaves
        # without having stopped it ends it here, before Python waits for it.
        self._at_exit = partial(_end, process, ours)
        atexit.register(self._at_exit)

        def begin() -> None:
            with theirs:
                process.start()

        self._starting = asyncio.ensure_future(asyncio.to_thread(begin))
        try:
            await asyncio.shield(self._starting)  # a thread goes on when its waiter is cancelled
            reader, self._writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        return reader

    async def _keep(self, reader: asyncio.StreamReader) -> None:
        """Pass on what the engine says; when it dies, start another."""
        while True:
            born = time.monotonic()
            while (message := await read(reader)) is not None:
                if isinstance(message, Progress):
                    self._pass_on(message)
            self.state = "restarting"
            await self._bury()
            self._lose()
            if time.monotonic() - born >= SOUND:
                self._deaths = 0
            reader = await self._respawn()

    async def _respawn(self) -> asyncio.StreamReader:
        while True:
            wait = self._wait()
            self._deaths += 1
            log.error("the engine died; starting it again in %.2f s", wait)
            await asyncio.sleep(wait)
            try:
                reader = await self._spawn()
            except ValueError as error:
                log.error("the engine cannot be started: %s", error)
                continue
            self.restarts += 1
            log.warning("the engine is up again")
            return reader

    def _wait(self) -> float:
        doublings = min(self._deaths, 32)  # after a night of deaths no number would hold them all
        return float(min(LONGEST_WAIT, FIRST_WAIT * 2.0**doublings))

    def _pass_on(self, progress: Progress) -> None:
        if progress.stats is not None:
            self.stats = progress.stats
        for delta in progress.deltas:
            call = self._calls.get(delta.request_id)  # none: the client has gone
            if call is not None:
                call.put(delta)
                if delta.finish_reason is not None:
                    del self._calls[delta.request_id]
        for request_id, sentence in progress.refused:
            call = self._calls.pop(request_id, None)
            if call is not None:
                call.fail(ApiError(400, sentence))

    def _lose(self) -> None:
        """Tell the clients whose requests died with the engine."""
        for request_id, call in list(self._calls.items()):
            if request_id not in self._unsent:
                del self._calls[request_id]
                call.fail(
                    ApiError(
                        503,
                        "the engine died while it computed this; it is being started again",
                        code="engine_died",
                        retry_after=1,
                    )
                )

    async def _bury(self) -> None:
        """Close the channel and make sure that the process is gone."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)
        process = self._process
        if process is not None and process.pid is not None:
            await asyncio.to_thread(process.join, _LAST_BREATH)
            if process.is_alive():
                process.kill()
                await asyncio.to_thread(process.join)
        if self._at_exit is not None:
            atexit.unregister(self._at_exit)
            self._at_exit = None


def _end(process: multiprocessing.process.BaseProcess, channel: socket.socket) -> None:
    channel.close()
    if process.is_alive():
        process.kill()
