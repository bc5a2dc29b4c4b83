"""Norm, scale, rotation and cache write as one Triton kernel, a program per token."""

# Kernels are read by Triton's compiler, not by mypy.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from longcat.kernels.operands import check_rows
from longcat.kernels.proof.configuration import Configuration


@triton.jit
def _latent_write(
    compressed_ptr,
    weight_ptr,
    positions_ptr,
    inv_freq_ptr,
    slots_ptr,
    store_ptr,
    eps,
    alpha,
    factor,
    stride,
    width,
    half,
    BLOCK: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    row = compressed_ptr + token * stride
    place = store_ptr + tl.load(slots_ptr + token) * (width + 2 * half)
    dtype: tl.constexpr = store_ptr.dtype.element_ty
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    latent = tl.load(row + columns, mask=inside, other=0.0).to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(latent * latent, axis=0) / width + eps)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    # Rounded where the three separate steps round.
    normed = ((latent * inverse).to(dtype).to(tl.float32) * weight).to(dtype).to(tl.float32)
    tl.store(place + columns, (normed * alpha).to(dtype), mask=inside)
    # Interleaved pairs in, halves out.
    pair = tl.arange(0, BLOCK_R)
    real = pair < half
    even = tl.load(row + width + 2 * pair, mask=real, other=0.0).to(tl.float32)
    odd = tl.load(row + width + 2 * pair + 1, mask=real, other=0.0).to(tl.float32)
    speed = tl.load(inv_freq_ptr + pair, mask=real, other=0.0)
    angle = tl.load(positions_ptr + token).to(tl.float32) * speed
    cos, sin = tl.cos(angle) * factor, tl.sin(angle) * factor
    tl.store(place + width + pair, (even * cos - odd * sin).to(dtype), mask=real)
    tl.store(place + width + half + pair, (odd * cos + even * sin).to(dtype), mask=real)


def latent_write(
    compressed: Tensor,
    weight: Tensor,
    eps: float,
    alpha: float,
    positions: Tensor,
    inv_freq: Tensor,
    slots: Tensor,
    store: Tensor,
    factor: float = 1.0,
) -> Tensor:
    """store[slots] = [alpha * rmsnorm(c) | rope(k)] in place, see reference.py; no gradients."""
    check_rows("latent_write", compressed=compressed)
    tokens, width = len(compressed), len(weight)
    half = len(inv_freq)
    if tokens:
        with torch.cuda.device_of(compressed):
            _latent_write[(tokens,)](
                compressed, weight.contiguous(), positions.contiguous(),
                inv_freq.float().contiguous(), slots.contiguous(), store, float(eps),
                float(alpha), float(factor), compressed.stride(0), width, half,
                BLOCK=triton.next_power_of_2(width), BLOCK_R=triton.next_power_of_2(half),
                num_warps=1,
            )  # fmt: skip
    return store


def configurations() -> Iterator[Configuration]:
    """At 512 + 64 numbers per token."""
    yield Configuration(
        kernel=_latent_write,
        name="latent_write 512+64",
        types={
            "positions_ptr": "*i64", "slots_ptr": "*i64", "inv_freq_ptr": "*fp32",
            "eps": "fp32", "alpha": "fp32", "factor": "fp32",
        },
        constants={"BLOCK": 512, "BLOCK_R": 32},
        divisible=("stride", "width", "half"),
        warps=1,
        needs=("LDG.E.128", "STG.E.128"),
        ptx=("cvt.rn.bf16",),
        stack=32,  # sine and cosine of angles in the thousands: their exact reduction
    )  # fmt: skip
