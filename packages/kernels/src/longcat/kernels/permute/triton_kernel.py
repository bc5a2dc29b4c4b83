"""Permute and combine as Triton kernels: a counting sort and a weighted gather, without atomics.

Permute: one program per expert counts its slots, and, once everyone's counts are known, writes them
in slot order behind those of the experts before it. Combine: one program per token and block of
columns adds its slots in their order, then the identity experts' share. Each one's gradient is the
other's walk: a token adds up what came to its rows, or hands its gradient to each of them.
"""

# Kernels are read by Triton's compiler, not by mypy.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from longcat.kernels.operands import check_rows
from longcat.kernels.permute import triton_gradient
from longcat.kernels.permute.reference import PermutePlan
from longcat.kernels.proof.configuration import Configuration

SLOTS = 1024  # slots that a program looks at together
COLUMNS = 1024  # columns of a row that one program moves


@triton.jit
def _count(indices_ptr, counts_ptr, n_slots, BLOCK: tl.constexpr):
    expert = tl.program_id(0)
    count = tl.zeros([BLOCK], dtype=tl.int32)
    for first in range(0, n_slots, BLOCK):
        slots = first + tl.arange(0, BLOCK)
        chosen = tl.load(indices_ptr + slots, mask=slots < n_slots, other=-1)
        count += (chosen == expert).to(tl.int32)
    tl.store(counts_ptr + expert, tl.sum(count, axis=0))


