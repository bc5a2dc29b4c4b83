"""The body of /v1/chat/completions."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from longcat.serve.server.conversation import ChatMessage
from longcat.serve.server.fields import NeverTrue, NoObject, NotHonoured, Strict, Text
from longcat.serve.server.sampling_fields import MAX_LOGPROBS, SamplingFields


class FunctionDefinition(Strict):
    """A function that the model may call."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(
        None, description="True: arguments are held to the parameters by a grammar."
    )

    @field_validator("parameters")
    @classmethod
    def _of_an_object(cls, parameters: dict[str, Any] | None) -> dict[str, Any] | None:
        kind = (parameters or {}).get("type", "object")
        if kind != "object":
            raise ValueError(f"arguments are an object, so their type must be so too; got {kind!r}")
        return parameters


class ToolDefinition(Strict):
    """A tool that the model may use."""

    type: Literal["function"]
    function: FunctionDefinition


Tools = Annotated[list[ToolDefinition], Field(max_length=128)]


class NamedFunction(Strict):
    """The name of a function."""

    name: Text


class NamedTool(Strict):
    """The one tool that must be used."""

    type: Literal["function"]
    function: NamedFunction


class NamedSchema(Strict):
    """A JSON schema with a name."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """The form of the reply's text."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with type json_schema, and only with it")
        return self

    @property
    def schema_of_text(self) -> dict[str, Any] | None:
        """The JSON schema of the text; None where it is free."""
        if self.type == "text":
            return None
        return {"type": "object"} if self.json_schema is None else self.json_schema.schema_


class ChatRequest(SamplingFields):
    """A conversation to which a reply is wanted."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: Tools | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: NeverTrue = None
    audio: NotHonoured = None
    function_call: NotHonoured = None
    functions: NotHonoured = None
    metadata: NoObject = None
    moderation: NotHonoured = None
    prediction: NotHonoured = None
    prompt_cache_key: str | None = Field(
        None, description="All requests share one prefix cache, whatever their keys."
    )
    prompt_cache_options: NotHonoured = None
    prompt_cache_retention: NotHonoured = None
    reasoning_effort: Literal["none"] | None = None
    safety_identifier: str | None = Field(
        None, description="Written to the access log where there is no user."
    )
    verbosity: Literal["medium"] | None = None
    web_search_options: NotHonoured = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        if self.max_tokens and self.max_completion_tokens not in (None, self.max_tokens):
            raise ValueError("max_tokens contradicts max_completion_tokens; give one of them")
        for name in ("tool_choice", "parallel_tool_calls"):
            if getattr(self, name) is not None and not self.tools:
                raise ValueError(f"{name} needs tools")
        if self.structured_outputs is not None:
            if self.text_schema is not None:
                raise ValueError("structured_outputs contradicts response_format; give one of them")
            if self.tools and self.tool_choice != "none":
                raise ValueError("structured_outputs cannot be combined with tools")
        if isinstance(self.tool_choice, NamedTool):
            name = self.tool_choice.function.name
            if name not in [tool.function.name for tool in self.tools or ()]:
                raise ValueError(f"tool_choice names {name!r}, which is not among the tools")
        return self

    @property
    def who(self) -> str | None:
        """On whose behalf the client asks: OpenAI's newer name for `user` counts as well."""
        return self.user or self.safety_identifier

    @property
    def text_schema(self) -> dict[str, Any] | None:
        """What `response_format` demands of the reply's text; None for any text."""
        return None if self.response_format is None else self.response_format.schema_of_text

    @property
    def limit(self) -> int | None:
        """Most tokens of the reply, if the request says so."""
        return self.max_completion_tokens or self.max_tokens
