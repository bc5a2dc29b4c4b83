"""Attention with expanded heads as Triton kernels: one forward, two backward, no atomics.

Forward, a program holds a tile of queries and walks over the keys with the online softmax; of each
query it keeps the log2 of its sum of exponentials. From that backward finds every weight again:
one pass holds queries and walks over keys (dQ), the other holds keys and walks over queries (dK,
dV), so each gradient is added up by one program, in one order.
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

from longcat.kernels.mla_prefill import triton_gradient
from longcat.kernels.mla_prefill.tiles import FORWARD, LOG2_E, Tile, spans
from longcat.kernels.operands import check_rows
from longcat.kernels.proof.configuration import Configuration


@triton.jit
def _attend(
    q_ptr,
    k_ptr,
    v_ptr,
    mask_ptr,
    spans_ptr,
    out_ptr,
    log_sums_ptr,
    scale,
    n_heads,
    n_queries,
    n_keys,
    q_batch,
    q_token,
    q_head,
    k_batch,
    k_token,
    k_head,
    v_batch,
    v_token,
    v_head,
    MASKED: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUES: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    V: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    # WIDTH = 192 is no power of two: a row is read as its first A = 128 numbers and B = 64 others.
    # scale holds log2(e), so that exp2 serves. The last queries see most: they begin first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    batch, head = tl.program_id(1).to(tl.int64) // n_heads, tl.program_id(1) % n_heads
    t = tile * BLOCK_T + tl.arange(0, BLOCK_T)
    a, b, value = tl.arange(0, A), A + tl.arange(0, B), tl.arange(0, V)
    real = t < n_queries
    q_rows = q_ptr + batch * q_batch + head * q_head + t.to(tl.int64)[:, None] * q_token
    q_a = tl.load(q_rows + a[None, :], mask=real[:, None] & (a < WIDTH)[None, :], other=0.0)
    q_b = tl.load(q_rows + b[None, :], mask=real[:, None] & (b < WIDTH)[None, :], other=0.0)
    if MASKED:
        span = spans_ptr + 2 * (batch * tl.num_programs(0) + tile)
        start, end = tl.load(span), tl.load(span + 1)
    else:
        start = 0
        end = tl.minimum(n_keys, n_keys - n_queries + (tile + 1) * BLOCK_T)
    top = tl.full([BLOCK_T], -float("inf"), dtype=tl.float32)
    mass = tl.zeros([BLOCK_T], dtype=tl.float32)
    total = tl.zeros([BLOCK_T, V], dtype=tl.float32)
    k_rows = k_ptr + batch * k_batch + head * k_head
    v_rows = v_ptr + batch * v_batch + head * v_head
    for first in range(start, end, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)
        inside, place = (s < end)[:, None], s.to(tl.int64)[:, None]
        k_a = tl.load(k_rows + place * k_token + a, mask=inside & (a < WIDTH)[None, :], other=0.0)
        k_b = tl.load(k_rows + place * k_token + b, mask=inside & (b < WIDTH)[None, :], other=0.0)
        v = tl.load(
            v_rows + place * v_token + value, mask=inside & (value < VALUES)[None, :], other=0.0
        )
        scores = tl.dot(q_a, tl.trans(k_a), input_precision="ieee")
        scores = tl.dot(q_b, tl.trans(k_b), scores, input_precision="ieee") * scale
        seen = real[:, None] & (s < end)[None, :]
        if MASKED:
            rows = mask_ptr + (batch * n_queries + t)[:, None] * n_keys
            seen = tl.load(rows + s[None, :], mask=seen, other=0) != 0
        else:
            seen = seen & (s[None, :] <= t[:, None] + (n_keys - n_queries))
        scores = tl.where(seen, scores, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1))
        # A query that has seen no key yet keeps weights of 0 instead of exp2(-inf + inf).
        base = tl.where(higher == -float("inf"), 0.0, higher)
        shrink = tl.exp2(top - base)
        weights = tl.exp2(scores - base[:, None])
        mass = mass * shrink + tl.sum(weights, axis=1)
        total = total * shrink[:, None]
        total = tl.dot(weights.to(v.dtype), v, total, input_precision="ieee")
        top = higher
    divisor = tl.where(mass == 0.0, 1.0, mass)  # a query that saw nothing gets zeros
    total = total / divisor[:, None]
    token = (batch * n_queries + t)[:, None] * n_heads + head
    shown = real[:, None] & (value < VALUES)[None, :]
    tl.store(
        out_ptr + token * VALUES + value[None, :], total.to(out_ptr.dtype.element_ty), mask=shown
    )
    log_sums = top + tl.log2(divisor)
    tl.store(log_sums_ptr + (batch * n_heads + head) * n_queries + t, log_sums, mask=real)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None
    ) -> Tensor:
        out, log_sums = forward(q, k, v, scale, mask, FORWARD)
        ctx.save_for_backward(q, k, v, mask, out, log_sums)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, mask, out, log_sums = ctx.saved_tensors
        grads = triton_gradient.backward(q, k, v, ctx.scale, mask, out, log_sums, grad)
        return *grads, None, None


def mla_prefill(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None
) -> Tensor:
    """softmax(scale q k^T) v per head, see reference.py.

    q [B, T, H, Q], k [B, S, H, Q], v [B, S, H, V], mask [B, T, S] -> [B, T, H, V]; none empty.

    Raises:
        ValueError: rows whose columns are not adjacent; a copy of them would go unseen.
    """
    check_rows("mla_prefill", q=q, k=k, v=v)
    out: Tensor = _Attention.apply(q, k, v, scale, mask)
    return out


def forward(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None, tile: Tile
) -> tuple[Tensor, Tensor]:
    """(out [B, T, H, V], log2 of each query's sum of exponentials [B, H, T]) by the given tile."""
    (n_batch, n_queries, n_heads, _), n_keys = q.shape, k.shape[1]
    out = torch.empty(*q.shape[:3], v.shape[3], dtype=q.dtype, device=q.device)
    log_sums = torch.empty(n_batch, n_heads, n_queries, dtype=torch.float32, device=q.device)
    with torch.cuda.device_of(q):
        _attend[(triton.cdiv(n_queries, tile.queries), n_batch * n_heads)](
            q, k, v, q if mask is None else mask.contiguous(),
            q if mask is None else spans(mask, tile.queries, tile.keys), out, log_sums,
            scale * LOG2_E, n_heads, n_queries, n_keys,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            MASKED=mask is not None, **tile.constants(q.shape[3], v.shape[3]),
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return out, log_sums


def configurations() -> Iterator[Configuration]:
    """Forward and both backward passes at 128 + 64 and 128, causal and masked."""
    for masked in (False, True):
        yield triton_gradient.configuration(
            _attend, "forward", FORWARD, masked, needs=("HGMMA.64x64x16", "HGMMA.64x128x16")
        )
        yield from triton_gradient.configurations(masked)
