"""AdamW, z-loss, gradient monitor, schedules and growth in float64 numpy: their definitions.

Source: report section 3.1.3.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Moments(NamedTuple):
    """First and second moment of one tensor's gradient, and the number of steps taken."""

    first: Array
    second: Array
    step: int


def adamw_step(
    weight: Array,
    gradient: Array,
    moments: Moments,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-16,
    weight_decay: float = 0.1,
) -> tuple[Array, Moments]:
    """One step of AdamW with decoupled weight decay.

    $$m = \\beta_1 m + (1-\\beta_1) g, \\; v = \\beta_2 v + (1-\\beta_2) g^2, \\;
      w = w - \\eta \\lambda w - \\eta \\frac{\\hat m}{\\sqrt{\\hat v} + \\epsilon}$$

    epsilon sits outside the root and must stay far below the gradient's RMS: the report finds
    that the loss deteriorates once epsilon reaches it, hence 1e-16.
    """
    beta1, beta2 = betas
    step = moments.step + 1
    first = beta1 * moments.first + (1 - beta1) * gradient
    second = beta2 * moments.second + (1 - beta2) * gradient**2
    direction = first / (1 - beta1**step) / (np.sqrt(second / (1 - beta2**step)) + eps)
    return weight * (1 - lr * weight_decay) - lr * direction, Moments(first, second, step)


def epsilon_share(second: Array, step: int, *, eps: float, beta2: float = 0.95) -> float:
    """Share of coordinates where epsilon is over a tenth of sqrt(v_hat) + epsilon.

    Args:
        second: v, Adam's second moments after `step` steps; coordinates at 0 are left out.
    """
    root = np.sqrt(second[second > 0] / (1 - beta2**step))
    return float(np.mean(eps > (root + eps) / 10)) if root.size else 0.0


def hidden_z_loss(last_layer: Array, weight: float) -> float:
    """Keep the last layer's activations small, measured before the final norm.

    $$L_Z = \\frac{\\lambda}{T} \\sum_t \\Big(\\log \\sum_i e^{|z_t^i|}\\Big)^2$$

    Args:
        last_layer: z [T, D]. weight: lambda (the report's figure shows 1e-7).
    """
    magnitude = np.abs(last_layer.astype(np.float64))
    top = magnitude.max(axis=-1, keepdims=True)
    log_sum = (top + np.log(np.exp(magnitude - top).sum(axis=-1, keepdims=True)))[..., 0]
    return float(weight * np.mean(log_sum**2))


def root_mean_square(values: Array) -> float:
    """sqrt(mean(x^2)); 0 for an empty array."""
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0


def warmup_stable_decay(progress: Array, *, warmup: float, decay: float, final: float) -> Array:
    """Three straight lines over progress p in [0, 1]: up to 1, level, down to `final`.

    $$f = \\min\\Big(\\frac{p}{w},\\; 1,\\; f_1 + (1-f_1)\\frac{1-p}{d}\\Big)$$
    """
    rise = np.where(progress < warmup, progress / max(warmup, 1e-300), 1.0)
    late = progress > 1 - decay
    fall = np.where(late, final + (1 - final) * (1 - progress) / max(decay, 1e-300), 1.0)
    return np.minimum(rise, fall)


def cosine(progress: Array, *, warmup: float, final: float) -> Array:
    """A line up to 1 over warm-up w, then half a cosine down to f_1.

    $$f = f_1 + (1-f_1)\\,\\tfrac12\\Big(1 + \\cos\\pi\\frac{p-w}{1-w}\\Big), \\quad p \\ge w$$
    """
    angle = np.pi * (progress - warmup) / (1 - warmup)
    falling: Array = final + (1 - final) * (1 + np.cos(angle)) / 2
    return np.where(progress < warmup, progress / max(warmup, 1e-300), falling)


def grow(layers: list[Array], times: int) -> list[Array]:
    """The layers of the grown model, first to last: the whole stack, `times` times over.

    Source: report section 3.1.2, equation 9.
    """
    return [layer.copy() for _ in range(times) for layer in layers]
