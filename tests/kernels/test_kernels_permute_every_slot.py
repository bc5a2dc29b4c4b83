"""Off the CPU permute keeps the identity slots, so that nobody waits for a number: the same sums.

What a device leaves in rows that nobody computed is played by NaN, forward and backward.
"""

import pytest
import torch

from longcat.kernels.experts.eager import padded_linear
from longcat.kernels.permute import eager

_plan_of = eager.plan_of
# tokens, width, N, Z, K
SHAPES = [(11, 5, 4, 2, 3), (1, 1, 1, 0, 1), (0, 4, 3, 2, 2), (6, 3, 0, 4, 2), (7, 3, 2, 3, 5)]


class _Uncomputed(torch.autograd.Function):
    """Rows from `end` on hold anything, in the result and in the gradient."""

    @staticmethod
    def forward(ctx, rows, end):
        ctx.end = end
        return torch.cat([rows[:end], torch.full_like(rows[end:], torch.nan)])

    @staticmethod
    def backward(ctx, grad):
        return torch.cat([grad[: ctx.end], torch.full_like(grad[ctx.end :], torch.nan)]), None


def _round_trip(monkeypatch, every_slot, x, gates, indices, n_ffn):
    monkeypatch.setattr(eager, "plan_of", lambda i, n, **_: _plan_of(i, n, every_slot=every_slot))
    rows, plan = eager.permute(x, indices, n_ffn)
    end = int(plan.offsets[-1]) if n_ffn else 0
    y = _Uncomputed.apply(torch.tanh(_Uncomputed.apply(rows, end)), end)
    return eager.combine(y, plan, gates, indices, x, n_ffn), plan


def _operands(randn, tokens, width, n_experts, top_k, dtype):
    indices = randn(tokens, n_experts).argsort(dim=1)[:, :top_k].contiguous()
    wide = torch.promote_types(dtype, torch.float32)
    gates = randn(tokens, top_k, dtype=wide).requires_grad_()
    return randn(tokens, width, dtype=dtype).requires_grad_(), gates, indices


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "width", "n_ffn", "n_zero", "top_k"), SHAPES)
def test_a_plan_of_every_slot_gives_the_same_sums_and_gradients(
    randn, check, monkeypatch, tokens, width, n_ffn, n_zero, top_k, dtype
):
    x, gates, indices = _operands(randn, tokens, width, n_ffn + n_zero, top_k, dtype)
    pull = randn(tokens, width, dtype=dtype)
    found = {}
    for every_slot in (False, True):
        x.grad = gates.grad = None
        out, plan = _round_trip(monkeypatch, every_slot, x, gates, indices, n_ffn)
        (out * pull).sum().backward()
        assert plan.slots.shape[0] == (
            tokens * top_k if every_slot and n_ffn else int((indices < n_ffn).sum())
        )
        found[every_slot] = [out.detach(), x.grad, gates.grad]
    bound = 1e-14 if dtype == torch.float64 else 2**-7  # K terms, rounded once or twice
    for got, want in zip(found[True], found[False], strict=True):
        assert check.error(got, want.double().numpy()) <= bound


@pytest.mark.parametrize("mutant", ["read the identity slots' rows", "sum their gates' gradients"])
def test_control_rows_that_nobody_computed_are_noticed(randn, monkeypatch, mutant):
    x, gates, indices = _operands(randn, 11, 5, 6, 3, torch.float64)
    kept = torch.Tensor.masked_fill_
    skipped = 2 if mutant.startswith("read") else 1  # rows [S, D], or a number for each row

    def masked_fill_(tensor, mask, value):
        return tensor if tensor.dim() == skipped else kept(tensor, mask, value)

    monkeypatch.setattr(torch.Tensor, "masked_fill_", masked_fill_)
    out, _ = _round_trip(monkeypatch, True, x, gates, indices, 4)
    out.sum().backward()
    assert not all(t.isfinite().all() for t in (out, x.grad, gates.grad))


def test_a_plan_of_every_slot_needs_no_number_from_the_device():
    # The meta device has no numbers at all: asking it for one is an error.
    indices = torch.empty(6, 3, dtype=torch.int64, device="meta")
    assert eager.plan_of(indices, 4, every_slot=True).slots.shape == (18,)
    with pytest.raises(NotImplementedError):
        eager.plan_of(indices, 4, every_slot=False)


def test_padded_products_leave_rows_behind_the_last_expert_alone(randn):
    rows, weight, offsets = randn(9, 3), randn(2, 4, 3), torch.tensor([4, 6], dtype=torch.int32)
    got = padded_linear(rows, weight, offsets)
    assert torch.equal(got[:6], padded_linear(rows[:6], weight, offsets))
    assert got.shape == (9, 4)
    assert (got[6:] == 0).all()
