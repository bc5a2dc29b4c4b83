"""POST /v1/completions: text or token ids to continue."""

import time
import uuid

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from longcat.serve.request import Request
from longcat.serve.server.answer import Answer
from longcat.serve.server.answers import Completion
from longcat.serve.server.completion_choice import CompletionChoice
from longcat.serve.server.completion_request import DEFAULT_MAX_TOKENS, CompletionRequest
from longcat.serve.server.documents import described
from longcat.serve.server.errors import ApiError
from longcat.serve.server.forms import constraint_of
from longcat.serve.server.service import Service


def completions(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/completions", **described(CompletionRequest, Completion, stream=True))
    async def complete(http: HttpRequest) -> Response:
        """Continue a text, or token ids; several prompts and several choices in one request."""
        arrived = time.monotonic()
        asked = await service.read(http, CompletionRequest)
        http.state.user = asked.who
        answer = await _prepared(service, asked)
        return await answer.respond(http, service, arrived)

    return router


async def _prepared(service: Service, asked: CompletionRequest) -> Answer:
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
    # The engine generates at least one token; for max_tokens 0 it is dropped.
    wanted = None if asked.max_tokens is None else max(1, asked.max_tokens)
    requests: list[Request] = []
    choices: list[CompletionChoice] = []
    lengths: list[int] = []
    for place, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            text, bos = prompt, asked.add_special_tokens is not False
            ids = await service.encode(text, bos=bos)
        else:
            text, ids = service.vocabulary.text(prompt), prompt
        param = "prompt" if len(prompts) == 1 else f"prompt.{place}"
        room = service.room(ids, wanted, param=param, limit="max_tokens")
        params = asked.params(
            max_tokens=min(room, DEFAULT_MAX_TOKENS) if wanted is None else room,
            vocab_size=service.engine.info.vocab_size,
            logprobs=asked.logprobs,
            prompt_logprobs=asked.logprobs if asked.echo else None,
            constraint=constraint,
        )
        lengths.append(len(ids))
        for choice in range(asked.choices):
            index = len(requests)
            name, prompt_ids = f"{call}-{index}", tuple(ids)
            requests.append(
                Request(request_id=name, prompt_ids=prompt_ids, params=params, choice=choice)
            )
            choices.append(
                CompletionChoice(
                    service.vocabulary,
                    index=index,
                    echo=text if asked.echo else "",
                    logprobs=asked.logprobs is not None,
                )
            )
    kind = ("text_completion", "text_completion")
    return Answer(asked, kind, requests, choices, lengths, prompt_only=asked.max_tokens == 0)
