"""Rows added to where an index says, in eager torch and in their order."""

from __future__ import annotations

import torch
from torch import Tensor


def scatter_add(values: Tensor, index: Tensor, size: int) -> Tensor:
    """values [S, D], index [S] -> [size, D], see reference.py.

    Sums are float32 (float64) and rounded once. On a CPU index_add walks over the rows in their
    order; on a GPU it adds atomically, in any: the Triton kernel does not.
    """
    wide = torch.float64 if values.dtype == torch.float64 else torch.float32
    out = torch.zeros(size, values.shape[1], dtype=wide, device=values.device)
    return out.index_add_(0, index, values.to(wide)).to(values.dtype)
