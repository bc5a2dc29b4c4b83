"""`FlashModel.generate` gives every row what plain decoding gives its prompt alone."""

import pytest
import torch

from longcat.flash import generation
from longcat.serve import SamplingParams, decode

NEW = 12


@pytest.fixture
def model(tiny_config, random_model):
    return random_model(tiny_config(max_position_embeddings=96), dtype=torch.float64)


def batch():
    """Five rows of 9 tokens, the first of them padded."""
    ids = torch.randint(4, 96, (5, 9), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    return ids, mask


def alone(model, temperature=0.0, seed=0):
    """What each row's prompt gets by itself, with its own seed."""
    asked = {"temperature": temperature, "max_tokens": NEW, "ignore_eos": True}
    ids, mask = batch()
    return [
        [
            token.id
            for token in decode(
                model,
                row[keep.bool()].tolist(),
                SamplingParams(seed=seed + i, **asked),
                speculative=False,
            )
        ]
        for i, (row, keep) in enumerate(zip(ids, mask, strict=True))
    ]


@pytest.mark.parametrize("most_rows", [2, 128])
@pytest.mark.parametrize("speculative", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_every_row_gets_what_it_would_get_alone(
    model, monkeypatch, temperature, speculative, most_rows
):
    monkeypatch.setattr(generation, "_MOST_ROWS", most_rows)
    ids, mask = batch()
    expected = alone(model, temperature, seed=7)
    settings = {"max_new_tokens": NEW, "ignore_eos": True, "speculative": speculative}
    found = model.generate(ids, mask, temperature=temperature, seed=7, **settings)
    assert torch.equal(found[:, :9], ids)
    assert found[:, 9:].tolist() == expected
    assert len({tuple(row) for row in expected}) == 5


def test_rows_that_end_early_are_filled_and_the_longest_decides_the_width(model):
    rows = alone(model)
    stop = rows[1][3]
    model.config = type(model.config).from_hf({**model.config.to_hf(), "eos_token_id": stop})
    cut = [row[: row.index(stop) + 1] if stop in row else row for row in rows]
    assert len({len(row) for row in cut}) > 1
    width = max(map(len, cut))
    found = model.generate(*batch(), max_new_tokens=NEW)
    assert found[:, 9:].tolist() == [row + [3] * (width - len(row)) for row in cut]
    whole = model.generate(*batch(), max_new_tokens=NEW, ignore_eos=True)
    assert whole[:, 9:].tolist() == rows


def test_what_was_generated_can_be_trained_on(model):
    ids, _ = batch()
    text = model.generate(ids, max_new_tokens=2, ignore_eos=True)
    model(text).logits.sum().backward()
    assert model.model.embed_tokens.weight.grad is not None


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[5.0, 6.0]], None, r"input_ids must be integers; got torch\.float32"),
        ([5, 6], None, r"input_ids must be a non-empty \[B,T\]; got \[2\]"),
        ([[5, 6]], [[1]], r"attention_mask \[1, 1\] must have the shape of input_ids \[1, 2\]"),
        ([[5, 6]], [[1, 0]], "padding after a real token; pad on the left"),
        ([[5, 6]], [[0, 0]], "no tokens"),
        ([[5, 99]], None, "token id 99 at position 1 is outside the vocabulary"),
        ([[5] * 95], None, "95 prompt tokens plus max_tokens 2 exceed the model's 96 positions"),
    ],
)
def test_a_batch_that_cannot_be_continued_is_refused(model, ids, mask, message):
    with pytest.raises(ValueError, match=message):
        model.generate(
            torch.tensor(ids), None if mask is None else torch.tensor(mask), max_new_tokens=2
        )


def test_no_tokens_cannot_be_asked_for(model):
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1; got 0"):
        model.generate(batch()[0], max_new_tokens=0)


def test_damaged_weights_end_in_one_sentence(model):
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="logits hold NaN or infinity"):
        model.generate(batch()[0], max_new_tokens=2)
