"""Absorbed attention over a paged latent cache in eager torch: gather the pages, then attend."""

from __future__ import annotations

import torch
from torch import Tensor

from longcat.kernels.mla_decode import eager as decode_eager


def paged_mla(
    q_latent: Tensor, q_rope: Tensor, store: Tensor, table: Tensor, lengths: Tensor, scale: float
) -> Tensor:
    """`mla_decode` over pages, see reference.py. -> [B, W, H, C]."""
    _, n_new, _, n_latent = q_latent.shape
    latents = store[table.long()].flatten(1, 2)  # [B, n*P, C+R]
    tokens = torch.arange(latents.shape[1], device=store.device)
    new = torch.arange(n_new, device=store.device)
    seen = lengths[:, None] - n_new + 1 + new  # [B, W]
    mask = tokens < seen[..., None]
    # A page may hold anything beyond the length, and 0 * NaN is NaN.
    latents = latents.masked_fill(~(tokens < lengths[:, None])[..., None], 0)
    latent, k_rope = latents[..., :n_latent], latents[..., n_latent:]
    if not latents.shape[1]:
        return torch.zeros_like(q_latent)
    return decode_eager.mla_decode(q_latent, q_rope, latent, k_rope, scale, mask)
