"""Texts in, texts out, all at once: the engine without a server.

llm = LLM(model, tokenizer)
for completion in llm.generate(["Once", "Twice"], SamplingParams(max_tokens=20)):
    print(completion.text)
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import index
from typing import Any, Protocol

from longcat.serve.config import EngineConfig, EngineStats
from longcat.serve.constraint import ConstraintFactory
from longcat.serve.engine import Engine
from longcat.serve.params import SamplingParams
from longcat.serve.protocol import PagedModel, Tokenizer
from longcat.serve.request import Delta, PromptToken, Request, Token
from longcat.serve.serving import Serving

Prompt = str | Sequence[int]


class TextTokenizer(Tokenizer, Protocol):
    """A tokenizer that knows the token a text begins with."""

    @property
    def bos_id(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One continued prompt; the fields are those of `Delta`, for the whole text.

    prompt_ids  what was continued. choice: its index among the n of one prompt
    """

    prompt_ids: tuple[int, ...]
    choice: int
    text: str
    tokens: tuple[Token, ...]
    finish_reason: str
    stop_reason: str | int | None = None
    prompt_logprobs: tuple[PromptToken, ...] | None = None
    cached_tokens: int = 0

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Ids of the generated tokens."""
        return tuple(token.id for token in self.tokens)


def complete(
    engine: Serving, requests: Sequence[Request], observe: Callable[[Delta], None] = lambda _: None
) -> list[Completion]:
    """Serve requests with an engine that has no others -> what became of each.

    observe is told what each has gained, as it comes: for progress, or to stream.

    Raises ValueError as `Engine.add`, by the request's id and before anything is computed, and
    RuntimeError when the model's logits are no numbers, or a form cannot be kept to. Whatever ends
    it, no request is left in the engine.
    """
    deltas: dict[str, list[Delta]] = {}
    try:
        for request in requests:
            try:
                engine.add(request)
            except ValueError as error:
                raise ValueError(f"request {request.request_id}: {error}") from None
            deltas[request.request_id] = []
        while engine.has_work:
            for delta in engine.step():
                deltas[delta.request_id].append(delta)
                observe(delta)
    finally:
        for request_id in deltas:
            engine.abort(request_id)
    return [_whole(request, deltas[request.request_id]) for request in requests]


class LLM:
    """A model, a tokenizer, and an engine between calls of `generate`.

    Args: as `Engine`. The prefix cache lives as long as the LLM, or until a call is interrupted.
    """

    def __init__(
        self,
        model: PagedModel,
        tokenizer: TextTokenizer,
        config: EngineConfig | None = None,
        *,
        constraints: ConstraintFactory | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self._build = partial(Engine, model, tokenizer, config, constraints=constraints)
        self._engine = self._build()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        n: int = 1,
        observe: Callable[[Delta], None] = lambda _: None,
    ) -> list[Completion]:
        """Continue one prompt or many -> n completions of each, prompt by prompt.

        prompts  texts, which get the beginning-of-text token in front, or token ids as they are
        params   for all prompts, or one for each; None: the defaults
        n        choices per prompt, which differ when they are sampled
        observe  is told what each has gained, as it comes: for progress, or to stream. The
                 request_id of choice c of prompt i is "i.c"

        Raises ValueError as `Engine.add`, before anything is computed, and RuntimeError when the
        model's logits are no numbers, or a form cannot be kept to. After an interrupt it can be
        called again.
        """
        asked = _listed(prompts)
        each = _each(params, len(asked))
        if n < 1:
            raise ValueError(f"generate: n must be at least 1; got {n}")
        requests = [
            Request(
                request_id=f"{i}.{choice}",
                prompt_ids=self._ids(prompt),
                params=of_prompt,
                choice=choice,
            )
            for i, (prompt, of_prompt) in enumerate(zip(asked, each, strict=True))
            for choice in range(n)
        ]
        try:
            return complete(self._engine, requests, observe)
        except (KeyboardInterrupt, RuntimeError):
            self._engine = self._build()  # it may have come in the middle of a pass
            raise

    def stats(self) -> EngineStats:
        """The engine's counters, over all calls; they begin anew after an interrupt."""
        return self._engine.stats()

    def _ids(self, prompt: Prompt) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return (self.tokenizer.bos_id, *self.tokenizer.encode(prompt))
        listed = _elements(prompt)
        if not all(map(_is_id, listed)):
            raise ValueError(f"{_PROMPTS}; got one that holds more than ids: {prompt!r:.60}")
        return tuple(map(index, listed))


_PROMPTS = "generate: a prompt must be a text or a list of token ids"


def _listed(prompts: Prompt | Sequence[Prompt]) -> list[Any]:
    """One prompt or many as a list of them; ids make one prompt."""
    if isinstance(prompts, str):
        return [prompts]
    listed = _elements(prompts)
    ids = list(filter(_is_id, listed))
    if ids and len(ids) < len(listed):
        raise ValueError(f"{_PROMPTS}; got ids among whole prompts")
    return [ids] if ids else listed


def _elements(prompts: Any) -> list[Any]:
    if isinstance(prompts, bytes) or not isinstance(prompts, Iterable):
        raise ValueError(f"{_PROMPTS}; got a {type(prompts).__name__}")
    return list(prompts)


def _is_id(element: Any) -> bool:
    """Whether it is one whole number, perhaps of an array."""
    try:
        return index(element) is not None
    except TypeError:
        return False


def _each(params: Any, count: int) -> list[SamplingParams]:
    """The parameters of each of `count` prompts."""
    if params is None:
        params = SamplingParams()
    each = list(params) if isinstance(params, list | tuple) else [params] * count
    for one in each:
        if not isinstance(one, SamplingParams):
            raise ValueError(
                "generate: params must be SamplingParams, or a list with one for each prompt; "
                f"got a {type(one).__name__}"
            )
    if len(each) != count:
        raise ValueError(f"generate: {count} prompts but {len(each)} params")
    return each


def _whole(request: Request, deltas: list[Delta]) -> Completion:
    first, last = deltas[0], deltas[-1]
    if last.error is not None:
        raise RuntimeError(last.error)
    return Completion(
        prompt_ids=request.prompt_ids,
        choice=request.choice,
        text="".join(delta.text for delta in deltas),
        tokens=tuple(token for delta in deltas for token in delta.tokens),
        finish_reason=last.finish_reason or "",
        stop_reason=last.stop_reason,
        prompt_logprobs=first.prompt_logprobs,
        cached_tokens=first.cached_tokens,
    )
