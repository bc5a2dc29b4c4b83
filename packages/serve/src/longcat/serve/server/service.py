"""What the endpoints share: the engine, the tokenizer, the door, the counts; and how to prompt."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect, Request

from longcat.chat import Tool
from longcat.serve.constraint import ConstraintFactory
from longcat.serve.server.config import ServerConfig
from longcat.serve.server.conversation import Turns
from longcat.serve.server.errors import ApiError
from longcat.serve.server.fields import Body, parse
from longcat.serve.server.gate import Gate
from longcat.serve.server.metrics import Metrics
from longcat.serve.server.supervisor import EngineClient
from longcat.serve.server.tokenizer import ServedTokenizer
from longcat.serve.server.vocabulary import Vocabulary

# Longer texts are encoded in a thread, so that the others' streams do not stand still meanwhile.
_SHORT_TEXT = 4096


@dataclass(kw_only=True)
class Service:
    """One model that is served.

    constraints  checks a form that a text must have before the engine is asked; None where
                 structured output is not installed
    """

    config: ServerConfig
    engine: EngineClient
    tokenizer: ServedTokenizer
    gate: Gate
    metrics: Metrics
    constraints: ConstraintFactory | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.vocabulary = Vocabulary(self.tokenizer)

    async def read(self, http: Request, model: type[Body]) -> Body:
        """The body of a request, which names the model that is served or none.

        Raises ApiError: 400 for a body that is not in form, 404 for another model, 499 when the
        client leaves, 415 for a compressed body, 504 when the body does not come in time.
        """
        coding = http.headers.get("content-encoding", "identity")
        if coding.lower() != "identity":
            raise ApiError(
                415,
                f"the body is encoded as {coding!r}; this server reads it only as it is: leave out "
                "Content-Encoding",
                code="unsupported_encoding",
            )
        try:
            async with asyncio.timeout(self.config.request_seconds):
                body = parse(model, await http.body())
        except ClientDisconnect:
            raise ApiError(499, "the client has left", code="client_left") from None
        except TimeoutError:
            raise ApiError(504, "the body did not come in time", code="timeout") from None
        self.check_model(getattr(body, "model", None) or self.config.model_name)
        return body

    def check_model(self, name: str) -> None:
        """Raise ApiError (404) unless `name` is the model that is served."""
        if name != self.config.model_name:
            raise ApiError(
                404,
                f"there is no model {name!r}; this server has {self.config.model_name!r}",
                param="model",
                code="model_not_found",
            )

    async def encode(self, text: str, *, bos: bool) -> list[int]:
        """Ids of a text."""
        if len(text) <= _SHORT_TEXT:
            ids = self.tokenizer.encode(text)
        else:
            ids = await asyncio.to_thread(self.tokenizer.encode, text)
        return [self.tokenizer.bos_id, *ids] if bos else ids

    async def encode_chat(self, said: Turns, tools: Sequence[Tool] | None) -> list[int]:
        """Ids that ask for a reply.

        Raises ApiError (400) for a model without a chat format, or messages out of form.
        """
        if self.tokenizer.chat is None:
            raise ApiError(
                400,
                f"{self.config.model_name!r} has no chat template: it continues text, "
                "see /v1/completions; fine-tune it with `longcat train --sft`",
                param="messages",
                code="no_chat_template",
            )
        try:
            return await asyncio.to_thread(self.tokenizer.encode_chat, said.messages, tools)
        except ValueError as error:
            param = "tools" if str(error).startswith("chat: tool ") else "messages"
            raise ApiError(400, said.told(error), param=param, code="invalid_value") from None

    def room(self, prompt: Sequence[int], asked: int | None, *, param: str, limit: str) -> int:
        """How many tokens may follow a prompt: what was asked for, or all that fits.

        param, limit: the fields that hold the prompt and the limit.
        Raises ApiError (400) when the prompt, or the two together, are too long.
        """
        for token in prompt:
            if token >= self.engine.info.vocab_size:
                raise ApiError(
                    400,
                    f"{param}: token id {token} is outside the vocabulary 0 .. "
                    f"{self.engine.info.vocab_size - 1}",
                    param=param,
                    code="invalid_value",
                )
        window = self.engine.info.longest
        longest = min(self.config.max_prompt_tokens or window, window - 1)
        if len(prompt) > longest:
            raise ApiError(
                400,
                f"{param} has {len(prompt)} tokens; this server takes at most {longest}",
                param=param,
                code="context_length_exceeded",
            )
        room = min(window - len(prompt), self.config.max_tokens or window)
        if asked is not None and asked > room:
            raise ApiError(
                400,
                f"{limit} is {asked}, but after a prompt of {len(prompt)} tokens at most {room} "
                "can be generated",
                param=limit,
                code="context_length_exceeded",
            )
        return room if asked is None else asked
