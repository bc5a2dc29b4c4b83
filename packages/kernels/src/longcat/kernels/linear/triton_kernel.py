"""A linear map on Hopper's tensor cores, with the weight on the left (SwapAB) or on the right.

One source for both: the tiles are loaded alike, each row by row as it lies in memory, and only the
order of the operands of `tl.dot` differs. See tiles.py for which one is taken, and README.md.
"""

# Kernels are read by Triton's compiler, not by mypy.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from longcat.kernels.linear import descriptor_kernel
from longcat.kernels.linear.tiles import LARGE, ROWS, Tile, choose_tile
from longcat.kernels.operands import check_rows
from longcat.kernels.proof.configuration import Configuration

# Columns of the narrowest wgmma that this Triton knows; below, it takes mma.sync and says nothing.
NARROWEST = 8 if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8) else 16
REDUCE = 1024  # elements that one program of the second pass adds


@triton.jit
def _product(
    x_ptr,
    weight_ptr,
    y_ptr,
    tokens,
    outputs,
    inner,
    x_stride,
    weight_stride,
    share,
    SWAP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr,
):
    # y[split, t, n]: this program's share of the sum over k. One split writes y itself.
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    split = tl.program_id(2)
    columns = tl.arange(0, BLOCK_K)
    weight_rows = weight_ptr + n.to(tl.int64)[:, None] * weight_stride
    x_rows = x_ptr + t.to(tl.int64)[:, None] * x_stride
    n_inside, t_inside = (n < outputs)[:, None], (t < tokens)[:, None]
    if SWAP:
        total = tl.zeros([BLOCK_N, BLOCK_T], dtype=tl.float32)
    else:
        total = tl.zeros([BLOCK_T, BLOCK_N], dtype=tl.float32)
    start = split * share
    end = tl.minimum(start + share, inner)
    for first in range(start, end, BLOCK_K):
        k = (first + columns)[None, :]
        if EVEN:
            weight = tl.load(weight_rows + k, mask=n_inside, other=0.0)
            x = tl.load(x_rows + k, mask=t_inside, other=0.0)
        else:
            weight = tl.load(weight_rows + k, mask=n_inside & (k < end), other=0.0)
            x = tl.load(x_rows + k, mask=t_inside & (k < end), other=0.0)
        if SWAP:
            total = tl.dot(weight, tl.trans(x), total)
        else:
            total = tl.dot(x, tl.trans(weight), total)
    if SWAP:
        total = tl.trans(total)
    places = (split.to(tl.int64) * tokens + t.to(tl.int64)[:, None]) * outputs + n[None, :]
    inside = t_inside & (n < outputs)[None, :]
    tl.store(y_ptr + places, total.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _add_splits(parts_ptr, y_ptr, length, splits, BLOCK: tl.constexpr):
    # In the order of the splits: the same bits in every run.
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < length
    total = tl.load(parts_ptr + places, mask=inside, other=0.0)
    for split in range(1, splits):
        total += tl.load(parts_ptr + split * length + places, mask=inside, other=0.0)
    tl.store(y_ptr + places, total.to(y_ptr.dtype.element_ty), mask=inside)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """y = x @ weight^T, see reference.py. x [..., I], weight [O, I] -> [..., O]; no gradients."""
    rows = x.reshape(-1, x.shape[-1])
    return product(rows, weight, choose_tile(rows.shape[0], *weight.shape)).view(
        *x.shape[:-1], weight.shape[0]
    )


def product(x: Tensor, weight: Tensor, tile: Tile, described: bool | None = None) -> Tensor:
    """x [T, I] @ weight^T [I, O] -> [T, O] by the given tile.

    described: fetch tiles by TMA. None: where both matrices can be described.

    Raises:
        ValueError: columns of an operand that are not adjacent; a copy of a weight would go unseen.
    """
    check_rows("linear", x=x, weight=weight)
    (tokens, inner), outputs = x.shape, weight.shape[0]
    y = torch.empty(tokens, outputs, dtype=x.dtype, device=x.device)
    if not y.numel():
        return y
    steps = -(-inner // tile.inner)
    share = max(-(-steps // tile.splits), 1) * tile.inner  # columns of k for each split
    parts = y
    if tile.splits > 1:
        parts = torch.empty(tile.splits, *y.shape, dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(outputs, tile.outputs), triton.cdiv(tokens, tile.tokens), tile.splits)
    if described is None:
        described = descriptor_kernel.can_be_described(x, weight)
    with torch.cuda.device_of(x):
        if described:
            descriptor_kernel.launch(x, weight, parts, tile, share, grid)
        else:
            _product[grid](
                x, weight, parts, tokens, outputs, inner, x.stride(0), weight.stride(0), share,
                **tile.constants(inner), num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
        if parts is not y:
            _add_splits[(triton.cdiv(y.numel(), REDUCE),)](
                parts, y, y.numel(), tile.splits, BLOCK=REDUCE
            )
    return y


def configurations() -> Iterator[Configuration]:
    """Every tile, alone and split, by pointers and by TMA; a ragged width; the one in Gluon."""
    for tile in (*(tile for _, tile in ROWS), LARGE):
        for result in ("bf16", "fp32"):
            by_pointers = _configuration(tile, result, inner=6144)
            yield by_pointers
            yield descriptor_kernel.configuration(
                tile, result, by_pointers.needs, by_pointers.forbids
            )
    yield _configuration(ROWS[1][1], "bf16", inner=6100)
    yield Configuration(
        kernel=_add_splits,
        name="linear add splits",
        types={"parts_ptr": "*fp32", "length": "i64"},
        constants={"BLOCK": REDUCE},
        divisible=("length",),
        needs=("LDG.E.128",),
    )

    from longcat.kernels.linear import gluon_kernel

    yield from gluon_kernel.configurations()


def _configuration(tile: Tile, result: str, inner: int) -> Configuration:
    even = inner % tile.inner == 0
    left, right = (tile.outputs, tile.tokens) if tile.swap else (tile.tokens, tile.outputs)
    wgmma = f"HGMMA.64x{right}x16"
    small = right < NARROWEST
    return Configuration(
        kernel=_product,
        name=f"linear {'swap' if tile.swap else 'plain'} {left}x{right}x{tile.inner} to {result}"
        + ("" if even else ", ragged"),
        types={"y_ptr": f"*{result}"},
        constants=tile.constants(inner),
        divisible=("x_stride", "weight_stride", "outputs", *(("inner", "share") if even else ())),
        warps=tile.warps,
        stages=tile.stages,
        needs=("HMMA.16816.F32.BF16",) if small else (wgmma,),
        forbids=("HGMMA",) if small else ("HMMA",),
    )
