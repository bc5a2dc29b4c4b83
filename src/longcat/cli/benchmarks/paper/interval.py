"""Means over a few seeds, and how far to trust them.

With n values of mean m and standard deviation s (divided by n - 1), the interval is

    m +- t(0.975, n - 1) s / sqrt(n)

which covers the true mean in 95 cases of 100 when the values scatter normally. For three seeds t
is 4.30: wide, as it must be. Two arms are compared seed by seed, since equal seeds share the order
of the data and, where shapes allow it, the initial weights: the interval is of the differences.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

COVERAGE = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean and the half-width of its interval; both nan when a value was missing."""

    mean: float
    half: float

    @property
    def low(self) -> float:
        """Where the interval begins."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Where the interval ends."""
        return self.mean + self.half

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.low > 0 or self.high < 0

    def show(self, digits: int = 3) -> str:
        """As text, mean and half-width."""
        if math.isnan(self.mean):
            return "not finite"
        return f"{self.mean:.{digits}f} ± {self.half:.{digits}f}"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and interval of values from different seeds.

    Raises:
        ValueError: for fewer than two values, of which no spread can be told.
    """
    if len(values) < 2:
        raise ValueError(f"interval: expected at least two seeds, got {len(values)}")
    if not all(math.isfinite(value) for value in values):
        return Estimate(mean=math.nan, half=math.nan)
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(
        mean=statistics.fmean(values),
        half=student_quantile(0.5 + COVERAGE / 2, len(values) - 1) * spread,
    )


def paired(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """Mean and interval of first - second, seed by seed."""
    return estimate([a - b for a, b in zip(first, second, strict=True)])


@lru_cache
def student_quantile(share: float, freedom: int) -> float:
    """The value below which `share` (above one half) of Student's t distribution lies.

    Found by bisection of the cumulative distribution, which is integrated by Simpson's rule in
    u = atan(x / sqrt(freedom)), where the density is cos(u)^(freedom - 1).
    """
    whole = _integral(math.pi / 2, freedom)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if 0.5 + 0.5 * _integral(middle, freedom) / whole < share:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan(low)


def _integral(end: float, freedom: int, pieces: int = 400) -> float:
    """Integral of cos(u)^(freedom - 1) from 0 to `end`."""
    width = end / pieces
    weights = [1, *(4 if i % 2 else 2 for i in range(1, pieces)), 1]
    return (
        width
        / 3
        * sum(weight * math.cos(i * width) ** (freedom - 1) for i, weight in enumerate(weights))
    )


def percent(share: float, digits: int = 0) -> str:
    """A share as text."""
    return f"{100 * share:.{digits}f} %"
