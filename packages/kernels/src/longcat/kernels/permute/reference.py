"""Sorting tokens by expert and bringing the results back, the definition.

A *slot* is one choice of one token: slot t*K + k is choice k of token t.
Source: report section 2.1 (identity experts) and eq. 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Int = NDArray[np.int64]
ArrayT = TypeVar("ArrayT")


@dataclass(frozen=True, kw_only=True)
class PermutePlan(Generic[ArrayT]):
    """Where each sorted row came from; arrays are numpy's or torch's, by the form that made it.

    slots            [S] flat slot `t*K + k` of each sorted row
    tokens           [S] its token t
    offsets          [N] for each FFN expert, one past its last row (cumulative, int32)
    n_tokens, top_k  T and K
    has_every_slot   S is `T*K`, and rows from offsets[-1] on are identity slots' that nobody
                     computes. Off the CPU: how many FFN slots there are would otherwise have to
                     be waited for
    """

    slots: ArrayT
    tokens: ArrayT
    offsets: ArrayT
    n_tokens: int
    top_k: int
    has_every_slot: bool = False


def permute(x: Float, indices: Int, n_ffn: int) -> tuple[Float, PermutePlan[Int]]:
    """Copy each token once per FFN expert it chose, sorted by expert, then by slot.

    x [T, D], indices [T, K] -> (x_sorted [S, D], plan). Identity slots (index >= n_ffn) are dropped
    before the sort: they cost nothing.
    """
    flat = indices.reshape(-1)
    slots = np.flatnonzero(flat < n_ffn)
    slots = slots[np.argsort(flat[slots], kind="stable")]
    counts = np.bincount(flat[slots], minlength=n_ffn)[:n_ffn]
    top_k = indices.shape[1]
    tokens = slots // top_k
    plan = PermutePlan(
        slots=slots.astype(np.int64),
        tokens=tokens.astype(np.int64),
        offsets=np.cumsum(counts).astype(np.int64),
        n_tokens=x.shape[0],
        top_k=top_k,
    )
    return x[tokens], plan


def combine(
    y_sorted: Float,
    plan: PermutePlan[Int],
    gates: Float,
    indices: Int,
    x: Float,
    n_ffn: int,
) -> Float:
    """sum_k gate * expert(x), where an identity expert returns x itself.

    y_sorted [S, D], gates and indices [T, K], x [T, D] -> [T, D].
    """
    flat_gates = gates.reshape(-1)
    out = np.zeros_like(x)
    for row, slot in enumerate(plan.slots):
        out[slot // plan.top_k] += flat_gates[slot] * y_sorted[row]
    identity = np.where(indices >= n_ffn, gates, 0.0).sum(axis=1)
    out += identity[:, None] * x
    return out
