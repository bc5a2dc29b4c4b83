"""Rows added to where an index says, without atomics: sort the index, then one program per row.

The stable sort (torch's) brings equal indices together in their order; a program adds its run of
rows in that order, so every run of the kernel gives the same bits.
"""

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

COLUMNS = 1024  # columns of a row that one program adds


@triton.jit
def _add_runs(values_ptr, order_ptr, ends_ptr, out_ptr, width, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    start = tl.load(ends_ptr + row - 1, mask=row > 0, other=0)
    end = tl.load(ends_ptr + row)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for place in range(start, end):
        source = tl.load(order_ptr + place)
        total += tl.load(values_ptr + source * stride + columns, mask=inside, other=0.0).to(
            tl.float32
        )
    tl.store(out_ptr + row * width + columns, total.to(out_ptr.dtype.element_ty), mask=inside)


def scatter_add(values: Tensor, index: Tensor, size: int) -> Tensor:
    """values [S, D], index [S] -> [size, D], see reference.py; no gradients."""
    check_rows("scatter_add", values=values)
    width = values.shape[1]
    out = torch.empty(size, width, dtype=values.dtype, device=values.device)
    if out.numel():
        places, order = index.sort(stable=True)
        rows = torch.arange(1, size + 1, device=index.device)
        ends = torch.searchsorted(places, rows, out_int32=True)
        with torch.cuda.device_of(values):
            _add_runs[(size, triton.cdiv(width, COLUMNS))](
                values, order, ends, out, width, values.stride(0), BLOCK=COLUMNS
            )
    return out


def configurations() -> Iterator[Configuration]:
    """Without atomics, 16 bytes at a time."""
    yield Configuration(
        kernel=_add_runs,
        name="scatter_add",
        types={"order_ptr": "*i64", "ends_ptr": "*i32"},
        constants={"BLOCK": COLUMNS},
        divisible=("width", "stride"),
        needs=("LDG.E.128", "STG.E.128"),
    )
