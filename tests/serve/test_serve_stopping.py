"""Claims about where decoding ends, what it counts, and which prompts it refuses."""

from typing import Any

import pytest

from longcat.serve import Decoding, SamplingParams, decode

PROMPT = [1, 2, 3, 1]
SAMPLED = SamplingParams(max_tokens=60, temperature=0.9, seed=11)


def ids(decoding: Decoding) -> list[int]:
    return [token.id for token in decoding]


@pytest.mark.parametrize("num_drafts", [1, 2, 3])
@pytest.mark.parametrize("quality", [0.5, 1.0])
def test_decoding_stops_at_eos_inside_an_accepted_run(
    markov: Any, num_drafts: int, quality: float
) -> None:
    model = markov(quality=quality, seed=1)
    full = ids(decode(model, PROMPT, SAMPLED, False))
    for eos in sorted(set(full)):
        model.eos_token_id = eos
        cut = full[: full.index(eos) + 1]
        decoding = decode(model, PROMPT, SAMPLED, True, num_drafts)
        tokens = list(decoding)
        assert [token.id for token in tokens] == cut
        assert decoding.finish_reason == "stop"
        assert decoding.stats.tokens == len(cut)
        # What was drafted beyond the stop is in no count.
        assert decoding.stats.accepted == sum(token.drafted for token in tokens)
        assert decoding.stats.drafted <= len(cut) + decoding.stats.steps * (num_drafts - 1)
        ignoring = SamplingParams(**{**SAMPLED.__dict__, "ignore_eos": True})
        assert ids(decode(model, PROMPT, ignoring, True, num_drafts)) == full


@pytest.mark.parametrize("max_tokens", range(1, 9))
def test_max_tokens_is_exact_and_the_cache_never_needs_more_room(
    markov: Any, max_tokens: int
) -> None:
    model = markov(quality=1.0)  # accepts everything, so every run would overshoot
    model.max_position = len(PROMPT) + max_tokens
    decoding = decode(model, PROMPT, SamplingParams(max_tokens=max_tokens), True, 3)
    assert len(list(decoding)) == max_tokens
    assert decoding.finish_reason == "length"
    assert decoding.stats.accepted == decoding.stats.drafted


def test_without_a_head_speculation_decodes_plainly_and_warns(markov: Any) -> None:
    model = markov()
    model.has_draft_head = False
    with pytest.warns(UserWarning, match="no draft head"):
        decoding = decode(model, PROMPT, SAMPLED, True)
    assert ids(decoding) == ids(decode(model, PROMPT, SAMPLED, False))
    assert decoding.stats.drafted == 0
    assert decoding.stats.tokens_per_step == 1.0
    assert decoding.stats.acceptance == 0.0


def test_a_fresh_seed_is_reported_and_gives_the_same_text_again(markov: Any) -> None:
    params = SamplingParams(max_tokens=30, temperature=1.0)
    first = decode(markov(), PROMPT, params)
    text = ids(first)
    again = SamplingParams(max_tokens=30, temperature=1.0, seed=first.seed)
    assert ids(decode(markov(), PROMPT, again)) == text
    assert decode(markov(), PROMPT, params).seed != first.seed


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "num_drafts", "message"),
    [
        ([], 5, 1, "no tokens; start it with the bos token"),
        ([1, 7], 5, 1, r"token id 7 at position 1 is outside the vocabulary 0 \.\. 6"),
        ([-1], 5, 1, "token id -1 at position 0"),
        ([1] * 16, 1, 1, "prompt has 16 tokens, but the model takes at most 16 positions"),
        ([1] * 10, 7, 1, "10 prompt tokens plus max_tokens 7 .* ask for at most 6 tokens"),
        ([1], 5, 0, "num_drafts must be at least 1, got 0"),
    ],
)
def test_a_prompt_that_cannot_be_decoded_is_refused_in_one_sentence(
    markov: Any, prompt: list[int], max_tokens: int, num_drafts: int, message: str
) -> None:
    model = markov()
    model.max_position = 16
    with pytest.raises(ValueError, match=message):
        decode(model, prompt, SamplingParams(max_tokens=max_tokens), None, num_drafts)
