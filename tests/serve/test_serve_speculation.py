"""Claims about speculative decoding: the text is the target's, and the counts are the truth."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from longcat.serve import Decoding, SamplingParams, decode, reference

PROMPT = [1, 2, 3, 1]
GREEDY = SamplingParams(max_tokens=60)
SAMPLED = SamplingParams(max_tokens=60, temperature=0.9, top_k=5, top_p=0.95, seed=11)


def ids(decoding: Decoding) -> list[int]:
    return [token.id for token in decoding]


def plain_text(model: Any, params: SamplingParams) -> list[int]:
    """The continuation by definition: one token at a time from the table, in numpy."""
    tokens = list(PROMPT)
    for _ in range(params.max_tokens):
        p = reference.probabilities(
            model.table[tokens[-2], tokens[-1]], params.temperature, params.top_k, params.top_p
        )
        noise = reference.gumbel_noise(params.seed or 0, len(tokens), model.vocab_size)
        tokens.append(reference.choose(p, noise) if params.temperature else int(p.argmax()))
    return tokens[len(PROMPT) :]


@pytest.mark.parametrize("num_drafts", [0, 1, 2, 3])
@pytest.mark.parametrize("quality", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_text_is_the_same_with_any_number_of_drafts_from_any_head(
    markov: Any, num_drafts: int, quality: float, params: SamplingParams
) -> None:
    model = markov(quality=quality)
    got = ids(decode(model, PROMPT, params, bool(num_drafts), max(num_drafts, 1)))
    assert got == plain_text(model, params)
    # The control: the law alone would not do, another seed gives another text.
    if params is SAMPLED:
        other = SamplingParams(max_tokens=60, temperature=0.9, top_k=5, top_p=0.95, seed=12)
        assert got != plain_text(model, other)


@pytest.mark.parametrize("num_drafts", [1, 2, 3])
def test_a_perfect_head_is_always_accepted_and_saves_the_passes_it_promises(
    markov: Any, num_drafts: int
) -> None:
    model = markov(quality=1.0)
    params = SamplingParams(max_tokens=1 + 6 * (num_drafts + 1), temperature=1.0, seed=3)
    decoding = decode(model, PROMPT, params, True, num_drafts)
    tokens = list(decoding)
    assert decoding.stats.acceptance == 1.0
    assert decoding.stats.tokens_per_step == num_drafts + 1
    assert decoding.stats.steps == 6
    assert model.passes == [len(PROMPT)] + 6 * [num_drafts + 1]
    # In every step the last token is the target's own, the others were drafted.
    assert [t.drafted for t in tokens] == [False] + 6 * ([True] * num_drafts + [False])


@pytest.mark.parametrize("num_drafts", [1, 2, 3])
def test_greedy_acceptance_counts_are_the_truth(markov: Any, num_drafts: int) -> None:
    model = markov(vocab=16, quality=0.6, seed=0)
    params = SamplingParams(max_tokens=200)
    decoding = decode(model, PROMPT, params, True, num_drafts)
    text = [*PROMPT, *ids(decoding)]
    # Replay: walk the finished text and ask of each step what the head would have said.
    drafted, accepted = [0] * num_drafts, [0] * num_drafts
    at, steps = len(PROMPT) + 1, 0
    while at < len(text):
        steps += 1
        before, agreed = list(text[:at]), 0
        for depth in range(min(num_drafts, len(text) - at - 1)):
            guess = int(model.draft_table[before[-2], before[-1]].argmax())
            drafted[depth] += 1
            before.append(guess)
            if agreed == depth and guess == text[at + depth]:
                accepted[depth] += 1
                agreed += 1
        at += agreed + 1
    stats = decoding.stats
    assert (list(stats.drafted_at), list(stats.accepted_at)) == (drafted, accepted)
    assert (stats.steps, stats.tokens) == (steps, 200)
    assert 0.2 < stats.acceptance < 1.0
    assert stats.tokens_per_step == 199 / steps


def test_sampled_acceptance_is_the_coupling_formula(markov: Any) -> None:
    class Recording(markov):  # type: ignore[misc]
        drafted_after: list[tuple[int, int]]

        def draft(self, ids: Any, hidden: Any, cache: Any) -> Any:
            before = int(hidden[0, -1, self.vocab_size :].argmax())
            self.drafted_after.append((before, int(ids[0, -1])))
            return super().draft(ids, hidden, cache)

    model = Recording(quality=0.6)
    model.drafted_after = []
    decoding = decode(model, PROMPT, SamplingParams(max_tokens=2500, temperature=1.0, seed=1))
    list(decoding)
    law, head = np.exp(model.table), np.exp(model.draft_table)
    rates = np.array(
        [
            reference.coupled_acceptance(law[pair] / law[pair].sum(), head[pair] / head[pair].sum())
            for pair in model.drafted_after
        ]
    )
    assert len(rates) == decoding.stats.drafted
    deviation = (rates * (1 - rates)).sum() ** 0.5
    assert abs(decoding.stats.accepted - rates.sum()) < 4 * deviation
    assert 0.4 < decoding.stats.acceptance < 0.9


@pytest.mark.parametrize("num_drafts", [1, 3])
def test_sampled_text_follows_the_targets_law(
    markov: Any, law_surprise: Callable[..., float], num_drafts: int
) -> None:
    model = markov(vocab=4, quality=0.5)
    params = SamplingParams(max_tokens=4000, temperature=1.0, seed=2)
    text = ids(decode(model, PROMPT, params, True, num_drafts))
    assert law_surprise(np.exp(model.table) / np.exp(model.table).sum(-1, keepdims=True), text) < 4


class RatioTestWithArgmaxDraft(Decoding):
    """The mutant: draft the head's argmax, yet accept with min(1, p/q) as if drawn from q."""

    def _choose(self, logits: torch.Tensor, first_position: int) -> list[int]:
        p = torch.softmax(logits.double() / self._params.temperature, -1)
        if not self._verifying:
            self._q = p[-1]
            return [int(p[-1].argmax())]
        self._p = p
        return super()._choose(logits, first_position)

    def _propose(self) -> list[int]:
        self._verifying = False
        drafts = super()._propose()
        self._verifying = True
        return drafts

    def _accept(self, drafts: list[int], chosen: list[int]) -> int:
        if not drafts:
            return 0
        draft = drafts[0]
        uniform = np.random.default_rng(self.stats.tokens).random()
        if uniform < float(self._p[0, draft] / self._q[draft]):
            chosen[0] = draft
            return 1
        residual = (self._p[0] - self._q).clamp_min(0)
        residual = residual / residual.sum()
        chosen[0] = int(np.random.default_rng(10**6 + self.stats.tokens).choice(4, p=residual))
        return 0

    _verifying = True


