"""SwiGLU in eager torch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, see reference.py. Both [..., F] -> [..., F]."""
    return F.silu(gate) * up
