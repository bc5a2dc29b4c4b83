"""Collectives over the switch, the definition, and the switch itself in numpy.

Every rank holds the same buffer at the same offset. A *multicast* address stands for all of them:
a store through it reaches every rank, a load through it returns their sum. The collectives take
every rank's x at once, which the other forms have one at a time, and return every rank's result.
Source: the report's section on inference communication; PTX ISA, `multimem`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


class Switch:
    """Buffers of N ranks [N, S], and the two things a multicast address can do."""

    def __init__(self, buffers: Float) -> None:
        self.buffers = buffers

    def load_reduce(self, places: NDArray[np.int64]) -> Float:
        """The sum over ranks of what lies at `places`."""
        total: Float = self.buffers[:, places].sum(axis=0)
        return total

    def store(self, places: NDArray[np.int64], values: Float) -> None:
        """Write `values` at `places` of every rank."""
        self.buffers[:, places] = values


def all_reduce(parts: Float, shots: int = 2) -> Float:
    """The sum of all ranks' parts, on every rank: parts [N, S] -> [N, S].

    In one shot every rank sums everything through the switch. In two, rank r sums slice r through
    it, then stores it to everybody through it.
    """
    switch = Switch(parts.copy())
    if shots == 1:
        everything = np.arange(parts.shape[1])
        return np.stack([switch.load_reduce(everything) for _ in parts])
    for places in np.array_split(np.arange(parts.shape[1]), len(parts)):
        switch.store(places, switch.load_reduce(places))
    return switch.buffers


def all_gather(parts: Sequence[Float], counts: Sequence[int]) -> Float:
    """All ranks' rows, one rank after the other, on every rank: N times [n_r, D] -> [N, sum, D].

    Each rank stores its own counts[r] rows to everybody through the switch.
    """
    width = parts[0].shape[1]
    ends = np.cumsum(counts) * width
    switch = Switch(np.full((len(parts), int(ends[-1])), np.nan))
    for part, end in zip(parts, ends, strict=True):
        switch.store(np.arange(end - part.size, end), part.reshape(-1))
    return switch.buffers.reshape(len(parts), -1, width)


def reduce_scatter(parts: Float, counts: Sequence[int]) -> list[Float]:
    """Rank r gets its counts[r] rows of the sum: parts [N, T, D] -> N times [n_r, D]."""
    _, n_rows, width = parts.shape
    switch = Switch(parts.reshape(len(parts), -1))
    ends = np.cumsum(counts)
    if int(ends[-1]) != n_rows:
        raise ValueError(f"reduce_scatter: counts must add up to {n_rows} rows, got {ends[-1]}")
    return [
        switch.load_reduce(np.arange((end - count) * width, end * width)).reshape(count, width)
        for count, end in zip(counts, ends, strict=True)
    ]
