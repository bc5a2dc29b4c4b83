"""The FFN experts on sorted rows, the definition. Source: report eq. 1, SwiGLU experts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def experts(
    x_sorted: Float,
    gate_up: Float,
    down: Float,
    offsets: NDArray[np.int64],
    rows: NDArray[np.int64] | None = None,
) -> Float:
    """Rows offsets[e-1] to offsets[e] go through expert e: down_e (silu(gate_e x) * up_e x).

    x_sorted [S, D], gate_up [N, 2F, D] (gate rows first), down [N, D, F], offsets [N] -> [S, D].
    With rows [S], sorted row s is x_sorted[rows[s]].
    """
    if rows is not None:
        x_sorted = x_sorted[rows]
    y = np.zeros_like(x_sorted)
    start = 0
    for weights, back, end in zip(gate_up, down, offsets, strict=True):
        mine = slice(start, int(end))
        gate, up = np.split(x_sorted[mine] @ weights.T, 2, axis=-1)
        sigmoid = 0.5 * (1.0 + np.tanh(0.5 * gate))
        y[mine] = (gate * sigmoid * up) @ back.T
        start = int(end)
    return y
