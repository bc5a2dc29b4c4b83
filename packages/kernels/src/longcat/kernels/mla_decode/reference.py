"""Absorbed multi-head latent attention, the definition. Source: report eq. 6 and 7.

All heads read one shared latent (like multi-query attention): k_nope = W_UK c folds W_UK into the
query, and the value projection W_UV is applied by the caller to the result.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]


def mla_decode(
    q_latent: Float,
    q_rope: Float,
    latent: Float,
    k_rope: Float,
    scale: float,
    mask: Mask | None = None,
) -> Float:
    """softmax(scale (q_latent c^T + q_rope k_rope^T)) c per head.

    q_latent [B, T, H, C], q_rope [B, T, H, R], latent c [B, S, C], k_rope [B, S, R], mask [B, T, S]
    (True: may see) -> [B, T, H, C]. Without a mask: causal, aligned at the end. A query that may
    see no key gets zeros.
    """
    scores = np.einsum("bthc,bsc->bhts", q_latent, latent)
    scores = scale * (scores + np.einsum("bthr,bsr->bhts", q_rope, k_rope))
    n_batch, _, n_queries, n_keys = scores.shape
    if mask is None:
        mask = np.tril(np.ones((n_queries, n_keys), dtype=bool), k=n_keys - n_queries)
        mask = np.broadcast_to(mask, (n_batch, n_queries, n_keys))
    out = np.zeros_like(q_latent)
    for b, t in np.ndindex(n_batch, n_queries):
        seen = mask[b, t]
        if seen.any():
            row = scores[b, :, t, seen]  # [keys seen, H]
            weights = np.exp(row - row.max(axis=0))
            out[b, t] = (weights / weights.sum(axis=0)).T @ latent[b, seen]
    return out
