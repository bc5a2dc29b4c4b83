"""RMSNorm as a Triton kernel, forward and backward.

One program per row forward: x is read once, y written once. Backward: every program walks a share
of the rows and keeps its part of the weight's gradient in registers; the parts are added at the end
in a fixed order, so there are no atomics and every run gives the same bits.
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

from longcat.kernels.programs import programs_for
from longcat.kernels.proof.configuration import Configuration


@triton.jit
def _forward(
    x_ptr,
    weight_ptr,
    y_ptr,
    inverse_ptr,
    eps,
    x_stride,
    width,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0)
    wide = x.to(ACC)
    inverse = 1.0 / tl.sqrt(tl.sum(wide * wide, axis=0) / width + eps)
    # Rounded to x's dtype before the weight multiplies, as the released model does.
    normed = (wide * inverse).to(x.dtype).to(ACC)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(ACC)
    y = (normed * weight).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + row * width + columns, y, mask=inside)
    tl.store(inverse_ptr + row, inverse)


@triton.jit
def _backward(
    grad_ptr,
    x_ptr,
    weight_ptr,
    inverse_ptr,
    grad_x_ptr,
    grad_weight_ptr,
    grad_stride,
    x_stride,
    rows,
    width,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    # With n = x * inverse and h = grad * weight:
    #   grad_x = inverse * (h - n * mean(h * n)),  grad_weight = sum over rows of grad * n.
    program = tl.program_id(0).to(tl.int64)
    programs = tl.num_programs(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(ACC)
    grad_weight = tl.zeros([BLOCK], dtype=ACC)
    for step in range(0, tl.cdiv(rows, programs)):
        row = program + step * programs
        here = inside & (row < rows)
        x = tl.load(x_ptr + row * x_stride + columns, mask=here, other=0.0)
        grad = tl.load(grad_ptr + row * grad_stride + columns, mask=here, other=0.0).to(ACC)
        inverse = tl.load(inverse_ptr + row, mask=row < rows, other=0.0)
        normed = x.to(ACC) * inverse
        through = grad * weight
        mean = tl.sum(through * normed, axis=0) / width
        grad_x = inverse * (through - normed * mean)
        grad_x = grad_x.to(grad_x_ptr.dtype.element_ty)
        tl.store(grad_x_ptr + row * width + columns, grad_x, mask=here)
        grad_weight += grad * normed.to(x.dtype).to(ACC)
    tl.store(grad_weight_ptr + program * width + columns, grad_weight, mask=inside)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = _as_rows(x)
        count, width = rows.shape
        dtype = torch.promote_types(x.dtype, weight.dtype)
        y = torch.empty(count, width, dtype=dtype, device=x.device)
        inverse = torch.empty(count, dtype=_accumulator(x), device=x.device)
        if y.numel():
            with torch.cuda.device_of(x):
                _forward[(count,)](
                    rows, weight.contiguous(), y, inverse, float(eps), rows.stride(0), width,
                    **_launch(width, x),
                )  # fmt: skip
        ctx.save_for_backward(rows, weight, inverse)
        ctx.shape = x.shape
        return y.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, weight, inverse = ctx.saved_tensors
        count, width = rows.shape
        grad_rows = _as_rows(grad)
        grad_x = torch.empty(count, width, dtype=rows.dtype, device=rows.device)
        programs = min(count, programs_for(rows))
        parts = torch.empty(programs, width, dtype=inverse.dtype, device=rows.device)
        if grad_x.numel():
            with torch.cuda.device_of(rows):
                _backward[(programs,)](
                    grad_rows, rows, weight.contiguous(), inverse, grad_x, parts,
                    grad_rows.stride(0), rows.stride(0), count, width,
                    **_launch(width, rows),
                )  # fmt: skip
        return grad_x.view(ctx.shape), parts.sum(dim=0).to(weight.dtype), None


def rmsnorm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """y = weight * (x / sqrt(mean(x^2) + eps)), see reference.py. x [..., D], weight [D]."""
    y: Tensor = _RMSNorm.apply(x, weight, eps)
    return y


def _as_rows(x: Tensor) -> Tensor:
    """[..., D] as [rows, D] with adjacent columns, copied only where it must be."""
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _launch(width: int, x: Tensor) -> dict[str, Any]:
    block = triton.next_power_of_2(width)
    return {
        "BLOCK": block,
        "ACC": tl.float64 if x.dtype == torch.float64 else tl.float32,
        "num_warps": min(max(block // 256, 1), 16),
    }


def configurations() -> Iterator[Configuration]:
    """Forward and backward at the model's width and the latents'."""
    for width in (6144, 1536, 512):
        block = triton.next_power_of_2(width)
        for kernel in (_forward, _backward):
            yield Configuration(
                kernel=kernel,
                name=f"rmsnorm {kernel.__name__.strip('_')} {width}",
                types={
                    "eps": "fp32", "inverse_ptr": "*fp32", "grad_weight_ptr": "*fp32",
                },
                constants={"BLOCK": block, "ACC": tl.float32},
                divisible=("x_stride", "grad_stride", "width"),
                warps=min(max(block // 256, 1), 16),
                needs=("LDG.E.128",),
                ptx=("cvt.rn.bf16",),
            )  # fmt: skip
