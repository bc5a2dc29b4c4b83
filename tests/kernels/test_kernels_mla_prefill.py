"""Attention with expanded heads: masks, empty and blind rows, both fast paths, gradients."""

import pytest
import torch

from longcat.kernels import mla_prefill, onednn, use_backend
from longcat.kernels.mla_prefill import by_head, eager, reference

SCALE = 0.35
# B, T, S, H, Q, V
SHAPES = [
    (2, 5, 5, 3, 6, 4),
    (1, 1, 9, 2, 4, 4),
    (2, 5, 9, 1, 4, 6),
    (1, 131, 131, 2, 4, 3),
    (2, 130, 140, 1, 4, 4),
]
EMPTY = [(2, 0, 5, 3, 6, 4), (0, 3, 3, 1, 4, 4), (1, 0, 0, 1, 4, 4)]


def _operands(randn, shape, dtype=torch.float64):
    n_batch, n_queries, n_keys, n_heads, width, n_values = shape
    return (
        randn(n_batch, n_queries, n_heads, width, dtype=dtype),
        randn(n_batch, n_keys, n_heads, width, dtype=dtype),
        randn(n_batch, n_keys, n_heads, n_values, dtype=dtype),
    )


def _mask(randn, shape):
    """A random mask with one row that may see nothing."""
    mask = randn(shape[0], shape[1], shape[2]) > 0
    mask[:1, :1] = False
    return mask


def _definition(q, k, v, mask=None):
    arrays = [t.detach().double().numpy() for t in (q, k, v)]
    return reference.mla_prefill(*arrays, SCALE, None if mask is None else mask.numpy())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES + EMPTY)
