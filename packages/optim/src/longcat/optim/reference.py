"""Gradient monitor, schedules and growth in float64 numpy: their definitions.

Those of AdamW and the hidden z-loss are in longcat.kernels, with their GPU forms.

Source: report section 3.1.3.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def epsilon_share(second: Array, step: int, *, eps: float, beta2: float = 0.95) -> float:
    """Share of coordinates where epsilon is over a tenth of sqrt(v_hat) + epsilon.

    Args:
        second: v, Adam's second moments after `step` steps; coordinates at 0 are left out.
    """
    root = np.sqrt(second[second > 0] / (1 - beta2**step))
    return float(np.mean(eps > (root + eps) / 10)) if root.size else 0.0


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
