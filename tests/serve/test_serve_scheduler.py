"""Who is computed next, and with how much: the budget, the order, and pages that are taken back."""

import pytest

from longcat.serve import Engine, EngineConfig, Request, SamplingParams, complete


@pytest.mark.parametrize("overlap", [False, True])
def test_a_pass_feeds_what_its_budget_allows_and_runs_as_many_as_it_may(markov, overlap):
    model = markov()
    config = EngineConfig(num_drafts=1, token_budget=12, max_running=3, overlap=overlap)
    engine = Engine(model, None, config)
    for name in "abcde":
        asked = SamplingParams(max_tokens=9)
        engine.add(Request(request_id=name, prompt_ids=(1, 2) * 20, params=asked))
    running = []
    while engine.has_work:
        engine.step()
        running.append(engine.stats().running)
    assert max(running) == 3
    # A prompt's last token is a row of its own, behind the budget.
    assert 12 <= max(model.passes) <= 12 + 2


def test_a_prompt_is_computed_while_others_decode(markov):
    engine = Engine(markov(), None, EngineConfig(num_drafts=0, token_budget=4))
    first = Request(request_id="a", prompt_ids=(1,), params=SamplingParams(max_tokens=30))
    long = Request(request_id="b", prompt_ids=(2,) * 20, params=SamplingParams(max_tokens=2))
    engine.add(first)
    engine.step()
    engine.add(long)
    gained = []
    while engine.knows("b"):
        gained.append({delta.request_id for delta in engine.step()})
    assert gained == [{"a"}] * 6 + [{"a", "b"}] * 2


def test_who_came_first_is_served_first_and_who_came_last_gives_back(markov):
    engine = Engine(markov(), None, EngineConfig(num_drafts=0, page_size=4, num_pages=10))
    for name in "abc":
        asked = SamplingParams(max_tokens=20)
        engine.add(Request(request_id=name, prompt_ids=(1, 2, 3), params=asked))
    ended = []
    while engine.has_work:
        ended += [delta.request_id for delta in engine.step() if delta.finish_reason]
    assert engine.stats().preemptions > 0
    assert ended == ["a", "b", "c"]


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_preempted_prompt_gives_all_its_log_probabilities(markov, after):
    """Its pages are taken back when some of them are known already; a prefix is known, too."""
    prompt = (1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5)
    params = SamplingParams(max_tokens=4, prompt_logprobs=0)
    asked = Request(request_id="a", prompt_ids=prompt, params=params)
    (expected,) = complete(Engine(markov(), None), [asked])
    model = markov()
    engine = Engine(model, None, EngineConfig(num_drafts=1, page_size=2, token_budget=4))
    complete(engine, [asked])
    assert engine.stats().prefix_hits == 0
    engine.add(asked)
    deltas = [delta for _ in range(after) for delta in engine.step()]
    engine._scheduler.preempt()
    while engine.has_work:
        deltas += engine.step()
    assert deltas[0].prompt_logprobs == expected.prompt_logprobs
    assert [token.id for delta in deltas for token in delta.tokens] == list(expected.token_ids)
    assert model.misplaced == 0


@pytest.mark.parametrize("prompt", [(3,), (3, 1)])
def test_log_probabilities_begin_with_the_first_token_of_which_nothing_is_known(markov, prompt):
    """Also where it is the only one, so that no part of the prompt is fed before it."""
    params = SamplingParams(max_tokens=1, prompt_logprobs=1)
    asked = Request(request_id="a", prompt_ids=prompt, params=params)
    (told,) = complete(Engine(markov(), None), [asked])
    assert told.prompt_logprobs is not None
    assert [token.id for token in told.prompt_logprobs] == list(prompt)
    assert told.prompt_logprobs[0].logprob is None
