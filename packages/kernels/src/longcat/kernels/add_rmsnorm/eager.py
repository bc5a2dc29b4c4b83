"""A residual sum and the RMSNorm of it in eager torch."""

from __future__ import annotations

from torch import Tensor

from longcat.kernels.rmsnorm import eager as rmsnorm_eager


def add_rmsnorm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rmsnorm(residual + x), residual + x), see reference.py; the sum is rounded to its dtype."""
    total = residual + x
    return rmsnorm_eager.rmsnorm(total, weight, eps), total
