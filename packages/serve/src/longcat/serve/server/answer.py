"""The answer of both kinds of completion: whole, or chunk after chunk, with its usage."""

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from longcat.serve.request import Delta, Request
from longcat.serve.server.generation import generate, whole
from longcat.serve.server.sampling_fields import SamplingFields
from longcat.serve.server.service import Service
from longcat.serve.server.sse import DONE, EventStream, event, while_connected
from longcat.serve.server.usage import Usage


class Choice(Protocol):
    """One sequence in the form of its endpoint."""

    def opening(self) -> list[dict[str, Any]]:
        """What its stream begins with."""
        ...

    def chunks(self, delta: Delta) -> list[dict[str, Any]]:
        """What a delta adds to its stream."""
        ...

    def whole(self, delta: Delta) -> dict[str, Any]:
        """All of it at once."""
        ...


class Answer:
    """One request on its way to an answer.

    kind      `object` of the whole answer, and of a chunk
    requests  the sequences, one for each of `choices`, in the order of their indices
    prompts   the length of each prompt

    prompt_only: what is generated is dropped (the engine generates one token at least).
    """

    def __init__(
        self,
        asked: SamplingFields,
        kind: tuple[str, str],
        requests: Sequence[Request],
        choices: Sequence[Choice],
        prompts: Sequence[int],
        *,
        prompt_only: bool = False,
    ) -> None:
        self._asked = asked
        self._requests = requests
        self._choices = choices
        self._prompt_only = prompt_only
        self._usage = Usage(prompts, asked.choices)
        self._number = {request.request_id: i for i, request in enumerate(requests)}
        self._head: dict[str, Any] = {
            "id": requests[0].request_id.rpartition("-")[0],
            "object": kind[bool(asked.stream)],
            "created": int(time.time()),
            "model": asked.model,
        }

    async def respond(self, http: HttpRequest, service: Service, arrived: float) -> Response:
        """Run the sequences and answer; arrived: time.monotonic() when the request came in.

        Raises ApiError as `generate`, for a stream until its first tokens are there.
        """
        deltas = generate(service, self._requests, arrived)
        if not self._asked.stream:
            return JSONResponse(self._document(await while_connected(http, whole(deltas))))
        # Only with the first tokens is it certain that there is something to stream.
        first = await while_connected(http, anext(deltas))
        return EventStream(self._events(first, deltas))

    def _document(self, told: dict[str, Delta]) -> dict[str, Any]:
        choices = []
        for request in self._requests:
            choice, delta = self._counted(told[request.request_id])
            choices.append(choice.whole(delta))
        return self._head | {"choices": choices, "usage": self._usage.document}

    async def _events(
        self, first: list[Delta], deltas: AsyncGenerator[list[Delta], None]
    ) -> AsyncGenerator[bytes, None]:
        try:
            for choice in self._choices:
                for chunk in choice.opening():
                    yield self._event(chunk)
            batch = first
            while batch:
                events = [self._event(c) for delta in batch for c in self._chunks(delta)]
                if events:
                    yield b"".join(events)
                batch = await anext(deltas, [])
            if self._asked.include_usage:
                yield event(self._head | {"choices": [], "usage": self._usage.document})
            yield DONE
        finally:
            await deltas.aclose()

    def _chunks(self, delta: Delta) -> list[dict[str, Any]]:
        choice, delta = self._counted(delta)
        return choice.chunks(delta)

    def _counted(self, delta: Delta) -> tuple[Choice, Delta]:
        """Whose it is, and what of it is wanted."""
        if self._prompt_only:
            reason = delta.finish_reason and "length"
            delta = replace(delta, tokens=(), text="", finish_reason=reason)
        number = self._number[delta.request_id]
        self._usage.add(number, delta)
        return self._choices[number], delta

    def _event(self, choice: dict[str, Any]) -> bytes:
        chunk = self._head | {"choices": [choice]}
        if self._asked.continuous_usage:
            chunk["usage"] = self._usage.document
        elif self._asked.include_usage:
            chunk["usage"] = None
        return event(chunk)
