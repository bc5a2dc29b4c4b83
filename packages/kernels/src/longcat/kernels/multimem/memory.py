"""Memory that every rank has, and the ways to the others': a process group, a switch, or both.

`SymmetricMemory.from_group` is what the eager forms need, on any device. `from_torch` takes torch's
symmetric memory on GPUs whose NVLink switch reduces and multicasts, for the kernels. That needs two
GPUs at least, and has not been run: no machine of this project had them. `simulation.py` makes the
same object over processes of a CPU, where the kernels are proven.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PROGRAMS = 4  # thread blocks, as the report: the rest of the GPU keeps computing
ALIGNMENT = 16  # bytes: what one multimem instruction moves


@dataclass(frozen=True, kw_only=True)
class SymmetricMemory:
    """One rank's view.

    buffer     uint8 [bytes], this rank's own part
    group      the ranks as processes of torch.distributed; None is all of them, as there. (No
               reference to that one is kept: it must be able to end when the program ends it.)
    multicast  the address that stands for every rank's buffer; 0 where there is no switch
    signals    int64 [world], the address of each rank's signal counters, int32 [PROGRAMS, world]
    epochs     int32 [PROGRAMS], how many barriers each program has passed; zero at first
    """

    rank: int
    world: int
    buffer: Tensor
    group: dist.ProcessGroup | None = None
    multicast: int = 0
    signals: Tensor | None = None
    epochs: Tensor | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"multimem: rank must be below world={self.world}, got {self.rank}")
        for name, address in (("buffer", self.buffer.data_ptr()), ("multicast", self.multicast)):
            if address % ALIGNMENT:
                raise ValueError(
                    f"multimem: {name} must lie at a multiple of {ALIGNMENT} bytes, got {address}"
                )
        if not self.multicast:
            return
        if self.world & (self.world - 1):
            raise ValueError(f"multimem: world must be a power of two, got {self.world}")
        if self.signals is None or self.epochs is None:
            raise ValueError(
                "multimem: a multicast address needs signals and epochs for its barriers, got none"
            )

    @classmethod
    def from_group(
        cls,
        nbytes: int,
        group: dist.ProcessGroup | None = None,
        device: torch.device | str = "cpu",
    ) -> SymmetricMemory:
        """`nbytes` on each rank of a group (default: all processes), for the eager forms.

        Raises:
            ValueError: torch.distributed was not initialised, or this process is not in the group.
        """
        rank, world = placed("multimem", group)
        return cls(
            rank=rank,
            world=world,
            buffer=torch.empty(nbytes, dtype=torch.uint8, device=device),
            group=group,
        )

    @classmethod
    def from_torch(
        cls, handle: Any, device: torch.device, group: dist.ProcessGroup | None = None
    ) -> SymmetricMemory:
        """From the handle of `torch.distributed._symmetric_memory.rendezvous`.

        The group is the one that the handle belongs to; the eager forms go over it.

        Raises:
            ValueError: GPUs without a multicast address (no NVLink switch, or only one GPU).
        """
        if not handle.multicast_ptr:
            raise ValueError(
                "multimem: these GPUs have no multicast address; multimem needs two GPUs at least "
                "on one NVLink switch. Use SymmetricMemory.from_group, which goes over NCCL"
            )
        return cls(
            rank=handle.rank,
            world=handle.world_size,
            buffer=handle.get_buffer(handle.rank, (handle.buffer_size,), torch.uint8),
            group=group,
            multicast=handle.multicast_ptr,
            signals=torch.tensor(handle.signal_pad_ptrs, dtype=torch.int64, device=device),
            epochs=torch.zeros(PROGRAMS, dtype=torch.int32, device=device),
        )


def placed(op: str, group: dist.ProcessGroup | None) -> tuple[int, int]:
    """(rank, world) of this process in a group of torch.distributed.

    Raises:
        ValueError: there is no group, or this process is not in it.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            f"{op}: torch.distributed has no process group yet; call "
            "torch.distributed.init_process_group first (torchrun sets what it reads)"
        )
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError(f"{op}: this process is not in the group; only its members may call it")
    return rank, dist.get_world_size(group)
