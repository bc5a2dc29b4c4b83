"""A linear map with weights of 8 bits, the definition."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def quantise_int8(weight: NDArray[np.float64]) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """weight [O, I] -> (int8 [O, I], scale [O]): scale = max |row| / 127, rounded to nearest even.

    weight is then scale * int8 to half a scale. A row of zeros has the scale 1.
    """
    largest = np.abs(weight).max(axis=1)
    scale = np.where(largest > 0, largest / 127, 1.0)
    return np.rint(weight / scale[:, None]).astype(np.int8), scale


def int8_linear(
    x: NDArray[np.float64], weight: NDArray[np.int8], scale: NDArray[np.float64]
) -> NDArray[np.float64]:
    """y = (x @ weight^T) * scale. x [..., I], weight [O, I], scale [O] -> [..., O]."""
    return (x @ weight.T.astype(np.float64)) * scale
