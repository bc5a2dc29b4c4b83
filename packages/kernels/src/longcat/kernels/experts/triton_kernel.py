"""The FFN experts as two grouped products, persistent over a work list.

The list names blocks of rows (expert, first row, end); it is made on the device, without atomics
and without the host waiting. A fixed number of programs walks over (block of rows) x (block of
outputs). Tokens are gathered while they are loaded, so that no sorted copy of them is written;
SwiGLU is computed where the first product's sums lie, in registers. Weights come by TMA where it
can describe them: see README.md.
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
from triton.tools.tensor_descriptor import TensorDescriptor

from longcat.kernels.experts import triton_gradient, work_list
from longcat.kernels.experts.tiles import (
    LARGE,
    PROGRAMS_PER_PROCESSOR,
    ROWS,
    choose_tile,
)
from longcat.kernels.linear.descriptor_kernel import can_be_described
from longcat.kernels.linear.tiles import Tile
from longcat.kernels.linear.triton_kernel import NARROWEST
from longcat.kernels.operands import check_rows
from longcat.kernels.programs import programs_for
from longcat.kernels.proof.configuration import Configuration
from longcat.kernels.scatter_add.triton_kernel import scatter_add


@triton.jit
def _grouped(
    x_ptr,
    rows_ptr,
    weights,
    work_ptr,
    y_ptr,
    outputs,
    inner,
    n_blocks,
    x_stride,
    weight_stride,
    expert_stride,
    SWAP: tl.constexpr,
    GATED: tl.constexpr,
    GATHER: tl.constexpr,
    DESCRIBED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr,
):
    # weights: a pointer, or a descriptor of tiles of [experts, gate and up or one, outputs, inner].
    columns = tl.arange(0, BLOCK_K)
    units = n_blocks * tl.cdiv(outputs, BLOCK_N)
    for unit in range(tl.program_id(0), units, tl.num_programs(0)):
        # Neighbours share a block of the weight where an expert has several blocks of rows.
        entry = work_ptr + 3 * (unit % n_blocks)
        expert = tl.load(entry)
        if expert >= 0:
            t = tl.load(entry + 1) + tl.arange(0, BLOCK_T)
            t_inside = t < tl.load(entry + 2)
            first_n = (unit // n_blocks) * BLOCK_N
            n = first_n + tl.arange(0, BLOCK_N)
            source = t.to(tl.int64)
            if GATHER:
                source = tl.load(rows_ptr + t, mask=t_inside, other=0).to(tl.int64)
            x_rows = x_ptr + source[:, None] * x_stride
            if not DESCRIBED:
                # 512 experts of 6144 x 4096 weights: their offsets need 64 bits.
                weight_rows = (
                    weights + expert.to(tl.int64) * expert_stride
                    + n.to(tl.int64)[:, None] * weight_stride
                )  # fmt: skip
            if SWAP:
                total = tl.zeros([BLOCK_N, BLOCK_T], dtype=tl.float32)
            else:
                total = tl.zeros([BLOCK_T, BLOCK_N], dtype=tl.float32)
            up_total = total
            for first in range(0, inner, BLOCK_K):
                k = (first + columns)[None, :]
                w_mask, x_mask = (n < outputs)[:, None], t_inside[:, None]
                if not EVEN:
                    w_mask, x_mask = w_mask & (k < inner), x_mask & (k < inner)
                x = tl.load(x_rows + k, mask=x_mask, other=0.0)
                if DESCRIBED:
                    weight = weights.load([expert, 0, first_n, first]).reshape(BLOCK_N, BLOCK_K)
                    if GATED:
                        up = weights.load([expert, 1, first_n, first]).reshape(BLOCK_N, BLOCK_K)
                else:
                    weight = tl.load(weight_rows + k, mask=w_mask, other=0.0)
                    if GATED:
                        ups = weight_rows + outputs * weight_stride
                        up = tl.load(ups + k, mask=w_mask, other=0.0)
                if SWAP:
                    total = tl.dot(weight, tl.trans(x), total)
                    if GATED:
                        up_total = tl.dot(up, tl.trans(x), up_total)
                else:
                    total = tl.dot(x, tl.trans(weight), total)
                    if GATED:
                        up_total = tl.dot(x, tl.trans(up), up_total)
            if GATED:
                total = total * tl.sigmoid(total) * up_total
            if SWAP:
                total = tl.trans(total)
            places = t.to(tl.int64)[:, None] * outputs + n[None, :]
            inside = t_inside[:, None] & (n < outputs)[None, :]
            tl.store(y_ptr + places, total.to(y_ptr.dtype.element_ty), mask=inside)


def experts(
    x: Tensor, gate_up: Tensor, down: Tensor, offsets: Tensor, rows: Tensor | None
) -> Tensor:
    """down_e swiglu(gate_up_e x) for each expert's rows, see reference.py.

    x [S, D] (or [T, D] with rows [S]), gate_up [N, 2F, D], down [N, D, F], offsets [N] -> [S, D].
    """
    rows = None if rows is None else rows.contiguous()
    y: Tensor = _Experts.apply(x, gate_up, down, offsets.contiguous(), rows)
    return y


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gate_up: Tensor, down: Tensor, offsets: Tensor, rows: Tensor | None
    ) -> Tensor:
        slots = x.shape[0] if rows is None else rows.shape[0]
        ctx.save_for_backward(x, gate_up, down, offsets, rows)
        return with_tile(x, gate_up, down, offsets, rows, choose_tile(slots, len(gate_up)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, gate_up, down, offsets, rows = ctx.saved_tensors
        made = gradients(x, gate_up, down, offsets, rows, grad.contiguous())
        return *made, None, None


def with_tile(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    offsets: Tensor,
    rows: Tensor | None,
    tile: Tile,
    described: bool | None = None,
) -> Tensor:
    """`experts` by the given tile; described: weights by TMA, None: where they can be described.

    Raises:
        ValueError: columns of an operand that are not adjacent; a copy of a weight would go unseen.
    """
    check_rows("experts", x_sorted=x, gate_up=gate_up, down=down)
    slots = x.shape[0] if rows is None else rows.shape[0]
    n_experts, width, inner = down.shape
    y = torch.empty(slots, width, dtype=x.dtype, device=x.device)
    if not y.numel() or not n_experts:
        return y
    hidden = torch.empty(slots, inner, dtype=x.dtype, device=x.device)
    with torch.cuda.device_of(x):
        work = work_list.list_work(offsets, slots, tile)
        _multiply(x, rows, gate_up, work, hidden, tile, True, described)
        _multiply(hidden, None, down, work, y, tile, False, described)
    return y


def gradients(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    offsets: Tensor,
    rows: Tensor | None,
    grad: Tensor,
    tile: Tile = LARGE,
    turned: Tile = triton_gradient.TURNED,
    weight: Tile = triton_gradient.WEIGHT,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, gate_up and down from that of y [S, D]; rows of no expert get zeros."""
    n_experts, width, inner = down.shape
    slots = len(grad)
    if not grad.numel() or not n_experts:
        return torch.zeros_like(x), torch.zeros_like(gate_up), torch.zeros_like(down)
    both = torch.empty(slots, 2 * inner, dtype=x.dtype, device=x.device)
    of_hidden = torch.empty(slots, inner, dtype=x.dtype, device=x.device)
    of_rows = torch.zeros(slots, width, dtype=x.dtype, device=x.device)
    share = programs_for(x, PROGRAMS_PER_PROCESSOR)
    with torch.cuda.device_of(x):
        _multiply(x, rows, gate_up, work_list.list_work(offsets, slots, tile), both, tile, False)
        work = work_list.list_work(offsets, slots, turned)
        triton_gradient.turned(grad, down, work, of_hidden, turned, share)
        hidden, of_both = triton_gradient.through_swiglu(both, of_hidden)
        triton_gradient.turned(of_both, gate_up, work, of_rows, turned, share)
        of_down = triton_gradient.of_weight(grad, hidden, None, offsets, down, weight)
        of_gate_up = triton_gradient.of_weight(of_both, x, rows, offsets, gate_up, weight)
    of_x = of_rows if rows is None else scatter_add(of_rows, rows, len(x))
    return of_x, of_gate_up, of_down


