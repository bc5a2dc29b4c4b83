"""The product of triton_kernel.py with its tiles fetched by TMA, from tensor descriptors.

A descriptor tells the copy engine of Hopper where a matrix lies and how large a tile is; one thread
then asks for a tile by its corner. No thread computes addresses or holds them in registers, and
what lies past the matrix comes back as zeros, so no lane needs a mask.
"""

# Kernels are read by Triton's compiler, not by mypy.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from longcat.kernels.linear.tiles import Tile
from longcat.kernels.proof.configuration import Configuration

WORD = 16  # bytes that a descriptor's base and row stride must be multiples of


@triton.jit
def _described_product(
    x_descriptor,
    weight_descriptor,
    y_ptr,
    tokens,
    outputs,
    inner,
    share,
    SWAP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # y[split, t, n]: this program's share of the sum over k. One split writes y itself.
    first_n, first_t = tl.program_id(0) * BLOCK_N, tl.program_id(1) * BLOCK_T
    split = tl.program_id(2)
    if SWAP:
        total = tl.zeros([BLOCK_N, BLOCK_T], dtype=tl.float32)
    else:
        total = tl.zeros([BLOCK_T, BLOCK_N], dtype=tl.float32)
    start = split * share
    for first in range(start, tl.minimum(start + share, inner), BLOCK_K):
        weight = weight_descriptor.load([first_n, first])
        x = x_descriptor.load([first_t, first])
        if SWAP:
            total = tl.dot(weight, tl.trans(x), total)
        else:
            total = tl.dot(x, tl.trans(weight), total)
    if SWAP:
        total = tl.trans(total)
    n, t = first_n + tl.arange(0, BLOCK_N), first_t + tl.arange(0, BLOCK_T)
    places = (split.to(tl.int64) * tokens + t.to(tl.int64)[:, None]) * outputs + n[None, :]
    inside = (t < tokens)[:, None] & (n < outputs)[None, :]
    tl.store(y_ptr + places, total.to(y_ptr.dtype.element_ty), mask=inside)


def can_be_described(*operands: Tensor) -> bool:
    """Whether matrices begin, and their rows follow one another, at whole words of 16 bytes.

    So must matrices that are stacked. TMA came with Hopper: on a GPU before it nothing can.
    """
    return all(
        operand.numel() > 0
        and operand.data_ptr() % WORD == 0
        and all(step * operand.element_size() % WORD == 0 for step in operand.stride()[:-1])
        and (not operand.is_cuda or torch.cuda.get_device_capability(operand.device) >= (9, 0))
        for operand in operands
    )


def launch(
    x: Tensor, weight: Tensor, parts: Tensor, tile: Tile, share: int, grid: tuple[int, int, int]
) -> None:
    """Fill parts [splits, T, O] (or y itself, without splits), as triton_kernel.product does."""
    (tokens, inner), outputs = x.shape, weight.shape[0]
    _described_product[grid](
        TensorDescriptor.from_tensor(x, [tile.tokens, tile.inner]),
        TensorDescriptor.from_tensor(weight, [tile.outputs, tile.inner]),
        parts, tokens, outputs, inner, share, **_constants(tile, inner),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def _constants(tile: Tile, inner: int) -> dict[str, int | bool]:
    constants = tile.constants(inner)
    del constants["EVEN"]  # what lies past the width comes as zeros
    return constants


def configuration(
    tile: Tile, result: str, needs: tuple[str, ...], forbids: tuple[str, ...]
) -> Configuration:
    """A tile of the table by descriptors; `needs` and `forbids` as for the form by pointers."""
    left, right = (tile.outputs, tile.tokens) if tile.swap else (tile.tokens, tile.outputs)
    orientation = "swap" if tile.swap else "plain"
    return Configuration(
        kernel=_described_product,
        name=f"linear {orientation} {left}x{right}x{tile.inner} to {result}, TMA",
        types={
            "y_ptr": f"*{result}",
            "x_descriptor": f"tensordesc<bf16[{tile.tokens},{tile.inner}]>",
            "weight_descriptor": f"tensordesc<bf16[{tile.outputs},{tile.inner}]>",
        },
        constants=_constants(tile, 6144),
        divisible=("outputs", "inner", "share"),
        warps=tile.warps,
        stages=tile.stages,
        needs=("UTMALDG.2D", *needs),
        forbids=("LDGSTS", "LDG.E", *forbids),
    )
