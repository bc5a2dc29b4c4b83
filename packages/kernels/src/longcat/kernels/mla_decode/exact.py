"""Absorbed attention whose rows do not depend on batch size, chunk size or padding.

The same tiles and splits as mla_prefill/exact.py, with the T*H queries of a sequence as rows over
its one shared key.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longcat.kernels.mla_prefill.exact import attend_in_splits, causal_if_none


def mla_decode(
    q_latent: Tensor,
    q_rope: Tensor,
    latent: Tensor,
    k_rope: Tensor,
    scale: float,
    mask: Tensor | None = None,
) -> Tensor:
    """Operands as in reference.py -> [B, T, H, C]."""
    mask = causal_if_none(mask, q_latent, latent)
    mask = mask.repeat_interleave(q_latent.shape[2], dim=1)
    q = torch.cat([q_latent, q_rope], dim=-1).flatten(1, 2)[:, None]
    k = torch.cat([latent, k_rope], dim=-1)[:, None]
    out = attend_in_splits(q, k, latent[:, None], scale, mask)
    return out[:, 0].reshape(q_latent.shape)
