"""A residual sum and the RMSNorm of it, the definition. Source: report figure 2 (the layer)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def add_rmsnorm(x: Float, residual: Float, weight: Float, eps: float) -> tuple[Float, Float]:
    """(weight * total / sqrt(mean(total^2) + eps), total) with total = residual + x. [..., D]."""
    total = residual + x
    mean_square = np.mean(np.square(total), axis=-1, keepdims=True)
    return total / np.sqrt(mean_square + eps) * weight, total
