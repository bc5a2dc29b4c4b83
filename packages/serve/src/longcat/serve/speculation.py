"""Decode one sequence, with the multi-token-prediction head as the draft or without it.

    for token in decode(model, prompt_ids, SamplingParams(max_tokens=100)):
        print(token.id, token.drafted)

One step, with g drafts:
  propose  the draft head reads the run of tokens accepted last, each with the TARGET's hidden
           state before it, and guesses d_0; then feeds itself for d_1 .. d_{g-1}
  verify   one target pass over [last token, d_0 .. d_{g-1}] gives g+1 choices x_0 .. x_g
  accept   the longest prefix with d_i == x_i, and one more token, x_a, for free
  forget   the cache is cut back to the accepted run

What is emitted are always the target's own choices x_i, drawn with noise keyed by (seed,
position) that the draft shares (`longcat.serve.reference`). So the text is the same for any
draft head, and a bad head costs speed, never correctness. (To rounding: a pass over g+1 tokens
may break a near-tie otherwise than g+1 passes; `longcat.kernels.exact()` excludes that.)

The engine does the same for many sequences at once, over pages (`longcat.serve.step`), and faster
for one too. This is the form to read, and what the engine's tokens are held to; it also tells what
the engine does not count, drafts behind a refused one.

Source: report section 2.4 (head, acceptance) and section 5 (speculative decoding).
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from longcat.serve.params import SamplingParams
from longcat.serve.protocol import Model, PagedModel
from longcat.serve.request import Token
from longcat.serve.sampling import Sampler, choose, fresh_seed


@dataclass(frozen=True, kw_only=True)
class DecodeStats:
    """Counts over what was emitted; drafts beyond a stop are not counted at all.

    prompt_tokens  tokens of the prompt
    tokens         tokens emitted, the end-of-sequence token included
    steps          target passes after the prompt's own
    drafted_at     [g] steps that proposed a draft of this depth
    accepted_at    [g] steps that accepted it
    """

    prompt_tokens: int
    tokens: int = 0
    steps: int = 0
    drafted_at: tuple[int, ...] = ()
    accepted_at: tuple[int, ...] = ()

    @property
    def drafted(self) -> int:
        """Drafts proposed."""
        return sum(self.drafted_at)

    @property
    def accepted(self) -> int:
        """Drafts that the target agreed with."""
        return sum(self.accepted_at)

    @property
    def acceptance(self) -> float:
        """Accepted / proposed; 0 when nothing was proposed."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def tokens_per_step(self) -> float:
        """Tokens per target pass after the prompt (the prompt's pass gives the first token)."""
        return (self.tokens - 1) / self.steps if self.steps else 1.0


