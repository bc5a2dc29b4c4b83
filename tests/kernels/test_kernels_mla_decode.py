"""Absorbed attention: equal to the expanded form, masks, gradients."""

import pytest
import torch

from longcat.kernels import mla_decode, mla_prefill, use_backend
from longcat.kernels.mla_decode import reference

SCALE = 0.3
# B, T, S, H, C, R
SHAPES = [(2, 1, 9, 3, 8, 4), (2, 5, 9, 3, 8, 4), (1, 1, 1, 1, 4, 2), (2, 3, 3, 2, 6, 2)]
EMPTY = [(2, 0, 5, 3, 6, 4), (0, 1, 3, 1, 4, 4), (1, 0, 0, 1, 4, 2)]


def _operands(randn, shape, dtype=torch.float64):
    n_batch, n_queries, n_keys, n_heads, n_latent, n_rope = shape
    return (
        randn(n_batch, n_queries, n_heads, n_latent, dtype=dtype),
        randn(n_batch, n_queries, n_heads, n_rope, dtype=dtype),
        randn(n_batch, n_keys, n_latent, dtype=dtype),
        randn(n_batch, n_keys, n_rope, dtype=dtype),
    )


def _definition(*operands, mask=None):
    arrays = [t.detach().double().numpy() for t in operands]
    return reference.mla_decode(*arrays, SCALE, None if mask is None else mask.numpy())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES + EMPTY)
@pytest.mark.parametrize("masked", [False, True])
def test_eager_agrees_with_the_definition(randn, check, shape, dtype, masked):
    operands = _operands(randn, shape, dtype)
    mask = None
    if masked:
        mask = randn(*shape[:3]) > 0
        mask[:1, :1] = False
    want = _definition(*operands, mask=mask)
    assert check.error(mla_decode(*operands, SCALE, mask), want) <= check.bound(dtype)
    with use_backend("numpy"):
        assert check.error(mla_decode(*operands, SCALE, mask), want) <= check.bound(dtype)


def test_no_keys_at_all_give_zeros(randn):
    q_latent, q_rope, latent, k_rope = _operands(randn, (1, 2, 3, 2, 4, 2))
    mask = torch.zeros(1, 2, 0, dtype=torch.bool)
    out = mla_decode(q_latent, q_rope, latent[:, :0], k_rope[:, :0], SCALE, mask)
    assert out.shape == q_latent.shape
    assert not out.any()


@pytest.mark.parametrize("n_queries", [1, 4])
def test_absorbed_and_expanded_attention_agree(randn, check, n_queries):
    n_heads, n_latent, n_nope, n_rope, n_values, n_keys = 3, 8, 5, 4, 6, 9
    up_keys, up_values = randn(n_heads, n_nope, n_latent), randn(n_heads, n_values, n_latent)
    latent, k_rope = randn(2, n_keys, n_latent), randn(2, n_keys, n_rope)
    q_nope, q_rope = randn(2, n_queries, n_heads, n_nope), randn(2, n_queries, n_heads, n_rope)

    k_nope = torch.einsum("hnc,bsc->bshn", up_keys, latent)
    shared = k_rope[:, :, None].expand(-1, -1, n_heads, -1)
    values = torch.einsum("hvc,bsc->bshv", up_values, latent)
    q, k = torch.cat([q_nope, q_rope], -1), torch.cat([k_nope, shared], -1)
    expanded = mla_prefill(q, k, values, SCALE)

    q_latent = torch.einsum("bthn,hnc->bthc", q_nope, up_keys)
    over_latents = mla_decode(q_latent, q_rope, latent, k_rope, SCALE)
    absorbed = torch.einsum("bthc,hvc->bthv", over_latents, up_values)
    assert check.error(absorbed, expanded) < 1e-12
    mutant = mla_decode(q_latent, q_rope * 0, latent, k_rope, SCALE)
    assert check.error(torch.einsum("bthc,hvc->bthv", mutant, up_values), expanded) > 1e-3


def test_padding_in_the_cache_changes_nothing(randn):
    q_latent, q_rope, latent, k_rope = _operands(randn, (1, 2, 6, 2, 4, 2))
    mask = torch.ones(1, 2, 6, dtype=torch.bool)
    mask[..., :2] = False
    before = mla_decode(q_latent, q_rope, latent, k_rope, SCALE, mask)
    latent[:, :2], k_rope[:, :2] = 1e3, -1e3
    assert torch.equal(before, mla_decode(q_latent, q_rope, latent, k_rope, SCALE, mask))


@pytest.mark.parametrize("shape", [(2, 1, 4, 2, 3, 2), (1, 3, 4, 2, 2, 2)])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_pass_gradcheck(randn, shape, masked):
    operands = tuple(t.requires_grad_() for t in _operands(randn, shape))
    mask = None
    if masked:
        mask = randn(*shape[:3]) > 0
        mask[0, 0] = False
    assert torch.autograd.gradcheck(lambda *o: mla_decode(*o, SCALE, mask), operands)


def test_gradients_agree_with_differences_of_the_definition(randn, check):
    q_latent, q_rope, latent, k_rope = _operands(randn, (1, 2, 3, 2, 3, 2))
    latent.requires_grad_()
    pull = randn(1, 2, 2, 3)
    (mla_decode(q_latent, q_rope, latent, k_rope, SCALE) * pull).sum().backward()
    want = check.numeric_gradient(
        lambda c: reference.mla_decode(q_latent.numpy(), q_rope.numpy(), c, k_rope.numpy(), SCALE),
        latent.detach().numpy(),
        pull.numpy(),
    )
    assert check.error(latent.grad, want) < 1e-8


def test_autocast_casts_all_operands_alike(randn, check):
    operands = _operands(randn, SHAPES[1], torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = mla_decode(operands[0].bfloat16(), *operands[1:], SCALE)
    assert out.dtype == torch.bfloat16
    assert check.error(out, _definition(*operands)) < 0.05


def test_a_softmax_in_bfloat16_is_caught(randn, check):
    # 2,000 equal keys: weights of 1/2000 are exact in float32 sums and drift in bfloat16 ones.
    latent, k_rope = torch.ones(1, 2000, 2).bfloat16(), torch.zeros(1, 2000, 2).bfloat16()
    q = torch.ones(1, 1, 1, 2).bfloat16()
    got = mla_decode(q, q, latent, k_rope, 1.0)
    assert check.error(got, torch.ones(1, 1, 1, 2)) < 2**-7
    total = torch.zeros((), dtype=torch.bfloat16)
    for _ in range(2000):
        total += torch.tensor(1.0).bfloat16()
    assert float(total) < 1000  # the mutant's denominator stops growing
