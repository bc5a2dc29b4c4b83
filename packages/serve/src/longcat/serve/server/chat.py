"""POST /v1/chat/completions: a reply to a conversation, with tools."""

import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from longcat.serve.request import Delta, Request
from longcat.serve.server.answers import ChatCompletion
from longcat.serve.server.chat_choice import ChatChoice
from longcat.serve.server.chat_request import ChatRequest
from longcat.serve.server.documents import described
from longcat.serve.server.forms import checked, constraint_of
from longcat.serve.server.generation import generate, whole
from longcat.serve.server.service import Service
from longcat.serve.server.sse import DONE, EventStream, event, while_connected
from longcat.serve.server.tool_form import tool_form
from longcat.serve.server.usage import Usage


def chat_completions(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/chat/completions", **described(ChatRequest, ChatCompletion, stream=True))
    async def reply(http: HttpRequest) -> Response:
        """Reply to a conversation."""
        arrived = time.monotonic()
        asked = await service.read(http, ChatRequest)
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
        asked: ChatRequest,
        requests: list[Request],
        choices: list[ChatChoice],
        usage: Usage,
    ) -> None:
        self.requests = requests
        self._asked = asked
        self._usage = usage
        self._choices = choices
        self._number = {request.request_id: i for i, request in enumerate(requests)}
        self._head: dict[str, Any] = {
            "id": requests[0].request_id.rpartition("-")[0],
            "object": "chat.completion.chunk" if asked.stream else "chat.completion",
            "created": int(time.time()),
            "model": asked.model,
        }

    @classmethod
    async def of(cls, service: Service, asked: ChatRequest) -> "_Answer":
        """Encode and check everything that was asked; ApiError (400) for what cannot be."""
        called = asked.tools is not None and asked.tool_choice != "none"
        tools = (
            [tool.model_dump(exclude_none=True) for tool in asked.tools or ()] if called else None
        )
        messages: Any = [message.plain() for message in asked.messages]
        ids = await service.encode_chat(messages, tools)
        form = service.tokenizer.chat
        assert form is not None
        constraint = tool_form(asked, form, service.tokenizer.markers)
        if constraint is None:
            constraint = await constraint_of(
                service, asked.structured_outputs, asked.response_format
            )
        else:
            param = "tool_choice" if asked.tool_choice not in (None, "auto") else "tools"
            await checked(service, constraint, param)
        limit = "max_tokens" if asked.max_tokens else "max_completion_tokens"
        # A format whose end is no token of the model's is stopped at its text.
        stops = () if form.end in service.tokenizer.markers else (form.end,)
        one_call = called and asked.parallel_tool_calls is False
        params = asked.params(
            max_tokens=service.room(ids, asked.limit, param="messages", limit=limit),
            vocab_size=service.engine.info.vocab_size,
            logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
            constraint=constraint,
            extra_stop=(*stops, form.call[1]) if one_call else stops,
        )
        call = f"chatcmpl-{uuid.uuid4().hex}"
        requests = [
            Request(request_id=f"{call}-{i}", prompt_ids=tuple(ids), params=params, choice=i)
            for i in range(asked.choices)
        ]
        choices = [
            ChatChoice(
                service.vocabulary,
                index=index,
                template=form.name if called else None,
                logprobs=bool(asked.logprobs),
                closing=form.call[1] if one_call else None,
            )
            for index in range(asked.choices)
        ]
        return cls(asked, requests, choices, Usage([len(ids)], asked.choices))

    def document(self, told: dict[str, Delta]) -> dict[str, Any]:
        """The answer as one object."""
        replies = []
        for number, request in enumerate(self.requests):
            delta = told[request.request_id]
            self._usage.add(number, delta)
            replies.append(self._choices[number].whole(delta))
        return self._head | {"choices": replies, "usage": self._usage.document}

    async def events(
        self, first: list[Delta], deltas: AsyncGenerator[list[Delta], None]
    ) -> AsyncGenerator[bytes, None]:
        """The answer as a stream of chunks."""
        try:
            yield b"".join(event(self._chunk(choice.opening())) for choice in self._choices)
            batch = first
            while batch:
                chunks = [chunk for delta in batch for chunk in self._chunks(delta)]
                if chunks:
                    yield b"".join(map(event, chunks))
                batch = await anext(deltas, [])
            if self._asked.include_usage:
                yield event(self._head | {"choices": [], "usage": self._usage.document})
            yield DONE
        finally:
            await deltas.aclose()

    def _chunks(self, delta: Delta) -> list[dict[str, Any]]:
        number = self._number[delta.request_id]
        self._usage.add(number, delta)
        return [self._chunk(choice) for choice in self._choices[number].chunks(delta)]

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        chunk = self._head | {"choices": [choice]}
        if self._asked.continuous_usage:
            chunk["usage"] = self._usage.document
        elif self._asked.include_usage:
            chunk["usage"] = None
        return chunk
