"""Texts in, texts out: what may be asked, what comes back, and what an interrupt leaves behind."""

from typing import Any

import numpy as np
import pytest
import torch

from longcat.serve import LLM, Engine, EngineConfig, Request, SamplingParams, complete, reference
from longcat.serve.pages import Pages


class Letters:
    """A tokenizer of seven tokens, a letter each; the first begins a text."""

    bos_id = eos_id = 0

    def encode(self, text: str) -> list[int]:
        return ["abcdefg".index(letter) for letter in text]

    def decode(self, ids: Any) -> str:
        return "".join("abcdefg"[token] for token in ids)

    def token_bytes(self) -> list[bytes]:
        return [letter.encode() for letter in "abcdefg"]


def made(markov: Any, **config: Any) -> LLM:
    return LLM(markov(), Letters(), EngineConfig(**config))


def by_definition(model: Any, prompt: list[int], seed: int, choice: int, count: int) -> list[int]:
    """argmax(log p + noise) by the numpy file, token by token."""
    tokens = list(prompt)
    for position in range(len(prompt), len(prompt) + count):
        a, b = ([0, 0, *tokens])[-2:]
        noise = reference.gumbel_noise(seed, position, model.vocab_size, choice)
        tokens.append(reference.choose(reference.probabilities(model.table[a, b]), noise))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("drafts", [0, 1, 3, None])
@pytest.mark.parametrize("beside", [[], ["gf"], ["cb", "d"]])
def test_every_choice_is_drawn_as_defined_with_drafts_or_without_whatever_is_beside_it(
    markov, drafts, beside
):
    llm = made(markov, num_drafts=drafts)
    params = SamplingParams(temperature=1.0, seed=5, max_tokens=24)
    found = llm.generate(["bc", *beside], params, n=3)
    assert [c.choice for c in found] == [0, 1, 2] * (1 + len(beside))
    assert len({c.text for c in found}) == len(found)
    for completion in found[:3]:
        expected = by_definition(markov(), [0, 1, 2], 5, completion.choice, 24)
        assert list(completion.token_ids) == expected
        assert completion.text == Letters().decode(expected)


def test_without_a_seed_every_choice_and_every_call_draws_its_own(markov):
    llm = made(markov)
    params = SamplingParams(temperature=1.0, max_tokens=24)
    texts = [c.text for _ in range(2) for c in llm.generate("bc", params, n=3)]
    assert len(set(texts)) == 6


PARAMS = SamplingParams(max_tokens=4)


@pytest.mark.parametrize(
    "prompts",
    [
        [1, 2],
        (1, 2),
        [[1, 2]],
        ((1, 2),),
        iter([[1, 2]]),
        np.array([1, 2]),
        [np.array([1, 2])],
        torch.tensor([1, 2]),
        torch.tensor([[1, 2]]),
    ],
    ids=lambda prompts: type(prompts).__name__,
)
def test_ids_may_come_in_any_list_or_array(markov, prompts):
    (completion,) = made(markov).generate(prompts, PARAMS)
    assert completion.prompt_ids == (1, 2)
    assert all(type(token) is int for token in completion.prompt_ids)


