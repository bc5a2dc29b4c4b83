"""RMSNorm, the definition. Source: Zhang and Sennrich 2019, as in the released model code."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def rmsnorm(x: NDArray[np.float64], weight: NDArray[np.float64], eps: float) -> NDArray[np.float64]:
    """y = weight * x / sqrt(mean(x^2) + eps) over the last dimension.

    x [..., D], weight [D] -> [..., D].
    """
    mean_square = np.mean(np.square(x), axis=-1, keepdims=True)
    y: NDArray[np.float64] = x / np.sqrt(mean_square + eps) * weight
    return y
