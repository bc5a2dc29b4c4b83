"""Exact mode: forward results equal to the bit over batch sizes, chunk sizes and padding."""

import pytest
import torch

import longcat.kernels as kernels

DTYPES = [torch.float32, torch.float64]


def _routing(randn, tokens, n_experts, top_k, dtype):
    return kernels.route(
        randn(tokens, n_experts, dtype=dtype), torch.zeros(n_experts, dtype=dtype), top_k, 2.0
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("inner", "outer"), [(33, 7), (128, 96), (8, 513), (192, 64)])
def test_a_linear_row_does_not_depend_on_batch_or_chunk(randn, dtype, inner, outer):
    x, weight, bias = (
        randn(*shape, dtype=dtype) for shape in ((45, inner), (outer, inner), (outer,))
    )
    with kernels.exact():
        together = kernels.linear(x, weight, bias)
        for chunk in (1, 2, 7, 16, 31):
            parts = [kernels.linear(part, weight, bias) for part in x.split(chunk)]
            assert torch.equal(torch.cat(parts), together)
        batched = kernels.linear(x.view(5, 9, inner), weight, bias)
        assert torch.equal(batched.view(45, outer), together)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "inner"), [(16, 8), (33, 7), (64, 48)])
def test_a_moe_token_does_not_depend_on_who_shares_its_experts(randn, dtype, width, inner):
    n_ffn, x = 5, randn(50, width, dtype=dtype)
    _, indices, gates = _routing(randn, 50, 8, 3, dtype)
    gate_up, down = (
        randn(n_ffn, 2 * inner, width, dtype=dtype),
        randn(n_ffn, width, inner, dtype=dtype),
    )

    def moe(part):
        rows, plan = kernels.permute(x[part], indices[part], n_ffn)
        y = kernels.experts(rows, gate_up, down, plan.offsets)
        return kernels.combine(y, plan, gates[part], indices[part], x[part], n_ffn)

    with kernels.exact():
        together = moe(slice(0, 50))
        for chunk in (1, 3, 16, 37):
            parts = [moe(slice(start, min(start + chunk, 50))) for start in range(0, 50, chunk)]
            assert torch.equal(torch.cat(parts), together)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "n_values"), [(96, 64), (12, 5)])
def test_prefill_does_not_depend_on_batch_chunk_or_padding(randn, dtype, width, n_values):
    n_tokens, n_heads = 150, 2
    q, k = (randn(3, n_tokens, n_heads, width, dtype=dtype) for _ in range(2))
    v = randn(3, n_tokens, n_heads, n_values, dtype=dtype)
    with kernels.exact():
        together = kernels.mla_prefill(q, k, v, 0.1)
        alone = kernels.mla_prefill(q[1:2], k[1:2], v[1:2], 0.1)
        assert torch.equal(alone, together[1:2])
        for chunk in (1, 20, 64, 149):
            for start in range(0, n_tokens, 3 * chunk):
                end = min(start + chunk, n_tokens)
                part = kernels.mla_prefill(q[:, start:end], k[:, :end], v[:, :end], 0.1)
                assert torch.equal(part, together[:, start:end])
        # The second sequence again, behind 23 tokens of left padding.
        pad, length = 23, n_tokens - 23
        mask = torch.ones(n_tokens, n_tokens, dtype=torch.bool).tril()[None]
        mask[..., :pad] = False
        shifted = [t[1:2].roll(pad, dims=1) for t in (q, k, v)]
        padded = kernels.mla_prefill(*shifted, 0.1, mask)
        assert torch.equal(padded[0, pad:], together[1, :length])
        assert not padded[0, :pad].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_latent", "n_rope", "n_heads"), [(64, 16, 8), (20, 6, 3)])
def test_decode_does_not_depend_on_batch_chunk_or_padding(randn, dtype, n_latent, n_rope, n_heads):
    n_tokens = 140
    q_latent = randn(3, n_tokens, n_heads, n_latent, dtype=dtype)
    q_rope = randn(3, n_tokens, n_heads, n_rope, dtype=dtype)
    latent, k_rope = (
        randn(3, n_tokens, n_latent, dtype=dtype),
        randn(3, n_tokens, n_rope, dtype=dtype),
    )

    def decode(batch, start, end):
        return kernels.mla_decode(
            q_latent[batch, start:end], q_rope[batch, start:end], latent[batch, :end],
            k_rope[batch, :end], 0.1,
        )  # fmt: skip

    with kernels.exact():
        together = decode(slice(None), 0, n_tokens)
        assert torch.equal(decode(slice(1, 2), 0, n_tokens), together[1:2])
        for chunk in (1, 2, 5, 64):
            for start in range(0, n_tokens, 11 * chunk):
                end = min(start + chunk, n_tokens)
                assert torch.equal(decode(slice(None), start, end), together[:, start:end])
        pad = 9
        mask = torch.ones(1, 1, n_tokens, dtype=torch.bool)
        mask[..., :pad] = False
        last = n_tokens - pad - 1  # the token that stands last once the padding is in front
        padded = kernels.mla_decode(
            q_latent[1:2, last : last + 1], q_rope[1:2, last : last + 1],
            latent[1:2].roll(pad, dims=1), k_rope[1:2].roll(pad, dims=1), 0.1, mask,
        )  # fmt: skip
        assert torch.equal(padded[0, 0], together[1, last])


