"""The work list of the grouped products: blocks of rows as (expert, first row, end).

It is made on the device, without atomics and without the host waiting for the counts; it has room
for the most blocks there can be, and what is left over is marked with the expert -1.
"""

# Kernels are read by Triton's compiler, not by mypy.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from longcat.kernels.experts.tiles import LARGE, ROWS, most_blocks
from longcat.kernels.linear.tiles import Tile
from longcat.kernels.proof.configuration import Configuration


@triton.jit
def _list_work(
    offsets_ptr, work_ptr, n_experts, n_blocks, BLOCK_T: tl.constexpr, ALL: tl.constexpr
):
    # Program e writes the entries of expert e; where they begin follows from everyone's counts.
    # One program more than there are experts marks the entries that are left over.
    expert = tl.program_id(0)
    experts = tl.arange(0, ALL)
    ends = tl.load(offsets_ptr + experts, mask=experts < n_experts, other=0)
    starts = tl.load(offsets_ptr + experts - 1, mask=(experts > 0) & (experts < n_experts), other=0)
    blocks = (ends - starts + BLOCK_T - 1) // BLOCK_T
    before = tl.sum(tl.where(experts < expert, blocks, 0), axis=0)
    mine = tl.sum(tl.where(experts == expert, blocks, 0), axis=0)
    start = tl.sum(tl.where(experts == expert, starts, 0), axis=0)
    end = tl.sum(tl.where(experts == expert, ends, 0), axis=0)
    if expert == n_experts:
        mine = n_blocks - before
        expert = -1
    for block in range(0, mine):
        entry = work_ptr + 3 * (before + block)
        tl.store(entry, expert)
        tl.store(entry + 1, (start + block * BLOCK_T).to(tl.int32))
        tl.store(entry + 2, end.to(tl.int32))


def list_work(offsets: Tensor, slots: int, tile: Tile) -> Tensor:
    """(expert, first row, end) of each block of rows, int32 [blocks, 3]."""
    n_experts, n_blocks = len(offsets), most_blocks(slots, len(offsets), tile)
    work = torch.empty(n_blocks, 3, dtype=torch.int32, device=offsets.device)
    _list_work[(n_experts + 1,)](
        offsets, work, n_experts, n_blocks,
        BLOCK_T=tile.tokens, ALL=triton.next_power_of_2(n_experts + 1),
    )  # fmt: skip
    return work


def configurations() -> Iterator[Configuration]:
    """For 512 experts, in blocks of each height that a tile has."""
    for rows in sorted({tile.tokens for tile in (*(tile for _, tile in ROWS), LARGE)}):
        yield Configuration(
            kernel=_list_work,
            name=f"experts list work in {rows}s",
            types={"offsets_ptr": "*i32", "work_ptr": "*i32"},
            constants={"BLOCK_T": rows, "ALL": 1024},
        )
