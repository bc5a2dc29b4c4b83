"""Collectives through the NVLink switch: all-reduce, all-gather, reduce-scatter.

The eager forms go over torch.distributed: they run anywhere, with any number of processes. What is
proven about the kernels, and what cannot be on one GPU or none, is in README.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longcat.kernels.dispatch import Form, choose, through_numpy
from longcat.kernels.multimem import eager, reference
from longcat.kernels.multimem.memory import ALIGNMENT, SymmetricMemory, placed
from longcat.kernels.operands import check_dtype, check_together

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
        ValueError: a dtype, size, place or number of shots that does not fit.

    Source: report, inference communication (multimem.ld_reduce, multimem.st, 4 thread blocks).
    """
    op = "multimem.all_reduce"
    _check_operand(op, x, memory)
    _check_room(op, "x", x.nbytes, memory)
    _check_place(op, x, memory)
    if shots not in (None, 1, 2):
        raise ValueError(f"{op}: shots must be 1, 2 or None, got {shots}")
    if shots is None:
        shots = 1 if x.nbytes <= ONE_SHOT_BYTES else 2
    match _form(op, x, memory):
        case "numpy":
            parts = eager.gathered(x.reshape(-1), [x.numel()] * memory.world, memory)
            sums = through_numpy(reference.all_reduce, parts.view(memory.world, -1), shots, like=x)
            total: Tensor = sums[memory.rank].view(x.shape)
            return total
        case "triton":
            from longcat.kernels.multimem import triton_kernel

            return triton_kernel.all_reduce(x, memory, shots)
        case _:
            return eager.all_reduce(x, memory, shots)


def all_gather(x: Tensor, counts: Sequence[int], memory: SymmetricMemory) -> Tensor:
    """Everyone's rows, one rank after the other.

    Args:
        x: [counts[rank], D] bfloat16 or float32, rows of a multiple of 16 bytes.
        counts: rows of each rank; they may differ, and be 0.
        memory: this rank's symmetric memory.

    Returns:
        [sum(counts), D], a view of the memory, valid until its next collective.

    Raises:
        ValueError: a dtype, size, place or count that does not fit.

    Source: report, inference communication (uniform and non-uniform token counts).
    """
    op = "multimem.all_gather"
    _check_operand(op, x, memory)
    _check_rows(op, x, counts, memory)
    if x.shape[0] != counts[memory.rank]:
        raise ValueError(
            f"{op}: x must have counts[{memory.rank}] = {counts[memory.rank]} rows, "
            f"got {x.shape[0]}"
        )
    row = x.shape[1] * x.element_size()
    _check_room(op, "the result", sum(counts) * row, memory)
    _check_place(op, x, memory, row * sum(counts[: memory.rank]))
    match _form(op, x, memory):
        case "numpy":
            rows = eager.gathered(x.reshape(-1), [n * x.shape[1] for n in counts], memory)
            parts = rows.view(-1, x.shape[1]).split(list(counts))
            whole = through_numpy(
                lambda *parts: reference.all_gather(parts, counts), *parts, like=x
            )
            mine: Tensor = whole[memory.rank]
            return mine
        case "triton":
            from longcat.kernels.multimem import triton_kernel

            return triton_kernel.all_gather(x, counts, memory)
        case _:
            return eager.all_gather(x, counts, memory)


def reduce_scatter(x: Tensor, counts: Sequence[int], memory: SymmetricMemory) -> Tensor:
    """This rank's rows of the sum of x over all ranks, accumulated in float32 and rounded once.

    Args:
        x: [sum(counts), D] bfloat16 or float32, rows of a multiple of 16 bytes.
        counts: rows that each rank gets; they may differ, and be 0.
        memory: this rank's symmetric memory.

    Returns:
        [counts[rank], D].

    Raises:
        ValueError: a dtype, size, place or count that does not fit.

    Source: report, inference communication (uniform and non-uniform token counts).
    """
    op = "multimem.reduce_scatter"
    _check_operand(op, x, memory)
    _check_rows(op, x, counts, memory)
    if x.shape[0] != sum(counts):
        raise ValueError(f"{op}: x must have sum(counts) = {sum(counts)} rows, got {x.shape[0]}")
    _check_room(op, "x", x.nbytes, memory)
    _check_place(op, x, memory)
    match _form(op, x, memory):
        case "numpy":
            parts = eager.gathered(x.reshape(-1), [x.numel()] * memory.world, memory)
            share: Tensor = through_numpy(
                lambda parts: reference.reduce_scatter(parts, counts)[memory.rank],
                parts.view(memory.world, *x.shape),
                like=x,
            )
            return share
        case "triton":
            from longcat.kernels.multimem import triton_kernel

            return triton_kernel.reduce_scatter(x, counts, memory)
        case _:
            return eager.reduce_scatter(x, counts, memory)


def _form(op: str, x: Tensor, memory: SymmetricMemory) -> Form:
    form = choose(op, x, has_kernel=memory.multicast != 0, inference_only=True)
    if form == "triton":
        return form
    here = placed(op, memory.group)
    if here != (memory.rank, memory.world):
        raise ValueError(
            f"{op}: the memory is rank {memory.rank} of {memory.world} and this process rank "
            f"{here[0]} of {here[1]} in the group; make it with SymmetricMemory.from_group"
        )
    return "torch" if form == "exact" else form  # sums in rank order are exact mode's already


def _check_operand(op: str, x: Tensor, memory: SymmetricMemory) -> None:
    check_together(op, x=x, memory=memory.buffer)
    check_dtype(op, "x", x, torch.bfloat16, torch.float32)
    if torch.is_grad_enabled() and x.requires_grad:
        raise ValueError(f"{op}: no gradients are computed; call it under torch.no_grad()")


def _check_room(op: str, name: str, nbytes: int, memory: SymmetricMemory) -> None:
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


def _check_place(op: str, x: Tensor, memory: SymmetricMemory, place: int = 0) -> None:
    """x may lie outside the memory, or be there already; elsewhere in it, it is overwritten."""
    start = x.data_ptr() - memory.buffer.data_ptr()
    apart = start >= memory.buffer.numel() or start + x.nbytes <= 0
    if not apart and (start != place or not x.is_contiguous()):
        raise ValueError(
            f"{op}: x lies in the symmetric memory, where this call writes; pass x.clone()"
        )


def _check_rows(op: str, x: Tensor, counts: Sequence[int], memory: SymmetricMemory) -> None:
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
