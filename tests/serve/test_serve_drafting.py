"""The number of drafts follows what is measured, and what it costs to measure stays small."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest

from longcat.serve import Engine, EngineConfig, Request, SamplingParams, complete
from longcat.serve.drafting import SOONEST, DraftPolicy


def simulated(times, acceptance, steps=3000, rows=4, policy=None) -> tuple[float, DraftPolicy]:
    """Tokens per second under a policy where g drafts take times[g] and each stands so often."""
    policy = policy or DraftPolicy(None, available=True)
    noise = random.Random(0)
    tokens, seconds, judged = 0, 0.0, 0
    for _ in range(steps):
        drafts = policy.choose(rows)
        took = times[drafts] * noise.uniform(0.9, 1.2)
        seconds += took
        for _ in range(rows):
            accepted = 0
            while accepted < judged and noise.random() < acceptance:
                accepted += 1
            policy.judged(judged, accepted)
            tokens += accepted + 1
        policy.took(rows, judged, drafts, took)
        judged = drafts
    return tokens / seconds, policy


WORLDS = [
    ([1.0, 1.9, 2.9, 3.9], 0.8),  # drafts never pay
    ([1.0, 1.2, 1.4, 1.6], 0.3),  # hardly
    ([1.0, 1.2, 1.6, 2.2], 0.7),  # one or two
    ([1.0, 1.1, 1.2, 1.3], 0.9),  # three
]


@pytest.mark.parametrize(("times", "acceptance"), WORLDS)
def test_it_is_within_five_percent_of_the_best_fixed_number(times, acceptance):
    fixed = [
        simulated(times, acceptance, policy=DraftPolicy(g, available=True))[0] for g in range(4)
    ]
    chosen, policy = simulated(times, acceptance)
    assert chosen > 0.95 * max(fixed)
    assert min(fixed) < 0.9 * max(fixed)  # there was something to choose
    assert fixed[policy.now] > 0.94 * max(fixed)


def test_it_notices_when_acceptance_falls_and_when_it_rises_again():
    times = [1.0, 1.4, 1.8, 2.2]
    _, policy = simulated(times, 0.9)
    assert policy.now > 0
    simulated(times, 0.05, policy=policy)
    assert policy.now == 0
    simulated(times, 0.9, steps=6000, policy=policy)
    assert policy.now > 0


def test_fewer_and_more_drafts_are_tried_again_in_turn():
    """Or what a few slow steps once said of one of them would stand for ever."""
    policy = DraftPolicy(None, available=True)
    times = [1.0, 1.2, 1.6, 2.2]
    tried = []
    for _ in range(5000):
        drafts = policy.choose(1)
        tried.append(drafts)
        policy.judged(drafts, min(drafts, 1))
        policy.took(1, drafts, drafts, times[drafts])
    assert policy.now == 1
    again = tried[SOONEST // 2 :]  # when all three have been measured
    trials = [drafts for before, drafts in pairwise(again) if before == 1 != drafts]
    assert trials[:4] == [0, 2, 0, 2]


def test_a_fixed_number_is_kept_and_no_head_means_none():
    assert DraftPolicy(2, available=True).choose(8) == 2
    assert DraftPolicy(None, available=False).choose(8) == 0
    assert DraftPolicy(3, available=False).choose(8) == 0


def test_a_draft_head_that_has_missed_places_makes_up_for_them(markov, monkeypatch):
    """Drafts go off and on again; the head then finds its latents as if it had always read."""
    plan = [1, 1, 0, 0, 0, 0, 0, 2, 2, 0, 0, 0, 3, 3, 3, 3, 3, 3]
    calls = iter(plan * 10)
    monkeypatch.setattr(DraftPolicy, "choose", lambda self, rows: next(calls))
    model = markov(quality=1.0)
    engine = Engine(model, None, EngineConfig(page_size=4))
    for name, prompt in (("a", (1, 2, 3)), ("b", (4,) * 20)):
        params = SamplingParams(max_tokens=60, temperature=0.7, seed=1)
        engine.add(Request(request_id=name, prompt_ids=prompt, params=params))
    while engine.has_work:
        engine.step()
    assert model.misplaced == 0
    assert engine.stats().acceptance == 1.0


def test_pages_that_the_head_has_not_read_are_nobodys_prefix(markov, monkeypatch):
    drafts = 0
    monkeypatch.setattr(DraftPolicy, "choose", lambda self, rows: drafts)
    model = markov(quality=1.0)
    engine = Engine(model, None, EngineConfig(page_size=4))
    params = SamplingParams(max_tokens=20)
    asked = Request(request_id="a", prompt_ids=(1, 2, 3, 4, 5), params=params)
    (first,) = complete(engine, [asked])
    drafts = 1
    goes_on = replace(asked, prompt_ids=(*asked.prompt_ids, *first.token_ids))
    (second,) = complete(engine, [goes_on])
    assert second.cached_tokens == 4  # of the prompt, which the head had read
    assert model.misplaced == 0
    assert engine.stats().acceptance == 1.0


def test_a_head_that_does_not_make_up_is_noticed(markov, monkeypatch):
    """Control: without it the head's latents have holes."""
    calls = iter([1, 1, 0, 0, 0, 0] + [1] * 100)
    monkeypatch.setattr(DraftPolicy, "choose", lambda self, rows: next(calls))
    monkeypatch.setattr("longcat.serve.engine.make_up", lambda *_: None)
    model = markov()
    engine = Engine(model, None)
    engine.add(Request(request_id="a", prompt_ids=(1, 2, 3), params=SamplingParams(max_tokens=30)))
    while engine.has_work:
        engine.step()
    assert model.misplaced > 0
