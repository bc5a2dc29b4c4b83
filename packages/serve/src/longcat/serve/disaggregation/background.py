"""A sender that does not keep the one who computes waiting: a thread sends, in order."""

import queue
import threading

from longcat.serve.disaggregation.messages import Message
from longcat.serve.disaggregation.timeline import Timeline
from longcat.serve.disaggregation.transport import Sender

MOST = 256  # messages that wait; then the one who computes waits too


class Background:
    """Sends through `sender` in a thread of its own, which notes on the timeline when it sends."""

    def __init__(self, sender: Sender, timeline: Timeline | None = None) -> None:
        self._sender = sender
        self._timeline = timeline or Timeline()
        self._queue: queue.Queue[Message | None] = queue.Queue(MOST)
        self._broken: Exception | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def send(self, message: Message) -> None:
        """Queue it; raises what sending an earlier one has raised."""
        if self._broken is not None:
            raise self._broken
        self._queue.put(message)

    def close(self) -> None:
        """Send what is queued, then close."""
        self._queue.put(None)
        self._thread.join()
        self._sender.close()

    def _work(self) -> None:
        while (message := self._queue.get()) is not None:
            if self._broken is not None:
                continue  # nobody is there; the queue is emptied, so that nobody waits for it
            try:
                with self._timeline.span("send"):
                    self._sender.send(message)
            except Exception as broken:  # whatever it is: without this thread, `send` would wait
                self._broken = broken
