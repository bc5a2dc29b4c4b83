"""Multi-head latent attention with expanded heads, the definition. Source: report eq. 6 and 7."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]


def mla_prefill(q: Float, k: Float, v: Float, scale: float, mask: Mask | None = None) -> Float:
    """softmax(scale q k^T) v per head, causal unless a mask says which keys a query may see.

    q [B, T, H, Q], k [B, S, H, Q], v [B, S, H, V], mask [B, T, S] (True: may see) -> [B, T, H, V].
    Without a mask the last query sees all keys, the one before it all but the last, and so on. A
    query that may see no key gets zeros.
    """
    scores = scale * np.einsum("bthq,bshq->bhts", q, k)
    out: Float = np.einsum("bhts,bshv->bthv", attention_weights(scores, mask), v)
    return out


def attention_weights(scores: Float, mask: Mask | None) -> Float:
    """Softmax of scores [B, H, T, S] over the keys each query may see; rows without any are 0."""
    n_batch, _, n_queries, n_keys = scores.shape
    if mask is None:
        mask = np.tril(np.ones((n_queries, n_keys), dtype=bool), k=n_keys - n_queries)
        mask = np.broadcast_to(mask, (n_batch, n_queries, n_keys))
    seen = mask[:, None]
    best = np.max(np.where(seen, scores, -np.inf), axis=-1, keepdims=True, initial=-np.inf)
    best = np.where(np.isfinite(best), best, 0.0)
    weights = np.where(seen, np.exp(np.where(seen, scores, -np.inf) - best), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    return weights / np.where(total > 0, total, 1.0)