def _multiply(
    x: Tensor,
    rows: Tensor | None,
    weight: Tensor,
    work: Tensor,
    y: Tensor,
    tile: Tile,
    gated: bool,
    described: bool | None = None,
) -> None:
    inner, n_blocks = weight.shape[2], len(work)
    units = n_blocks * triton.cdiv(y.shape[1], tile.outputs)
    weights: Any = weight
    if described is None:
        described = can_be_described(weight)
    if described:
        halves = weight.unflatten(1, (2 if gated else 1, -1))
        weights = TensorDescriptor.from_tensor(halves, [1, 1, tile.outputs, tile.inner])
    _grouped[(min(units, programs_for(x, PROGRAMS_PER_PROCESSOR)),)](
        x, x if rows is None else rows, weights, work, y, y.shape[1], inner, n_blocks,
        x.stride(0), weight.stride(1), weight.stride(0),
        **tile.constants(inner),
        GATED=gated,
        GATHER=rows is not None,
        DESCRIBED=described,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def configurations() -> Iterator[Configuration]:
    """Both products for every tile, by pointers and by TMA, and the work list of 512 experts."""
    for tile in (*(tile for _, tile in ROWS), LARGE):
        for described in (False, True):
            for gathered in (False, True):
                yield _configuration("gate_up", tile, gathered, described)
            yield _configuration("down", tile, False, described)
    for described in (False, True):  # for the gradient; of rows as they lie it is as down
        yield _configuration("gate and up apart", LARGE, True, described)
    yield from work_list.configurations()
    yield from triton_gradient.configurations()


def _configuration(what: str, tile: Tile, gathered: bool, described: bool) -> Configuration:
    left, right = (tile.outputs, tile.tokens) if tile.swap else (tile.tokens, tile.outputs)
    small = right < NARROWEST
    shape = f"{'swap' if tile.swap else 'plain'} {left}x{right}x{tile.inner}"
    forms = (", gathered" if gathered else "") + (", TMA" if described else "")
    return Configuration(
        kernel=_grouped,
        name=f"experts {what} {shape}{forms}",
        types={
            "rows_ptr": "*i64" if gathered else "*bf16",
            "weights": f"tensordesc<bf16[1,1,{tile.outputs},{tile.inner}]>"
            if described
            else "*bf16",
            "work_ptr": "*i32",
            "expert_stride": "i64",
        },
        constants=tile.constants(6144)
        | {"GATED": what == "gate_up", "GATHER": gathered, "DESCRIBED": described},
        divisible=("outputs", "inner", "x_stride", "weight_stride", "expert_stride"),
        warps=tile.warps,
        stages=tile.stages,
        needs=(
            "HMMA.16816.F32.BF16" if small else f"HGMMA.64x{right}x16",
            *(("UTMALDG.4D",) if described else ()),
        ),
        forbids=("HGMMA",) if small else ("HMMA",),
    )
