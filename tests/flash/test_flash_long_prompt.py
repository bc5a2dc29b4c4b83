"""A prompt of 131,072 tokens through chunks: the pages it was given, and the logits of one pass."""

import pytest
import torch

from longcat.flash import FlashConfig, FlashModel
from longcat.serve import Engine, EngineConfig, Request, SamplingParams

TOKENS, COMPARED, PAGE = 131_072, 8_192, 256


def long_prompt(
    tokens: int, compared: int, budget: int
) -> tuple[list[float], list[float], int, int]:
    """Log-probabilities of a prompt's first tokens by chunks and in one pass, and the pages used
    and given."""
    config = FlashConfig.preset("nano", max_position_embeddings=tokens + PAGE)
    model = FlashModel(config, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(4, config.vocab_size, (tokens,), generator=generator)
    pages = tokens // PAGE + 1
    engine = Engine(
        model,
        None,
        EngineConfig(page_size=PAGE, num_pages=pages, token_budget=budget, num_drafts=0),
    )
    params = SamplingParams(max_tokens=4, ignore_eos=True, prompt_logprobs=0)
    engine.add(Request(request_id="a", prompt_ids=tuple(prompt.tolist()), params=params))
    deltas, most = [], 0
    while engine.has_work:
        deltas += engine.step()
        most = max(most, engine.stats().pages_used)
        engine.check_integrity()
    noted = deltas[0].prompt_logprobs
    assert noted is not None
    assert len(noted) == tokens
    assert engine.stats().preemptions == 0
    by_chunks = [token.logprob for token in noted[1:compared]]
    with torch.inference_mode():
        logits = model(prompt[None, : compared - 1]).logits[0]
        logs = torch.log_softmax(logits, dim=-1)
        at_once = logs.gather(1, prompt[1:compared, None])[:, 0].tolist()
    return [x for x in by_chunks if x is not None], at_once, most, pages


def test_a_prompt_of_many_chunks_has_the_logits_of_one_pass():
    by_chunks, at_once, most, pages = long_prompt(805, 600, 256)
    assert by_chunks == pytest.approx(at_once, abs=1e-4)
    assert most == pages


@pytest.mark.slow
def test_131072_tokens_stay_within_their_pages_and_have_the_logits_of_one_pass():
    by_chunks, at_once, most, pages = long_prompt(TOKENS, COMPARED, 1024)
    assert by_chunks == pytest.approx(at_once, abs=1e-3)
    assert most == pages
