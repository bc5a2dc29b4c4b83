"""Prefill in the same process: for tests, for reading, and for a second device."""

from longcat.serve.disaggregation.messages import Message
from longcat.serve.disaggregation.prefill import PrefillNode
from longcat.serve.disaggregation.transport import InProcess
from longcat.serve.engine import Engine
from longcat.serve.request import Request


class LocalPrefill:
    """A `longcat.serve.disaggregation.front.Prefill` that takes one step whenever its messages are
    asked for.
    """

    def __init__(self, engine: Engine) -> None:
        self._channel = InProcess()
        self._stepped = False
        self.node = PrefillNode(engine, self._channel)

    @property
    def alive(self) -> bool:
        """It lives as long as we do."""
        return True

    @property
    def sentinel(self) -> int | None:
        """Nothing tells of an end that cannot come."""
        return None

    def start(self, request: Request, skip: int) -> None:
        """As `PrefillNode.start`."""
        self.node.start(request, skip)

    def abort(self, request_id: str) -> None:
        """As `PrefillNode.abort`."""
        self.node.abort(request_id)

    def receive(self, seconds: float = 0.0) -> Message | None:
        """The next message; after the last one a step is taken, once, to have more."""
        message = self._channel.receive()
        if message is None and not self._stepped and self.node.has_work:
            self._stepped = True
            self.node.step()
            message = self._channel.receive()
        if message is None:
            self._stepped = False
        return message

    def restart(self) -> None:
        """Give up what was under way."""
        self._channel = InProcess()
        self.node.begin_anew(self._channel)

    def close(self) -> None:
        """Break the channel."""
        self._channel.close()
