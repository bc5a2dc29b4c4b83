"""POST /v1/completions: text or token ids to continue."""

import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from longcat.serve.request import Delta, Request
from longcat.serve.server.answers import Completion
from longcat.serve.server.completion_choice import CompletionChoice
from longcat.serve.server.completion_request import DEFAULT_MAX_TOKENS, CompletionRequest
from longcat.serve.server.documents import described
from longcat.serve.server.errors import ApiError
from longcat.serve.server.forms import constraint_of
from longcat.serve.server.generation import generate, whole
from longcat.serve.server.service import Service
from longcat.serve.server.sse import DONE, EventStream, event, while_connected
from longcat.serve.server.usage import Usage


def completions(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/completions", **described(CompletionRequest, Completion, stream=True))
    async def complete(http: HttpRequest) -> Response:
        """Continue a text, or token ids; several prompts and several choices in one request."""
        arrived = time.monotonic()
        asked = await service.read(http, CompletionRequest)
        http.state.user = asked.user
        answer = await _Answer.of(service, asked)
        deltas = generate(service, answer.requests, arrived)
        if not asked.stream:
            return JSONResponse(answer.document(await while_connected(http, whole(deltas))))
        # Only with the first tokens is it certain that there is something to stream.
        first = await while_connected(http, anext(deltas))
        return EventStream(answer.events(first, deltas))

    return router


class _Answer:
    """One request of this endpoint on its way to an answer."""

    def __init__(
        self,
        asked: CompletionRequest,
        requests: list[Request],
        choices: list[CompletionChoice],
        usage: Usage,
    ) -> None:
        self.requests = requests
        self._asked = asked
        self._usage = usage
        self._number = {request.request_id: i for i, request in enumerate(requests)}
        self._choices = choices
        self._head: dict[str, Any] = {
            "id": requests[0].request_id.rpartition("-")[0],
            "object": "text_completion",
            "created": int(time.time()),
            "model": asked.model,
        }

    @classmethod
    async def of(cls, service: Service, asked: CompletionRequest) -> "_Answer":
        """Encode and check everything that was asked; ApiError (400) for what cannot be."""
        prompts = asked.prompts
        if len(prompts) * asked.choices > service.config.max_choices:
            raise ApiError(
                400,
                f"n: {len(prompts)} prompts with {asked.choices} choices each are more than the "
                f"{service.config.max_choices} sequences that one request may have",
                param="n",
                code="invalid_value",
            )
        call = f"cmpl-{uuid.uuid4().hex}"
        constraint = await constraint_of(service, asked.structured_outputs)
        requests: list[Request] = []
        choices: list[CompletionChoice] = []
        lengths: list[int] = []
        for place, prompt in enumerate(prompts):
            param = "prompt" if len(prompts) == 1 else f"prompt.{place}"
            if isinstance(prompt, str):
                text, bos = prompt, asked.add_special_tokens is not False
                ids = await service.encode(text, bos=bos)
            else:
                text, ids = service.vocabulary.text(prompt), prompt
            wanted = DEFAULT_MAX_TOKENS if asked.max_tokens is None else asked.max_tokens
            room = service.room(ids, max(1, wanted), param=param, limit="max_tokens")
            params = asked.params(
                max_tokens=room,
                vocab_size=service.engine.info.vocab_size,
                logprobs=asked.logprobs,
                prompt_logprobs=asked.logprobs if asked.echo else None,
                constraint=constraint,
            )
            lengths.append(len(ids))
            for choice in range(asked.choices):
                index = len(requests)
                requests.append(
                    Request(
                        request_id=f"{call}-{index}",
                        prompt_ids=tuple(ids),
                        params=params,
                        choice=choice,
                    )
                )
                choices.append(
                    CompletionChoice(
                        service.vocabulary,
                        index=index,
                        echo=text if asked.echo else "",
                        logprobs=asked.logprobs is not None,
                    )
                )
        return cls(asked, requests, choices, Usage(lengths, asked.choices))

    def document(self, told: dict[str, Delta]) -> dict[str, Any]:
        """The answer as one object."""
        pieces = [self._piece(told[request.request_id]) for request in self.requests]
        return self._head | {"choices": pieces, "usage": self._usage.document}

    async def events(
        self, first: list[Delta], deltas: AsyncGenerator[list[Delta], None]
    ) -> AsyncGenerator[bytes, None]:
        """The answer as a stream of chunks."""
        try:
            batch = first
            while batch:
                yield b"".join(event(self._chunk(delta)) for delta in batch)
                batch = await anext(deltas, [])
            if self._asked.include_usage:
                yield event(self._head | {"choices": [], "usage": self._usage.document})
            yield DONE
        finally:
            await deltas.aclose()

    def _chunk(self, delta: Delta) -> dict[str, Any]:
        chunk = self._head | {"choices": [self._piece(delta)]}
        if self._asked.continuous_usage:
            chunk["usage"] = self._usage.document
        elif self._asked.include_usage:
            chunk["usage"] = None
        return chunk

    def _piece(self, delta: Delta) -> dict[str, Any]:
        if self._asked.max_tokens == 0:  # the engine generates at least one token; it is dropped
            reason = delta.finish_reason and "length"
            delta = replace(delta, tokens=(), text="", finish_reason=reason)
        number = self._number[delta.request_id]
        self._usage.add(number, delta)
        return self._choices[number].piece(delta)
