"""One call of a client: some sequences, and what has come of them since it last looked.

A client that reads slowly gets what has gathered meanwhile in one piece, so nothing queues up
behind it but text.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from longcat.serve.request import Delta, Request


class Call:
    """Requests that are answered together; `take` waits for what is new.

    Attributes: requests, and unfinished, the ids of those that have not ended.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = tuple(requests)
        self.unfinished = {request.request_id for request in requests}
        self._fresh: dict[str, Delta] = {}
        self._failure: Exception | None = None
        self._news = asyncio.Event()

    async def take(self) -> list[Delta]:
        """All that is new, one delta per request; empty when everything has ended.

        Raises what `fail` was given, once what came before it has been taken.
        """
        while not self._fresh:
            if self._failure is not None:
                raise self._failure
            if not self.unfinished:
                return []
            self._news.clear()
            await self._news.wait()
        fresh, self._fresh = list(self._fresh.values()), {}
        return fresh

    def put(self, delta: Delta) -> None:
        """More of one request."""
        before = self._fresh.get(delta.request_id)
        self._fresh[delta.request_id] = delta if before is None else joined(before, delta)
        if delta.finish_reason is not None:
            self.unfinished.discard(delta.request_id)
        self._news.set()

    def fail(self, error: Exception) -> None:
        """Nothing more will come."""
        self._failure = error
        self._news.set()


def joined(first: Delta, then: Delta) -> Delta:
    """Two deltas of one request as one."""
    return replace(
        then,
        tokens=first.tokens + then.tokens,
        text=first.text + then.text,
        prompt_logprobs=first.prompt_logprobs or then.prompt_logprobs,
        cached_tokens=first.cached_tokens + then.cached_tokens,
    )