def test_one_text_gets_the_token_that_begins_a_text_and_no_prompts_give_nothing(markov):
    llm = made(markov)
    (one,) = llm.generate("bc", PARAMS)
    assert one.prompt_ids == (0, 1, 2)
    assert [c.prompt_ids for c in llm.generate(["", "b"], PARAMS)] == [(0,), (0, 1)]
    assert llm.generate([]) == []


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (None, "a text or a list of token ids; got a NoneType"),
        (5, "got a int"),
        (b"ab", "got a bytes"),
        ([b"ab"], "got a bytes"),
        ([[1.5, 2]], "holds more than ids"),
        (["a", 5], "got ids among whole prompts"),
        ([[["a"]]], "holds more than ids"),
        ([[]], "no tokens"),
        (["a", [1, 9]], r"request 1\.0: token id 9 at position 1 is outside the vocabulary"),
        (["a", [1] * 70_000], r"request 1\.0: prompt_ids \(70000 tokens\)"),
    ],
)
def test_what_is_no_prompt_is_refused_in_one_sentence_before_anything_is_computed(
    markov, prompts, message
):
    llm = made(markov)
    with pytest.raises(ValueError, match=message):
        llm.generate(prompts, PARAMS)
    assert (llm.stats().waiting, llm.stats().steps) == (0, 0)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"max_tokens": 3}, "params must be SamplingParams, .* got a dict"),
        ("greedy", "got a str"),
        ([SamplingParams(), None], "got a NoneType"),
        ([SamplingParams()], "2 prompts but 1 params"),
        (SamplingParams(max_tokens=10**7), r"request 0\.0: prompt_ids .* max_tokens 10000000"),
    ],
)
def test_what_are_no_parameters_is_refused(markov, params, message):
    llm = made(markov)
    with pytest.raises(ValueError, match=message):
        llm.generate(["a", "b"], params)
    with pytest.raises(ValueError, match="n must be at least 1; got 0"):
        llm.generate(["a"], n=0)
    assert llm.stats().waiting == 0


def test_an_observer_is_told_everything_as_it_comes(markov):
    llm = made(markov)
    told: dict[str, list[str]] = {}
    found = llm.generate(
        ["b", "c"],
        SamplingParams(max_tokens=9),
        observe=lambda delta: told.setdefault(delta.request_id, []).append(delta.text),
    )
    assert ["".join(told[name]) for name in ("0.0", "1.0")] == [c.text for c in found]
    assert all(len(pieces) > 1 for pieces in told.values())


def test_an_interrupt_in_the_middle_of_a_pass_leaves_nothing_behind(markov):
    class Interrupted(markov):  # type: ignore[misc]
        def draft_paged(self, *arguments: Any) -> Any:
            if len(self.passes) == 3:
                raise KeyboardInterrupt
            return super().draft_paged(*arguments)

    params = SamplingParams(max_tokens=20, temperature=1.0, seed=3)
    llm = LLM(Interrupted(), Letters(), EngineConfig(num_drafts=1))
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["bcd", "ef"], params)
    assert llm.stats().pages_used == llm.stats().running == llm.stats().waiting == 0
    fresh = made(markov, num_drafts=1)
    assert llm.generate(["bcd", "ef"], params) == fresh.generate(["bcd", "ef"], params)


def test_an_interrupt_that_loses_a_page_costs_the_engine_and_not_the_next_call(markov, monkeypatch):
    """It comes after pages were taken and before the sequence has them."""
    take, interrupts = Pages.take, iter([False, True])

    def taken(pages: Pages, count: int) -> list[int] | None:
        found = take(pages, count)
        if found and next(interrupts, False):
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Pages, "take", taken)
    llm = made(markov, num_pages=6, page_size=4, prefix_cache=False)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["bcd", "ef"], PARAMS)
    llm.generate(["bcd", "ef"], PARAMS)
    assert llm.stats().pages_free == 6


def test_an_observer_that_raises_ends_the_call_and_keeps_the_prefix_cache(markov):
    llm = made(markov, page_size=2)

    def refuse(_: Any) -> None:
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        llm.generate("bcdefg", PARAMS, observe=refuse)
    assert llm.stats().pages_used == 0
    (completion,) = llm.generate("bcdefg", PARAMS)
    assert completion.cached_tokens == 6


def test_completing_leaves_requests_of_others_alone(markov):
    engine = Engine(markov(), None)
    request = Request(request_id="mine", prompt_ids=(1,), params=PARAMS)
    engine.add(request)
    with pytest.raises(ValueError, match=r"request mine: .* in use"):
        complete(engine, [request])
    assert engine.knows("mine")