def test_a_key_split_that_ignores_padding_is_caught(randn):
    # The mutant of the test above: splits counted from the cache's beginning, not from the first
    # key of the sequence.
    from longcat.kernels.mla_prefill import exact

    q, k, v = (randn(2, 150, 16, dtype=torch.float32) for _ in range(3))
    causal = torch.ones(150, 150, dtype=torch.bool).tril()
    plain = exact._attend(q, k, v, 0.1, causal, 0)
    moved = [t.roll(23, dims=1) for t in (q, k, v)]
    mask = causal.clone()
    mask[:, :23] = False
    assert torch.equal(exact._attend(*moved, 0.1, mask, exact._lead(mask))[:, 23:], plain[:, :127])
    assert not torch.equal(exact._attend(*moved, 0.1, mask, 0)[:, 23:], plain[:, :127])


def test_the_fast_forms_do_depend_on_the_batch(randn):
    # The control: if plain products had this property here, exact mode would have nothing to show.
    x, weight = randn(64, 520, dtype=torch.float32), randn(200, 520, dtype=torch.float32)
    together = kernels.linear(x, weight)
    rows = torch.cat([kernels.linear(row[None], weight) for row in x])
    assert not torch.equal(rows, together)


@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_forms_agree_with_the_definitions(randn, check, dtype):
    x, weight = randn(2, 5, 12, dtype=dtype), randn(9, 12, dtype=dtype)
    q, k, v = (randn(2, 5, 3, 8, dtype=dtype) for _ in range(3))
    mask = randn(2, 5, 5) > 0
    mask[0, 1] = False
    latent, k_rope = randn(2, 5, 8, dtype=dtype), randn(2, 5, 4, dtype=dtype)
    calls = [
        lambda: kernels.linear(x, weight),
        lambda: kernels.mla_prefill(q, k, v, 0.3),
        lambda: kernels.mla_prefill(q, k, v, 0.3, mask),
        lambda: kernels.mla_decode(q, q[..., :4], latent, k_rope, 0.3),
        lambda: kernels.mla_decode(q, q[..., :4], latent, k_rope, 0.3, mask),
    ]
    for call in calls:
        with kernels.use_backend("numpy"):
            want = call()
        with kernels.exact():
            assert check.error(call(), want) <= check.bound(dtype, 12)


def test_gradients_of_exact_and_fast_forms_agree(randn, check):
    x, weight = randn(5, 12).requires_grad_(), randn(16, 12).requires_grad_()
    gate_up, down = randn(3, 8, 16).requires_grad_(), randn(3, 16, 4).requires_grad_()
    _, indices, gates = _routing(randn, 5, 5, 2, torch.float64)
    kr = randn(1, 5, 4)

    def loss():
        h = kernels.linear(x, weight)
        rows, plan = kernels.permute(h, indices, 3)
        y = kernels.experts(rows, gate_up, down, plan.offsets)
        h = kernels.combine(y, plan, gates, indices, h, 3)
        heads = h.view(1, 5, 2, 8)
        h = kernels.mla_prefill(heads, heads, heads, 0.3)
        return kernels.mla_decode(h, h[..., :4], h[:, :, 0], kr, 0.3).square().sum()

    operands = (x, weight, gate_up, down)
    fast = torch.autograd.grad(loss(), operands)
    with kernels.exact():
        exact = torch.autograd.grad(loss(), operands)
    for got, want in zip(exact, fast, strict=True):
        assert check.error(got, want) < 1e-6


def test_empty_operands_work_in_exact_mode(randn):
    with kernels.exact():
        assert kernels.linear(randn(0, 4), randn(3, 4)).shape == (0, 3)
        none = torch.zeros(0, dtype=torch.int32)
        assert kernels.experts(randn(0, 4), randn(0, 6, 4), randn(0, 4, 3), none).shape == (0, 4)
        q = randn(1, 0, 2, 4)
        assert kernels.mla_prefill(q, q, q[..., :3], 1.0).shape == (1, 0, 2, 3)
        assert kernels.mla_decode(q, q, q[:, :, 0], q[:, :, 0], 1.0).shape == q.shape
