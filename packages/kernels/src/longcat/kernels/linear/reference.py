"""A linear map, the definition."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def linear(
    x: NDArray[np.float64],
    weight: NDArray[np.float64],
    bias: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """y = x @ weight^T + bias. x [..., I], weight [O, I], bias [O] -> [..., O]."""
    y = x @ weight.T
    return y if bias is None else y + bias
