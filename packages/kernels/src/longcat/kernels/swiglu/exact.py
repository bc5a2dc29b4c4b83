"""SwiGLU whose elements do not depend on where they lie in the tensor.

torch's sigmoid and silu round the elements of a vector register and those of a tail differently;
its exp does not, so here silu is written with exp.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = -80.0  # below, exp(-gate) would overflow in float32 and its gradient become NaN


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up. Both [..., F] -> [..., F]."""
    return gate / (1 + torch.exp(-gate.clamp(min=LEAST))) * up
