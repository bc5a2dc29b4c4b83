"""The fields that both kinds of completion share, and the `SamplingParams` that they mean."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from longcat.serve.constraint import ConstraintSpec
from longcat.serve.params import SamplingParams
from longcat.serve.server.errors import ApiError
from longcat.serve.server.fields import NeverTrue, Strict, Text, TokenId

Penalty = Annotated[float, Field(ge=-2, le=2)]
MAX_CHOICES = 128
MAX_LOGPROBS = 20
MAX_STOPS = 16
# Keeps the most probable token alone, as 0 asks for: of V tokens, the best has 1/V at least.
_LEAST_TOP_P = 1e-6


class StreamOptions(Strict):
    """What a stream tells beside the text."""

    include_usage: bool | None = None
    include_obfuscation: NeverTrue = None
    continuous_usage_stats: bool | None = Field(
        None, description="Extension: usage so far in every chunk."
    )


class StructuredOutputs(Strict):
    """Extension: the form that the text must have; exactly one of these."""

    json_schema: dict[str, Any] | None = Field(None, alias="json")
    regex: Text | None = None
    choice: Annotated[list[Text], Field(min_length=1, max_length=256)] | None = None
    grammar: Text | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [self.json_schema, self.regex, self.choice, self.grammar]
        if sum(one is not None for one in given) != 1:
            raise ValueError("structured_outputs takes exactly one of json, regex, choice, grammar")
        return self


class SamplingFields(Strict):
    """How the model's text is drawn and where it ends."""

    model: Text
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(
        None, description="Extension: keep the k most probable tokens; 0 keeps all."
    )
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="Extension: keep tokens with this fraction of the largest probability."
    )
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = Field(
        None, description="Extension: divides the logits of tokens that have occurred."
    )
    logit_bias: (
        dict[
            Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")],
            Annotated[float, Field(ge=-100, le=100)],
        ]
        | None
    ) = None
    stop: Text | Annotated[list[Text], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = Field(
        None, description="Extension: tokens that end the text."
    )
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(
        None, description="Extension: no end before this many tokens."
    )
    ignore_eos: bool | None = Field(
        None, description="Extension: go on after the end-of-sequence token."
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    structured_outputs: StructuredOutputs | None = None
    user: str | None = Field(None, description="Written to the access log.")

    @model_validator(mode="after")
    def _streams(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream to be true")
        return self

    @property
    def who(self) -> str | None:
        """On whose behalf the client asks, if it says so."""
        return self.user

    @property
    def choices(self) -> int:
        """Sequences per prompt."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk of a stream has the usage so far."""
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)

    def params(
        self,
        *,
        max_tokens: int,
        vocab_size: int,
        logprobs: int | None,
        prompt_logprobs: int | None = None,
        constraint: ConstraintSpec | None = None,
        extra_stop: tuple[str, ...] = (),
    ) -> SamplingParams:
        """What the engine is told.

        Raises ApiError (400) for token ids outside the vocabulary, or fields that contradict each
        other.
        """
        bias = {int(token): value for token, value in (self.logit_bias or {}).items()}
        for name, ids in (("logit_bias", bias), ("stop_token_ids", self.stop_token_ids or ())):
            for token in ids:
                if token >= vocab_size:
                    raise ApiError(
                        400,
                        f"{name}: token id {token} is outside the vocabulary 0 .. {vocab_size - 1}",
                        param=name,
                        code="invalid_value",
                    )
        if (self.min_tokens or 0) > max_tokens:
            raise ApiError(
                400,
                f"min_tokens {self.min_tokens} is more than max_tokens {max_tokens}",
                param="min_tokens",
                code="invalid_value",
            )
        for name in ("min_tokens", "ignore_eos"):
            if constraint is not None and getattr(self, name):
                raise ApiError(
                    400,
                    f"{name} contradicts a form of the text, which decides where it ends",
                    param=name,
                    code="invalid_value",
                )
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return SamplingParams(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k or 0,
            top_p=1.0 if self.top_p is None else max(self.top_p, _LEAST_TOP_P),
            min_p=self.min_p or 0.0,
            seed=None if self.seed is None else self.seed % 2**64,
            max_tokens=max_tokens,
            ignore_eos=bool(self.ignore_eos),
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            logit_bias=bias,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            stop=stop + extra_stop,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            min_tokens=self.min_tokens or 0,
            constraint=constraint,
        )
