"""Permute and combine: a permutation of the FFN slots, identity slots for nothing, slot order."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longcat.kernels import combine, permute, use_backend
from longcat.kernels.permute import reference

# tokens, width, N, Z, K
SHAPES = [
    (11, 5, 4, 2, 3),
    (1, 1, 1, 0, 1),
    (0, 4, 3, 2, 2),
    (6, 3, 0, 4, 2),
    (5, 2, 3, 0, 3),
    (7, 3, 2, 3, 5),
]


def _choices(randn, tokens, n_experts, top_k):
    return randn(tokens, n_experts).argsort(dim=1)[:, :top_k].contiguous()


def _round_trip(x, y_of, gates, indices, n_ffn):
    x_sorted, plan = permute(x, indices, n_ffn)
    return combine(y_of(x_sorted), plan, gates, indices, x, n_ffn)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "width", "n_ffn", "n_zero", "top_k"), SHAPES)
def test_eager_agrees_with_the_definition(randn, check, tokens, width, n_ffn, n_zero, top_k, dtype):
    x, indices = randn(tokens, width, dtype=dtype), _choices(randn, tokens, n_ffn + n_zero, top_k)
    gates = randn(tokens, top_k, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    want_rows, want_plan = reference.permute(x.double().numpy(), indices.numpy(), n_ffn)
    rows, plan = permute(x, indices, n_ffn)
    assert check.error(rows, want_rows) == 0
    assert np.array_equal(plan.slots, want_plan.slots)
    assert np.array_equal(plan.tokens, want_plan.tokens)
    assert np.array_equal(plan.offsets, want_plan.offsets)
    assert (plan.n_tokens, plan.top_k) == (tokens, top_k)
    assert plan.offsets.dtype == torch.int32
    y = randn(*rows.shape, dtype=dtype)
    want = reference.combine(
        y.double().numpy(), want_plan, gates.double().numpy(), indices.numpy(),
        x.double().numpy(), n_ffn,
    )  # fmt: skip
    assert check.error(combine(y, plan, gates, indices, x, n_ffn), want) <= check.bound(
        dtype, top_k
    )
    with use_backend("numpy"):
        numpy_rows, numpy_plan = permute(x, indices, n_ffn)
        assert torch.equal(numpy_rows, rows)
        got = combine(y, numpy_plan, gates, indices, x, n_ffn)
    assert check.error(got, want) <= check.bound(dtype)


@given(st.integers(0, 30), st.integers(0, 5), st.integers(0, 5), st.data())
def test_the_plan_is_a_permutation_of_the_ffn_slots(tokens, n_ffn, n_zero, data):
    if n_ffn + n_zero == 0:
        return
    top_k = data.draw(st.integers(1, n_ffn + n_zero))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    indices = torch.rand(tokens, n_ffn + n_zero, generator=generator).argsort(1)[:, :top_k]
    x = torch.arange(tokens, dtype=torch.float64)[:, None]
    rows, plan = permute(x, indices, n_ffn)
    flat = indices.reshape(-1)
    # Every FFN slot once, and no identity slot at all.
    assert sorted(plan.slots.tolist()) == (flat < n_ffn).nonzero().squeeze(1).tolist()
    # Sorted by expert, and within an expert by slot.
    keys = list(zip(flat[plan.slots].tolist(), plan.slots.tolist(), strict=True))
    assert keys == sorted(keys)
    assert torch.equal(rows[:, 0].long(), plan.tokens)
    assert torch.equal(plan.tokens, plan.slots // top_k)
    counts = torch.bincount(flat[plan.slots], minlength=n_ffn)[:n_ffn]
    assert torch.equal(plan.offsets.long(), counts.cumsum(0))


def test_identity_experts_return_their_input(randn):
    x, gates = randn(4, 3), randn(4, 2).abs()
    indices = torch.tensor([[2, 3]] * 4)
    rows, plan = permute(x, indices, 2)
    assert rows.shape == (0, 3)
    got = combine(rows, plan, gates, indices, x, 2)
    assert torch.allclose(got, gates.sum(1, keepdim=True) * x, rtol=1e-14)


def test_all_experts_as_identities_equal_the_input_times_the_gates(randn, check):
    x, gates, indices = randn(6, 3), randn(6, 3), _choices(randn, 6, 5, 3)
    got = _round_trip(x, lambda rows: rows, gates, indices, 3)
    assert check.error(got, gates.sum(1, keepdim=True) * x) < 1e-14


def test_gating_identity_slots_by_their_rows_is_caught(randn, check):
    # A known mistake: the gate of an identity slot also weights an FFN row.
    x, gates, indices = randn(6, 3), randn(6, 3), _choices(randn, 6, 5, 3)
    right = _round_trip(x, lambda rows: 2 * rows, gates, indices, 3)
    mutant = _round_trip(x, lambda rows: 2 * rows, gates, indices % 3, 3)
    assert check.error(mutant, right) > 0.01


def test_gradients_pass_gradcheck(randn):
    x, gates = randn(5, 3).requires_grad_(), randn(5, 3).requires_grad_()
    indices = _choices(randn, 5, 6, 3)
    scale = randn(3).requires_grad_()

    def function(x, gates, scale):
        return _round_trip(x, lambda rows: torch.tanh(rows) * scale, gates, indices, 4)

    assert torch.autograd.gradcheck(function, (x, gates, scale))


@pytest.mark.parametrize(("tokens", "width", "n_ffn", "n_zero", "top_k"), SHAPES)
def test_every_operand_gets_a_gradient_of_its_shape(randn, tokens, width, n_ffn, n_zero, top_k):
    x, gates = randn(tokens, width).requires_grad_(), randn(tokens, top_k).requires_grad_()
    indices = _choices(randn, tokens, n_ffn + n_zero, top_k)
    _round_trip(x, torch.tanh, gates, indices, n_ffn).sum().backward()
    assert x.grad.shape == x.shape
    assert gates.grad.shape == gates.shape


def test_gradients_agree_with_differences_of_the_definition(randn, check):
    x, gates, indices = randn(4, 2), randn(4, 2).requires_grad_(), _choices(randn, 4, 4, 2)
    rows, plan = permute(x, indices, 3)
    y, pull = randn(*rows.shape), randn(4, 2)
    (combine(y, plan, gates, indices, x, 3) * pull).sum().backward()
    _, numpy_plan = reference.permute(x.numpy(), indices.numpy(), 3)
    want = check.numeric_gradient(
        lambda g: reference.combine(y.numpy(), numpy_plan, g, indices.numpy(), x.numpy(), 3),
        gates.detach().numpy(),
        pull.numpy(),
    )
    assert check.error(gates.grad, want) < 1e-8


def test_sums_are_float32_for_low_precision_rows(randn, check):
    x, indices = randn(64, 8, dtype=torch.bfloat16), _choices(randn, 64, 12, 12)
    gates = randn(64, 12, dtype=torch.float32)
    rows, plan = permute(x, indices, 12)
    y = randn(*rows.shape, dtype=torch.bfloat16)
    want = reference.combine(
        y.double().numpy(), reference.permute(x.double().numpy(), indices.numpy(), 12)[1],
        gates.double().numpy(), indices.numpy(), x.double().numpy(), 12,
    )  # fmt: skip
    got = combine(y, plan, gates, indices, x, 12)
    # One rounding at the end: at most half a unit in the last place of each element.
    assert (np.abs(got.double().numpy() - want) <= 2**-8 * np.abs(want) + 1e-5).all()
    mutant = torch.zeros_like(x)
    for row, slot in enumerate(plan.slots.tolist()):
        mutant[slot // 12] += gates.view(-1)[slot].bfloat16() * y[row]
    assert check.error(mutant, want) > 2 * check.error(got, want)


def test_a_token_does_not_depend_on_its_neighbours(randn):
    x, gates = randn(19, 40, dtype=torch.float32), randn(19, 3, dtype=torch.float32)
    indices = _choices(randn, 19, 6, 3)
    together = _round_trip(x, torch.tanh, gates, indices, 4)
    for t in range(19):
        part = slice(t, t + 1)
        assert torch.equal(
            _round_trip(x[part], torch.tanh, gates[part], indices[part], 4)[0], together[t]
        )


def test_autocast_copies_rows_in_its_dtype_and_sums_their_gradients_in_float32(randn):
    x, indices = randn(40, 8, dtype=torch.float32).requires_grad_(), _choices(randn, 40, 12, 10)
    with torch.autocast("cpu", torch.bfloat16):
        rows, plan = permute(x, indices, 12)
    assert torch.equal(rows, x.bfloat16()[plan.tokens])
    pull = randn(*rows.shape).bfloat16()
    rows.backward(pull)
    assert x.grad.dtype == torch.float32
    want = torch.zeros(40, 8, dtype=torch.float64).index_add(0, plan.tokens, pull.double())
    one_by_one = torch.zeros(40, 8, dtype=torch.bfloat16)
    for token, row in zip(plan.tokens, pull, strict=True):
        one_by_one[token] += row
    once = 1.001 * 2**-8 * want.abs()  # what one rounding to bfloat16 may do
    assert ((x.grad - want).abs() <= once).all()
    assert ((one_by_one - want).abs() > once).any()  # the control: ten roundings
