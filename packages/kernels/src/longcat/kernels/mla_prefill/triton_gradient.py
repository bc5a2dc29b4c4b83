"""The two backward passes of attention with expanded heads.

With P the weights, found again from the scores and their log-sums, and D = rowsum(dO * O):

    dS = P * (dO V^T - D)      dQ = scale dS K      dK = scale dS^T Q      dV = P^T dO

The first pass also writes D, one number per query, which the second one reads.
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

from longcat.kernels.mla_prefill.tiles import GRADIENT_KV, GRADIENT_Q, LOG2_E, Tile, spans
from longcat.kernels.proof.configuration import Configuration


@triton.jit
def _gradient_q(
    q_ptr, k_ptr, v_ptr, mask_ptr, spans_ptr, out_ptr, log_sums_ptr, grad_ptr, products_ptr,
    grad_q_ptr, scale, factor, n_heads, n_queries, n_keys,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head,
    MASKED: tl.constexpr, WIDTH: tl.constexpr, VALUES: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, V: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    batch, head = tl.program_id(1).to(tl.int64) // n_heads, tl.program_id(1) % n_heads
    t = tile * BLOCK_T + tl.arange(0, BLOCK_T)
    a, b, value = tl.arange(0, A), A + tl.arange(0, B), tl.arange(0, V)
    real = t < n_queries
    q_rows = q_ptr + batch * q_batch + head * q_head + t.to(tl.int64)[:, None] * q_token
    q_a = tl.load(q_rows + a[None, :], mask=real[:, None] & (a < WIDTH)[None, :], other=0.0)
    q_b = tl.load(q_rows + b[None, :], mask=real[:, None] & (b < WIDTH)[None, :], other=0.0)
    token = (batch * n_queries + t)[:, None] * n_heads + head
    row = (batch * n_heads + head) * n_queries + t
    shown = real[:, None] & (value < VALUES)[None, :]
    grad = tl.load(grad_ptr + token * VALUES + value[None, :], mask=shown, other=0.0)
    out = tl.load(out_ptr + token * VALUES + value[None, :], mask=shown, other=0.0)
    products = tl.sum(grad.to(tl.float32) * out.to(tl.float32), axis=1)
    tl.store(products_ptr + row, products, mask=real)
    log_sums = tl.load(log_sums_ptr + row, mask=real, other=float("inf"))
    if MASKED:
        span = spans_ptr + 2 * (batch * tl.num_programs(0) + tile)
        start, end = tl.load(span), tl.load(span + 1)
    else:
        start = 0
        end = tl.minimum(n_keys, n_keys - n_queries + (tile + 1) * BLOCK_T)
    total_a = tl.zeros([BLOCK_T, A], dtype=tl.float32)
    total_b = tl.zeros([BLOCK_T, B], dtype=tl.float32)
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
        weights = tl.where(seen, tl.exp2(scores - log_sums[:, None]), 0.0)
        through = tl.dot(grad, tl.trans(v), input_precision="ieee")
        through = (weights * (through - products[:, None])).to(k_a.dtype)
        total_a = tl.dot(through, k_a, total_a, input_precision="ieee")
        total_b = tl.dot(through, k_b, total_b, input_precision="ieee")
    rows = grad_q_ptr + token * WIDTH
    dtype = grad_q_ptr.dtype.element_ty
    inside = real[:, None] & (a < WIDTH)[None, :]
    tl.store(rows + a[None, :], (total_a * factor).to(dtype), mask=inside)
    inside = real[:, None] & (b < WIDTH)[None, :]
    tl.store(rows + b[None, :], (total_b * factor).to(dtype), mask=inside)


@triton.jit
def _gradient_kv(
    q_ptr, k_ptr, v_ptr, mask_ptr, spans_ptr, log_sums_ptr, grad_ptr, products_ptr,
    grad_k_ptr, grad_v_ptr, scale, factor, n_heads, n_queries, n_keys,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head,
    MASKED: tl.constexpr, WIDTH: tl.constexpr, VALUES: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, V: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    # Keys are the rows here, [BLOCK_S, BLOCK_T], so that no tile of weights is turned.
    tile = tl.program_id(0)
    batch, head = tl.program_id(1).to(tl.int64) // n_heads, tl.program_id(1) % n_heads
    s = tile * BLOCK_S + tl.arange(0, BLOCK_S)
    a, b, value = tl.arange(0, A), A + tl.arange(0, B), tl.arange(0, V)
    real, place = s < n_keys, s.to(tl.int64)[:, None]
    k_rows = k_ptr + batch * k_batch + head * k_head + place * k_token
    v_rows = v_ptr + batch * v_batch + head * v_head + place * v_token
    k_a = tl.load(k_rows + a[None, :], mask=real[:, None] & (a < WIDTH)[None, :], other=0.0)
    k_b = tl.load(k_rows + b[None, :], mask=real[:, None] & (b < WIDTH)[None, :], other=0.0)
    shown = real[:, None] & (value < VALUES)[None, :]
    v = tl.load(v_rows + value[None, :], mask=shown, other=0.0)
    if MASKED:
        span = spans_ptr + 2 * (batch * tl.num_programs(0) + tile)
        start, end = tl.load(span), tl.load(span + 1)
    else:
        # The first query that sees the tile's first key, in whole blocks.
        start = tl.maximum(tile * BLOCK_S - (n_keys - n_queries), 0) // BLOCK_T * BLOCK_T
        end = n_queries
    total_a = tl.zeros([BLOCK_S, A], dtype=tl.float32)
    total_b = tl.zeros([BLOCK_S, B], dtype=tl.float32)
    total_v = tl.zeros([BLOCK_S, V], dtype=tl.float32)
    q_rows = q_ptr + batch * q_batch + head * q_head
    for first in range(start, end, BLOCK_T):
        t = first + tl.arange(0, BLOCK_T)
        inside = (t < end)[:, None]
        queries = q_rows + t.to(tl.int64)[:, None] * q_token
        q_a = tl.load(queries + a[None, :], mask=inside & (a < WIDTH)[None, :], other=0.0)
        q_b = tl.load(queries + b[None, :], mask=inside & (b < WIDTH)[None, :], other=0.0)
        token = (batch * n_queries + t)[:, None] * n_heads + head
        row = (batch * n_heads + head) * n_queries + t
        grad = tl.load(
            grad_ptr + token * VALUES + value[None, :],
            mask=inside & (value < VALUES)[None, :],
            other=0.0,
        )
        log_sums = tl.load(log_sums_ptr + row, mask=t < end, other=float("inf"))
        products = tl.load(products_ptr + row, mask=t < end, other=0.0)
        scores = tl.dot(k_a, tl.trans(q_a), input_precision="ieee")
        scores = tl.dot(k_b, tl.trans(q_b), scores, input_precision="ieee") * scale
        seen = real[:, None] & (t < end)[None, :]
        if MASKED:
            columns = mask_ptr + (batch * n_queries + t)[None, :] * n_keys
            seen = tl.load(columns + s[:, None], mask=seen, other=0) != 0
        else:
            seen = seen & (s[:, None] <= t[None, :] + (n_keys - n_queries))
        weights = tl.where(seen, tl.exp2(scores - log_sums[None, :]), 0.0)
        total_v = tl.dot(weights.to(grad.dtype), grad, total_v, input_precision="ieee")
        through = tl.dot(v, tl.trans(grad), input_precision="ieee")
        through = (weights * (through - products[None, :])).to(q_a.dtype)
        total_a = tl.dot(through, q_a, total_a, input_precision="ieee")
        total_b = tl.dot(through, q_b, total_b, input_precision="ieee")
    token = (batch * n_keys + s)[:, None] * n_heads + head
    dtype = grad_k_ptr.dtype.element_ty
    tl.store(grad_v_ptr + token * VALUES + value[None, :], total_v.to(dtype), mask=shown)
    rows = grad_k_ptr + token * WIDTH
    inside = real[:, None] & (a < WIDTH)[None, :]
    tl.store(rows + a[None, :], (total_a * factor).to(dtype), mask=inside)
    inside = real[:, None] & (b < WIDTH)[None, :]
    tl.store(rows + b[None, :], (total_b * factor).to(dtype), mask=inside)


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    mask: Tensor | None,
    out: Tensor,
    log_sums: Tensor,
    grad: Tensor,
    by_queries: Tile = GRADIENT_Q,
    by_keys: Tile = GRADIENT_KV,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, in their shapes; out and log_sums are those of forward."""
    (n_batch, n_queries, n_heads, width), n_keys = q.shape, k.shape[1]
    grads = tuple(torch.empty(x.shape, dtype=q.dtype, device=q.device) for x in (q, k, v))
    products, grad = torch.empty_like(log_sums), grad.contiguous()
    shown = q if mask is None else mask.contiguous()
    masked, last = mask is not None, (scale * LOG2_E, scale, n_heads, n_queries, n_keys)
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
    with torch.cuda.device_of(q):
        tile = by_queries
        _gradient_q[(triton.cdiv(n_queries, tile.queries), n_batch * n_heads)](
            q, k, v, shown, q if mask is None else spans(mask, tile.queries, tile.keys), out,
            log_sums, grad, products, grads[0], *last, *strides,
            MASKED=masked, **tile.constants(width, v.shape[3]),
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        tile = by_keys
        _gradient_kv[(triton.cdiv(n_keys, tile.keys), n_batch * n_heads)](
            q, k, v, shown, q if mask is None else spans(mask.mT, tile.keys, tile.queries),
            log_sums, grad, products, *grads[1:], *last, *strides,
            MASKED=masked, **tile.constants(width, v.shape[3]),
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return grads  # type: ignore[return-value]


def configurations(masked: bool) -> Iterator[Configuration]:
    """Both backward passes at 128 + 64 and 128."""
    yield configuration(_gradient_q, "gradient of q", GRADIENT_Q, masked, needs=("HGMMA.64x",))
    yield configuration(
        _gradient_kv, "gradient of k and v", GRADIENT_KV, masked, needs=("HGMMA.64x",)
    )


def configuration(
    kernel: Any, name: str, tile: Tile, masked: bool, needs: tuple[str, ...]
) -> Configuration:
    """A pass at LongCat-Flash's widths."""
    strides = tuple(f"{x}_{by}" for x in "qkv" for by in ("batch", "token", "head"))
    return Configuration(
        kernel=kernel,
        name=f"mla_prefill {name} {tile.queries}x{tile.keys}{', masked' if masked else ''}",
        types={
            "mask_ptr": "*i1" if masked else "*bf16", "spans_ptr": "*i32" if masked else "*bf16",
            "log_sums_ptr": "*fp32", "products_ptr": "*fp32", "scale": "fp32", "factor": "fp32",
        },
        constants=tile.constants(192, 128) | {"MASKED": masked},
        divisible=("n_queries", "n_keys", "n_heads", *strides),
        warps=tile.warps,
        stages=tile.stages,
        needs=needs,
        forbids=("HMMA",),
    )  # fmt: skip
