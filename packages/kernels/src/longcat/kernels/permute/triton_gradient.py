"""The gradient of combine as one Triton kernel, a program per token."""

# Kernels are read by Triton's compiler, not by mypy.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longcat.kernels.proof.configuration import Configuration


@triton.jit
def _combine_gradient(
    grad_ptr,
    y_ptr,
    rows_ptr,
    gates_ptr,
    indices_ptr,
    x_ptr,
    grad_y_ptr,
    grad_gates_ptr,
    grad_x_ptr,
    width,
    n_ffn,
    x_stride,
    TOP_K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # A token's gradient is read once and goes to each of its rows, times the gate; the gate's is
    # its product with what the expert returned, the token itself if that is an identity.
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    grad = tl.load(grad_ptr + token * width + columns, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + token * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    of_x = tl.sum(grad * x, axis=0)
    identity = 0.0
    for k in tl.static_range(TOP_K):
        slot = token * TOP_K + k
        is_ffn = tl.load(indices_ptr + slot) < n_ffn
        gate = tl.load(gates_ptr + slot).to(tl.float32)
        row = tl.load(rows_ptr + slot, mask=is_ffn, other=0).to(tl.int64)
        places = row * width + columns
        y = tl.load(y_ptr + places, mask=inside & is_ffn, other=0.0).to(tl.float32)
        of_gate = tl.where(is_ffn, tl.sum(grad * y, axis=0), of_x)
        tl.store(grad_gates_ptr + slot, of_gate.to(grad_gates_ptr.dtype.element_ty))
        of_y = (gate * grad).to(grad_y_ptr.dtype.element_ty)
        tl.store(grad_y_ptr + places, of_y, mask=inside & is_ffn)
        identity += tl.where(is_ffn, 0.0, gate)
    grad_x = (identity * grad).to(grad_x_ptr.dtype.element_ty)
    tl.store(grad_x_ptr + token * width + columns, grad_x, mask=inside)


def combine(
    grad: Tensor,
    y: Tensor,
    rows: Tensor,
    gates: Tensor,
    indices: Tensor,
    x: Tensor,
    n_ffn: int,
    grads: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Fill the gradients of y [S, D], gates [T, K] and x [T, D]; rows [T*K] as in the forward."""
    n_tokens, width = x.shape
    block = triton.next_power_of_2(width)
    with torch.cuda.device_of(x):
        _combine_gradient[(n_tokens,)](
            grad, y, rows, gates, indices, x, *grads, width, n_ffn, x.stride(0),
            TOP_K=gates.shape[1], BLOCK=block, num_warps=_warps(block),
        )  # fmt: skip


def _warps(block: int) -> int:
    return min(max(block // 1024, 1), 16)


def configuration() -> Configuration:
    """At the model's width and top 12."""
    return Configuration(
        kernel=_combine_gradient,
        name="permute combine gradient 6144",
        types={
            "rows_ptr": "*i32", "indices_ptr": "*i64", "gates_ptr": "*fp32",
            "grad_gates_ptr": "*fp32",
        },
        constants={"BLOCK": 8192, "TOP_K": 12},
        divisible=("width", "x_stride"),
        warps=_warps(8192),
        needs=("LDG.E.128", "STG.E.128"),
    )  # fmt: skip