@triton.jit
def _place(
    indices_ptr, offsets_ptr, slots_ptr, tokens_ptr, n_slots, top_k, BLOCK: tl.constexpr
):  # fmt: skip
    # A slot's row: the rows of the experts before, and this expert's slots before it.
    expert = tl.program_id(0)
    row = tl.load(offsets_ptr + expert - 1, mask=expert > 0, other=0)
    for first in range(0, n_slots, BLOCK):
        slots = first + tl.arange(0, BLOCK)
        chosen = tl.load(indices_ptr + slots, mask=slots < n_slots, other=-1)
        mine = chosen == expert
        rank = tl.cumsum(mine.to(tl.int32), axis=0)
        tl.store(slots_ptr + row + rank - 1, slots.to(tl.int64), mask=mine)
        tl.store(tokens_ptr + row + rank - 1, (slots // top_k).to(tl.int64), mask=mine)
        row += tl.sum(mine.to(tl.int32), axis=0)


@triton.jit
def _gather(x_ptr, tokens_ptr, out_ptr, width, x_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    token = tl.load(tokens_ptr + row)
    values = tl.load(x_ptr + token * x_stride + columns, mask=inside)
    tl.store(out_ptr + row * width + columns, values, mask=inside)


@triton.jit
def _invert(slots_ptr, rows_ptr, n_rows, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < n_rows
    slots = tl.load(slots_ptr + rows, mask=inside, other=0)
    tl.store(rows_ptr + slots, rows, mask=inside)


@triton.jit
def _combine(
    y_ptr,
    rows_ptr,
    gates_ptr,
    indices_ptr,
    x_ptr,
    out_ptr,
    width,
    n_ffn,
    x_stride,
    TOP_K: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Without weights it adds a token's rows as they are: the gradient of permute.
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    total = tl.zeros([BLOCK], dtype=tl.float32)
    identity = 0.0
    n_identity = 0
    for k in tl.static_range(TOP_K):
        slot = token * TOP_K + k
        is_ffn = tl.load(indices_ptr + slot) < n_ffn
        gate = 1.0
        if WEIGHTED:
            gate = tl.load(gates_ptr + slot).to(tl.float32)
        # The row of an identity slot was never written, and is not read.
        row = tl.load(rows_ptr + slot, mask=is_ffn, other=0).to(tl.int64)
        y = tl.load(y_ptr + row * width + columns, mask=inside & is_ffn, other=0.0)
        total += tl.where(is_ffn, gate, 0.0) * y.to(tl.float32)
        identity += tl.where(is_ffn, 0.0, gate)
        n_identity += tl.where(is_ffn, 0, 1)
    if WEIGHTED:
        x = tl.load(x_ptr + token * x_stride + columns, mask=inside & (n_identity > 0), other=0.0)
        total += identity * x.to(tl.float32)
    tl.store(out_ptr + token * width + columns, total.to(out_ptr.dtype.element_ty), mask=inside)


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, indices: Tensor, plan: PermutePlan[Tensor], n_ffn: int
    ) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.plan, ctx.n_ffn = plan, n_ffn
        (n_rows,), width = plan.tokens.shape, x.shape[1]
        rows = torch.empty(n_rows, width, dtype=x.dtype, device=x.device)
        if rows.numel():
            with torch.cuda.device_of(x):
                _gather[(n_rows, triton.cdiv(width, COLUMNS))](
                    x, plan.tokens, rows, width, x.stride(0), BLOCK=COLUMNS
                )
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (indices,) = ctx.saved_tensors
        return _added(grad.contiguous(), ctx.plan, None, indices, None, ctx.n_ffn), *3 * (None,)


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        gates: Tensor,
        x: Tensor,
        plan: PermutePlan[Tensor],
        indices: Tensor,
        n_ffn: int,
    ) -> Tensor:
        ctx.save_for_backward(y, gates, x, indices)
        ctx.plan, ctx.n_ffn = plan, n_ffn
        return _added(y, plan, gates, indices, x, n_ffn)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        y, gates, x, indices = ctx.saved_tensors
        # Rows that no FFN expert computes get no gradient: zeros, where there are such rows.
        allocate = torch.zeros_like if ctx.plan.has_every_slot else torch.empty_like
        of_y, of_gates = allocate(y), torch.empty_like(gates)
        of_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        if grad.numel():
            triton_gradient.combine(
                grad.contiguous(), y, _inverse(ctx.plan, indices), gates, indices, x, ctx.n_ffn,
                (of_y, of_gates, of_x),
            )  # fmt: skip
        return of_y, of_gates, of_x, None, None, None


def permute(x: Tensor, indices: Tensor, n_ffn: int) -> tuple[Tensor, PermutePlan[Tensor]]:
    """x [T, D], indices [T, K] -> (x_sorted [S, D], plan), see reference.py; one host sync."""
    check_rows("permute", x=x)
    indices = indices.contiguous()
    (n_tokens, top_k), device = indices.shape, x.device
    n_slots = indices.numel()
    counts = torch.empty(n_ffn, dtype=torch.int32, device=device)
    with torch.cuda.device_of(x):
        if n_ffn:
            _count[(n_ffn,)](indices, counts, n_slots, BLOCK=SLOTS)
        offsets = counts.cumsum(0, dtype=torch.int32)
        n_rows = int(offsets[-1]) if n_ffn else 0
        slots, tokens = (torch.empty(n_rows, dtype=torch.int64, device=device) for _ in range(2))
        if n_rows:
            _place[(n_ffn,)](indices, offsets, slots, tokens, n_slots, top_k, BLOCK=SLOTS)
    plan = PermutePlan(slots=slots, tokens=tokens, offsets=offsets, n_tokens=n_tokens, top_k=top_k)
    return _Permute.apply(x, indices, plan, n_ffn), plan


def combine(
    y_sorted: Tensor,
    plan: PermutePlan[Tensor],
    gates: Tensor,
    indices: Tensor,
    x: Tensor,
    n_ffn: int,
) -> Tensor:
    """sum_k gate * expert(x) with identity experts, see reference.py. -> [T, D]."""
    check_rows("combine", x=x)
    operands = (y_sorted.contiguous(), gates.contiguous(), x, plan, indices.contiguous(), n_ffn)
    out: Tensor = _Combine.apply(*operands)
    return out


def _inverse(plan: PermutePlan[Tensor], indices: Tensor) -> Tensor:
    """The sorted row of each slot [T*K]; nothing for the slots of identity experts."""
    rows = torch.empty(indices.numel(), dtype=torch.int32, device=indices.device)
    n_rows = len(plan.slots)
    if n_rows:
        with torch.cuda.device_of(indices):
            _invert[(triton.cdiv(n_rows, SLOTS),)](plan.slots, rows, n_rows, BLOCK=SLOTS)
    return rows


def _added(
    y: Tensor,
    plan: PermutePlan[Tensor],
    gates: Tensor | None,
    indices: Tensor,
    x: Tensor | None,
    n_ffn: int,
) -> Tensor:
    """Each token's rows, weighted and with the identity experts' share if gates and x are given."""
    width = y.shape[1]
    out = torch.empty(plan.n_tokens, width, dtype=(y if x is None else x).dtype, device=y.device)
    if out.numel():
        rows = _inverse(plan, indices)
        with torch.cuda.device_of(y):
            _combine[(plan.n_tokens, triton.cdiv(width, COLUMNS))](
                y, rows, rows if gates is None else gates, indices, y if x is None else x, out,
                width, n_ffn, 0 if x is None else x.stride(0), TOP_K=plan.top_k,
                WEIGHTED=gates is not None, BLOCK=COLUMNS,
            )  # fmt: skip
    return out


def configurations() -> Iterator[Configuration]:
    """At the model's top 12; without atomics, and rows moved 16 bytes at a time."""
    integers = {
        "indices_ptr": "*i64", "slots_ptr": "*i64", "tokens_ptr": "*i64", "counts_ptr": "*i32",
        "offsets_ptr": "*i32", "rows_ptr": "*i32", "gates_ptr": "*fp32",
    }  # fmt: skip
    moving = ("LDG.E.128", "STG.E.128")
    for kernel, constants, needs in (
        (_count, {"BLOCK": SLOTS}, ()),
        (_place, {"BLOCK": SLOTS}, ()),
        (_gather, {"BLOCK": COLUMNS}, moving),
        (_invert, {"BLOCK": SLOTS}, ()),
        (_combine, {"BLOCK": COLUMNS, "TOP_K": 12, "WEIGHTED": True}, moving),
    ):
        yield Configuration(
            kernel=kernel,
            name=f"permute {kernel.__name__.strip('_').replace('_', ' ')}",
            types=integers,
            constants=constants,
            divisible=("width", "x_stride"),
            needs=needs,
        )
    yield triton_gradient.configuration()
