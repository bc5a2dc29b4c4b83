"""The residual sum and its RMSNorm as Triton kernels, forward and backward.

Forward: two reads and two writes per element. Backward, as rmsnorm's: every program walks a share
of the rows and keeps its part of the weight's gradient in registers; the gradient that came to the
sum itself is added on the way, so that it is not read and written once more.
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
def _add_rmsnorm(
    x_ptr, residual_ptr, weight_ptr, y_ptr, total_ptr, inverse_ptr, eps, width,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    places = row * width + columns
    x = tl.load(x_ptr + places, mask=inside, other=0.0)
    residual = tl.load(residual_ptr + places, mask=inside, other=0.0)
    # The norm sees the sum as it is stored, rounded.
    total = (residual.to(tl.float32) + x.to(tl.float32)).to(x.dtype)
    tl.store(total_ptr + places, total, mask=inside)
    wide = total.to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(wide * wide, axis=0) / width + eps)
    tl.store(inverse_ptr + row, inverse)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    y = (wide * inverse).to(x.dtype).to(tl.float32) * weight
    tl.store(y_ptr + places, y.to(x.dtype), mask=inside)


@triton.jit
def _backward(
    grad_ptr, grad_total_ptr, total_ptr, weight_ptr, inverse_ptr, grad_sum_ptr, grad_weight_ptr,
    rows, width, BLOCK: tl.constexpr,
):  # fmt: skip
    # With n = total * inverse and h = grad * weight, of the sum:
    #   grad_total + inverse * (h - n * mean(h * n)),  grad_weight = sum over rows of grad * n.
    program = tl.program_id(0).to(tl.int64)
    programs = tl.num_programs(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    grad_weight = tl.zeros([BLOCK], dtype=tl.float32)
    for step in range(0, tl.cdiv(rows, programs)):
        row = program + step * programs
        here = inside & (row < rows)
        places = row * width + columns
        total = tl.load(total_ptr + places, mask=here, other=0.0)
        grad = tl.load(grad_ptr + places, mask=here, other=0.0).to(tl.float32)
        grad_total = tl.load(grad_total_ptr + places, mask=here, other=0.0).to(tl.float32)
        inverse = tl.load(inverse_ptr + row, mask=row < rows, other=0.0)
        normed = total.to(tl.float32) * inverse
        through = grad * weight
        mean = tl.sum(through * normed, axis=0) / width
        grad_sum = grad_total + inverse * (through - normed * mean)
        tl.store(grad_sum_ptr + places, grad_sum.to(total.dtype), mask=here)
        grad_weight += grad * normed.to(total.dtype).to(tl.float32)
    tl.store(grad_weight_ptr + program * width + columns, grad_weight, mask=inside)


class _AddRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        total = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        rows, width = x.shape[:-1].numel(), x.shape[-1]
        inverse = torch.empty(rows, dtype=torch.float32, device=x.device)
        if y.numel():
            with torch.cuda.device_of(x):
                _add_rmsnorm[(rows,)](
                    x.contiguous(), residual.contiguous(), weight.contiguous(), y, total,
                    inverse, float(eps), width, **_launch(width),
                )  # fmt: skip
        ctx.save_for_backward(total, weight, inverse)
        return y, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_total: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        total, weight, inverse = ctx.saved_tensors
        rows, width = inverse.numel(), total.shape[-1]
        grad_sum = torch.empty_like(total)
        programs = min(rows, programs_for(total))
        parts = torch.empty(programs, width, dtype=torch.float32, device=total.device)
        if total.numel():
            with torch.cuda.device_of(total):
                _backward[(programs,)](
                    grad.contiguous(), grad_total.contiguous(), total, weight.contiguous(),
                    inverse, grad_sum, parts, rows, width, **_launch(width),
                )  # fmt: skip
        return grad_sum, grad_sum, parts.sum(dim=0).to(weight.dtype), None


def add_rmsnorm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rmsnorm(residual + x), residual + x), see reference.py."""
    result: tuple[Tensor, Tensor] = _AddRMSNorm.apply(x, residual, weight, eps)
    return result


def _launch(width: int) -> dict[str, int]:
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(max(block // 256, 1), 16)}


def configurations() -> Iterator[Configuration]:
    """Both ways at the model's width."""
    for kernel in (_add_rmsnorm, _backward):
        yield Configuration(
            kernel=kernel,
            name=f"add_rmsnorm {'backward ' if kernel is _backward else ''}6144",
            types={"eps": "fp32", "inverse_ptr": "*fp32", "grad_weight_ptr": "*fp32"},
            constants={"BLOCK": 8192},
            divisible=("width",),
            warps=16,
            needs=("LDG.E.128", "STG.E.128"),
            ptx=("cvt.rn.bf16",),
        )
