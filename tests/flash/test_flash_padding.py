"""Claims about left padding: it changes no result, and a cache remembers it."""

import pytest
import torch


@pytest.fixture
def model(tiny_config, random_model):
    return random_model(tiny_config(max_position_embeddings=96), dtype=torch.float64)


def ids(batch=2, n=21, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, 96, (batch, n), generator=generator)


def first_row_padded(tokens):
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0
    return mask


@torch.no_grad()
def test_left_padding_changes_neither_logits_nor_counts(model):
    tokens = ids(batch=1)
    alone = model(tokens)
    padded = torch.cat([torch.full((1, 4), 3), tokens], dim=1)
    mask = (torch.arange(25) >= 4).long()[None]
    output = model(padded, mask)
    torch.testing.assert_close(output.logits[:, 4:], alone.logits, rtol=0, atol=1e-11)
    assert torch.equal(output.counts, alone.counts)
    assert not torch.equal(model(padded).counts, alone.counts)  # the control


@torch.no_grad()
def test_a_cache_remembers_its_padding_when_the_next_call_brings_no_mask(model):
    tokens = ids()
    mask = first_row_padded(tokens)
    whole = model(tokens, mask)
    drafted, _ = model.mtp(whole.hidden[:, :-1], tokens[:, 1:], mask[:, :-1])
    cache = model.new_cache(2, 32)
    first = model(tokens[:, :15], mask[:, :15], cache=cache)
    rest = model(tokens[:, 15:], cache=cache)
    torch.testing.assert_close(rest.logits, whole.logits[:, 15:], rtol=0, atol=1e-11)
    assert torch.equal(first.counts + rest.counts, whole.counts)
    drafts = [
        model.mtp(whole.hidden[:, lo:hi], tokens[:, lo + 1 : hi + 1], cache_mask, cache=cache)[0]
        for lo, hi, cache_mask in ((0, 15, mask[:, :15]), (15, 20, None))
    ]
    torch.testing.assert_close(torch.cat(drafts, 1)[:, 5:], drafted[:, 5:], rtol=0, atol=1e-11)


@torch.no_grad()
def test_a_mask_without_padding_clears_what_a_cache_remembered(model):
    tokens = ids()
    cache = model.new_cache(2, 32)
    model(tokens, first_row_padded(tokens), cache=cache)
    cache.truncate(0)
    again = model(tokens, torch.ones_like(tokens), cache=cache)
    torch.testing.assert_close(again.logits, model(tokens).logits, rtol=0, atol=1e-11)


@torch.no_grad()
def test_a_padded_batch_generates_what_each_row_does_alone(model):
    tokens = ids()
    together = model.generate(
        tokens, first_row_padded(tokens), max_new_tokens=12, speculative=False
    )
    for row, start in ((0, 5), (1, 0)):
        alone = model.generate(tokens[row : row + 1, start:], max_new_tokens=12, speculative=False)
        n_new = alone.shape[1] - (21 - start)
        assert together[row, 21 : 21 + n_new].tolist() == alone[0, 21 - start :].tolist()


@pytest.mark.parametrize("speculative", [None, False])
def test_padding_takes_no_room_in_the_longest_sequence(model, speculative):
    tokens = ids(n=90)
    mask = (torch.arange(90) >= 85).long().expand(2, -1)
    settings = {"max_new_tokens": 20, "ignore_eos": True, "speculative": speculative}
    padded = model.generate(tokens, mask, **settings)
    assert torch.equal(padded[:, 85:], model.generate(tokens[:, 85:], **settings))


@pytest.mark.parametrize("speculative", [None, False])
def test_a_mask_that_is_not_left_padding_is_named(model, speculative):
    tokens = ids()
    mask = first_row_padded(tokens)
    with pytest.raises(ValueError, match="padding after a real token"):
        model.generate(tokens, 1 - mask, max_new_tokens=2, speculative=speculative)
    with pytest.raises(ValueError, match=r"attention_mask \[2, 16\] must have the shape"):
        model.generate(tokens, mask[:, 5:], max_new_tokens=2, speculative=speculative)
