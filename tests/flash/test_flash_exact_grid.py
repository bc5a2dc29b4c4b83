"""Exact mode: greedy tokens do not depend on how they are served, over the whole grid of ways.

`make test` takes a set of ways in which every pair of values occurs; the rest is slow.
"""

from itertools import combinations, product
from typing import Any

import pytest
import torch

from longcat.flash import FlashConfig, FlashModel
from longcat.kernels import exact
from longcat.serve import Engine, EngineConfig, Request, SamplingParams, decode

GRID: dict[str, list[Any]] = {
    "num_drafts": [0, 1, 2, 3, None],
    "max_running": [1, 3, 8],
    "token_budget": [5, 16, 512],
    "steps_per_schedule": [1, 2, 4],
    "prefix_cache": [False, True],
    "overlap": [False, True],
    "preempted": [False, True],
}
Way = tuple[Any, ...]
WAYS: list[Way] = list(product(*GRID.values()))


def pairs(way: Way) -> set[tuple[int, Any, int, Any]]:
    """Every two of its values."""
    return {(i, way[i], j, way[j]) for i, j in combinations(range(len(way)), 2)}


def covering() -> list[Way]:
    """Ways that between them have every pair of values, the one with the most new pairs first."""
    missing = set().union(*map(pairs, WAYS))
    chosen = []
    while missing:
        best = max(WAYS, key=lambda way: len(pairs(way) & missing))
        missing -= pairs(best)
        chosen.append(best)
    return chosen


COVERING = covering()


def named(way: Way) -> str:
    drafts, running, budget, steps, cache, overlap, preempted = way
    return (
        f"{'adaptive' if drafts is None else drafts}-drafts batch-{running} chunk-{budget} "
        f"steps-{steps}{' cache' * cache}{' overlap' * overlap}{' preempted' * preempted}"
    )


@pytest.fixture(scope="module")
def model(served_config) -> FlashModel:
    return FlashModel(served_config(300), seed=0).eval()


PARAMS = SamplingParams(max_tokens=9, ignore_eos=True)


@pytest.fixture(scope="module")
def prompts() -> list[tuple[int, ...]]:
    """Eight of them, some of which begin alike."""
    generator = torch.Generator().manual_seed(0)
    long = torch.randint(4, 300, (21,), generator=generator).tolist()
    lengths = (1, 17, 21, 5, 12)
    other = [(*long[:16], 9), (*long[:8], 9, 8, 7), (6, 5)]
    return [*(tuple(long[:n]) for n in lengths), *other]


@pytest.fixture(scope="module")
def alone(model, prompts) -> list[list[int]]:
    with exact():
        return [
            [token.id for token in decode(model, prompt, PARAMS, speculative=False)]
            for prompt in prompts
        ]


def serve(model: FlashModel, prompts: list[tuple[int, ...]], way: Way) -> list[list[int]]:
    """Tokens of all prompts; where pages are to be taken back, they are after some steps."""
    fields = dict(zip(GRID, way, strict=True))
    preempted = fields.pop("preempted")
    engine = Engine(model, None, EngineConfig(page_size=4, exact=True, **fields))
    for index, prompt in enumerate(prompts):
        engine.add(Request(request_id=str(index), prompt_ids=prompt, params=PARAMS))
    tokens: list[list[int]] = [[] for _ in prompts]
    count = 0
    while engine.has_work:
        for delta in engine.step():
            tokens[int(delta.request_id)] += [token.id for token in delta.tokens]
        engine.check_integrity()
        count += 1
        if preempted and count in (2, 5, 11, 17) and engine.stats().running:
            engine._scheduler.preempt()
    assert engine.stats().pages_used == 0
    assert (engine.stats().preemptions > 0) == preempted
    return tokens


def test_the_set_has_every_pair_of_values():
    assert set().union(*map(pairs, COVERING)) == set().union(*map(pairs, WAYS))
    assert len(COVERING) < 24


@pytest.mark.parametrize("way", COVERING, ids=named)
def test_tokens_are_those_of_plain_decoding(model, prompts, alone, way):
    assert serve(model, prompts, way) == alone


@pytest.mark.slow
@pytest.mark.parametrize("drafts", GRID["num_drafts"], ids=str)
@pytest.mark.parametrize("running", GRID["max_running"])
def test_tokens_are_those_of_plain_decoding_over_the_whole_grid(
    model, prompts, alone, drafts, running
):
    for way in WAYS:
        if way[:2] == (drafts, running):
            assert serve(model, prompts, way) == alone, named(way)


def test_an_engine_without_exact_mode_would_be_found_out(model, prompts):
    """Control: in float32 the fast forms' last bits depend on what is fed together."""
    bits = []
    for exactly in (True, False):
        rows = []
        for budget in (5, 512):
            engine = Engine(model, None, EngineConfig(token_budget=budget, exact=exactly))
            params = SamplingParams(max_tokens=9, ignore_eos=True, logprobs=0)
            for index, prompt in enumerate(prompts):
                engine.add(Request(request_id=str(index), prompt_ids=prompt, params=params))
            found: dict[str, list[float | None]] = {}
            while engine.has_work:
                for delta in engine.step():
                    found.setdefault(delta.request_id, []).extend(t.logprob for t in delta.tokens)
            rows.append(found)
        bits.append(rows[0] == rows[1])
    assert bits == [True, False]


def test_exact_mode_is_refused_in_other_types():
    config = FlashConfig.preset("nano", hidden_size=64, num_layers=1)
    model = FlashModel(config, device="meta", dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="float32 or float64, but the model is in bfloat16"):
        Engine(model, None, EngineConfig(exact=True))
