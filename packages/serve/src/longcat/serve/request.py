"""What goes into the engine and what comes out of it; both can be pickled."""

from dataclasses import dataclass
from typing import Literal

from longcat.serve.params import SamplingParams

Fault = Literal["model", "request", "process"]


@dataclass(frozen=True, kw_only=True)
class Token:
    """One generated token, and what became of the head's guess for its place.

    drafted       the head had guessed this token
    refused       the head had guessed another one, and this is the target's instead
    logprob       the model's log-probability of it, where logprobs were asked for
    top_logprobs  the most probable tokens of its place, best first

    Neither drafted nor refused, where there was no guess: the first token, and the free one after
    accepted drafts.
    """

    id: int
    drafted: bool = False
    refused: bool = False
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class PromptToken:
    """One token of the prompt with the model's log-probability of it; the first one has none."""

    id: int
    logprob: float | None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Request:
    """One sequence to continue: one choice of one call.

    choice  its index among the n choices of a call; it goes into the key of the noise, so that
            choices with one seed differ

    Raises ValueError for an empty id or prompt, or a choice outside 0 .. 65535.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    choice: int = 0

    def __post_init__(self) -> None:
        if not self.request_id:
            raise ValueError("Request: request_id must not be empty")
        if not self.prompt_ids:
            raise ValueError("Request: prompt_ids has no tokens; start it with the bos token")
        if not 0 <= self.choice < 2**16:
            raise ValueError(f"Request: choice must be in 0 .. 65535; got {self.choice}")


@dataclass(frozen=True, kw_only=True)
class Delta:
    """What one request gained in one step of the engine.

    tokens           new tokens, a stop string's own left out
    text             new text, never half a character; a stop string is not part of it
    finish_reason    None while it runs, then "stop", "length", "abort" or "error"
    stop_reason      the stop string or stop token that ended it; None for the end of sequence
    prompt_logprobs  in the first delta, where they were asked for: one per prompt token
    cached_tokens    in the first delta: prompt tokens whose latents were in the prefix cache
    error            one sentence, with finish_reason "error"
    fault            with an error, what is at fault: the "model", whose logits are no numbers; the
                     "request", which wants a form that cannot be kept to; or a "process", which
                     died, so that another time it may go well
    """

    request_id: str
    tokens: tuple[Token, ...] = ()
    text: str = ""
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    prompt_logprobs: tuple[PromptToken, ...] | None = None
    cached_tokens: int = 0
    error: str | None = None
    fault: Fault = "model"
