"""SwiGLU as a Triton kernel, forward and backward: each element read once and written once."""

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

from longcat.kernels.proof.configuration import Configuration

BLOCK = 1024


@triton.jit
def _forward(
    gate_ptr, up_ptr, out_ptr, gate_stride, up_stride, width, BLOCK: tl.constexpr, ACC: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(gate_ptr + row * gate_stride + columns, mask=inside, other=0.0).to(ACC)
    up = tl.load(up_ptr + row * up_stride + columns, mask=inside, other=0.0).to(ACC)
    out = gate * tl.sigmoid(gate) * up
    tl.store(out_ptr + row * width + columns, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    grad_ptr,
    gate_ptr,
    up_ptr,
    grad_gate_ptr,
    grad_up_ptr,
    grad_stride,
    gate_stride,
    up_stride,
    width,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    # d silu(z)/dz = s + z s (1 - s) with s = sigmoid(z).
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    grad = tl.load(grad_ptr + row * grad_stride + columns, mask=inside, other=0.0).to(ACC)
    gate = tl.load(gate_ptr + row * gate_stride + columns, mask=inside, other=0.0).to(ACC)
    up = tl.load(up_ptr + row * up_stride + columns, mask=inside, other=0.0).to(ACC)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    grad_gate = grad * up * (sigmoid + silu * (1.0 - sigmoid))
    dtype: tl.constexpr = grad_gate_ptr.dtype.element_ty
    tl.store(grad_gate_ptr + row * width + columns, grad_gate.to(dtype), mask=inside)
    tl.store(grad_up_ptr + row * width + columns, (grad * silu).to(dtype), mask=inside)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate_rows, up_rows = _as_rows(gate), _as_rows(up)
        out = torch.empty(gate_rows.shape, dtype=gate.dtype, device=gate.device)
        if out.numel():
            with torch.cuda.device_of(gate):
                _forward[_grid(gate_rows)](
                    gate_rows, up_rows, out, gate_rows.stride(0), up_rows.stride(0),
                    gate_rows.shape[1], BLOCK=BLOCK, ACC=_accumulator(gate),
                )  # fmt: skip
        ctx.save_for_backward(gate_rows, up_rows)
        ctx.shape = gate.shape
        return out.view(gate.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad_rows = _as_rows(grad)
        grad_gate = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
        grad_up = torch.empty_like(grad_gate)
        if grad_gate.numel():
            with torch.cuda.device_of(gate):
                _backward[_grid(gate)](
                    grad_rows, gate, up, grad_gate, grad_up, grad_rows.stride(0), gate.stride(0),
                    up.stride(0), gate.shape[1], BLOCK=BLOCK, ACC=_accumulator(gate),
                )  # fmt: skip
        return grad_gate.view(ctx.shape), grad_up.view(ctx.shape)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, see reference.py. Both [..., F] -> [..., F]."""
    out: Tensor = _SwiGLU.apply(gate, up)
    return out


def _as_rows(x: Tensor) -> Tensor:
    """[..., F] as [rows, F] with adjacent columns, copied only where it must be."""
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _grid(rows: Tensor) -> tuple[int, int]:
    return rows.shape[0], triton.cdiv(rows.shape[1], BLOCK)


def _accumulator(x: Tensor) -> Any:
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def configurations() -> Iterator[Configuration]:
    """Forward and backward."""
    for kernel in (_forward, _backward):
        yield Configuration(
            kernel=kernel,
            name=f"swiglu {kernel.__name__.strip('_')}",
            constants={"BLOCK": BLOCK, "ACC": tl.float32},
            divisible=("grad_stride", "gate_stride", "up_stride", "width"),
            needs=("LDG.E.128", "STG.E.128"),
            ptx=("cvt.rn.bf16",),
        )
