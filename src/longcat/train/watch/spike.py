"""Spikes: a loss or a gradient norm far above what the steps before it showed.

    score = (value - median) / (1.4826 MAD)        over the last 64 steps, at least 16

The median and the median absolute deviation do not move for a few outliers, and 1.4826 MAD is the
standard deviation of a normal law, so a score reads as a number of standard deviations. Gradient
norms are compared by their logarithms. The score is a pure function of the history, numpy alone.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

AT_LEAST = 16  # steps before anything can be called unusual
# 1,800 steps of three undisturbed runs of nano reached 3.0 (loss) and 7.9 (gradient norm).
LOSS_LIMIT = 8.0
NORM_LIMIT = 16.0
_NORMAL = 1.4826
_SMALLEST = 1e-3  # in nats: below this a deviation from a flat history is rounding, not news


class Scores(NamedTuple):
    """Robust scores of one step; None before there is enough history."""

    loss: float | None
    norm: float | None

    @property
    def is_spike(self) -> bool:
        """Whether either is above its limit."""
        return (self.loss or 0.0) > LOSS_LIMIT or (self.norm or 0.0) > NORM_LIMIT


def robust_score(history: Sequence[float], value: float) -> float | None:
    """How many robust standard deviations `value` lies above the history's median.

    None with fewer than AT_LEAST values. A value that is not a number is infinitely high.
    """
    if len(history) < AT_LEAST:
        return None
    if not math.isfinite(value):
        return math.inf
    known = np.asarray(history, dtype=np.float64)
    median = np.median(known)
    deviation = _NORMAL * np.median(np.abs(known - median))
    return float((value - median) / max(deviation, _SMALLEST))


def scores(losses: Sequence[float], norms: Sequence[float], loss: float, norm: float) -> Scores:
    """The scores of a step after a history of losses and gradient norms."""
    return Scores(
        loss=robust_score(losses, loss),
        norm=robust_score([_log(n) for n in norms], _log(norm)),
    )


def _log(norm: float) -> float:
    return math.log(max(norm, 1e-300)) if math.isfinite(norm) else math.inf
