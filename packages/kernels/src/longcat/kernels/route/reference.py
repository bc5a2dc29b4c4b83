"""Routing over FFN and identity experts, the definition. Source: report eq. 1."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Int = NDArray[np.int64]


def route(
    logits: Float, bias: Float, top_k: int, scale: float, chosen: Int | None = None
) -> tuple[Float, Int, Float]:
    """Softmax over all experts, choice by score + bias, gate = scale * score (never the bias).

    logits [T, E], bias [E] -> scores [T, E], indices [T, K], gates [T, K]. The chosen experts come
    in descending order of score + bias; of equals the lowest index first. With `chosen` [T, K] that
    is the choice, whatever the scores say now.
    """
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores = shifted / shifted.sum(axis=-1, keepdims=True)
    # A stable sort of the negated key keeps the lower index first among equals.
    if chosen is None:
        chosen = np.argsort(-(scores + bias), axis=-1, kind="stable")[:, :top_k].astype(np.int64)
    gates = scale * np.take_along_axis(scores, chosen, axis=-1)
    return scores, chosen, gates


def fused_route(
    logits: Float,
    bias: Float,
    top_k: int,
    scale: float,
    n_ffn: int,
    token_mask: NDArray[np.bool_] | None = None,
) -> tuple[Float, Int, Float, Float, Int]:
    """`route`, each token's summed gate of identity experts [T], and `expert_counts` [E]."""
    scores, chosen, gates = route(logits, bias, top_k, scale)
    identity: Float = np.where(chosen >= n_ffn, gates, 0.0).sum(axis=1)
    return scores, chosen, gates, identity, expert_counts(chosen, len(bias), token_mask)


def expert_counts(indices: Int, n_experts: int, token_mask: NDArray[np.bool_] | None = None) -> Int:
    """How many slots chose each expert. indices [T, K], token_mask [T] (True counts) -> [E]."""
    kept = indices if token_mask is None else indices[token_mask]
    return np.bincount(kept.reshape(-1), minlength=n_experts).astype(np.int64)
