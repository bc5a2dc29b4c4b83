"""The residual sum and the RMSNorm that follows it, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from longcat.kernels.add_rmsnorm import eager, reference
from longcat.kernels.dispatch import choose, through_numpy
from longcat.kernels.operands import (
    check_floating,
    check_same_dtype,
    check_shape,
    check_together,
)

__all__ = ["add_rmsnorm"]


def add_rmsnorm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add x to the residual stream and normalise the sum.

    total = residual + x, rounded to its dtype; y = weight * round(total / rms(total)).

    Args:
        x: [..., D], what an attention or FFN returned.
        residual: [..., D], same shape and dtype.
        weight: [D], same dtype.
        eps: added to the mean square.

    Returns:
        (y [..., D], total [..., D]).

    Raises:
        ValueError: an operand of the wrong shape, dtype or device.

    Source: report figure 2 (the layer) and section 2.4.
    """
    op = "add_rmsnorm"
    check_together(op, x=x, residual=residual, weight=weight)
    check_floating(op, x=x)
    check_same_dtype(op, x=x, residual=residual, weight=weight)
    if x.shape != residual.shape:
        raise ValueError(
            f"{op}: residual must have the shape of x {list(x.shape)}, got {list(residual.shape)}"
        )
    sizes: dict[str, int] = {}
    check_shape(op, "x", x, "... D", sizes)
    check_shape(op, "weight", weight, "D", sizes)
    fits = x.dtype != torch.float64
    match choose(op, x, residual, weight, has_kernel=fits, on_request=True):
        case "numpy":
            result: tuple[Tensor, Tensor] = through_numpy(
                reference.add_rmsnorm, x, residual, weight, eps, like=x
            )
            return result
        case "triton":
            from longcat.kernels.add_rmsnorm import triton_kernel

            return triton_kernel.add_rmsnorm(x, residual, weight, eps)
        case _:  # rows never meet, so exact mode needs no form of its own
            return eager.add_rmsnorm(x, residual, weight, eps)
