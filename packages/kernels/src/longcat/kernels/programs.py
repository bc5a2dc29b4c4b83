"""How many programs of a Triton kernel share a walk over rows or over a work list."""

from __future__ import annotations

import torch
from torch import Tensor

INTERPRETED = 3  # no divisor of most numbers of rows, so that shares are ragged in tests


def programs_for(x: Tensor, per_processor: int = 4) -> int:
    """So many for each multiprocessor of x's GPU; a few in the interpreter."""
    if not x.is_cuda:
        return INTERPRETED
    processors: int = torch.cuda.get_device_properties(x.device).multi_processor_count
    return per_processor * processors
