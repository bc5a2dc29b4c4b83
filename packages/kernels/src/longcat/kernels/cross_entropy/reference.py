"""Summed cross entropy, the definition."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def cross_entropy(
    logits: Float, targets: NDArray[np.int64] | Float, ignored: int = -100, z_weight: float = 0.0
) -> Float:
    """Sum over rows of Z - sum_v q_v l_v + z_weight Z^2, Z = log(sum_v exp l_v). [T, V] -> [].

    targets [T]: q is 1 at the target's place, and a row whose target is `ignored` counts nothing.
    targets [T, V]: q itself, each row a distribution.
    """
    top = logits.max(axis=-1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(axis=-1)) + top[:, 0]
    of_rows = log_sum + z_weight * log_sum**2
    if targets.ndim == 2:
        return np.asarray((of_rows - (targets * logits).sum(axis=-1)).sum())
    rows = np.flatnonzero(targets != ignored)
    return np.asarray((of_rows[rows] - logits[rows, targets[rows]]).sum())


def cross_entropy_gradient(
    logits: Float, targets: NDArray[np.int64] | Float, ignored: int = -100, z_weight: float = 0.0
) -> Float:
    """Its derivative: (1 + 2 z_weight Z) softmax(l) - q, 0 in ignored rows. [T, V]."""
    top = logits.max(axis=-1, keepdims=True)
    shifted = np.exp(logits - top)
    total = shifted.sum(axis=-1, keepdims=True)
    gradient: Float = shifted / total * (1 + 2 * z_weight * (np.log(total) + top))
    if targets.ndim == 2:
        return gradient - targets
    counted = targets != ignored
    rows = np.flatnonzero(counted)
    gradient[rows, targets[rows]] -= 1
    kept: Float = gradient * counted[:, None]
    return kept
