"""The model behind two engines: in exact mode the bits of one, in one process and in two."""

import importlib
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from longcat.flash import FlashConfig, FlashModel
from longcat.kernels import exact
from longcat.serve import Engine, EngineConfig, Request, SamplingParams
from longcat.serve.disaggregation import Disaggregated, LocalPrefill, PrefillProcess

SETTINGS: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "num_layers": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "ffn_hidden_size": 64,
    "expert_ffn_hidden_size": 16,
    "n_routed_experts": 4,
    "zero_expert_num": 2,
    "moe_topk": 2,
}
CONFIG: dict[str, Any] = {"num_drafts": 2, "token_budget": 16, "page_size": 4, "num_pages": 200}
PARAMS = [
    SamplingParams(max_tokens=9, ignore_eos=True),
    SamplingParams(max_tokens=9, ignore_eos=True, temperature=0.9, seed=4, logprobs=2),
    SamplingParams(max_tokens=7, ignore_eos=True, temperature=0.9, seed=4, acceptance="rejection"),
]

# In the child process exact mode is entered once and never left.
FACTORY = """
import contextlib
from longcat.flash import FlashConfig, FlashModel
from longcat.kernels import exact
from longcat.serve import Engine, EngineConfig

HELD = contextlib.ExitStack()

def build(settings, config):
    HELD.enter_context(exact())
    model = FlashModel(FlashConfig.preset("nano", **settings), seed=0).eval()
    return Engine(model, None, EngineConfig(**config))
"""


@pytest.fixture(scope="module")
def model() -> FlashModel:
    return FlashModel(FlashConfig.preset("nano", **SETTINGS), seed=0).eval()


@pytest.fixture(scope="module")
def prompts() -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(0)
    long = torch.randint(4, 300, (61,), generator=generator).tolist()
    return [tuple(long), tuple(long[:1]), (*long[:33], 9)]


def run(engine: Any, prompts: list[tuple[int, ...]]) -> list[list[Any]]:
    for index, (prompt, params) in enumerate(zip(prompts, PARAMS, strict=True)):
        engine.add(Request(request_id=str(index), prompt_ids=prompt, params=params))
    tokens: list[list[Any]] = [[] for _ in prompts]
    with exact():
        while engine.has_work:
            for delta in engine.step():
                assert delta.error is None
                index = int(delta.request_id)
                asked = PARAMS[index].logprobs is not None
                tokens[index] += [
                    (t.id, t.drafted, t.refused, (t.logprob, t.top_logprobs) if asked else None)
                    for t in delta.tokens
                ]
    engine.check_integrity()
    return tokens


@pytest.fixture(scope="module")
def whole(model, prompts) -> list[list[Any]]:
    return run(Engine(model, None, EngineConfig(**CONFIG)), prompts)


def test_two_engines_give_the_bits_of_one(model, prompts, whole) -> None:
    engine = Engine(model, None, EngineConfig(**CONFIG))
    prefill = LocalPrefill(Engine(model, None, EngineConfig(**CONFIG)))
    # Tokens, log-probabilities and what became of every draft.
    assert run(Disaggregated(engine, prefill), prompts) == whole
    assert engine.stats().prompt_tokens == 0
    assert engine.stats().pages_used == prefill.node.engine.stats().pages_used == 0


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "prefill_factory.py").write_text(FACTORY, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return partial(importlib.import_module("prefill_factory").build, SETTINGS, CONFIG)


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["tcp", "shared-memory"])
def test_two_processes_give_the_bits_of_one(model, prompts, whole, factory, transport) -> None:
    engine = Engine(model, None, EngineConfig(**CONFIG))
    prefill = PrefillProcess(factory, transport)
    divided = Disaggregated(engine, prefill)
    try:
        assert run(divided, prompts) == whole
        timeline = prefill.timeline()
    finally:
        divided.close()
    assert engine.stats().pages_used == 0
    assert {span.kind for span in timeline.spans} == {"compute", "send"}
    assert timeline.hidden() > 0.0


class Killed(PrefillProcess):
    """Kills its process when the first latents have come."""

    kills = 0

    def receive(self, seconds: float = 0.0) -> Any:
        message = super().receive(seconds)
        if message is not None and not self.kills:
            self.kills += 1
            assert self.process.pid is not None
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.join()
        return message


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["tcp", "shared-memory"])
def test_a_process_killed_in_mid_transfer_costs_time_and_nothing_else(
    model, prompts, whole, factory, transport
) -> None:
    engine = Engine(model, None, EngineConfig(**CONFIG))
    prefill = Killed(factory, transport)
    first = prefill.process
    divided = Disaggregated(engine, prefill)
    try:
        assert run(divided, prompts) == whole
    finally:
        divided.close()
    assert prefill.kills == 1
    assert prefill.process is not first
    assert engine.stats().pages_used == 0


@pytest.mark.slow
def test_without_retries_a_killed_process_ends_its_requests_with_a_sentence(
    model, prompts, factory
) -> None:
    engine = Engine(model, None, EngineConfig(**CONFIG))
    divided = Disaggregated(engine, Killed(factory, "tcp"), retries=0)
    try:
        divided.add(Request(request_id="a", prompt_ids=prompts[0], params=PARAMS[0]))
        deltas = []
        while divided.has_work:
            deltas += divided.step()
        assert [delta.finish_reason for delta in deltas] == ["error"]
        assert (deltas[0].error or "").startswith("the prompt could not be computed: ")
        assert engine.stats().pages_used == 0
        engine.check_integrity()
    finally:
        divided.close()
