"""Claims about packing: a row of documents gives the logits and counts of the documents alone."""

import numpy as np
import pytest
import torch

from longcat.attention import DocumentMask
from longcat.flash import reference

# Two rows: the second begins in the middle of a document and ends with padding.
LENGTHS = ((9, 1, 14), (6, 12))
WIDTH = 24


@pytest.fixture
def model(tiny_config, random_model):
    return random_model(tiny_config(), dtype=torch.float64)


def packed():
    """(ids [2,T], document ids [2,T], the documents as (row, start, end))."""
    ids = torch.randint(4, 96, (2, WIDTH), generator=torch.Generator().manual_seed(3))
    documents, spans = torch.full((2, WIDTH), -1), []
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for number, length in enumerate(lengths):
            documents[row, start : start + length] = number
            spans.append((row, start, start + length))
            start += length
    return ids, documents, spans


@torch.no_grad()
def test_logits_and_drafts_are_those_of_the_documents_alone(model):
    ids, documents, spans = packed()
    output = model(ids, document_ids=documents)
    drafted, _ = model.mtp(output.hidden[:, :-1], ids[:, 1:], document_ids=documents[:, :-1])
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    for row, start, end in spans:
        text = ids[row, start:end].numpy()
        want = reference.forward(weights, model.config.to_hf(), text)
        got = output.logits[row, start:end].numpy()
        np.testing.assert_allclose(got, want.logits, rtol=0, atol=1e-10)
        if end - start == 1:
            continue  # nothing follows, so nothing is drafted
        draft = reference.draft(weights, model.config.to_hf(), want.hidden[:-1], text[1:])
        got = drafted[row, start : end - 1].numpy()
        np.testing.assert_allclose(got, draft, rtol=0, atol=1e-10)


@torch.no_grad()
def test_experts_count_the_documents_and_no_padding(model):
    ids, documents, spans = packed()
    output = model(ids, document_ids=documents)
    alone = [model(ids[row : row + 1, a:b]).counts for row, a, b in spans]
    assert torch.equal(output.counts, torch.stack(alone).sum(0))
    assert output.counts.sum(dim=1).tolist() == [42 * 4] * 2
    assert not torch.equal(output.counts, model(ids).counts)  # the control: padding counted


@torch.no_grad()
def test_the_balance_loss_leaves_padding_out(model):
    ids, documents, _ = packed()
    model.balance.alpha = 1.0
    row = slice(1, 2)
    whole = model(ids[row], document_ids=documents[row])
    cut = model(ids[row, :18], document_ids=documents[row, :18])
    torch.testing.assert_close(whole.balance_loss, cut.balance_loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(whole.balance_f, cut.balance_f, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("mutant", ["no mask", "restarting positions, no mask"])
def test_control_documents_that_meet_are_noticed(model, mutant, monkeypatch):
    ids, documents, spans = packed()
    if mutant == "no mask":
        got = model(ids).logits
    else:

        class Meeting(DocumentMask):
            def __init__(self, document_ids):
                super().__init__(document_ids)
                steps = torch.arange(document_ids.shape[1])
                self.mask = (steps[:, None] >= steps).expand(2, -1, -1)

        monkeypatch.setattr("longcat.flash.places.DocumentMask", Meeting)
        got = model(ids, document_ids=documents).logits
    row, start, end = spans[2]
    alone = model(ids[row : row + 1, start:end]).logits[0]
    assert float((got[row, start:end] - alone).abs().max()) > 1e-3


def test_gradients_do_not_cross_a_border(model):
    ids, documents, spans = packed()
    model.model.embed_tokens.weight.grad = None
    _, start, end = spans[2]
    logits = model(ids[:1], document_ids=documents[:1]).logits
    logits[0, start:end].square().sum().backward()
    touched = model.model.embed_tokens.weight.grad.abs().sum(dim=1).nonzero().flatten()
    assert set(touched.tolist()) == set(ids[0, start:end].tolist())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"document_ids": torch.zeros(2, 5, dtype=torch.int64)}, r"must be \(2, 24\) like"),
        (
            {
                "document_ids": torch.zeros(2, WIDTH, dtype=torch.int64),
                "attention_mask": torch.ones(2, WIDTH),
            },
            "document_ids go with neither an attention_mask",
        ),
        ({"document_ids": torch.zeros(2, WIDTH)}, r"must be integers \[B,T\]"),
    ],
)
def test_document_ids_that_make_no_sense_are_refused(model, arguments, words):
    with pytest.raises(ValueError, match=words):
        model(packed()[0], **arguments)