@pytest.mark.parametrize("masked", [False, True])
def test_eager_agrees_with_the_definition(randn, check, shape, dtype, masked):
    operands = _operands(randn, shape, dtype)
    mask = _mask(randn, shape) if masked else None
    want = _definition(*operands, mask)
    assert check.error(mla_prefill(*operands, SCALE, mask), want) <= check.bound(dtype)
    with use_backend("numpy"):
        assert check.error(mla_prefill(*operands, SCALE, mask), want) <= check.bound(dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_tiles_and_fused_attention_agree(randn, check, shape):
    operands = _operands(randn, shape)
    fused = eager.fused(*operands, SCALE, None)
    tiles = eager._Tiles.apply(*operands, SCALE, None)
    assert check.error(tiles, fused) < 1e-13


@pytest.mark.skipif(not onednn.available(), reason="nothing goes to oneDNN on this CPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_head_by_head_without_a_gradient_agrees_with_the_definition(
    randn, check, monkeypatch, shape, dtype
):
    monkeypatch.setattr(by_head, "LEAST_PAIRS", {dtype: 1})
    monkeypatch.setattr(by_head, "LEAST_QUERIES", 1)
    monkeypatch.setattr(by_head, "TILE", 64)
    operands = _operands(randn, shape, dtype)
    assert by_head.pays(*operands)
    error = check.error(mla_prefill(*operands, SCALE), _definition(*operands))
    assert error <= check.bound(dtype)


@pytest.mark.skipif(not onednn.available(), reason="nothing goes to oneDNN on this CPU")
@pytest.mark.parametrize("broken", ["nothing", "the mask", "the filling"])
@torch.inference_mode()
def test_a_diagonal_or_a_filling_out_of_place_is_caught(randn, check, monkeypatch, broken):
    q, k, v = _operands(randn, (1, 70, 90, 2, 4, 4), torch.float32)
    if broken == "the mask":
        monkeypatch.setattr(torch.Tensor, "triu_", lambda x, diagonal: x.tril_(diagonal))
    if broken == "the filling":
        pad = by_head.F.pad
        monkeypatch.setattr(by_head.F, "pad", lambda x, sides: pad(x, (0, 0, sides[3], 0)))
    error = check.error(by_head.causal(q, k, v, SCALE), _definition(q, k, v))
    assert (error <= check.bound(torch.float32)) == (broken == "nothing")


def test_head_by_head_is_left_to_large_passes_without_a_gradient(randn):
    large, small, few = ((1, T, S, 1, 4, 4) for T, S in ((512, 512), (64, 64), (32, 4096)))
    for dtype in (torch.float32, torch.float64):
        q, k, v = _operands(randn, large, dtype)
        with torch.inference_mode():
            assert by_head.pays(q, k, v) == (dtype == torch.float32 and onednn.available())
        assert not by_head.pays(q, k, v)
    with torch.inference_mode():
        assert not by_head.pays(*_operands(randn, small, torch.float32))
        assert not by_head.pays(*_operands(randn, few, torch.float32))


def test_an_explicit_causal_mask_changes_nothing(randn, check):
    operands = _operands(randn, (2, 5, 9, 3, 6, 4))
    mask = eager.causal_mask(5, 9, torch.device("cpu")).expand(2, -1, -1)
    assert check.error(mla_prefill(*operands, SCALE, mask), mla_prefill(*operands, SCALE)) < 1e-13


def test_the_last_query_sees_every_key_and_the_first_not_the_last(randn):
    q, k, v = _operands(randn, (1, 3, 7, 1, 4, 4))
    before = mla_prefill(q, k, v, SCALE)
    k[0, 6] += 1.0
    after = mla_prefill(q, k, v, SCALE)
    assert torch.equal(before[0, :2], after[0, :2])
    assert not torch.equal(before[0, 2], after[0, 2])


def test_a_causal_mask_aligned_at_the_start_is_caught(randn, check):
    q, k, v = _operands(randn, (1, 3, 7, 1, 4, 4))
    aligned_at_start = torch.ones(3, 7, dtype=torch.bool).tril()[None]
    mutant = mla_prefill(q, k, v, SCALE, aligned_at_start)
    assert check.error(mutant, _definition(q, k, v)) > 0.01


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_left_padding_yields_zeros_where_nothing_is_seen_and_no_nan(randn, dtype):
    q, k, v = (t.requires_grad_() for t in _operands(randn, (2, 6, 6, 2, 4, 4), dtype))
    mask = torch.ones(6, 6, dtype=torch.bool).tril().repeat(2, 1, 1)
    mask[0, :, :3] = False  # three padding tokens in front of the first sequence
    out = mla_prefill(q, k, v, SCALE, mask)
    assert not out[0, :3].any()
    assert out[0, 3:].all()
    out.square().sum().backward()
    for operand in (q, k, v):
        assert torch.isfinite(operand.grad).all()
        assert not operand.grad[0, :3].any()


def test_padding_keys_of_any_value_change_nothing(randn):
    q, k, v = _operands(randn, (1, 4, 6, 2, 4, 4))
    mask = torch.ones(1, 4, 6, dtype=torch.bool)
    mask[:, :, 5] = False
    before = mla_prefill(q, k, v, SCALE, mask)
    k[:, 5], v[:, 5] = 1e3, -1e3
    assert torch.equal(before, mla_prefill(q, k, v, SCALE, mask))


@pytest.mark.parametrize("shape", [(2, 4, 4, 2, 3, 2), (1, 2, 5, 2, 2, 3), (1, 1, 3, 1, 2, 2)])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_pass_gradcheck(randn, shape, masked):
    operands = tuple(t.requires_grad_() for t in _operands(randn, shape))
    mask = _mask(randn, shape) if masked else None
    assert torch.autograd.gradcheck(lambda *o: mla_prefill(*o, SCALE, mask), operands)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_of_tiles_and_fused_attention_agree(randn, check, shape):
    operands = tuple(t.requires_grad_() for t in _operands(randn, shape))
    pull = randn(shape[0], shape[1], shape[3], shape[5])
    tiles = torch.autograd.grad((eager._Tiles.apply(*operands, SCALE, None) * pull).sum(), operands)
    fused = torch.autograd.grad((eager.fused(*operands, SCALE, None) * pull).sum(), operands)
    for got, want in zip(tiles, fused, strict=True):
        assert check.error(got, want) < 1e-12


def test_gradients_agree_with_differences_of_the_definition(randn, check):
    q, k, v = _operands(randn, (1, 3, 3, 2, 2, 2))
    q.requires_grad_()
    pull = randn(1, 3, 2, 2)
    (mla_prefill(q, k, v, SCALE) * pull).sum().backward()
    want = check.numeric_gradient(
        lambda x: reference.mla_prefill(x, k.numpy(), v.numpy(), SCALE),
        q.detach().numpy(),
        pull.numpy(),
    )
    assert check.error(q.grad, want) < 1e-8


def test_nothing_is_kept_for_a_gradient_that_nobody_asks_for(randn):
    kept = []
    operands = _operands(randn, SHAPES[0], torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        mla_prefill(*operands, SCALE)
        assert not kept
        mla_prefill(operands[0].requires_grad_(), *operands[1:], SCALE)
    assert kept


def _documents(n_queries, *starts):
    """A mask of documents that begin at these places of each row; every token sees itself."""
    place = torch.arange(n_queries)
    rows = []
    for begins in starts:
        number = sum((place >= begin).long() for begin in begins)
        rows.append((number[:, None] == number[None]) & (place[:, None] >= place[None]))
    return torch.stack(rows)


DOCUMENTS = [
    (_documents(300, (0, 150), (0, 20, 299)), [(0, 128), (0, 256), (16, 300)]),
    (_documents(300, (0, 200), (0, 170, 260)), [(0, 128), (0, 256), (160, 300)]),
    (_documents(260, (0,), (0, 257)), [(0, 128), (0, 256), (0, 260)]),
]


@pytest.mark.parametrize(("mask", "spans"), DOCUMENTS)
def test_masked_tiles_skip_the_keys_that_no_row_may_see(mask, spans):
    found = eager._spans(mask)
    assert [(keys.start, keys.stop) for _, keys in found] == spans
    for rows, keys in found:
        outside = mask[:, rows].clone()
        outside[:, :, keys] = False
        assert not outside.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("mask", "spans"), DOCUMENTS)
def test_masked_tiles_agree_with_the_definition_and_their_gradients_with_fused(
    randn, check, mask, spans, dtype
):
    shape = (2, mask.shape[1], mask.shape[1], 2, 6, 4)
    operands = tuple(t.requires_grad_() for t in _operands(randn, shape, dtype))
    out = mla_prefill(*operands, SCALE, mask)
    assert check.error(out, _definition(*operands, mask)) <= check.bound(dtype)
    pull = randn(2, mask.shape[1], 2, 4, dtype=dtype)
    tiles = torch.autograd.grad((out * pull).sum(), operands)
    wide = tuple(t.detach().double().requires_grad_() for t in operands)
    fused = torch.autograd.grad((eager.fused(*wide, SCALE, mask) * pull).sum(), wide)
    for got, want in zip(tiles, fused, strict=True):
        assert check.error(got, want) <= 2 * check.bound(dtype)


def test_control_a_span_that_is_too_short_is_noticed(randn, check, monkeypatch):
    mask, _ = DOCUMENTS[1]
    operands = _operands(randn, (2, 300, 300, 1, 4, 4))
    *others, (rows, keys) = eager._spans(mask)
    short = [*others, (rows, slice(keys.start + 32, keys.stop))]
    monkeypatch.setattr(eager, "_spans", lambda mask: short)
    found = mla_prefill(*operands, SCALE, mask)
    assert check.error(found, _definition(*operands, mask)) > 0.01


def test_empty_operands_get_gradients(randn):
    for shape in EMPTY:
        operands = [t.requires_grad_() for t in _operands(randn, shape)]
        mla_prefill(*operands, SCALE).sum().backward()
        assert all(operand.grad is not None for operand in operands)


def test_autocast_casts_all_operands_alike(randn, check):
    q, k, v = _operands(randn, SHAPES[0], torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = mla_prefill(q.bfloat16(), k, v, SCALE)
        assert out.dtype == torch.bfloat16
        assert mla_prefill(q.double(), k.double(), v.double(), SCALE).dtype == torch.float64
    assert check.error(out, _definition(q, k, v)) < 0.05


def test_no_scale_is_caught(randn, check):
    operands = _operands(randn, SHAPES[0])
    assert check.error(mla_prefill(*operands, 1.0), _definition(*operands)) > 0.01
