"""How often the MTP head's draft is the token the model itself chooses.

Held-out prompts are continued greedily with speculation; a draft is accepted when it equals the
model's own greedy token (report section 2.4 and table 5). Small models repeat themselves, and
repetition is easy to draft, so the rate is also given over the tokens that complete no 5-gram
which has occurred before.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longcat.flash import FlashModel
from longcat.flash.tokenizer import Tokenizer
from longcat.serve.sampling import SamplingParams
from longcat.serve.speculation import Token, decode

GRAM = 5


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """Drafts proposed and accepted, over all tokens and over those that repeat no 5-gram.

    Attributes:
        tokens_per_step: tokens emitted per pass of the model, the drafts' gain.
        repeated: fraction of generated tokens that complete a 5-gram seen before.
    """

    prompts: int
    tokens: int
    drafted: int
    accepted: int
    fresh_drafted: int
    fresh_accepted: int
    tokens_per_step: float
    repeated: float

    @property
    def rate(self) -> float | None:
        """Accepted / drafted; None when nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def fresh_rate(self) -> float | None:
        """The same over tokens that repeat no earlier 5-gram."""
        return self.fresh_accepted / self.fresh_drafted if self.fresh_drafted else None


def measure_acceptance(
    model: FlashModel,
    stream: NDArray[np.int64],
    *,
    prompts: int = 32,
    prompt_tokens: int = 64,
    new_tokens: int = 96,
) -> Acceptance | None:
    """Continue prompts taken at even distances from a held-out stream; None without a head."""
    prompt_tokens = min(prompt_tokens, model.max_position // 2)
    room = len(stream) - prompt_tokens
    if not model.has_draft_head or room < 0:
        return None
    new_tokens = min(new_tokens, model.max_position - prompt_tokens)
    params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
    total = np.zeros(6, dtype=np.int64)
    steps = 0
    starts = sorted({int(s) for s in np.linspace(0, room, prompts)})
    for start in starts:
        prompt = [int(i) for i in stream[start : start + prompt_tokens]]
        decoding = decode(model, prompt, params, speculative=True)
        tokens = list(decoding)
        total += _count(prompt, tokens)
        steps += decoding.stats.steps
        assert (decoding.stats.drafted, decoding.stats.accepted) == _drafts(tokens), "miscounted"
    drafted, accepted, fresh_drafted, fresh_accepted, repeated, emitted = (int(x) for x in total)
    return Acceptance(
        prompts=len(starts),
        tokens=emitted,
        drafted=drafted,
        accepted=accepted,
        fresh_drafted=fresh_drafted,
        fresh_accepted=fresh_accepted,
        tokens_per_step=(emitted - len(starts)) / max(1, steps),
        repeated=repeated / max(1, emitted),
    )


def draft_outcomes(tokens: Sequence[Token]) -> list[bool | None]:
    """For each emitted token: was its draft accepted (True), refused (False), or was there none.

    The first token comes from the prompt's pass and has no draft. Then every pass drafts one
    token: accepted, it is followed by one that was not drafted; refused, the model's own stands
    in its place. The last token is never drafted when there is no room for a second one.
    """
    outcomes: list[bool | None] = []
    expects_draft = False
    for i, token in enumerate(tokens):
        is_last = i == len(tokens) - 1
        if token.drafted:
            outcomes.append(True)
            expects_draft = False
        elif expects_draft and not is_last:
            outcomes.append(False)
        else:
            outcomes.append(None)
            expects_draft = True
    return outcomes


def _drafts(tokens: Sequence[Token]) -> tuple[int, int]:
    outcomes = draft_outcomes(tokens)
    return sum(o is not None for o in outcomes), sum(o is True for o in outcomes)


def _count(prompt: list[int], tokens: Sequence[Token]) -> NDArray[np.int64]:
    """[drafted, accepted, drafted where nothing repeats, accepted there, repeating, emitted]."""
    ids = prompt + [token.id for token in tokens]
    seen = {tuple(ids[i : i + GRAM]) for i in range(len(prompt) - GRAM + 1)}
    counts = np.zeros(6, dtype=np.int64)
    for i, outcome in enumerate(draft_outcomes(tokens), start=len(prompt)):
        gram = tuple(ids[i - GRAM + 1 : i + 1])
        is_repeat = gram in seen
        seen.add(gram)
        tried, taken = outcome is not None, outcome is True
        fresh = not is_repeat
        counts += [tried, taken, tried and fresh, taken and fresh, is_repeat, 1]
    return counts


def sample(
    model: FlashModel, tokenizer: Tokenizer, prompt: str, *, tokens: int, temperature: float = 0.7
) -> str:
    """A continuation of the prompt, drawn with a fixed seed."""
    ids = tokenizer.encode(prompt, bos=True)
    room = model.max_position - len(ids)
    params = SamplingParams(temperature=temperature, max_tokens=min(tokens, room), seed=0)
    drawn = (token.id for token in decode(model, ids, params))
    # A model may have more ids than its tokenizer; the spare ones stand for nothing.
    return tokenizer.decode(i for i in drawn if i < tokenizer.vocab_size)
