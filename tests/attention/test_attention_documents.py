"""Claims about packed documents: each attends to itself alone, from position 0."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longcat.attention import MLA, DocumentMask, KeyMask, MLAConfig, reference

CONFIG = MLAConfig(
    hidden_size=16,
    num_heads=2,
    q_lora_rank=6,
    kv_lora_rank=5,
    qk_nope_head_dim=4,
    qk_rope_head_dim=4,
    v_head_dim=3,
    rope_theta=100.0,
    max_position=64,
)
# A document of one token, an id that comes back, padding in the middle and at the end.
IDS = [[7, 7, 7, 8, 2, 2, 2, 7, 7, -1, 3, 3, 3, -1, -1]]


def made():
    generator = torch.Generator().manual_seed(0)
    mla = MLA(CONFIG, dtype=torch.float64)
    with torch.no_grad():
        for parameter in mla.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return mla


def runs(row):
    """(start, end) of each run of equal ids that is not padding."""
    cuts = [0, *(t for t in range(1, len(row)) if row[t] != row[t - 1]), len(row)]
    return [(a, b) for a, b in itertools.pairwise(cuts) if row[a] >= 0]


@given(st.lists(st.integers(-1, 2), min_size=1, max_size=24))
def test_torch_agrees_with_the_definition(row):
    documents, ids = DocumentMask(torch.tensor([row])), np.array(row)
    np.testing.assert_array_equal(documents.mask[0], reference.document_mask(ids))
    np.testing.assert_array_equal(documents.positions[0], reference.document_positions(ids))
    np.testing.assert_array_equal(documents.valid[0], ids >= 0)


@torch.no_grad()
def test_a_packed_row_gives_what_its_documents_give_alone():
    mla, ids = made(), torch.tensor(IDS)
    x = torch.randn(1, 15, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    documents = DocumentMask(ids)
    packed = mla(x, documents.positions, documents)
    assert packed.isfinite().all()
    for start, end in runs(IDS[0]):
        alone = mla(x[:, start:end], torch.arange(end - start)[None])
        torch.testing.assert_close(packed[:, start:end], alone, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("mutant", ["padding only", "causal across borders"])
def test_control_a_mask_that_lets_documents_meet_is_noticed(mutant):
    mla, ids = made(), torch.tensor(IDS)
    x = torch.randn(1, 15, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    positions = DocumentMask(ids).positions
    mask = KeyMask(ids >= 0) if mutant == "padding only" else None
    packed = mla(x, positions, mask)
    start, end = runs(IDS[0])[-1]
    alone = mla(x[:, start:end], torch.arange(end - start)[None])
    assert float((packed[:, start:end] - alone).abs().max()) > 1e-3


def test_positions_restart_with_every_document():
    """Attention within one document would not show it: rotary positions are relative."""
    assert DocumentMask(torch.tensor(IDS)).positions.tolist() == [
        [0, 1, 2, 0, 0, 1, 2, 0, 1, 0, 0, 1, 2, 0, 1]
    ]


@pytest.mark.parametrize("ids", [torch.zeros(3, dtype=torch.int64), torch.zeros(1, 3)])
def test_ids_of_another_kind_are_refused(ids):
    with pytest.raises(ValueError, match=r"document_ids must be integers \[B,T\]; got torch"):
        DocumentMask(ids)
