"""Absorbed attention over a paged latent cache, the definition. Source: report eq. 6 and 7."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Int = NDArray[np.int64]


def paged_mla(
    q_latent: Float, q_rope: Float, store: Float, table: Int, lengths: Int, scale: float
) -> Float:
    """`mla_decode` for W new tokens of each sequence, over latents that lie in pages.

    q_latent [B, W, H, C], q_rope [B, W, H, R], store [pages, P, C+R], table [B, n], lengths [B] ->
    [B, W, H, C]. Token s of sequence b lies in row s % P of page table[b, s // P]; new token w sees
    the tokens before lengths[b] - W + 1 + w. One that sees none gets zeros.
    """
    n_batch, n_new, _, n_latent = q_latent.shape
    page_size = store.shape[1]
    out = np.zeros_like(q_latent)
    for b, w in np.ndindex(n_batch, n_new):
        seen = int(lengths[b]) - n_new + 1 + w
        if seen <= 0:
            continue
        tokens = np.arange(seen)
        keys = store[table[b, tokens // page_size], tokens % page_size]  # [seen, C+R]
        query = np.concatenate([q_latent[b, w], q_rope[b, w]], axis=-1)
        scores = scale * query @ keys.T
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        out[b, w] = weights @ keys[:, :n_latent]
    return out
