"""POST /v1/chat/completions: a reply to a conversation, with tools."""

import time
import uuid

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from longcat.serve.request import Request
from longcat.serve.server.answer import Answer
from longcat.serve.server.answers import ChatCompletion
from longcat.serve.server.chat_choice import ChatChoice
from longcat.serve.server.chat_request import ChatRequest
from longcat.serve.server.conversation import turns
from longcat.serve.server.documents import described
from longcat.serve.server.forms import checked, constraint_of
from longcat.serve.server.service import Service
from longcat.serve.server.tool_form import held_schemas, tool_form


def chat_completions(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/chat/completions", **described(ChatRequest, ChatCompletion, stream=True))
    async def reply(http: HttpRequest) -> Response:
        """Reply to a conversation."""
        arrived = time.monotonic()
        asked = await service.read(http, ChatRequest)
        http.state.user = asked.who
        answer = await _prepared(service, asked)
        return await answer.respond(http, service, arrived)

    return router


async def _prepared(service: Service, asked: ChatRequest) -> Answer:
    """Encode and check everything that was asked; ApiError (400) for what cannot be."""
    called = bool(asked.tools) and asked.tool_choice != "none"
    said = turns(asked.messages)
    # Calls of before are of tools, which stand in the prompt even where none may be called now.
    shown = called or any("tool_calls" in message for message in said.messages)
    given = (asked.tools or ()) if shown else ()
    tools = [tool.model_dump(exclude_none=True) for tool in given] or None
    ids = await service.encode_chat(said, tools)
    form = service.tokenizer.chat
    assert form is not None
    constraint = await constraint_of(service, asked.structured_outputs, asked.response_format)
    with_calls = tool_form(asked, form, service.tokenizer.markers)
    if with_calls is not None:
        constraint = with_calls
        for place, schema in held_schemas(asked):  # so that a refusal names the tool
            await checked(service, schema, f"tools.{place}.function.parameters")
        await checked(service, constraint, "tools")
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
    return Answer(
        asked, ("chat.completion", "chat.completion.chunk"), requests, choices, [len(ids)]
    )
