"""Block-wise FP8 in Triton: quantisation, and the SwapAB product that applies scales as it adds.

The tensor core adds FP8 products with few bits; a sum over 128 of them is short enough. Then it is
multiplied by the two scales and added in float32, which the scales demand anyway.
"""

# Kernels are read by Triton's compiler, not by mypy.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from longcat.kernels.fp8.reference import GROUP, LARGEST
from longcat.kernels.linear.descriptor_kernel import can_be_described
from longcat.kernels.proof.configuration import Configuration

OUTPUTS = 64  # rows of the weight per block: half of those that share a scale
TOKENS = (16, 32, 64)  # tokens per block; Triton 3.6 and 3.7 have no FP8 wgmma of 8 columns
_LARGEST = tl.constexpr(LARGEST)


@triton.jit
def _quantise(
    x_ptr, numbers_ptr, scales_ptr, height, width, stride,
    ROWS: tl.constexpr, BLOCKS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    # BLOCKS blocks of ROWS x GROUP, one above the other; ROWS or BLOCKS is 1.
    rows = tl.program_id(0) * ROWS * BLOCKS + tl.arange(0, ROWS * BLOCKS)
    columns = tl.program_id(1) * GROUP + tl.arange(0, GROUP)
    inside = (rows < height)[:, None] & (columns < width)[None, :]
    places = rows.to(tl.int64)[:, None]
    x = tl.load(x_ptr + places * stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    largest = tl.max(tl.abs(x), axis=1)
    groups = tl.num_programs(1)
    if ROWS > 1:
        top = tl.max(largest, axis=0)
        scale = tl.where(top > 0, top / _LARGEST, 1.0)
        numbers = x / scale
        tl.store(scales_ptr + tl.program_id(0) * groups + tl.program_id(1), scale)
    else:
        scale = tl.where(largest > 0, largest / _LARGEST, 1.0)
        numbers = x / scale[:, None]
        tl.store(scales_ptr + rows * groups + tl.program_id(1), scale, mask=rows < height)
    numbers = tl.minimum(tl.maximum(numbers, -_LARGEST), _LARGEST).to(tl.float8e4nv)
    tl.store(numbers_ptr + places * width + columns[None, :], numbers, mask=inside)


@triton.jit
def _fp8_linear(
    xs, x_scales_ptr, weights, weight_scales_ptr, y_ptr, tokens, outputs, inner, groups,
    BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr, GROUP: tl.constexpr, EVEN: tl.constexpr,
    DESCRIBED: tl.constexpr,
):  # fmt: skip
    # xs and weights: pointers, or descriptors of tiles, whose copies need neither addresses nor
    # masks.
    first_n, first_t = tl.program_id(0) * BLOCK_N, tl.program_id(1) * BLOCK_T
    n, t = first_n + tl.arange(0, BLOCK_N), first_t + tl.arange(0, BLOCK_T)
    n_inside, t_inside = n < outputs, t < tokens
    if not DESCRIBED:
        weight_rows = weights + n.to(tl.int64)[:, None] * inner
        x_rows = xs + t.to(tl.int64)[:, None] * inner
    scale_row = weight_scales_ptr + (tl.program_id(0) * BLOCK_N // GROUP) * groups
    total = tl.zeros([BLOCK_N, BLOCK_T], dtype=tl.float32)
    for group in range(0, groups):
        k = (group * GROUP + tl.arange(0, GROUP))[None, :]
        if DESCRIBED:
            weight = weights.load([first_n, group * GROUP])
            x = xs.load([first_t, group * GROUP])
        elif EVEN:
            weight = tl.load(weight_rows + k, mask=n_inside[:, None], other=0.0)
            x = tl.load(x_rows + k, mask=t_inside[:, None], other=0.0)
        else:
            weight = tl.load(weight_rows + k, mask=n_inside[:, None] & (k < inner), other=0.0)
            x = tl.load(x_rows + k, mask=t_inside[:, None] & (k < inner), other=0.0)
        of_x = tl.load(x_scales_ptr + t * groups + group, mask=t_inside, other=0.0)
        scale = tl.load(scale_row + group) * of_x
        total += tl.dot(weight, tl.trans(x)) * scale[None, :]
    places = t.to(tl.int64)[:, None] * outputs + n[None, :]
    tl.store(y_ptr + places, tl.trans(total), mask=t_inside[:, None] & n_inside[None, :])


def quantise(x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """`quantise_rows` (rows = 1) or `quantise_blocks` (rows = GROUP), see reference.py."""
    height, width = x.shape
    groups, blocks = -(-width // GROUP), 1 if rows > 1 else 16
    numbers = torch.empty(height, width, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(-(-height // rows), groups, dtype=torch.float32, device=x.device)
    if numbers.numel():
        with torch.cuda.device_of(x):
            _quantise[(triton.cdiv(height, rows * blocks), groups)](
                x, numbers, scales, height, width, x.stride(0),
                ROWS=rows, BLOCKS=blocks, GROUP=GROUP, num_warps=_warps(rows),
            )  # fmt: skip
    return numbers, scales


def _warps(rows: int) -> int:
    return 4 if rows == 1 else 8


def fp8_linear(
    x: Tensor,
    x_scales: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    described: bool | None = None,
) -> Tensor:
    """y = (x * scales) @ (weight * scales)^T -> [T, N] float32, see reference.py; no gradients.

    described: fetch tiles by TMA. None: where both matrices can be described.

    Raises:
        ValueError: a weight that is not contiguous; a copy of it would go unseen.
    """
    if not weight.is_contiguous():
        raise ValueError(
            f"fp8_linear: weight must be contiguous for the Triton kernel, got strides "
            f"{list(weight.stride())}; call .contiguous() on it once"
        )
    (tokens, inner), outputs = x.shape, len(weight)
    y = torch.empty(tokens, outputs, dtype=torch.float32, device=x.device)
    if y.numel():
        block = next((most for most in TOKENS if tokens <= most), TOKENS[-1])
        xs: Any = x.contiguous()
        weights: Any = weight
        if described is None:
            described = can_be_described(xs, weight)
        if described:
            xs = TensorDescriptor.from_tensor(xs, [block, GROUP])
            weights = TensorDescriptor.from_tensor(weight, [OUTPUTS, GROUP])
        with torch.cuda.device_of(x):
            _fp8_linear[(triton.cdiv(outputs, OUTPUTS), triton.cdiv(tokens, block))](
                xs, x_scales.contiguous(), weights, weight_scales.contiguous(), y,
                tokens, outputs, inner, x_scales.shape[1], **_constants(block, inner, described),
                num_warps=4, num_stages=4,
            )  # fmt: skip
    return y


def _constants(tokens: int, inner: int, described: bool) -> dict[str, int | bool]:
    # What lies past the width of a described matrix comes as zeros: it is always even.
    even = described or inner % GROUP == 0
    return {
        "BLOCK_N": OUTPUTS,
        "BLOCK_T": tokens,
        "GROUP": GROUP,
        "EVEN": even,
        "DESCRIBED": described,
    }


def configurations() -> Iterator[Configuration]:
    """Both quantisations, and the product at 16, 32 and 64 tokens, by pointers and by TMA."""
    types = {"numbers_ptr": "*fp8e4nv", "scales_ptr": "*fp32"}
    for rows, blocks in ((1, 16), (GROUP, 1)):
        yield Configuration(
            kernel=_quantise,
            name=f"fp8 quantise {rows}x{GROUP}",
            types=types,
            constants={"ROWS": rows, "BLOCKS": blocks, "GROUP": GROUP},
            divisible=("width", "stride"),
            warps=_warps(rows),
            needs=("LDG.E.128",),
            ptx=("cvt.rn.satfinite.e4m3x2.f32",),
        )
    for tokens, described in product(TOKENS, (False, True)):
        tiles = {"xs": f"{tokens},{GROUP}", "weights": f"{OUTPUTS},{GROUP}"}
        yield Configuration(
            kernel=_fp8_linear,
            name=f"fp8 swap {OUTPUTS}x{tokens}x{GROUP}{', TMA' if described else ''}",
            types={
                name: f"tensordesc<fp8e4nv[{tile}]>" if described else "*fp8e4nv"
                for name, tile in tiles.items()
            }
            | {"x_scales_ptr": "*fp32", "weight_scales_ptr": "*fp32", "y_ptr": "*fp32"},
            constants=_constants(tokens, 6144, described),
            divisible=("outputs", "inner", "groups"),
            stages=4,
            needs=(f"QGMMA.64x{tokens}x32", *(("UTMALDG.2D",) if described else ())),
            forbids=("HGMMA", "HMMA", *(("LDGSTS",) if described else ())),
        )
