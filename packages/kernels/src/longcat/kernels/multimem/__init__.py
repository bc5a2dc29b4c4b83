"""Collectives through the NVLink switch: all-reduce, all-gather, reduce-scatter.

What is proven about them, and what cannot be on one GPU or none, is in README.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longcat.kernels.multimem.memory import ALIGNMENT, SymmetricMemory
from longcat.kernels.operands import check_dtype

__all__ = ["ONE_SHOT_BYTES", "SymmetricMemory", "all_gather", "all_reduce", "reduce_scatter"]

# Up to here reading everything N times costs less than a second step. Not measured here: others'
# figures for eight H100 put the boundary at some tens of KiB.
ONE_SHOT_BYTES = 64 * 1024


def all_reduce(x: Tensor, memory: SymmetricMemory, shots: int | None = None) -> Tensor:
    """The sum of x over all ranks, accumulated in float32 and rounded once.

    Args:
        x: any shape, bfloat16 or float32, the same on every rank; a multiple of 16 bytes.
        memory: this rank's symmetric memory.
        shots: 1: every rank sums everything. 2: every rank sums its slice and multicasts it; all
            ranks then hold the same bits. None: by size.

    Returns:
        x's shape; with two shots a view of the memory, valid until its next collective.

    Raises:
        ValueError: a dtype, size or number of shots that does not fit.

    Source: report, inference communication (multimem.ld_reduce, multimem.st, 4 thread blocks).
    """
    from longcat.kernels.multimem import triton_kernel

    op = "multimem.all_reduce"
    _check_dtype(op, x)
    held = _held(op, "x", x.nbytes, memory)
    if shots not in (None, 1, 2):
        raise ValueError(f"{op}: shots must be 1, 2 or None, got {shots}")
    buffer = held.view(x.dtype).view(x.shape)
    buffer.copy_(x)
    if shots == 1 or (shots is None and x.nbytes <= ONE_SHOT_BYTES):
        out = torch.empty_like(buffer)
        triton_kernel.launch_all_reduce_one_shot(out, memory)
        return out
    triton_kernel.launch_all_reduce(buffer, memory)
    return buffer


def all_gather(x: Tensor, counts: Sequence[int], memory: SymmetricMemory) -> Tensor:
    """Everyone's rows, one rank after the other.

    Args:
        x: [counts[rank], D] bfloat16 or float32, rows of a multiple of 16 bytes.
        counts: rows of each rank; they may differ, and be 0.
        memory: this rank's symmetric memory.

    Returns:
        [sum(counts), D], a view of the memory, valid until its next collective.

    Raises:
        ValueError: a dtype, size or count that does not fit.

    Source: report, inference communication (uniform and non-uniform token counts).
    """
    from longcat.kernels.multimem import triton_kernel

    op = "multimem.all_gather"
    _check_dtype(op, x)
    ends = _ends(op, x, counts, memory)
    if x.shape[0] != counts[memory.rank]:
        raise ValueError(
            f"{op}: x must have counts[{memory.rank}] = {counts[memory.rank]} rows, "
            f"got {x.shape[0]}"
        )
    held = _held(op, "the result", sum(counts) * x.shape[1] * x.element_size(), memory)
    triton_kernel.launch_all_gather(x.contiguous(), ends, memory)
    return held.view(x.dtype).view(sum(counts), x.shape[1])


def reduce_scatter(x: Tensor, counts: Sequence[int], memory: SymmetricMemory) -> Tensor:
    """This rank's rows of the sum of x over all ranks.

    Args:
        x: [sum(counts), D] bfloat16 or float32, rows of a multiple of 16 bytes.
        counts: rows that each rank gets; they may differ, and be 0.
        memory: this rank's symmetric memory.

    Returns:
        [counts[rank], D].

    Raises:
        ValueError: a dtype, size or count that does not fit.

    Source: report, inference communication (uniform and non-uniform token counts).
    """
    from longcat.kernels.multimem import triton_kernel

    op = "multimem.reduce_scatter"
    _check_dtype(op, x)
    ends = _ends(op, x, counts, memory)
    if x.shape[0] != sum(counts):
        raise ValueError(f"{op}: x must have sum(counts) = {sum(counts)} rows, got {x.shape[0]}")
    _held(op, "x", x.nbytes, memory).view(x.dtype).view(x.shape).copy_(x)
    out = torch.empty(counts[memory.rank], x.shape[1], dtype=x.dtype, device=x.device)
    triton_kernel.launch_reduce_scatter(out, ends, memory)
    return out


def _check_dtype(op: str, x: Tensor) -> None:
    check_dtype(op, "x", x, torch.bfloat16, torch.float32)


def _held(op: str, name: str, nbytes: int, memory: SymmetricMemory) -> Tensor:
    """The first bytes of this rank's buffer."""
    if nbytes % ALIGNMENT:
        raise ValueError(
            f"{op}: {name} must be a multiple of {ALIGNMENT} bytes, which one instruction moves, "
            f"got {nbytes}; pad its last dimension"
        )
    if nbytes > memory.buffer.numel():
        raise ValueError(
            f"{op}: {name} has {nbytes} bytes and the symmetric memory {memory.buffer.numel()}; "
            "allocate a larger one"
        )
    return memory.buffer[:nbytes]


def _ends(op: str, x: Tensor, counts: Sequence[int], memory: SymmetricMemory) -> Tensor:
    """One past each rank's last 16-byte unit, int32 [world]."""
    if x.dim() != 2:
        raise ValueError(f"{op}: x must have shape [rows, D], got {list(x.shape)}")
    if len(counts) != memory.world or min(counts) < 0:
        raise ValueError(
            f"{op}: counts must be {memory.world} numbers of rows, one per rank, got {list(counts)}"
        )
    row = x.shape[1] * x.element_size()
    if row % ALIGNMENT:
        raise ValueError(
            f"{op}: rows of x must be a multiple of {ALIGNMENT} bytes, got {row}; "
            "pad the last dimension"
        )
    units = torch.tensor(counts, dtype=torch.int64).cumsum(0) * (row // ALIGNMENT)
    return units.to(x.device, torch.int32)
