"""AdamW, the definition. Source: report section 3.1.3; Loshchilov and Hutter 2019."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def adamw_step(
    weight: Float,
    gradient: Float,
    first: Float,
    second: Float,
    step: int,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-16,
    weight_decay: float = 0.1,
) -> tuple[Float, Float, Float]:
    """One step of AdamW with decoupled weight decay: the new (weight, first, second moment).

    $$m = \\beta_1 m + (1-\\beta_1) g, \\; v = \\beta_2 v + (1-\\beta_2) g^2, \\;
      w = w - \\eta \\lambda w - \\eta \\frac{\\hat m}{\\sqrt{\\hat v} + \\epsilon}$$

    step counts from 1. epsilon sits outside the root and must stay far below the gradient's RMS:
    the report finds that the loss deteriorates once epsilon reaches it, hence 1e-16.
    """
    beta1, beta2 = betas
    first = beta1 * first + (1 - beta1) * gradient
    second = beta2 * second + (1 - beta2) * gradient**2
    direction = first / (1 - beta1**step) / (np.sqrt(second / (1 - beta2**step)) + eps)
    return weight * (1 - lr * weight_decay) - lr * direction, first, second
