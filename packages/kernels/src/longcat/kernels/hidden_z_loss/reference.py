"""The hidden z-loss, the definition. Source: report section 3.1.3."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]


def hidden_z_loss(last_layer: Float, weight: float, token_mask: Mask | None = None) -> Float:
    """Keep the last layer's activations small, measured before the final norm.

    $$L_Z = \\frac{\\lambda}{T} \\sum_t \\Big(\\log \\sum_i e^{|z_t^i|}\\Big)^2$$

    last_layer: z [..., D]; weight: lambda; token_mask [...]: True for the T tokens that count.
    """
    counted = np.ones(last_layer.shape[:-1]) if token_mask is None else token_mask
    log_sums = _log_sums(last_layer)[..., 0]
    return np.asarray(weight * (log_sums**2 * counted).sum() / max(float(counted.sum()), 1.0))


def hidden_z_loss_gradient(
    last_layer: Float, weight: float, token_mask: Mask | None = None
) -> Float:
    """Its derivative: (2 lambda / T) log_sum_t softmax(|z_t|) sign(z_t), 0 where masked."""
    counted = np.ones(last_layer.shape[:-1]) if token_mask is None else token_mask
    log_sums = _log_sums(last_layer)
    softmax = np.exp(np.abs(last_layer) - log_sums) * np.sign(last_layer)
    share = 2 * weight / max(float(counted.sum()), 1.0)
    gradient: Float = share * log_sums * softmax * counted[..., None]
    return gradient


def _log_sums(last_layer: Float) -> Float:
    """log(sum_i exp |z_i|) of each token, [..., 1]."""
    magnitude = np.abs(last_layer)
    top = magnitude.max(axis=-1, keepdims=True)
    sums: Float = top + np.log(np.exp(magnitude - top).sum(axis=-1, keepdims=True))
    return sums
