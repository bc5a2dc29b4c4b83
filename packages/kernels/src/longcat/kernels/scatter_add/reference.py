"""Rows added to where an index says, in their order: the definition."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def scatter_add(values: Float, index: NDArray[np.int64], size: int) -> Float:
    """out[t] = sum of values[s] over all s with index[s] = t. [S, D], [S] -> [size, D]."""
    out = np.zeros((size, values.shape[1]))
    for row, place in zip(values, index, strict=True):
        out[place] += row
    return out
