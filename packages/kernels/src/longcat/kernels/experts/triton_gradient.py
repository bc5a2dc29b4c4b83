"""The gradient of the FFN experts: products with turned weights, sums over an expert's rows.

With h = silu(gate) * up, all by expert:

    dh = dy down      dx = dboth gate_up      d down = dy^T h      d gate_up = dboth^T x

gate and up are computed again rather than kept. Each sum has one program and one order: no atomics.
NOT YET MEASURED ON A GPU; the tiles are those of training, some hundred rows per expert.
"""

# Kernels are read by Triton's compiler, not by mypy.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from longcat.kernels.linear.tiles import Tile
from longcat.kernels.proof.configuration import Configuration

TURNED = Tile(swap=False, outputs=128, tokens=128, inner=64, warps=8, stages=3)
# The block of a weight: tokens is what is summed over.
WEIGHT = Tile(swap=False, outputs=128, tokens=64, inner=128, warps=8, stages=3)
COLUMNS = 1024  # of a row, that one program of the elementwise step takes


@triton.jit
def _grouped_turned(
    x_ptr,
    weight_ptr,
    work_ptr,
    y_ptr,
    outputs,
    inner,
    n_blocks,
    x_stride,
    weight_stride,
    expert_stride,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr,
):
    # y[t, n] = sum_k x[t, k] weight[expert, k, n] for the blocks of rows of the work list.
    columns = tl.arange(0, BLOCK_K)
    for unit in range(tl.program_id(0), n_blocks * tl.cdiv(outputs, BLOCK_N), tl.num_programs(0)):
        entry = work_ptr + 3 * (unit % n_blocks)
        expert = tl.load(entry)
        if expert >= 0:
            t = tl.load(entry + 1) + tl.arange(0, BLOCK_T)
            t_inside = (t < tl.load(entry + 2))[:, None]
            n = (unit // n_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
            n_inside = (n < outputs)[None, :]
            x_rows = x_ptr + t.to(tl.int64)[:, None] * x_stride
            weights = weight_ptr + expert.to(tl.int64) * expert_stride + n[None, :]
            total = tl.zeros([BLOCK_T, BLOCK_N], dtype=tl.float32)
            for first in range(0, inner, BLOCK_K):
                k = first + columns
                x_mask, w_mask = t_inside, n_inside
                if not EVEN:
                    x_mask = x_mask & (k < inner)[None, :]
                    w_mask = w_mask & (k < inner)[:, None]
                x = tl.load(x_rows + k[None, :], mask=x_mask, other=0.0)
                weight = tl.load(weights + k.to(tl.int64)[:, None] * weight_stride, mask=w_mask,
                                 other=0.0)  # fmt: skip
                total = tl.dot(x, weight, total)
            places = t.to(tl.int64)[:, None] * outputs + n[None, :]
            tl.store(y_ptr + places, total.to(y_ptr.dtype.element_ty), mask=t_inside & n_inside)


@triton.jit
def _weight_gradient(
    grad_ptr,
    x_ptr,
    rows_ptr,
    offsets_ptr,
    out_ptr,
    outputs,
    inner,
    grad_stride,
    x_stride,
    GATHER: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # out[expert, n, k] = sum over the expert's rows t of grad[t, n] x[t, k]; zeros without rows.
    expert = tl.program_id(1)
    blocks = tl.cdiv(inner, BLOCK_K)
    n = (tl.program_id(0) // blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = (tl.program_id(0) % blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
    n_inside, k_inside = (n < outputs)[None, :], (k < inner)[None, :]
    start = tl.load(offsets_ptr + expert - 1, mask=expert > 0, other=0).to(tl.int32)
    end = tl.load(offsets_ptr + expert).to(tl.int32)
    total = tl.zeros([BLOCK_N, BLOCK_K], dtype=tl.float32)
    for first in range(start, end, BLOCK_T):
        t = first + tl.arange(0, BLOCK_T)
        t_inside = t < end
        source = t.to(tl.int64)
        grad = tl.load(grad_ptr + source[:, None] * grad_stride + n[None, :],
                       mask=t_inside[:, None] & n_inside, other=0.0)  # fmt: skip
        if GATHER:
            source = tl.load(rows_ptr + t, mask=t_inside, other=0)
        x = tl.load(x_ptr + source[:, None] * x_stride + k[None, :],
                    mask=t_inside[:, None] & k_inside, other=0.0)  # fmt: skip
        total = tl.dot(tl.trans(grad), x, total)
    places = (expert.to(tl.int64) * outputs + n.to(tl.int64)[:, None]) * inner + k[None, :]
    inside = (n < outputs)[:, None] & k_inside
    tl.store(out_ptr + places, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _through_swiglu(both_ptr, grad_ptr, hidden_ptr, of_both_ptr, width, BLOCK: tl.constexpr):
    # d silu(z)/dz = s + z s (1 - s) with s = sigmoid(z).
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gates, ups = 2 * row * width + columns, (2 * row + 1) * width + columns
    gate = tl.load(both_ptr + gates, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(both_ptr + ups, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    dtype: tl.constexpr = hidden_ptr.dtype.element_ty
    tl.store(hidden_ptr + row * width + columns, (silu * up).to(dtype), mask=inside)
    of_gate = grad * up * (sigmoid + silu * (1.0 - sigmoid))
    tl.store(of_both_ptr + gates, of_gate.to(dtype), mask=inside)
    tl.store(of_both_ptr + ups, (grad * silu).to(dtype), mask=inside)


def turned(x: Tensor, weight: Tensor, work: Tensor, y: Tensor, tile: Tile, programs: int) -> None:
    """y [S, O] = x [S, I] times weight[expert] [I, O], rows by the work list."""
    units = len(work) * triton.cdiv(y.shape[1], tile.outputs)
    constants = tile.constants(x.shape[1])
    del constants["SWAP"]
    _grouped_turned[(min(units, programs),)](
        x, weight, work, y, y.shape[1], x.shape[1], len(work), x.stride(0), weight.stride(1),
        weight.stride(0), **constants, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def through_swiglu(both: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """both [S, 2F], the gradient [S, F] of hidden -> (hidden [S, F], the gradient of both)."""
    hidden, of_both = torch.empty_like(grad), torch.empty_like(both)
    rows, width = grad.shape
    _through_swiglu[(rows, triton.cdiv(width, COLUMNS))](
        both, grad, hidden, of_both, width, BLOCK=COLUMNS
    )
    return hidden, of_both


def of_weight(
    grad: Tensor, x: Tensor, rows: Tensor | None, offsets: Tensor, weight: Tensor, tile: Tile
) -> Tensor:
    """The gradient of weight [N, O, I]: grad [S, O] against x [S, I], or x [T, I] at rows [S]."""
    out = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    n_experts, outputs, inner = weight.shape
    blocks = triton.cdiv(outputs, tile.outputs) * triton.cdiv(inner, tile.inner)
    _weight_gradient[(blocks, n_experts)](
        grad, x, x if rows is None else rows, offsets, out, outputs, inner, grad.stride(0),
        x.stride(0), GATHER=rows is not None, BLOCK_N=tile.outputs, BLOCK_T=tile.tokens,
        BLOCK_K=tile.inner, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out


def configurations() -> Iterator[Configuration]:
    """Each kernel of the gradient at multiples of the blocks, and what gathers its rows."""
    constants = TURNED.constants(6144)
    del constants["SWAP"]
    yield Configuration(
        kernel=_grouped_turned,
        name="experts turned 128x128x64",
        types={"work_ptr": "*i32", "expert_stride": "i64"},
        constants=constants,
        divisible=("outputs", "inner", "x_stride", "weight_stride", "expert_stride"),
        warps=TURNED.warps,
        stages=TURNED.stages,
        needs=("HGMMA.64x128x16",),
        forbids=("HMMA",),
    )
    for gather in (False, True):
        yield Configuration(
            kernel=_weight_gradient,
            name=f"experts weight gradient 128x128x64{', gathered' if gather else ''}",
            types={"rows_ptr": "*i64" if gather else "*bf16", "offsets_ptr": "*i32"},
            constants={"GATHER": gather, "BLOCK_N": WEIGHT.outputs, "BLOCK_T": WEIGHT.tokens,
                       "BLOCK_K": WEIGHT.inner},
            divisible=("outputs", "inner", "grad_stride", "x_stride"),
            warps=WEIGHT.warps,
            stages=WEIGHT.stages,
            needs=("HGMMA.64x128x16",),
            forbids=("HMMA",),
        )  # fmt: skip
    yield Configuration(
        kernel=_through_swiglu,
        name="experts through swiglu",
        constants={"BLOCK": COLUMNS},
        divisible=("width",),
        needs=("LDG.E.128", "STG.E.128"),
    )
