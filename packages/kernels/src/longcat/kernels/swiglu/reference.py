"""SwiGLU, the definition. Source: Shazeer 2020; the FFN of every LongCat-Flash block and expert."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def swiglu(gate: NDArray[np.float64], up: NDArray[np.float64]) -> NDArray[np.float64]:
    """silu(gate) * up with silu(z) = z / (1 + exp(-z)). Both [..., F] -> [..., F]."""
    # tanh saturates where exp(-z) would overflow; the two forms of the sigmoid are equal.
    sigmoid = 0.5 * (1.0 + np.tanh(0.5 * gate))
    return gate * sigmoid * up