def test_the_law_check_rejects_a_ratio_test_on_an_argmax_draft(
    markov: Any, law_surprise: Callable[..., float]
) -> None:
    model = markov(vocab=4, quality=0.5)
    params = SamplingParams(max_tokens=4000, temperature=1.0, seed=2)
    text = ids(RatioTestWithArgmaxDraft(model, PROMPT, params, True, 1))
    assert law_surprise(np.exp(model.table) / np.exp(model.table).sum(-1, keepdims=True), text) > 20


def latents_are_the_targets(model: Any, text: Sequence[int]) -> bool:
    """Whether the head's position i holds (token i+1, the target's hidden i), for all it holds."""
    fresh = type(model)(vocab=model.vocab_size)
    cache = fresh.new_cache(1, len(text))
    _, hidden = fresh.target(torch.tensor([text]), cache)
    want = [(text[i + 1], tuple(hidden[0, i].tolist())) for i in range(len(text) - 1)]
    held = model.cache.draft_latents
    return len(held) > len(text) // 2 and held == want[: len(held)]


@pytest.mark.parametrize("num_drafts", [1, 2, 3])
def test_the_heads_latents_come_from_the_targets_hidden_states(
    markov: Any, num_drafts: int
) -> None:
    model = markov(quality=0.6)
    text = ids(decode(model, PROMPT, GREEDY, True, num_drafts))
    assert latents_are_the_targets(model, [*PROMPT, *text])


class KeepsProvisionalLatents(Decoding):
    """The mutant: drafts after the first leave latents made from the head's own hidden states."""

    def _propose(self) -> list[int]:
        cut, self._cache.truncate = self._cache.truncate, lambda length: None
        drafts = super()._propose()
        self._cache.truncate = cut
        return drafts


class ShiftsHiddenByOne(Decoding):
    """The mutant: pairs a token with its own position's hidden state, not with the one before."""

    def _propose(self) -> list[int]:
        assert self._run_hidden is not None
        self._run_hidden = self._run_hidden.roll(1, dims=1)
        return super()._propose()


@pytest.mark.parametrize("mutant", [KeepsProvisionalLatents, ShiftsHiddenByOne])
def test_the_latent_check_rejects_mutants_that_the_text_alone_would_not_show(
    markov: Any, mutant: type[Decoding]
) -> None:
    model = markov(quality=0.6)
    text = ids(mutant(model, PROMPT, GREEDY, True, 2))
    assert text == plain_text(model, GREEDY)  # a bad head costs speed, never correctness
    assert not latents_are_the_targets(model, [*PROMPT, *text])


def test_a_shifted_hidden_state_costs_acceptance(markov: Any) -> None:
    # Three drafts: a run of one token has nothing to shift against.
    right, wrong = markov(quality=1.0), markov(quality=1.0)
    good, bad = decode(right, PROMPT, GREEDY, True, 3), None
    list(good)
    bad = ShiftsHiddenByOne(wrong, PROMPT, GREEDY, True, 3)
    list(bad)
    assert good.stats.acceptance == 1.0
    assert bad.stats.acceptance < 0.6


def test_the_text_check_rejects_a_cache_that_keeps_rejected_tokens(
    markov: Any, markov_cache: Any
) -> None:
    class NeverForgets(markov_cache):  # type: ignore[misc]
        def truncate(self, length: int) -> None:
            pass

    model = markov(quality=0.3)
    model.new_cache = lambda batch, max_tokens: NeverForgets(batch, 10**6)
    assert ids(decode(model, PROMPT, GREEDY, True, 2)) != plain_text(model, GREEDY)
