"""Rotary position embedding in eager torch.

A pair (even, odd) is read as one complex number where it lies and turned by e^(i angle). The
gradient is the same turn backwards, written by hand: autograd would walk over every half apart and
fill up each with zeros.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def rope(x: Tensor, positions: Tensor, inv_freq: Tensor, factor: float = 1.0) -> Tensor:
    """[xe*cos - xo*sin | xo*cos + xe*sin], see reference.py. x [B, T, H, R] -> [B, T, H, R].

    Angles, cos, sin and the products are float32 (float64 for float64 x); the result is rounded
    once to x.dtype.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    if len(positions) and positions.stride(0) == 0:
        positions = positions[:1]  # every sequence has the same
    angle = positions.to(wide)[..., None, None] * inv_freq.to(wide)
    turn = torch.polar(angle.new_full((), factor).expand_as(angle), angle)
    turned: Tensor = _Turn.apply(x, turn)  # type: ignore[no-untyped-call]
    return turned


class _Turn(torch.autograd.Function):
    """Interleaved pairs x [B, T, H, R] times turn [B or 1, T, 1, R/2], into halves."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, turn: Tensor) -> Tensor:
        ctx.save_for_backward(turn)
        turned = _pairs(x.to(turn.real.dtype)) * turn
        return torch.cat([turned.real, turned.imag], dim=-1).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (turn,) = ctx.saved_tensors
        real, imaginary = grad.to(turn.real.dtype).chunk(2, dim=-1)
        back = torch.view_as_real(torch.complex(real, imaginary) * turn.conj())
        return back.flatten(-2).to(grad.dtype), None


def _pairs(x: Tensor) -> Tensor:
    """x [..., R] as [..., R/2] complex numbers, in place where the strides allow it."""
    pairs = x.unflatten(-1, (-1, 2))
    whole = all(s % 2 == 0 for s in (*pairs.stride()[:-1], pairs.storage_offset()))
    if not whole or pairs.stride(-1) != 1:
        pairs = pairs.clone(memory_format=torch.contiguous_format)
    return torch.view_as_complex(pairs)
