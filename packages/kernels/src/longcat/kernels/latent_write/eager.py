"""From a projection to the latent cache in eager torch."""

from __future__ import annotations

import torch
from torch import Tensor

from longcat.kernels.rmsnorm import eager as rmsnorm_eager
from longcat.kernels.rope import eager as rope_eager


def latent_write(
    compressed: Tensor,
    weight: Tensor,
    eps: float,
    alpha: float,
    positions: Tensor,
    inv_freq: Tensor,
    slots: Tensor,
    store: Tensor,
    factor: float = 1.0,
) -> Tensor:
    """store[slots] = [alpha * rmsnorm(c) | rope(k)] in place, see reference.py; returns store."""
    latent, k_rope = compressed.split([len(weight), compressed.shape[1] - len(weight)], dim=-1)
    rotated = rope_eager.rope(k_rope[None, :, None], positions[None], inv_freq, factor)[0, :, 0]
    normed = rmsnorm_eager.rmsnorm(latent, weight, eps) * alpha
    return store.index_copy_(0, slots, torch.cat([normed, rotated], dim=-1).to(store.dtype))
