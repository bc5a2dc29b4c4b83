"""The engine gives every request the tokens that it would have got alone, whatever is around it."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from longcat.serve import (
    Engine,
    EngineConfig,
    Request,
    SamplingParams,
    Token,
    decode,
    reference,
)

PROMPTS = [(1,), (2, 3, 4, 5, 6), (1, 2) * 9, (3,) * 23, (1, 2) * 9 + (5,)]


def served(
    engine: Engine, prompts: Sequence[tuple[int, ...]], params: Sequence[SamplingParams]
) -> list[list[int]]:
    """The tokens of every prompt, and the pages accounted for after every step."""
    for index, (prompt, asked) in enumerate(zip(prompts, params, strict=True)):
        engine.add(Request(request_id=str(index), prompt_ids=prompt, params=asked))
    tokens: list[list[int]] = [[] for _ in prompts]
    while engine.has_work:
        for delta in engine.step():
            tokens[int(delta.request_id)] += [token.id for token in delta.tokens]
        engine.check_integrity()
    return tokens


def params(count: int, temperature: float = 0.0, **fields: Any) -> list[SamplingParams]:
    return [
        SamplingParams(temperature=temperature, seed=100 + i, max_tokens=5 + 7 * i, **fields)
        for i in range(count)
    ]


CONFIGS = [
    {"num_drafts": 0},
    {"num_drafts": 1},
    {"num_drafts": 2, "token_budget": 5},
    {"num_drafts": 3, "page_size": 3, "num_pages": 100},
    {"num_drafts": 1, "prefix_cache": False, "token_budget": 1},
    {"num_drafts": 3, "max_running": 2, "steps_per_schedule": 2},
    {"num_drafts": 1, "steps_per_schedule": 4},
    {"num_drafts": 2, "page_size": 4, "num_pages": 16, "prefix_cache": False},  # preempts
    {"num_drafts": 3, "page_size": 4, "num_pages": 16, "steps_per_schedule": 2},  # preempts
    {"overlap": True, "num_drafts": 0, "prefix_cache": False},
    {"overlap": True, "num_drafts": 3, "max_running": 2, "token_budget": 5},
    {"overlap": True, "num_drafts": 1, "steps_per_schedule": 4, "page_size": 3},
    {"overlap": True, "num_drafts": 1, "page_size": 4, "num_pages": 14},  # preempts
    {"overlap": True, "num_drafts": 2, "page_size": 4, "num_pages": 16, "steps_per_schedule": 2},
    {"overlap": True},
    {},
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_do_not_depend_on_drafts_batch_chunks_pages_or_preemption(
    markov, config, temperature
):
    asked = params(len(PROMPTS), temperature)
    alone = [
        [token.id for token in decode(markov(), prompt, each, speculative=False)]
        for prompt, each in zip(PROMPTS, asked, strict=True)
    ]
    model = markov()
    engine = Engine(model, None, EngineConfig(**config))
    assert served(engine, PROMPTS, asked) == alone
    assert model.misplaced == 0
    stats = engine.stats()
    assert stats.tokens == sum(map(len, alone))
    assert stats.pages_used == stats.running == stats.waiting == 0
    assert stats.finished == len(PROMPTS)


def test_small_caches_preempt_and_large_ones_do_not(markov):
    for pages, preempts in ((16, True), (400, False)):
        config = EngineConfig(num_drafts=1, page_size=4, num_pages=pages)
        engine = Engine(markov(), None, config)
        served(engine, PROMPTS, params(len(PROMPTS)))
        assert (engine.stats().preemptions > 0) == preempts


def test_drafts_that_one_request_declines_are_made_for_the_others(markov):
    engine = Engine(markov(quality=1.0), None, EngineConfig(num_drafts=2))
    for name, speculative in (("plain", False), ("drafted", None)):
        asked = SamplingParams(max_tokens=13, speculative=speculative)
        engine.add(Request(request_id=name, prompt_ids=(1, 2), params=asked))
    tokens: dict[str, list[Token]] = {"plain": [], "drafted": []}
    while engine.has_work:
        for delta in engine.step():
            tokens[delta.request_id] += delta.tokens
    assert not any(token.drafted or token.refused for token in tokens["plain"])
    assert sum(token.drafted for token in tokens["drafted"]) == 8
    assert [t.id for t in tokens["plain"]] == [t.id for t in tokens["drafted"]]


def test_a_good_head_saves_passes(markov):
    steps = {}
    for drafts in (0, 1, 3):
        engine = Engine(markov(quality=1.0), None, EngineConfig(num_drafts=drafts))
        served(engine, [(1, 2)], [SamplingParams(max_tokens=41)])
        steps[drafts] = engine.stats().steps
        if drafts:
            assert engine.stats().acceptance == 1.0
    assert steps == {0: 41, 1: 21, 3: 11}


def test_a_stale_latent_would_be_noticed(markov):
    """Control: the same comparison fails for a model that reads one place too few."""

    class Stale(markov):
        def _seen(self, layer, ids, positions):
            return [seen[:-1] or seen for seen in super()._seen(layer, ids, positions)]

    asked = params(len(PROMPTS))
    alone = [[t.id for t in decode(markov(), p, a)] for p, a in zip(PROMPTS, asked, strict=True)]
    assert served(Engine(Stale(), None), PROMPTS, asked) != alone


def test_choices_with_one_seed_differ_and_each_is_repeatable(markov):
    def texts() -> list[list[int]]:
        engine = Engine(markov(), None)
        asked = SamplingParams(temperature=1.0, seed=5, max_tokens=20)
        for choice in range(3):
            engine.add(
                Request(request_id=str(choice), prompt_ids=(1,), params=asked, choice=choice)
            )
        tokens: list[list[int]] = [[], [], []]
        while engine.has_work:
            for delta in engine.step():
                tokens[int(delta.request_id)] += [token.id for token in delta.tokens]
        return tokens

    first = texts()
    assert first == texts()
    assert len({tuple(tokens) for tokens in first}) == 3


def test_a_prompt_that_begins_alike_is_not_computed_again(markov):
    engine = Engine(markov(), None, EngineConfig(page_size=4))
    shared = (1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5)
    asked = SamplingParams(max_tokens=2)
    served(engine, [shared], [asked])
    fed = engine.stats().prompt_tokens
    engine.add(Request(request_id="again", prompt_ids=(*shared, 6), params=asked))
    deltas = []
    while engine.has_work:
        deltas += engine.step()
    assert deltas[0].cached_tokens == 8
    assert engine.stats().prefix_hits == 8
    assert engine.stats().prompt_tokens - fed == 3  # of four, the last one as a row


def test_an_aborted_request_frees_its_pages_at_once(markov):
    engine = Engine(markov(), None, EngineConfig(prefix_cache=False))
    for name in ("a", "b"):
        engine.add(
            Request(request_id=name, prompt_ids=(1,) * 40, params=SamplingParams(max_tokens=50))
        )
    engine.step()
    used = engine.stats().pages_used
    assert engine.abort("a")
    assert engine.stats().pages_used == used // 2
    assert not engine.abort("a")
    assert engine.abort("b")
    assert not engine.has_work
    assert engine.stats().pages_free == engine.stats().pages_total
    engine.check_integrity()


def test_a_damaged_model_ends_the_request_with_one_sentence(markov):
    model = markov()
    model.table[:] = float("nan")
    engine = Engine(model, None)
    engine.add(Request(request_id="a", prompt_ids=(1,), params=SamplingParams()))
    (delta,) = engine.step()
    assert delta.finish_reason == "error"
    assert delta.error is not None
    assert "NaN" in delta.error
    assert not engine.has_work


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"logit_bias": {7: 1.0}}, "logit_bias"),
        ({"stop_token_ids": (7,)}, "stop_token_ids"),
        ({"stop": ("x",)}, "stop"),
        ({"min_tokens": 1, "stop_token_ids": tuple(range(7))}, "min_tokens"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(markov, fields, names):
    engine = Engine(markov(), None)
    request = Request(request_id="a", prompt_ids=(1,), params=SamplingParams(**fields))
    with pytest.raises(ValueError, match=names):
        engine.add(request)
    assert not engine.has_work


def test_an_id_in_use_is_refused(markov):
    engine = Engine(markov(), None)
    request = Request(request_id="a", prompt_ids=(1,), params=SamplingParams())
    engine.add(request)
    with pytest.raises(ValueError, match="request_id"):
        engine.add(request)


def test_a_request_gets_the_log_probabilities_it_asked_for_whatever_its_mates_ask(markov):
    engine = Engine(markov(), None, EngineConfig(num_drafts=2))
    asked = {"none": None, "chosen": 0, "one": 1, "three": 3}
    for name, top in asked.items():
        params = SamplingParams(max_tokens=9, logprobs=top)
        engine.add(Request(request_id=name, prompt_ids=(1, 2), params=params))
    tokens = {name: [] for name in asked}
    while engine.has_work:
        for delta in engine.step():
            tokens[delta.request_id] += delta.tokens
    for name, top in asked.items():
        assert len(tokens[name]) == 9
        assert all((token.logprob is None) == (top is None) for token in tokens[name])
        assert all(len(token.top_logprobs) == (top or 0) for token in tokens[name])
    first = [token.top_logprobs[:1] for token in tokens["three"]]
    assert first == [token.top_logprobs for token in tokens["one"]]


def test_log_probabilities_are_the_models_own_before_penalties_and_biases(markov):
    model = markov()
    engine = Engine(model, None, EngineConfig(num_drafts=2))
    asked = SamplingParams(
        max_tokens=9, temperature=0.5, seed=2, logit_bias={3: 4.0}, presence_penalty=1.0, logprobs=1
    )
    engine.add(Request(request_id="a", prompt_ids=(1, 2), params=asked))
    seen, tokens = [1, 2], []
    while engine.has_work:
        for delta in engine.step():
            tokens += delta.tokens
    for token in tokens:
        p = reference.probabilities(model.table[seen[-2], seen[-1]])
        assert token.logprob == pytest.approx(math.log(p[token.id]), abs=1e-6)
        assert token.top_logprobs[0] == (int(p.argmax()), pytest.approx(math.log(p.max())))
        seen.append(token.id)
