"""Two engines give the tokens of one, whatever is lost on the way, and no page stays behind."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from longcat.serve import Delta, Engine, EngineConfig, Request, SamplingParams
from longcat.serve.disaggregation import (
    Broken,
    Disaggregated,
    Handover,
    LocalPrefill,
    Message,
    Piece,
)

PROMPTS = [(1,), (2, 3, 4, 5, 6), (1, 2) * 9, (3,) * 23, (1, 2) * 9 + (5,)]


def params(count: int, temperature: float = 0.0, **fields: Any) -> list[SamplingParams]:
    return [
        SamplingParams(temperature=temperature, seed=100 + i, max_tokens=5 + 7 * i, **fields)
        for i in range(count)
    ]


def add_all(
    engine: Any, prompts: Sequence[tuple[int, ...]], asked: Sequence[SamplingParams]
) -> None:
    for index, (prompt, each) in enumerate(zip(prompts, asked, strict=True)):
        engine.add(Request(request_id=str(index), prompt_ids=prompt, params=each))


def run(engine: Any) -> dict[str, list[Delta]]:
    deltas: dict[str, list[Delta]] = {}
    while engine.has_work:
        for delta in engine.step():
            deltas.setdefault(delta.request_id, []).append(delta)
        engine.check_integrity()
    return deltas


def tokens_of(deltas: dict[str, list[Delta]]) -> dict[str, list[int]]:
    return {
        name: [token.id for delta in gained for token in delta.tokens]
        for name, gained in deltas.items()
    }


def nothing_held(*engines: Engine) -> bool:
    for engine in engines:
        engine.check_integrity()
    return all(engine.stats().pages_used == 0 for engine in engines)


class Watched(LocalPrefill):
    """Keeps what was received, and breaks where it is told to; `spoil` changes a message."""

    def __init__(self, engine: Engine, breaks: Sequence[int] = (), spoil: Any = None) -> None:
        super().__init__(engine)
        self.received: list[Message] = []
        self._breaks = list(breaks)
        self._spoil = spoil
        self.restarts = 0

    def receive(self, seconds: float = 0.0) -> Message | None:
        if self._breaks and len(self.received) >= self._breaks[0]:
            del self._breaks[0]
            raise Broken("it was told to")
        message = super().receive(seconds)
        if message is None:
            return None
        self.received.append(message)
        return message if self._spoil is None else self._spoil(message)

    def restart(self) -> None:
        self.restarts += 1
        super().restart()


def pair(markov: Any, config: EngineConfig, **watched: Any) -> tuple[Engine, Watched]:
    drafts = 1 if config.num_drafts is None else config.num_drafts
    at_prefill = replace(config, num_pages=200, max_running=8, num_drafts=drafts, overlap=False)
    return Engine(markov(), None, config), Watched(Engine(markov(), None, at_prefill), **watched)


CONFIGS = [
    {},
    {"num_drafts": 0},
    {"num_drafts": 1, "token_budget": 7},
    {"num_drafts": 3, "page_size": 3},
    {"num_drafts": 2, "max_running": 2, "steps_per_schedule": 2},
    {"num_drafts": 2, "page_size": 4, "num_pages": 16, "prefix_cache": False},  # preempts
    {"num_drafts": 2, "overlap": True},
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_are_those_of_one_engine(markov, config, temperature) -> None:
    each = params(len(PROMPTS), temperature)
    whole = Engine(markov(), None, EngineConfig(**config))
    add_all(whole, PROMPTS, each)
    engine, prefill = pair(markov, EngineConfig(**config))
    divided = Disaggregated(engine, prefill)
    add_all(divided, PROMPTS, each)
    assert tokens_of(run(divided)) == tokens_of(run(whole))
    assert engine.stats().prompt_tokens == 0 or engine.stats().preemptions
    assert nothing_held(engine, prefill.node.engine)


def test_the_first_drafts_and_what_they_were_drawn_from_are_handed_over(markov) -> None:
    # Rejection sampling draws other tokens for other drafts, so this would show their lack.
    each = params(len(PROMPTS), 0.8, acceptance="rejection")
    whole = Engine(markov(), None, EngineConfig(num_drafts=2))
    add_all(whole, PROMPTS, each)
    engine, prefill = pair(markov, EngineConfig(num_drafts=2))
    divided = Disaggregated(engine, prefill)
    add_all(divided, PROMPTS, each)
    expected = tokens_of(run(whole))
    assert tokens_of(run(divided)) == expected

    def without_drafts(message: Message) -> Message:
        known = isinstance(message, Handover)
        return replace(message, drafts=(), draft_q=None) if known else message

    engine, prefill = pair(markov, EngineConfig(num_drafts=2), spoil=without_drafts)
    divided = Disaggregated(engine, prefill)
    add_all(divided, PROMPTS, each)
    assert tokens_of(run(divided)) != expected


def test_log_probabilities_drafts_and_limits_are_those_of_one_engine(markov) -> None:
    each = [
        SamplingParams(max_tokens=1),
        SamplingParams(max_tokens=9, logprobs=2, prompt_logprobs=1, min_tokens=3),
        SamplingParams(max_tokens=9, speculative=False, repetition_penalty=1.5),
        SamplingParams(max_tokens=30, stop_token_ids=(4,)),
        SamplingParams(max_tokens=6, temperature=1.0, seed=5, logit_bias={2: 3.0}),
    ]
    config = EngineConfig(num_drafts=2, prefix_cache=False)
    whole = Engine(markov(), None, config)
    add_all(whole, PROMPTS, each)
    engine, prefill = pair(markov, config)
    divided = Disaggregated(engine, prefill)
    add_all(divided, PROMPTS, each)
    one, two = run(whole), run(divided)
    for name in one:
        first, last = one[name][0], one[name][-1]
        assert [t for d in two[name] for t in d.tokens] == [t for d in one[name] for t in d.tokens]
        assert two[name][0].prompt_logprobs == first.prompt_logprobs
        assert two[name][-1].finish_reason == last.finish_reason
        assert two[name][-1].stop_reason == last.stop_reason
    assert engine.stats().drafted_at == whole.stats().drafted_at
    assert engine.stats().tokens == whole.stats().tokens
    assert nothing_held(engine, prefill.node.engine)


def test_latents_go_out_attention_by_attention_chunk_by_chunk(markov) -> None:
    engine, prefill = pair(markov, EngineConfig(num_drafts=1, token_budget=8))
    divided = Disaggregated(engine, prefill)
    divided.add(Request(request_id="a", prompt_ids=(3,) * 20, params=SamplingParams()))
    run(divided)
    sent = [
        (m.attention, m.first, len(m.latents)) for m in prefill.received if isinstance(m, Piece)
    ]
    assert sent == [(0, 0, 8), (1, 0, 8), (0, 8, 8), (1, 8, 8), (0, 16, 4), (1, 16, 4)]
    assert isinstance(prefill.received[-1], Handover)


def test_what_decode_has_in_its_prefix_cache_is_not_sent(markov) -> None:
    engine, prefill = pair(markov, EngineConfig(num_drafts=1, page_size=4))
    divided = Disaggregated(engine, prefill)
    shared = (1, 2, 3, 4, 5, 6, 1, 2, 3)
    for name, prompt in (("a", shared), ("b", (*shared[:8], 6, 6, 6))):
        prefill.received.clear()
        divided.add(Request(request_id=name, prompt_ids=prompt, params=SamplingParams()))
        deltas = run(divided)
    assert {m.first for m in prefill.received if isinstance(m, Piece)} == {8}
    assert deltas["b"][0].cached_tokens == 8


def test_what_only_prefill_has_in_its_prefix_cache_is_sent_from_there(markov) -> None:
    prompt = (1, 2, 3, 4, 5, 6, 1, 2, 3)
    config = EngineConfig(num_drafts=1, page_size=4)
    prefill = Watched(Engine(markov(), None, config))
    found = []
    for _ in range(2):  # a decode engine of its own each time, which knows nothing
        divided = Disaggregated(Engine(markov(), None, config), prefill)
        divided.add(Request(request_id="a", prompt_ids=prompt, params=SamplingParams()))
        found.append(tokens_of(run(divided)))
    assert found[0] == found[1]
    assert prefill.node.engine.stats().prefix_hits == 8


@pytest.mark.parametrize("breaks", [(0,), (1,), (3,), (5,)])
def test_a_prefill_that_dies_is_tried_again_and_leaks_nothing(markov, breaks) -> None:
    each = params(len(PROMPTS), 0.8)
    config = EngineConfig(num_drafts=2, page_size=4)
    whole = Engine(markov(), None, config)
    add_all(whole, PROMPTS, each)
    engine, prefill = pair(markov, config, breaks=breaks)
    divided = Disaggregated(engine, prefill)
    add_all(divided, PROMPTS, each)
    assert tokens_of(run(divided)) == tokens_of(run(whole))
    assert prefill.restarts == 1
    assert nothing_held(engine, prefill.node.engine)


def test_a_prefill_that_dies_too_often_ends_the_request_with_a_sentence(markov) -> None:
    engine, prefill = pair(markov, EngineConfig(num_drafts=1), breaks=(1, 1))
    divided = Disaggregated(engine, prefill, retries=1)
    divided.add(Request(request_id="a", prompt_ids=(1, 2, 3), params=SamplingParams()))
    (delta,) = run(divided)["a"]
    assert (delta.finish_reason, delta.fault) == ("error", "process")
    assert delta.error == "the prompt could not be computed: it was told to"
    assert nothing_held(engine, prefill.node.engine)
    divided.add(Request(request_id="b", prompt_ids=(1, 2, 3), params=SamplingParams()))
    assert run(divided)["b"][-1].finish_reason == "length"


def lost(message: Message) -> Message:
    """A piece of the second attention never arrives: it is as if it were nobody's."""
    if isinstance(message, Piece) and message.attention == 1:
        return replace(message, request_id="nobody's")
    return message


