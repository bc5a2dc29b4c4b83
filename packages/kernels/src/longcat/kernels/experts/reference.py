"""The FFN experts on sorted rows, the definition. Source: report eq. 1, SwiGLU experts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def experts(x_sorted: Float, gate_up: Float, down: Float, offsets: NDArray[np.int64]) -> Float:
    """Rows offsets[e-1] to offsets[e] go through expert e: down_e (silu(gate_e x) * up_e x).

    x_sorted [S, D], gate_up [N, 2F, D] (gate rows first), down [N, D, F], offsets [N] -> [S, D].
    """
    y = np.zeros_like(x_sorted)
    start = 0
    for weights, back, end in zip(gate_up, down, offsets, strict=True):
        rows = slice(start, int(end))
        gate, up = np.split(x_sorted[rows] @ weights.T, 2, axis=-1)
        sigmoid = 0.5 * (1.0 + np.tanh(0.5 * gate))
        y[rows] = (gate * sigmoid * up) @ back.T
        start = int(end)
    return y
