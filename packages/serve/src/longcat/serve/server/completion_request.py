"""The body of /v1/completions."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from longcat.serve.server.fields import NoText, Text, TokenId
from longcat.serve.server.sampling_fields import MAX_CHOICES, MAX_LOGPROBS, SamplingFields

DEFAULT_MAX_TOKENS = 16
TokenIds = Annotated[list[TokenId], Field(min_length=1)]


class CompletionRequest(SamplingFields):
    """Text or token ids to continue: one prompt, or several that are answered together."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_CHOICES)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_CHOICES)]
    )
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(
        None, description="16 by default; 0 goes with echo."
    )
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = Field(
        None, description="Only as many as n: none is thrown away."
    )
    add_special_tokens: bool | None = Field(
        None, description="Extension: false leaves out the beginning-of-text token before a text."
    )
    suffix: NoText = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens must be at least 1 without echo")
        if self.best_of is not None and self.best_of != self.choices:
            raise ValueError("best_of must equal n; this server throws no choice away")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """One text or list of ids per prompt."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [prompt for prompt in self.prompt if not isinstance(prompt, int)]
