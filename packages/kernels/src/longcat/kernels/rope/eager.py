"""Rotary position embedding in eager torch."""

from __future__ import annotations

import torch
from torch import Tensor


def rope(x: Tensor, positions: Tensor, inv_freq: Tensor, factor: float = 1.0) -> Tensor:
    """[xe*cos - xo*sin | xo*cos + xe*sin], see reference.py. x [B, T, H, R] -> [B, T, H, R].

    Angles, cos, sin and the products are float32 (float64 for float64 x); the result is rounded
    once to x.dtype.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    angle = positions.to(wide)[..., None, None] * inv_freq.to(wide)
    cos, sin = angle.cos(), angle.sin()
    if factor != 1.0:
        cos, sin = cos * factor, sin * factor
    even, odd = x[..., 0::2].to(wide), x[..., 1::2].to(wide)
    return torch.cat([even * cos - odd * sin, odd * cos + even * sin], dim=-1).to(x.dtype)