def moved(message: Message) -> Message:
    return replace(message, first=message.first + 1) if isinstance(message, Piece) else message


def widened(message: Message) -> Message:
    if isinstance(message, Piece):
        return replace(message, latents=torch.cat([message.latents] * 2, dim=1))
    return message


@pytest.mark.parametrize("spoil", [lost, moved, widened])
def test_latents_that_are_lost_or_out_of_place_are_noticed(markov, spoil) -> None:
    engine, prefill = pair(markov, EngineConfig(num_drafts=1), spoil=spoil)
    divided = Disaggregated(engine, prefill, retries=0)
    divided.add(Request(request_id="a", prompt_ids=(1, 2, 3), params=SamplingParams()))
    (delta,) = run(divided)["a"]
    assert delta.finish_reason == "error"
    assert nothing_held(engine, prefill.node.engine)


def test_an_aborted_request_is_forgotten_on_both_sides(markov) -> None:
    engine, prefill = pair(markov, EngineConfig(num_drafts=1, token_budget=4))
    divided = Disaggregated(engine, prefill)
    divided.add(Request(request_id="a", prompt_ids=(3,) * 20, params=SamplingParams()))
    divided.step()
    assert engine.stats().pages_used > 0
    assert divided.abort("a")
    assert not divided.abort("a")
    assert nothing_held(engine, prefill.node.engine)
    # Its name is free again at once, and what was sent for the old one is not the new one's.
    divided.add(Request(request_id="a", prompt_ids=(1, 2), params=SamplingParams(max_tokens=3)))
    assert len(tokens_of(run(divided))["a"]) == 3
    assert nothing_held(engine, prefill.node.engine)


