"""Sorting tokens by expert and bringing the results back, in eager torch.

Both directions move whole rows by index and add in slot order, so there are no atomics and the
result is the same in every run. Their gradients are written by hand: each is the other's forward.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from longcat.kernels.dispatch import exact_enabled, is_unchecked
from longcat.kernels.operands import autocast_dtype
from longcat.kernels.permute.reference import PermutePlan


def plan_of(indices: Tensor, n_ffn: int, *, every_slot: bool = False) -> PermutePlan[Tensor]:
    """The plan for indices [T, K]: FFN slots sorted by expert, then by slot.

    On a GPU the number of FFN slots takes one host sync, and none with `every_slot`, which leaves
    the identity slots in, behind all others.
    """
    n_tokens, top_k = indices.shape
    flat = indices.reshape(-1)
    if every_slot and n_ffn:
        experts, slots = flat.clamp(max=n_ffn).sort(stable=True)
    else:
        slots = (flat < n_ffn).nonzero().squeeze(1) if n_ffn else flat[:0]
        experts, order = flat[slots].sort(stable=True)
        slots = slots[order]
    ends = torch.arange(1, n_ffn + 1, device=indices.device)
    return PermutePlan(
        slots=slots,
        tokens=slots // top_k,
        # The rows are sorted by expert, so the end of expert e is where e + 1 would be inserted.
        offsets=torch.searchsorted(experts, ends, out_int32=True),
        n_tokens=n_tokens,
        top_k=top_k,
        has_every_slot=every_slot and n_ffn > 0,
    )


def permute(x: Tensor, indices: Tensor, n_ffn: int) -> tuple[Tensor, PermutePlan[Tensor]]:
    """x [T, D], indices [T, K] -> (x_sorted [S, D], plan), see reference.py.

    Inside torch.autocast the tokens are cast before they are copied, not once per copy. Off the CPU
    the rows are those of every slot, unless exact mode asks for sums in slot order.
    """
    plan = plan_of(indices, n_ffn, every_slot=x.device.type != "cpu" and not exact_enabled())
    dtype = autocast_dtype(x)
    if dtype is not None:
        x = x.to(dtype)
    if is_unchecked():
        return x.index_select(0, plan.tokens), plan
    rows: Tensor = _GatherRows.apply(x, plan)  # type: ignore[no-untyped-call]
    return rows, plan


def combine(
    y_sorted: Tensor,
    plan: PermutePlan[Tensor],
    gates: Tensor,
    indices: Tensor,
    x: Tensor,
    n_ffn: int,
) -> Tensor:
    """sum_k gate * expert(x) with identity experts, see reference.py. -> [T, D] in x.dtype.

    Weights and sums are float32 (float64 for float64 x), rounded once to x.dtype.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    gates = gates.to(wide)
    identity = gates.masked_fill(indices < n_ffn, 0).sum(dim=1, keepdim=True)
    ffn: Tensor = _WeightedSum.apply(y_sorted, gates, plan)  # type: ignore[no-untyped-call]
    return torch.addcmul(ffn, identity, x.to(wide)).to(x.dtype)


def _bags(plan: PermutePlan[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The plan read the other way, token by token, without a host sync.

    Returns (rows [S], starts [T], places [S]): rows[starts[t] : starts[t+1]] are the sorted rows of
    token t in slot order, and sorted row s stands at rows[places[s]].
    """
    n_slots = plan.n_tokens * plan.top_k
    is_ffn = plan.slots.new_zeros(n_slots + 1)
    is_ffn[plan.slots + 1] = 1
    before = is_ffn.cumsum(0)  # FFN slots in front of each slot
    places = before[plan.slots]
    rows = torch.empty_like(places)
    rows[places] = torch.arange(len(places), device=places.device)
    return rows, before[: n_slots : plan.top_k], places


def _sum_per_token(
    rows: Tensor, plan: PermutePlan[Tensor], slot_weights: Tensor | None = None
) -> Tensor:
    """rows [S, D] (times slot_weights [T*K]) added per token in slot order -> [T, D].

    An embedding bag is this sum: it reads each row once and writes no [T*K, D] in between (many
    times faster on a CPU than scattering the rows to their slots first).
    """
    if rows.numel() == 0 or plan.n_tokens == 0:
        return rows.new_zeros(plan.n_tokens, rows.shape[1])
    if plan.has_every_slot:
        return _sum_every_slot(rows, plan, slot_weights)
    order, starts, places = _bags(plan)
    weights = None
    if slot_weights is not None:
        weights = torch.empty_like(slot_weights[: len(order)])
        weights[places] = slot_weights[plan.slots]
    return F.embedding_bag(order, rows, starts, per_sample_weights=weights, mode="sum")


def _sum_every_slot(rows: Tensor, plan: PermutePlan[Tensor], slot_weights: Tensor | None) -> Tensor:
    """The same where the plan has every slot: rows back to their slots, then one sum over K."""
    row_of = torch.empty_like(plan.slots)
    row_of[plan.slots] = torch.arange(len(rows), device=rows.device)
    # What stands in an identity slot's row was never computed, and may be anything.
    picked = rows.index_select(0, row_of).masked_fill_((row_of >= plan.offsets[-1])[:, None], 0)
    if slot_weights is not None:
        picked = picked * slot_weights[:, None]
    return picked.view(plan.n_tokens, plan.top_k, -1).sum(dim=1)


class _GatherRows(torch.autograd.Function):
    """x[tokens]; the gradient of a token is the sum over its slots, in slot order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: PermutePlan[Tensor]) -> Tensor:
        ctx.plan = plan
        return x.index_select(0, plan.tokens)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _sum_per_token(grad.contiguous(), ctx.plan), None


class _WeightedSum(torch.autograd.Function):
    """sum_k gates[t, k] * row of slot (t, k), accumulated in slot order in the gates' dtype."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, gates: Tensor, plan: PermutePlan[Tensor]) -> Tensor:
        ctx.save_for_backward(rows, gates)
        ctx.plan = plan
        return _sum_per_token(rows.to(gates.dtype), plan, gates.reshape(-1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, gates = ctx.saved_tensors
        plan: PermutePlan[Tensor] = ctx.plan
        weights = gates.reshape(-1)[plan.slots]
        grad_weights = torch.empty_like(weights)
        grad_rows = torch.empty_like(rows)
        step = _rows_at_once(rows)
        for start in range(0, rows.shape[0], step):
            part = slice(start, start + step)
            # In one dtype the rows are gathered to where their gradient is kept.
            out = grad_rows[part] if rows.dtype == grad.dtype else None
            of_rows = torch.index_select(grad, 0, plan.tokens[part], out=out)
            products = of_rows * rows[part].to(grad.dtype)
            torch.sum(products, dim=1, dtype=weights.dtype, out=grad_weights[part])
            of_rows.mul_(weights[part, None])
            if out is None:
                grad_rows[part] = of_rows
        if plan.has_every_slot:
            row = torch.arange(len(rows), device=rows.device)
            grad_weights.masked_fill_(row >= plan.offsets[-1], 0)
        grad_gates = torch.zeros_like(gates).view(-1)
        grad_gates[plan.slots] = grad_weights
        return grad_rows, grad_gates.view_as(gates), None


def _rows_at_once(rows: Tensor) -> int:
    """On a CPU a part that stays in its cache is twice as fast; a GPU takes all rows at once."""
    if rows.device.type != "cpu":
        return max(rows.shape[0], 1)
    return max(2**18 // max(rows.shape[1], 1), 1)
