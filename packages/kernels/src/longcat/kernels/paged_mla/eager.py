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
    n_batch, n_tokens, width = len(table), table.shape[1] * store.shape[1], store.shape[2]
    if not n_tokens:
        return torch.zeros_like(q_latent)
    latents = store.index_select(0, table.reshape(-1)).view(n_batch, n_tokens, width)
    tokens = torch.arange(n_tokens, device=store.device)
    beyond = tokens >= lengths[:, None]
    # A page may hold anything beyond the length, and 0 * NaN is NaN.
    if store.device.type == "cpu":  # few rows; elsewhere counting them would make the host wait
        places = beyond.flatten().nonzero().squeeze(1)
        latents.view(-1, width).index_fill_(0, places, 0)
    else:
        latents.masked_fill_(beyond[..., None], 0)
    new = torch.arange(n_new, device=store.device)
    seen = lengths[:, None] - n_new + 1 + new  # [B, W]
    mask = tokens < seen[..., None]
    latent, k_rope = latents[..., :n_latent], latents[..., n_latent:]
    return decode_eager.mla_decode(q_latent, q_rope, latent, k_rope, scale, mask)
