"""How messages travel: what a way of travelling must offer, and the one within a process."""

from collections import deque
from typing import Protocol

from longcat.serve.disaggregation.messages import Message


class Broken(Exception):
    """The other side is gone, or says what it never would."""


class Sender(Protocol):
    """The end that prefill holds."""

    def send(self, message: Message) -> None:
        """Have the message on its way; raises Broken when nobody is there to receive it."""
        ...

    def close(self) -> None:
        """Nothing more will be sent."""
        ...


class Receiver(Protocol):
    """The end that decode holds."""

    def receive(self, seconds: float = 0.0) -> Message | None:
        """The next message, waited for so long; None when there is none.

        Raises Broken when the other side is gone and everything that it sent has been received.
        """
        ...

    def close(self) -> None:
        """Nothing more will be received."""
        ...


class InProcess:
    """Both ends, for two engines in one process: messages lie in a queue until they are taken."""

    def __init__(self) -> None:
        self._queue: deque[Message] = deque()
        self._closed = False

    def send(self, message: Message) -> None:
        """Queue it."""
        if self._closed:
            raise Broken("the channel is closed")
        self._queue.append(message)

    def receive(self, seconds: float = 0.0) -> Message | None:
        """Take the oldest; nobody can send while this one waits, so it does not."""
        if self._queue:
            return self._queue.popleft()
        if self._closed:
            raise Broken("the channel is closed")
        return None

    def close(self) -> None:
        """Break it."""
        self._closed = True
