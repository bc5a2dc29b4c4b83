"""Claims about batches: a row gets what its prompt gets alone, whatever is beside it."""

from typing import Any

import pytest
import torch

from longcat.serve import SamplingParams, decode, decode_batch, pad_left

PROMPTS = [[1, 2, 3, 4, 5], [2], [6, 1, 1]]


def alone(model: Any, prompt: list[int], params: SamplingParams, row: int) -> list[int]:
    seeded = SamplingParams(**{**params.__dict__, "seed": (params.seed or 0) + row})
    return [token.id for token in decode(model, prompt, seeded)]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_every_row_equals_its_prompt_decoded_alone(markov: Any, temperature: float) -> None:
    model = markov()
    params = SamplingParams(max_tokens=20, temperature=temperature, seed=4)
    ids, mask = pad_left(PROMPTS, pad_token_id=0)
    got = decode_batch(model, ids, params, mask)
    assert got.shape == (3, 20)
    assert got.tolist() == [alone(model, p, params, row) for row, p in enumerate(PROMPTS)]


def test_a_mask_that_is_ignored_would_be_noticed(markov: Any) -> None:
    class IgnoresMask(markov):  # type: ignore[misc]
        def target(self, ids: Any, cache: Any, attention_mask: Any = None) -> Any:
            return super().target(ids, cache, None)

    params = SamplingParams(max_tokens=20)
    # The pad id differs from the chain's start token, so a visible pad changes the context.
    ids, mask = pad_left(PROMPTS, pad_token_id=5)
    got = decode_batch(IgnoresMask(), ids, params, mask, pad_token_id=5)
    assert got[1].tolist() != alone(markov(), PROMPTS[1], params, 1)


def test_rows_that_have_ended_hold_padding_and_all_ended_stops_the_batch(markov: Any) -> None:
    model = markov(seed=1)
    params = SamplingParams(max_tokens=40, temperature=1.0, seed=0)
    model.eos_token_id = 3
    ids, mask = pad_left(PROMPTS, pad_token_id=0)
    got = decode_batch(model, ids, params, mask, pad_token_id=0)
    rows = [alone(model, prompt, params, row) for row, prompt in enumerate(PROMPTS)]
    assert len({len(row) for row in rows}) > 1
    longest = max(len(row) for row in rows)
    assert longest < 40
    assert got.tolist() == [row + [0] * (longest - len(row)) for row in rows]


def test_a_batch_without_padding_passes_no_mask(markov: Any) -> None:
    class WantsNoMask(markov):  # type: ignore[misc]
        def target(self, ids: Any, cache: Any, attention_mask: Any = None) -> Any:
            assert attention_mask is None
            return super().target(ids, cache)

    decode_batch(WantsNoMask(), torch.tensor([[1, 2], [3, 4]]), SamplingParams(max_tokens=3))


def test_pad_left_puts_tokens_at_the_right_edge() -> None:
    ids, mask = pad_left([[7, 8], [9]], pad_token_id=3)
    assert ids.tolist() == [[7, 8], [3, 9]]
    assert mask.tolist() == [[True, True], [False, True]]


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([1, 2], None, "non-empty \\[batch, tokens\\]"),
        ([[1, 2]], [[1]], "attention_mask \\[1, 1\\] must have the shape of input_ids"),
        ([[1, 2]], [[1, 0]], "pad on the left"),
        ([[1, 2]], [[0, 0]], "no tokens"),
        ([[1, 9]], None, "token id 9 at position 1"),
    ],
)
def test_a_bad_batch_is_refused(markov: Any, ids: Any, mask: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_batch(
            markov(),
            torch.tensor(ids),
            SamplingParams(max_tokens=2),
            None if mask is None else torch.tensor(mask),
        )
