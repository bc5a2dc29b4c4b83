"""Server-sent events, framed as the OpenAI API frames them, and what a client's leaving ends.

    data: {...}\\n\\n  for each chunk,  data: [DONE]\\n\\n  at the end

Between "data:" and the object stands one space: there are clients that need it.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from longcat.serve.server.errors import ApiError

DONE = b"data: [DONE]\n\n"
Answer = TypeVar("Answer")


def event(document: dict[str, Any]) -> bytes:
    """One event."""
    return (
        b"data: "
        + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
        + b"\n\n"
    )


class EventStream(Response):
    """An answer that goes out chunk by chunk as `events` gives it.

    An ApiError in the middle becomes an event of its own, and the stream ends. When the client
    leaves, `events` is closed at once, wherever it waits.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, or as much as the client waits for."""
        try:
            await _until_gone(receive, self._send(send))
        finally:
            await self._events.aclose()

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        try:
            async for body in self._events:
                await send({"type": "http.response.body", "body": body, "more_body": True})
        except ApiError as error:
            body = event(error.document) + DONE
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def while_connected(request: Request, work: Awaitable[Answer]) -> Answer:
    """What `work` returns; it is cancelled when the client leaves.

    Raises ApiError (499), which nobody will read, when the client has left.
    """
    gone, answer = await _until_gone(request.receive, work)
    if gone:
        raise ApiError(499, "the client has left", code="client_left")
    return answer  # type: ignore[return-value]


async def _until_gone(receive: Receive, work: Awaitable[Answer]) -> tuple[bool, Answer | None]:
    """(whether the client left first, what `work` returned otherwise)."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        return (False, working.result()) if working.done() else (True, None)
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    """Return when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
