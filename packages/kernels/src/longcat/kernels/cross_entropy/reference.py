"""Summed cross entropy, the definition."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def cross_entropy(logits: Float, targets: NDArray[np.int64] | Float, ignored: int = -100) -> Float:
    """Sum over rows of log(sum_v exp l_v) - sum_v q_v l_v. logits [T, V] -> [].

    targets [T]: q is 1 at the target's place, and a row whose target is `ignored` counts nothing.
    targets [T, V]: q itself, each row a distribution.
    """
    top = logits.max(axis=-1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(axis=-1)) + top[:, 0]
    if targets.ndim == 2:
        return np.asarray((log_sum - (targets * logits).sum(axis=-1)).sum())
    rows = np.flatnonzero(targets != ignored)
    return np.asarray((log_sum[rows] - logits[rows, targets[rows]]).sum())


def cross_entropy_gradient(
    logits: Float, targets: NDArray[np.int64] | Float, ignored: int = -100
) -> Float:
    """Its derivative with respect to the logits: softmax(l) - q, 0 in ignored rows. [T, V]."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    gradient: Float = shifted / shifted.sum(axis=-1, keepdims=True)
    if targets.ndim == 2:
        return gradient - targets
    counted = targets != ignored
    rows = np.flatnonzero(counted)
    gradient[rows, targets[rows]] -= 1
    kept: Float = gradient * counted[:, None]
    return kept
