"""Listen, and stop in good order.

The first SIGTERM or Ctrl-C closes the door: what runs may finish, what comes gets a 503, and
/health says so. When everything has ended, or the time for it is up, the server stops with exit
code 0. A second signal stops it at once.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from longcat.serve.server.app import create_app
from longcat.serve.server.service import Service

log = logging.getLogger("longcat.serve")

# For answers that are being written when the engine has stopped.
_LAST_WORDS = 3
# Seconds that an idle connection stays open: longer than the pools of clients and proxies keep
# theirs (5 to 60), or a request goes out on a connection that is closed at that moment.
_IDLE = 75


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address; port 0 takes a free one. Raises OSError when it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named, because asyncio sends small writes at once only on a socket that says it is TCP.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except BaseException:
        listener.close()
        raise
    return listener


def run(service: Service, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until a signal says to stop; `ready` is called when requests are taken.

    Raises ValueError when the engine cannot be built.
    """
    asyncio.run(_run(service, listener, ready))


async def _run(service: Service, listener: socket.socket, ready: Callable[[], None]) -> None:
    # Started here and not by the application's lifespan, whose failures uvicorn only logs.
    await service.engine.start()
    config = uvicorn.Config(
        create_app(service),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=2048,
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=_LAST_WORDS,
    )
    server = _Server(config, service)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        if server.started:
            ready()
        await serving
    finally:
        await service.engine.stop()


class _Server(uvicorn.Server):
    """uvicorn's server, which drains before it stops."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._draining: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; the second time, stop."""
        if self._service.gate.closed:
            self.should_exit = self.force_exit = True
            return
        self._service.gate.closed = True
        self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._draining = asyncio.create_task(self._until_empty(), name="drain")

    async def _until_empty(self) -> None:
        gate, seconds = self._service.gate, self._service.config.drain_seconds
        log.warning("stopping: %d sequences may finish within %g s", gate.inside, seconds)
        try:
            async with asyncio.timeout(seconds):
                await gate.emptied()
        except TimeoutError:
            log.warning("%d sequences had not finished and are given up", gate.inside)
        # What still runs is told so; the answers are written while uvicorn shuts down.
        await self._service.engine.stop()
        self.should_exit = True