def test_prefill_has_nothing_to_choose_drafts_by(markov) -> None:
    with pytest.raises(ValueError, match="num_drafts must be a number"):
        LocalPrefill(Engine(markov(), None, EngineConfig()))
    with pytest.raises(ValueError, match="overlap must be False"):
        LocalPrefill(Engine(markov(), None, EngineConfig(num_drafts=1, overlap=True)))


def test_bad_requests_are_refused_where_they_are_added(markov) -> None:
    engine, prefill = pair(markov, EngineConfig(num_pages=2))
    divided = Disaggregated(engine, prefill)
    with pytest.raises(ValueError, match="latent cache can hold"):
        divided.add(Request(request_id="a", prompt_ids=(1,) * 40, params=SamplingParams()))
    assert not divided.has_work


def test_what_prefill_refuses_ends_with_its_sentence(markov) -> None:
    engine = Engine(markov(), None, EngineConfig(num_drafts=0))
    small = Engine(markov(), None, EngineConfig(num_pages=1, num_drafts=0))
    divided = Disaggregated(engine, LocalPrefill(small))
    divided.add(Request(request_id="a", prompt_ids=(1,) * 40, params=SamplingParams()))
    (delta,) = run(divided)["a"]
    assert delta.error is not None
    assert "latent cache can hold" in delta.error
    assert nothing_held(engine, small)
