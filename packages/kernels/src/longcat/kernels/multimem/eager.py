"""The collectives over torch.distributed: gloo between CPU processes, NCCL between GPUs.

Each is one or two uneven all-to-alls, which move bits and add nothing: a backend's own sum would
round to bfloat16 once a rank, in an order of its own. Sums are made here, in float32 in the order
of ranks, and rounded once. So one shot and two give the same bits, the same on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor

from longcat.kernels.multimem.memory import ALIGNMENT, SymmetricMemory


def all_reduce(x: Tensor, memory: SymmetricMemory, shots: int) -> Tensor:
    """The sum over ranks; in one shot a new tensor, in two a view of the memory."""
    flat = x.reshape(-1)
    if shots == 1:
        parts = gathered(flat, [len(flat)] * memory.world, memory)
        return _sum(list(parts.view(memory.world, -1))).view(x.shape)
    shares = _shares(x, memory.world)
    mine = _sum(_pieces_of(flat, shares, memory))
    held = memory.buffer[: x.nbytes].view(x.dtype)
    return gathered(mine, shares, memory, out=held).view(x.shape)


def all_gather(x: Tensor, counts: Sequence[int], memory: SymmetricMemory) -> Tensor:
    """Everyone's rows, to the memory."""
    rows, width = sum(counts), x.shape[1]
    held = memory.buffer[: rows * width * x.element_size()].view(x.dtype)
    numbers = [count * width for count in counts]
    return gathered(x.reshape(-1), numbers, memory, out=held).view(rows, width)


def reduce_scatter(x: Tensor, counts: Sequence[int], memory: SymmetricMemory) -> Tensor:
    """This rank's rows of the sum."""
    pieces = _pieces_of(x.reshape(-1), [count * x.shape[1] for count in counts], memory)
    return _sum(pieces).view(counts[memory.rank], x.shape[1])


def gathered(
    mine: Tensor, numbers: Sequence[int], memory: SymmetricMemory, out: Tensor | None = None
) -> Tensor:
    """Everyone's numbers, one rank after the other: [numbers[rank]] -> [sum(numbers)], in `out`."""
    out = mine.new_empty(sum(numbers)) if out is None else out
    sent = [len(mine)] * memory.world
    dist.all_to_all_single(out, mine.repeat(memory.world), list(numbers), sent, group=memory.group)
    return out


def _pieces_of(x: Tensor, numbers: Sequence[int], memory: SymmetricMemory) -> list[Tensor]:
    """Of every rank's x [sum(numbers)] the piece that is this rank's to sum, in rank order."""
    received = [numbers[memory.rank]] * memory.world
    pieces = x.new_empty(sum(received))
    dist.all_to_all_single(pieces, x, received, list(numbers), group=memory.group)
    return list(pieces.view(memory.world, -1))


def _sum(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0].to(torch.float32, copy=True)
    for part in parts[1:]:
        total += part
    return total.to(parts[0].dtype)


def _shares(x: Tensor, world: int) -> list[int]:
    """Numbers of x that each rank sums: whole units of 16 bytes, the last ranks perhaps none."""
    units = x.nbytes // ALIGNMENT
    share, per_unit = -(-units // world), ALIGNMENT // x.element_size()
    starts = [min(rank * share, units) for rank in range(world + 1)]
    return [(end - start) * per_unit for start, end in pairwise(starts)]
