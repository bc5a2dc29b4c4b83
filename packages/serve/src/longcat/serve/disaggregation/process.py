"""Prefill in a process of its own, watched from here.

Orders go over a pipe of the multiprocessing module; latents come back over the transport that was
chosen. The process ends when its pipe does, whatever happens to the one who started it.
"""

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Literal, Protocol

from longcat.serve.disaggregation.background import Background
from longcat.serve.disaggregation.messages import Message
from longcat.serve.disaggregation.prefill import PrefillNode
from longcat.serve.disaggregation.shared_memory import SharedMemoryReceiver
from longcat.serve.disaggregation.tcp import TcpReceiver
from longcat.serve.disaggregation.timeline import Timeline
from longcat.serve.disaggregation.transport import Broken, Sender
from longcat.serve.engine import Engine
from longcat.serve.request import Request

Transport = Literal["shared-memory", "tcp"]
EngineFactory = Callable[[], Engine]

_RECEIVERS: dict[Transport, Callable[[], SharedMemoryReceiver | TcpReceiver]] = {
    "shared-memory": SharedMemoryReceiver,
    "tcp": TcpReceiver,
}


class End(Protocol):
    """What a process opens in order to send."""

    def open(self) -> Sender:
        """The sender."""
        ...


class PrefillProcess:
    """Starts the process, and starts another when it has died.

    Args:
        factory: builds its engine, there; can be pickled.
        transport: how latents travel.
    """

    def __init__(self, factory: EngineFactory, transport: Transport = "shared-memory") -> None:
        self._factory = factory
        self._transport = transport
        self._open()

    def _open(self) -> None:
        self._receiver = _RECEIVERS[self._transport]()
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=work, args=(self._factory, theirs, self._receiver.sender()), daemon=True
        )
        self.process.start()
        theirs.close()

    @property
    def alive(self) -> bool:
        """Whether the process lives."""
        return self.process.is_alive()

    @property
    def sentinel(self) -> int | None:
        """Readable when the process ends."""
        return self.process.sentinel

    def start(self, request: Request, skip: int) -> None:
        """Order a prompt; raises Broken when the process is dead."""
        self._say(("start", request, skip))

    def abort(self, request_id: str) -> None:
        """Take an order back; of a dead process there is nothing to take back."""
        if self.process.is_alive():
            self._say(("abort", request_id))

    def receive(self, seconds: float = 0.0) -> Message | None:
        """The next message; raises Broken when the process has died and nothing is left to read."""
        alive = self.process.is_alive()  # asked first: what it sent before is there by then
        message = self._receiver.receive(seconds if alive else 0.0)
        if message is None and not alive:
            raise Broken(f"its process has ended (exit code {self.process.exitcode})")
        return message

    def timeline(self) -> Timeline:
        """What it has computed and sent until now, and when."""
        self._say(("timeline",))
        return Timeline(self._pipe.recv())

    def restart(self) -> None:
        """Another process, with nothing to do; what the old one sent is not read any more."""
        self.close()
        self._open()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self.process.kill()
        self.process.join()
        self._receiver.close()

    def _say(self, order: tuple[object, ...]) -> None:
        try:
            self._pipe.send(order)
        except OSError as error:
            raise Broken(f"its process is gone: {error}") from None


def work(factory: EngineFactory, orders: Connection, end: End) -> None:
    """The whole life of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who started it decides
    timeline = Timeline()
    sender = Background(end.open(), timeline)
    node = PrefillNode(factory(), sender, timeline)
    try:
        while True:
            while orders.poll(0.0 if node.has_work else None):
                _obey(node, orders, timeline)
            node.step()
    except (EOFError, OSError, Broken):
        return


def _obey(node: PrefillNode, orders: Connection, timeline: Timeline) -> None:
    match orders.recv():
        case "start", request, skip:
            node.start(request, skip)
        case "abort", request_id:
            node.abort(request_id)
        case _:
            orders.send(list(timeline.spans))
