"""The hidden z-loss in eager torch."""

from __future__ import annotations

import torch
from torch import Tensor


def hidden_z_loss(last_layer: Tensor, weight: float, token_mask: Tensor | None = None) -> Tensor:
    """(weight / T) * sum_t (log sum_i exp |z_t,i|)^2, see reference.py. [..., D] -> []."""
    dtype = torch.float64 if last_layer.dtype == torch.float64 else torch.float32
    square = torch.logsumexp(last_layer.to(dtype).abs(), dim=-1) ** 2
    if token_mask is None:
        return weight * square.sum() / max(square.numel(), 1)
    mask = token_mask.to(dtype)
    return weight * (square * mask).sum() / mask.sum().clamp(min=1)
