"""/tokenize, /detokenize and /tokenizer_info: what a client needs to count and cut by itself."""

from typing import Annotated, Any, Self

from fastapi import APIRouter
from pydantic import Field, model_validator
from starlette.requests import Request

from longcat.serve.server.answers import Detokenized, TokenizerTold, Tokens
from longcat.serve.server.chat_request import Tools
from longcat.serve.server.conversation import ChatMessage, turns
from longcat.serve.server.documents import asked, described
from longcat.serve.server.errors import ApiError
from longcat.serve.server.fields import Strict, Text, TokenId
from longcat.serve.server.service import Service


class TokenizeRequest(Strict):
    """A text, or a conversation to which a reply is wanted."""

    model: Text | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    tools: Tools | None = None
    add_special_tokens: bool | None = Field(
        None, description="False leaves out the beginning-of-text token before a text."
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt or messages must be given, and not both")
        if self.tools and self.messages is None:
            raise ValueError("tools needs messages")
        return self


class DetokenizeRequest(Strict):
    """Token ids to spell out."""

    model: Text | None = None
    tokens: list[TokenId]


def tokens(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.post("/tokenize", **described(TokenizeRequest, Tokens))
    async def tokenize(http: Request) -> dict[str, Any]:
        """Token ids of a text or a conversation."""
        body = await service.read(http, TokenizeRequest)
        if body.prompt is not None:
            ids = await service.encode(body.prompt, bos=body.add_special_tokens is not False)
        else:
            tools = [tool.model_dump(exclude_none=True) for tool in body.tools or ()] or None
            ids = await service.encode_chat(turns(body.messages or ()), tools)
        return {
            "tokens": ids,
            "count": len(ids),
            "max_model_len": service.engine.info.longest,
        }

    @router.post("/detokenize", **described(DetokenizeRequest, Detokenized))
    async def detokenize(http: Request) -> dict[str, Any]:
        """Text of token ids; control tokens have none."""
        body = await service.read(http, DetokenizeRequest)
        for place, token in enumerate(body.tokens):
            if token >= service.engine.info.vocab_size:
                raise ApiError(
                    400,
                    f"tokens.{place}: token id {token} is outside the vocabulary 0 .. "
                    f"{service.engine.info.vocab_size - 1}",
                    param=f"tokens.{place}",
                    code="invalid_value",
                )
        return {"prompt": service.vocabulary.text(body.tokens)}

    @router.get("/tokenizer_info", **asked(TokenizerTold))
    async def tokenizer_info() -> dict[str, Any]:
        """The control tokens and the chat template."""
        tokenizer, name = service.tokenizer, service.vocabulary.string
        end = service.engine.info.eos_token_id
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "vocab_size": service.engine.info.vocab_size,
            "bos_token": name(tokenizer.bos_id),
            "eos_token": name(tokenizer.eos_id if end is None else end),
            "pad_token": name(tokenizer.pad_id),
            "chat_template": tokenizer.chat.jinja if tokenizer.chat else None,
        }

    return router
