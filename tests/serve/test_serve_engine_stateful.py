"""Requests come, are aborted and preempted at any time, in engines of any size: whoever is left
gets the tokens that it would have got alone, and every page is accounted for.
"""

from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longcat.serve import Engine, EngineConfig, Request, SamplingParams, decode

CONFIGS = st.builds(
    EngineConfig,
    page_size=st.integers(1, 5),
    num_pages=st.integers(40, 70),
    max_running=st.integers(1, 4),
    token_budget=st.sampled_from([1, 3, 8, 64]),
    prefix_cache=st.booleans(),
    num_drafts=st.sampled_from([None, 0, 1, 2, 3]),
    steps_per_schedule=st.integers(1, 3),
    overlap=st.booleans(),
)
REQUESTS = st.builds(
    Request,
    request_id=st.uuids().map(str),
    prompt_ids=st.lists(st.integers(0, 2), min_size=1, max_size=14).map(tuple),
    params=st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 0.9]),
        seed=st.integers(0, 3),
        max_tokens=st.integers(1, 12),
        speculative=st.sampled_from([None, False]),
    ),
)
DEEDS = st.lists(
    st.one_of(REQUESTS, st.sampled_from(["step", "step", "step", "abort", "preempt"])),
    min_size=8,
    max_size=40,
)


def alone(model: Any, request: Request) -> list[int]:
    params = replace(request.params, speculative=None)
    return [token.id for token in decode(model, request.prompt_ids, params, speculative=False)]


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=CONFIGS, deeds=DEEDS)
def test_whoever_is_left_gets_its_own_tokens(markov, config, deeds):
    model = markov()
    engine = Engine(model, None, config)
    asked: dict[str, Request] = {}
    gained: dict[str, list[int]] = {}

    def step() -> None:
        for delta in engine.step():
            gained[delta.request_id] += [token.id for token in delta.tokens]
        engine.check_integrity()

    for deed in deeds:
        if isinstance(deed, Request):
            engine.add(deed)
            asked[deed.request_id], gained[deed.request_id] = deed, []
        elif deed == "step" and engine.has_work:
            step()
        elif deed == "abort" and asked:
            name = next(iter(asked))
            engine.abort(name)
            del asked[name]
            engine.check_integrity()
        elif deed == "preempt" and engine.stats().running:
            engine._scheduler.preempt()
            engine.check_integrity()
    while engine.has_work:
        step()
    for name, request in asked.items():
        assert gained[name] == alone(markov(), request)
    assert engine.stats().pages_used == 0
    if config.num_drafts is not None:  # a head that lags reads holes, and nothing comes of it
        assert model.misplaced == 0
