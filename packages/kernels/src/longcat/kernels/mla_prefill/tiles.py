"""Tiles of the prefill kernels, and which keys a tile of queries has to look at.

NOT YET MEASURED ON A GPU: at these sizes every pass compiles to wgmma without a spill.
What each compiles to is in proof/generated_code.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A block of queries by a block of keys."""

    queries: int
    keys: int
    warps: int
    stages: int

    def constants(self, width: int, values: int) -> dict[str, int]:
        """What a kernel is compiled with for rows of q and k, and rows of v, so wide.

        A and B split the width: the largest power of two in it, and the rest filled up to one.
        """
        whole = 1 << (width.bit_length() - 1)
        return {
            "WIDTH": width,
            "VALUES": values,
            "A": max(whole, 16),
            "B": max(1 << (width - whole - 1).bit_length(), 16) if width > whole else 16,
            "V": max(1 << (values - 1).bit_length(), 16),
            "BLOCK_T": self.queries,
            "BLOCK_S": self.keys,
        }


LOG2_E = 1.4426950408889634  # scores times this: exp2 serves for exp
FORWARD = Tile(queries=128, keys=64, warps=8, stages=3)
GRADIENT_Q = Tile(queries=128, keys=32, warps=8, stages=2)
GRADIENT_KV = Tile(queries=64, keys=64, warps=8, stages=2)


def spans(mask: Tensor, rows: int, columns: int) -> Tensor:
    """Where the seen columns of each tile of so many rows begin and end.

    mask [B, T, S] -> [B, ceil(T / rows), 2] int32: the first column that one of the rows may see,
    rounded down to whole blocks of `columns`, and one past the last. Equal where there is none.
    """
    length = mask.shape[2]
    seen = F.pad(mask, (0, 0, 0, -mask.shape[1] % rows)).unflatten(1, (-1, rows)).any(dim=2)
    places = torch.arange(length, device=mask.device)
    ends = torch.where(seen, places + 1, 0).amax(dim=2)
    starts = torch.where(seen, places, length).amin(dim=2) // columns * columns
    return torch.stack([torch.minimum(starts, ends), ends], dim=2).int()