class Decoding(Iterator[Token]):
    """The running decode of one sequence: iterate for its tokens, read `stats` at any time.

    Attributes: stats (DecodeStats so far), greedy (whether no noise is used), seed (the one in
    use, fresh if none was given), finish_reason (None while running, then "stop" for the
    end-of-sequence token or "length").
    """

    def __init__(
        self,
        model: Model,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        speculative: bool,
        num_drafts: int,
    ) -> None:
        self._model = model
        self._params = params
        self._num_drafts = num_drafts if speculative else 0
        self._prompt = list(prompt_ids)
        self._cache = model.new_cache(1, len(self._prompt) + params.max_tokens)
        # The run accepted last: its tokens [1,n], and the target's hidden state before each.
        self._run: list[int] = []
        self._run_hidden: Tensor | None = None
        self._ready: list[Token] = []
        self.seed = fresh_seed() if params.seed is None else params.seed
        self._sampler = Sampler.of([params], [self.seed], [0])
        self.greedy = params.greedy
        self.finish_reason: str | None = None
        zeros = (0,) * self._num_drafts
        self.stats = DecodeStats(
            prompt_tokens=len(self._prompt), drafted_at=zeros, accepted_at=zeros
        )

    def __next__(self) -> Token:
        if not self._ready:
            if self.finish_reason is not None:
                raise StopIteration
            self._step()
        return self._ready.pop(0)

    @torch.inference_mode()
    def _step(self) -> None:
        """One target pass: of the prompt the first time, of the last run and its drafts after."""
        if not self.stats.tokens:
            drafts: list[int] = []
            fed = self._prompt
        else:
            drafts = self._propose()
            fed = [self._run[-1], *drafts]
        logits, hidden = self._model.target(_row(fed), self._cache)
        verified = self._cache.length - len(drafts)
        chosen = self._choose(logits[0, -len(drafts) - 1 :], verified)
        accepted = self._accept(drafts, chosen)
        self._cache.truncate(verified + accepted)
        self._emit(drafts, chosen[: accepted + 1], accepted)
        # The prompt's pass pairs hidden i with prompt token i+1, and the last with the new one.
        self._run = [*fed[1 : len(fed) - len(drafts)], *chosen[: accepted + 1]]
        self._run_hidden = hidden[:, : len(self._run)]

    def _propose(self) -> list[int]:
        """Guess the next tokens with the draft head, never more than may still be emitted."""
        # The pass that verifies g drafts emits up to g+1 tokens, so one place stays for x_g.
        count = min(self._num_drafts, self._params.max_tokens - self.stats.tokens - 1)
        if count <= 0 or self._run_hidden is None:
            return []
        drafts: list[int] = []
        ids, hidden = self._run, self._run_hidden
        for depth in range(count):
            logits, hidden = self._model.draft(_row(ids), hidden, self._cache)
            ids = self._choose(logits[0, -1:], self._cache.length + 1 + depth)
            drafts += ids
            hidden = hidden[:, -1:]
        # Latents past the target's come from the head's own hidden states. Drop them: the next
        # proposal writes these positions again, from the target's.
        self._cache.truncate(self._cache.length)
        return drafts

    def _choose(self, logits: Tensor, first_position: int) -> list[int]:
        """The tokens that logits[R,V] give at consecutive positions of this sequence."""
        positions = torch.arange(first_position, first_position + logits.shape[0])
        return choose(self._sampler, logits.unsqueeze(0), positions.unsqueeze(0))

    def _accept(self, drafts: list[int], chosen: list[int]) -> int:
        """How many leading drafts are what the target chose itself."""
        for count, draft in enumerate(drafts):
            if draft != chosen[count]:
                return count
        return len(drafts)

    def _emit(self, drafts: list[int], run: list[int], accepted: int) -> None:
        """Hand out the accepted run up to a stop, and count exactly what was handed out."""
        stop = None if self._params.ignore_eos else self._model.eos_token_id
        if stop is not None and stop in run:
            run = run[: run.index(stop) + 1]
            drafts = drafts[: len(run)]
            self.finish_reason = "stop"
        accepted = min(accepted, len(run))
        self._ready += [
            Token(id=token, drafted=i < accepted, refused=i == accepted < len(drafts))
            for i, token in enumerate(run)
        ]
        self.stats = replace(
            self.stats,
            tokens=self.stats.tokens + len(run),
            steps=self.stats.steps + (self.stats.tokens > 0),
            drafted_at=_count(self.stats.drafted_at, len(drafts)),
            accepted_at=_count(self.stats.accepted_at, accepted),
        )
        if self.finish_reason is None and self.stats.tokens >= self._params.max_tokens:
            self.finish_reason = "length"


def decode(
    model: Model,
    prompt_ids: Sequence[int],
    params: SamplingParams,
    speculative: bool | None = None,
    num_drafts: int = 1,
) -> Decoding:
    """Continue prompt_ids -> an iterator of Token with `.stats` and `.finish_reason`.

    speculative  None: use the draft head if the model has one. True without a head decodes
                 plainly and warns. The tokens are the same either way.
    num_drafts   drafts per step, >= 1 (the released model uses 1)

    Raises ValueError for an empty prompt, a token outside the vocabulary, a prompt that leaves
    no room for max_tokens, or num_drafts < 1.
    """
    if num_drafts < 1:
        raise ValueError(
            f"decode: num_drafts must be at least 1, got {num_drafts}; "
            "pass speculative=False to decode without drafts"
        )
    if params.beyond_decode:
        raise ValueError(
            f"decode: {', '.join(params.beyond_decode)} is honoured by longcat.serve.Engine only"
        )
    check_prompt(model, prompt_ids, params.max_tokens)
    if speculative and not model.has_draft_head:
        warnings.warn(
            "decode: this model has no draft head (no MTP weights), so it decodes plainly",
            stacklevel=2,
        )
    use_head = model.has_draft_head and speculative is not False
    return Decoding(model, prompt_ids, params, use_head, num_drafts)


def check_prompt(model: PagedModel, prompt_ids: Sequence[int], max_tokens: int) -> None:
    """Raise ValueError unless the prompt is non-empty, in the vocabulary, and leaves room."""
    length = len(prompt_ids)
    if length == 0:
        raise ValueError("the prompt has no tokens; start it with the bos token")
    for position, token in enumerate(prompt_ids):
        if not 0 <= token < model.vocab_size:
            raise ValueError(
                f"token id {token} at position {position} is outside the vocabulary "
                f"0 .. {model.vocab_size - 1}; does the tokenizer belong to this model?"
            )
    room = model.max_position - length
    if room < 1:
        raise ValueError(
            f"the prompt has {length} tokens, but the model takes at most "
            f"{model.max_position} positions, of which one must be left; shorten the prompt"
        )
    if max_tokens > room:
        raise ValueError(
            f"{length} prompt tokens plus max_tokens {max_tokens} exceed the model's "
            f"{model.max_position} positions; ask for at most {room} tokens"
        )


def _row(ids: Sequence[int]) -> Tensor:
    return torch.tensor([list(ids)], dtype=torch.long)


def _count(counts: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """One more for each of the first `depth` counters."""
    return tuple(count + (i < depth) for i, count in enumerate(counts))
