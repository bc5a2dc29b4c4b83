"""How one sequence is to be continued: everything a caller may ask for, validated."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, Literal, get_args

from longcat.serve.constraint import ConstraintSpec

Acceptance = Literal["coupled", "rejection", "target-only"]


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How a sequence is continued.

    temperature  0 is greedy (the default); larger is more random
    top_k        keep the k most probable tokens; 0 keeps all
    top_p        keep the most probable tokens that together reach this mass; 1 keeps all
    min_p        keep tokens with at least this fraction of the largest probability; 0 keeps all
    seed         0 .. 2**64-1 gives the same text every time; None draws a fresh one
    max_tokens   most tokens to generate
    ignore_eos   go on after the end-of-sequence token

    What the engine honours, and `decode` refuses:

    presence_penalty    taken off the logit of every token generated so far
    frequency_penalty   the same, times how often it was generated
    repetition_penalty  positive logits of tokens in prompt or text are divided by it, negative
                        ones multiplied; 1 is off
    logit_bias          token id to a number added to its logit
    logprobs            how many most probable tokens to report beside each chosen one; None
                        reports nothing. They are the model's own, before temperature and penalties
    prompt_logprobs     the same for the prompt's tokens
    stop                texts that end the generation; they are not part of it
    stop_token_ids      tokens that end it, as the end-of-sequence token does
    min_tokens          neither of those, nor the end of sequence, before this many tokens
    acceptance          how a draft is judged: "coupled" draws draft and target with one noise,
                        "rejection" accepts with min(1, p/q), "target-only" with p(draft)
    speculative         False: without drafts; None and True: with them where there is a head
    constraint          the form the text must have

    Raises ValueError for a value outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int = 128
    ignore_eos: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    acceptance: Acceptance = "coupled"
    speculative: bool | None = None
    constraint: ConstraintSpec | None = None

    def __post_init__(self) -> None:
        _require(
            _is_number(self.temperature) and self.temperature >= 0,
            "temperature must be 0 (greedy) or a positive number",
            self.temperature,
        )
        _require(
            _is_count(self.top_k) and self.top_k < 2**63,
            "top_k must be 0 (off) or a positive count below 2**63",
            self.top_k,
        )
        _require(
            _is_number(self.top_p) and 0 < self.top_p <= 1,
            "top_p must be in (0, 1], 1 being off",
            self.top_p,
        )
        _require(
            _is_number(self.min_p) and 0 <= self.min_p <= 1,
            "min_p must be in [0, 1], 0 being off",
            self.min_p,
        )
        _require(
            _is_count(self.max_tokens) and self.max_tokens >= 1,
            "max_tokens must be at least 1, a whole number",
            self.max_tokens,
        )
        _require(
            self.seed is None or (_is_count(self.seed) and self.seed < 2**64),
            "seed must be in 0 .. 2**64-1, or None for a fresh one",
            self.seed,
        )
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _require(
                _is_number(value) and -2 <= value <= 2,
                f"{name} must be in -2 .. 2, 0 being off",
                value,
            )
        # Beyond these a logit in float32 may become infinite, or not a number.
        _require(
            _is_number(self.repetition_penalty) and 0.01 <= self.repetition_penalty <= 100,
            "repetition_penalty must be in 0.01 .. 100, 1 being off",
            self.repetition_penalty,
        )
        _require(
            isinstance(self.logit_bias, Mapping)
            and all(
                _is_count(token) and _is_number(bias) and abs(bias) <= 1e30
                for token, bias in self.logit_bias.items()
            ),
            "logit_bias must map token ids to numbers in -1e30 .. 1e30",
            self.logit_bias,
        )
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            _require(value is None or _is_count(value), f"{name} must be None or a count", value)
        _require(
            isinstance(self.stop, tuple | list)
            and all(isinstance(text, str) and text for text in self.stop),
            "stop must be a tuple of texts, none of them empty",
            self.stop,
        )
        _require(
            isinstance(self.stop_token_ids, tuple | list)
            and all(map(_is_count, self.stop_token_ids)),
            "stop_token_ids must be a tuple of token ids",
            self.stop_token_ids,
        )
        _require(
            _is_count(self.min_tokens) and self.min_tokens <= self.max_tokens,
            f"min_tokens must be in 0 .. max_tokens ({self.max_tokens})",
            self.min_tokens,
        )
        _require(
            self.acceptance in get_args(Acceptance),
            f"acceptance must be one of {', '.join(get_args(Acceptance))}",
            self.acceptance,
        )
        _require(
            isinstance(self.ignore_eos, bool), "ignore_eos must be True or False", self.ignore_eos
        )
        _require(
            self.speculative is None or isinstance(self.speculative, bool),
            "speculative must be True, False or None",
            self.speculative,
        )
        _require(
            self.constraint is None or isinstance(self.constraint, ConstraintSpec),
            "constraint must be a ConstraintSpec or None",
            self.constraint,
        )

    @property
    def greedy(self) -> bool:
        """Whether every token is the most probable one, so that no noise is needed."""
        return self.temperature == 0.0

    @property
    def beyond_decode(self) -> tuple[str, ...]:
        """The fields in use that only the engine honours."""
        default = SamplingParams()
        names = [field.name for field in fields(self)]
        names = names[names.index("presence_penalty") :]
        return tuple(name for name in names if getattr(self, name) != getattr(default, name))

    @property
    def edits_logits(self) -> bool:
        """Whether the logits are changed before they are sampled from."""
        return bool(
            self.presence_penalty
            or self.frequency_penalty
            or self.repetition_penalty != 1.0
            or self.logit_bias
        )


def _is_number(value: Any) -> bool:
    """Whether it is a finite one, as a float too."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    return real and bool(abs(value) <= sys.float_info.max)


def _is_count(value: Any) -> bool:
    """Whether it is a whole number from 0 on."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return whole and bool(value >= 0)


def _require(holds: bool, expectation: str, came: object) -> None:
    if not holds:
        raise ValueError(f"SamplingParams: {expectation}; got {came!r}")
