"""Memory that every rank has at the same offset, and the switch address that stands for all of it.

`SymmetricMemory.from_torch` takes torch's symmetric memory on GPUs whose NVLink switch reduces and
multicasts. That needs two GPUs at least, and has not been run: no machine of this project had
them. `simulation.py` makes the same object over processes of a CPU, where the kernels are proven.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PROGRAMS = 4  # thread blocks, as the report: the rest of the GPU keeps computing
ALIGNMENT = 16  # bytes: what one multimem instruction moves


@dataclass(frozen=True, kw_only=True)
class SymmetricMemory:
    """One rank's view.

    buffer: uint8 [bytes], this rank's own part.
    multicast: the address that stands for every rank's buffer.
    signals: int64 [world], the address of each rank's signal counters, int32 [PROGRAMS, world].
    epochs: int32 [PROGRAMS], how many barriers each program has passed; zero at first.
    """

    rank: int
    world: int
    buffer: Tensor
    multicast: int
    signals: Tensor
    epochs: Tensor

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"multimem: rank must be below world={self.world}, got {self.rank}")
        if self.world & (self.world - 1):
            raise ValueError(f"multimem: world must be a power of two, got {self.world}")
        for name, address in (("buffer", self.buffer.data_ptr()), ("multicast", self.multicast)):
            if address % ALIGNMENT:
                raise ValueError(
                    f"multimem: {name} must lie at a multiple of {ALIGNMENT} bytes, got {address}"
                )

    @classmethod
    def from_torch(cls, handle: Any, device: torch.device) -> SymmetricMemory:
        """From the handle of `torch.distributed._symmetric_memory.rendezvous`.

        Raises:
            ValueError: GPUs without a multicast address (no NVLink switch, or only one GPU).
        """
        if not handle.multicast_ptr:
            raise ValueError(
                "multimem: these GPUs have no multicast address; multimem needs two GPUs at least "
                "on one NVLink switch. Use torch.distributed's collectives instead"
            )
        return cls(
            rank=handle.rank,
            world=handle.world_size,
            buffer=handle.get_buffer(handle.rank, (handle.buffer_size,), torch.uint8),
            multicast=handle.multicast_ptr,
            signals=torch.tensor(handle.signal_pad_ptrs, dtype=torch.int64, device=device),
            epochs=torch.zeros(PROGRAMS, dtype=torch.int32, device=device),
        )
