"""RMSNorm in eager torch.

The gradient is written by hand: it needs x and one number per row, where autograd would keep three
tensors of the size of x and walk over them again (up to twice as slow on a CPU).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from longcat.kernels.dispatch import is_unchecked


def rmsnorm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """y = weight * (x / sqrt(mean(x^2) + eps)), see reference.py. x [..., D], weight [D].

    The mean and the quotient are computed in float32 (float64 for float64 x); the quotient is
    rounded to x.dtype before the weight multiplies it, as the released model does. The result has
    the promoted dtype of x and weight.
    """
    if is_unchecked() and x.dtype == weight.dtype and not _is_half(x):
        return F.rms_norm(x, weight.shape, weight, eps)
    y: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return y


def _is_half(x: Tensor) -> bool:
    return x.dtype in (torch.bfloat16, torch.float16)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = _widen(x)
        # The sum of squares as a norm: one pass, and no temporary of the size of x.
        sum_of_squares = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        inverse = sum_of_squares.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        normed: Tensor = (wide * inverse).to(x.dtype)
        if normed.dtype == torch.promote_types(x.dtype, weight.dtype):
            return normed.mul_(weight)
        y: Tensor = normed * weight
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        # With h = grad * weight, r = inverse and m = mean(h * x):
        #   grad_x = r * (h - x * r^2 * m),  grad_weight = sum over rows of grad * x * r.
        # Both sums run over p = grad * x, as products of a matrix and a vector.
        x, weight, inverse = ctx.saved_tensors
        x_rows, grad_rows = (t.reshape(-1, x.shape[-1]) for t in (_widen(x), grad))
        r = inverse.view(-1)
        p = grad_rows * x_rows
        grad_weight = torch.mv(p.t(), r)
        r2m = torch.mv(p, weight.to(p.dtype)).mul_(r * r).div_(x.shape[-1])
        through = (grad_rows * weight).to(p.dtype)
        through.addcmul_(x_rows, r2m[:, None], value=-1).mul_(r[:, None])
        return through.view(x.shape).to(x.dtype), grad_weight.to(weight.dtype), None


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
