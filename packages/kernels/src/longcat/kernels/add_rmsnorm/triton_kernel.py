"""The residual sum and its RMSNorm as one Triton kernel: two reads, two writes per element."""

# Kernels are read by Triton's compiler, not by mypy.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from longcat.kernels.proof.configuration import Configuration


@triton.jit
def _add_rmsnorm(
    x_ptr, residual_ptr, weight_ptr, y_ptr, total_ptr, eps, width, BLOCK: tl.constexpr
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
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    y = (wide * inverse).to(x.dtype).to(tl.float32) * weight
    tl.store(y_ptr + places, y.to(x.dtype), mask=inside)


def add_rmsnorm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rmsnorm(residual + x), residual + x), see reference.py; no gradients."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    width = x.shape[-1]
    if y.numel():
        block = triton.next_power_of_2(width)
        with torch.cuda.device_of(x):
            _add_rmsnorm[(y.numel() // width,)](
                x.contiguous(), residual.contiguous(), weight.contiguous(), y, total,
                float(eps), width, BLOCK=block, num_warps=min(max(block // 256, 1), 16),
            )  # fmt: skip
    return y, total


def configurations() -> Iterator[Configuration]:
    """At the model's width."""
    yield Configuration(
        kernel=_add_rmsnorm,
        name="add_rmsnorm 6144",
        types={"eps": "fp32"},
        constants={"BLOCK": 8192},
        divisible=("width",),
        warps=16,
        needs=("LDG.E.128", "STG.E.128"),
        ptx=("cvt.rn.bf16",),
    )
