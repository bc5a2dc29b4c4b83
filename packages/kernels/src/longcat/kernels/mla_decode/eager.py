"""Absorbed multi-head latent attention in eager torch."""

from __future__ import annotations

import torch
from torch import Tensor

from longcat.kernels.mla_prefill.eager import causal_mask


def mla_decode(
    q_latent: Tensor,
    q_rope: Tensor,
    latent: Tensor,
    k_rope: Tensor,
    scale: float,
    mask: Tensor | None = None,
) -> Tensor:
    """softmax(scale (q_latent c^T + q_rope k_rope^T)) c per head, see reference.py.

    q_latent [B, T, H, C], q_rope [B, T, H, R], latent [B, S, C], k_rope [B, S, R], mask [B, T, S]
    -> [B, T, H, C]. The T*H queries of a sequence are the rows of one product over its shared key,
    written out because fused attention takes no heads this wide. The softmax is float32 (float64).
    """
    n_batch, n_queries, n_heads, n_latent = q_latent.shape
    if mask is None and n_queries > 1:
        mask = causal_mask(n_queries, latent.shape[1], latent.device)
        mask = mask.expand(n_batch, -1, -1)
    scores = torch.bmm(q_rope.flatten(1, 2), k_rope.mT)
    scores = torch.baddbmm(scores, q_latent.flatten(1, 2), latent.mT)
    wide = scores if scores.dtype == torch.float64 else scores.float()
    weights = _softmax(wide * scale, mask, n_heads).to(latent.dtype)
    return torch.bmm(weights, latent).view(n_batch, n_queries, n_heads, n_latent)


def _softmax(scores: Tensor, mask: Tensor | None, n_heads: int) -> Tensor:
    """Softmax of scores [B, T*H, S] over the keys that mask [B, T, S] shows; none shown: zeros."""
    if mask is None:
        return scores.softmax(dim=-1)
    mask = mask.unsqueeze(2)  # for all heads of a query
    shape, scores = scores.shape, scores.unflatten(1, (-1, n_heads))
    # A softmax over no key at all is 0/0. Such rows attend to everything and are erased after.
    blind = ~mask.any(dim=-1, keepdim=True)
    weights = scores.masked_fill(~(mask | blind), -torch.inf).softmax(dim=-1)
    return weights.masked_fill(blind, 0).view(shape)
