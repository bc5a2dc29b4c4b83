"""How often the MTP head's draft is the token the model itself chooses.

Held-out prompts are continued greedily with speculation; a draft is accepted when it equals the
model's own greedy token (report section 2.4 and table 5). Small models repeat themselves, and
repetition is easy to draft, so the rate is also given over the tokens that complete no 5-gram
which has occurred before.

All prompts are continued together, which changes no figure: a prompt's drafts are those it has
alone (to rounding, as everywhere outside `longcat.kernels.exact()`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longcat.flash import FlashModel
from longcat.flash.generation import continued
from longcat.flash.tokenizer import Tokenizer
from longcat.serve import Request, SamplingParams, Token, decode
from longcat.serve.sampling import NO_CHOICE
from longcat.train.interval import ratio_interval

GRAM = 5
PROMPT_TOKENS, NEW_TOKENS = 64, 96
# Numbers of evenly spaced prompts that are looked at in daily work: by the summary of a run, by
# `longcat evaluate`, and where a recipe is chosen.
CUSTOMARY = (32, 64, 256)


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """Drafts proposed and accepted, over all tokens and over those that repeat no 5-gram.

    Attributes:
        temperature: 0 for greedy text; above, draft and model choose with the same noise.
        drafted_at, accepted_at: [g] passes that proposed, and accepted, a draft of this depth. A
            draft that may not be emitted, since the text ends before it, is not one.
        interval: half the width of the rate's 95 % interval over prompts; None for one prompt.
        tokens_per_step: tokens emitted per pass of the model, the drafts' gain.
        bytes_per_step: the same in bytes of text, for comparisons between vocabularies; None
            where the tokens' bytes were not given.
        repeated: fraction of generated tokens that complete a 5-gram seen before.
        by_prompt: [prompts, 4] drafted, accepted, and both over tokens that repeat no 5-gram.
    """

    prompts: int
    temperature: float
    tokens: int
    drafted: int
    accepted: int
    fresh_drafted: int
    fresh_accepted: int
    drafted_at: tuple[int, ...]
    accepted_at: tuple[int, ...]
    interval: float | None
    tokens_per_step: float
    bytes_per_step: float | None
    repeated: float
    by_prompt: tuple[tuple[int, ...], ...]

    @property
    def rate(self) -> float | None:
        """Accepted / drafted; None when nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def fresh_rate(self) -> float | None:
        """The same over tokens that repeat no earlier 5-gram."""
        return self.fresh_accepted / self.fresh_drafted if self.fresh_drafted else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the fields but `by_prompt`, `acceptance` and `acceptance_without_repeats`."""
        rates = {"acceptance": self.rate, "acceptance_without_repeats": self.fresh_rate}
        return {k: v for k, v in asdict(self).items() if k != "by_prompt"} | rates


def even_starts(length: int, prompts: int, prompt_tokens: int = PROMPT_TOKENS) -> list[int]:
    """Where prompts at even distances begin in a stream of `length` tokens."""
    return sorted({int(s) for s in np.linspace(0, length - prompt_tokens, prompts)})


def fresh_starts(
    length: int, prompts: int, *, seed: int, known: Iterable[int] = CUSTOMARY
) -> list[int]:
    """Random places of prompts that share no token with each other or with those looked at before.

    Args:
        length: tokens of the stream. prompts: how many places.
        known: for each entry, that many evenly spaced prompts are stayed clear of.

    Raises:
        ValueError: when the stream has too little room.
    """
    taken = np.zeros(length, dtype=bool)
    for count in known:
        for start in even_starts(length, count):
            taken[start : start + PROMPT_TOKENS] = True
    found: list[int] = []
    for start in np.random.default_rng(seed).permutation(max(0, length - PROMPT_TOKENS + 1)):
        if len(found) < prompts and not taken[start : start + PROMPT_TOKENS].any():
            taken[start : start + PROMPT_TOKENS] = True
            found.append(int(start))
    if len(found) < prompts:
        raise ValueError(
            f"acceptance: {length} held-out tokens have room for {len(found)} fresh prompts of "
            f"{PROMPT_TOKENS}, not for {prompts}; ask for fewer, or hold out more text"
        )
    return sorted(found)


def measure_acceptance(
    model: FlashModel,
    stream: NDArray[np.int64],
    *,
    prompts: int = 32,
    prompt_tokens: int = PROMPT_TOKENS,
    new_tokens: int = NEW_TOKENS,
    temperature: float = 0.0,
    num_drafts: int = 1,
    token_bytes: NDArray[np.int64] | None = None,
    starts: Sequence[int] | None = None,
) -> Acceptance | None:
    """Continue prompts taken from a held-out stream; None without a head.

    Args:
        stream: ids. prompts: how many; each of prompt_tokens, continued by new_tokens.
        temperature: of draft and model. num_drafts: drafts per pass, 3 at most.
        token_bytes: [V] bytes that each id stands for.
        starts: where the prompts begin, instead of `prompts` at even distances.

    Raises:
        ValueError: for more drafts than that, and where the model's logits are no numbers.
    """
    prompt_tokens = min(prompt_tokens, model.max_position // 2)
    room = len(stream) - prompt_tokens
    if not model.has_draft_head or room < 0:
        return None
    new_tokens = min(new_tokens, model.max_position - prompt_tokens)
    starts = starts or even_starts(len(stream), prompts, prompt_tokens)
    requests = [
        Request(
            request_id=str(number),
            prompt_ids=tuple(stream[start : start + prompt_tokens].tolist()),
            params=SamplingParams(
                temperature=temperature, max_tokens=new_tokens, ignore_eos=True, seed=number
            ),
        )
        for number, start in enumerate(starts)
    ]
    counted, depths, steps, text_bytes = [], [], 0, 0
    for prompt, tokens in _texts(model, requests, num_drafts):
        counted.append(_count(prompt, tokens))
        runs = _runs(tokens)
        depths.append(_by_depth(runs, num_drafts))
        steps += len(runs)
        if token_bytes is not None:
            text_bytes += int(token_bytes[[token.id for token in tokens[1:]]].sum())
    each = np.array(counted)
    drafted, accepted, fresh_drafted, fresh_accepted, repeated, emitted = each.sum(axis=0).tolist()
    at = np.array(depths).sum(axis=0)
    return Acceptance(
        prompts=len(starts),
        temperature=temperature,
        tokens=emitted,
        drafted=drafted,
        accepted=accepted,
        fresh_drafted=fresh_drafted,
        fresh_accepted=fresh_accepted,
        drafted_at=tuple(at[0].tolist()),
        accepted_at=tuple(at[1].tolist()),
        interval=ratio_interval(each[:, 1], each[:, 0]),
        tokens_per_step=(emitted - len(starts)) / max(1, steps),
        bytes_per_step=None if token_bytes is None else text_bytes / max(1, steps),
        repeated=repeated / max(1, emitted),
        by_prompt=tuple(map(tuple, each[:, :4].tolist())),
    )


def _texts(
    model: FlashModel, requests: Sequence[Request], num_drafts: int
) -> Iterator[tuple[list[int], list[Token]]]:
    """Each prompt and what it is continued by."""
    try:
        completions = continued(model, requests, num_drafts=num_drafts)
    except RuntimeError as error:
        if str(error) != NO_CHOICE:
            raise
        raise ValueError(f"acceptance: {error}") from None
    for completion in completions:
        *tokens, last = completion.tokens
        # The engine drafts for the last place too, where a draft can save nothing.
        tokens.append(replace(last, drafted=False, refused=False))
        yield list(completion.prompt_ids), tokens


def _runs(tokens: Sequence[Token]) -> list[int]:
    """Tokens of each pass behind the prompt's: accepted drafts, and one that was none."""
    ends = [place for place, token in enumerate(tokens) if not token.drafted]
    return [end - before for before, end in pairwise(ends)]


def _by_depth(runs: Sequence[int], num_drafts: int) -> NDArray[np.int64]:
    """[2, g] passes that proposed, and accepted, a draft of each depth."""
    at = np.zeros((2, num_drafts), dtype=np.int64)
    left = sum(runs)
    for run in runs:
        at[0, : min(num_drafts, left - 1)] += 1
        at[1, : run - 1] += 1
        left -= run
    return at


def _count(prompt: list[int], tokens: Sequence[Token]) -> list[int]:
    """[drafted, accepted, drafted where nothing repeats, accepted there, repeating, emitted]."""
    ids = prompt + [token.id for token in tokens]
    seen = {tuple(ids[i : i + GRAM]) for i in range(len(prompt) - GRAM + 1)}
    counts = np.zeros(6, dtype=np.int64)
    for i, token in enumerate(tokens, start=len(prompt)):
        gram = tuple(ids[i - GRAM + 1 : i + 1])
        is_repeat = gram in seen
        seen.add(gram)
        tried, taken, fresh = token.drafted or token.refused, token.drafted, not is_repeat
        counts += [tried, taken, tried and fresh, taken and fresh, is_repeat, 1]
    return [int(count) for count in counts]


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
