"""The bodies of the answers, for the schema that the server publishes.

Answers are built as plain dictionaries, because a stream makes thousands; tests hold them to these
classes.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Told(BaseModel):
    """A body, or an object in one; nothing but what is declared."""

    model_config = ConfigDict(extra="forbid")


class PromptTokensDetails(Told):
    """Of the prompt's tokens, those found in the prefix cache."""

    cached_tokens: int


class CompletionTokensDetails(Told):
    """Drafts of the MTP head that the target took and refused."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class UsageTold(Told):
    """Tokens that a request took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class CompletionLogprobs(Told):
    """Per token: its text, its log-probability, the best of its place, where it begins."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoiceTold(Told):
    """One continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(Told):
    """The answer of /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoiceTold]
    usage: UsageTold


class TopLogprob(Told):
    """One of the most probable tokens of a place."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token of the reply."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Told):
    """Log-probabilities of a reply's tokens."""

    content: list[TokenLogprob]
    refusal: None


class FunctionTold(Told):
    """What a call calls."""

    name: str
    arguments: str


class ToolCallTold(Told):
    """One call."""

    id: str
    type: Literal["function"]
    function: FunctionTold


class MessageTold(Told):
    """A reply."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCallTold] | None = None


class ChatChoiceTold(Told):
    """One reply."""

    index: int
    message: MessageTold
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(Told):
    """The answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoiceTold]
    usage: UsageTold


class ModelTold(Told):
    """The model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(Told):
    """The models that are served: one."""

    object: Literal["list"]
    data: list[ModelTold]


class Tokens(Told):
    """Token ids of a text."""

    tokens: list[int]
    count: int
    max_model_len: int


class Detokenized(Told):
    """Text of token ids."""

    prompt: str


class TokenizerTold(Told):
    """The control tokens' texts, and the chat template if there is one."""

    tokenizer_class: str
    vocab_size: int
    bos_token: str
    eos_token: str
    pad_token: str
    chat_template: str | None


class Health(Told):
    """The server takes requests."""

    status: Literal["ok"]
    prefill: Literal["up", "down"] | None = None


class EngineCounts(Told):
    """`longcat.serve.EngineStats`: a moment's picture, and counters from the engine's start."""

    running: int
    waiting: int
    pages_free: int
    pages_cached: int
    pages_used: int
    pages_total: int
    steps: int
    prompt_tokens: int
    tokens: int
    drafts: int
    drafted_at: list[int]
    accepted_at: list[int]
    preemptions: int
    prefix_queries: int
    prefix_hits: int
    finished: int
    prefill_alive: bool | None
    prefill_restarts: int


class ServerStats(Told):
    """What is served, and what the engine is doing; no engine counts before its first step."""

    model: str
    chat: bool
    speculative: bool
    max_model_len: int
    state: str
    restarts: int
    inside: int
    engine: EngineCounts | None
