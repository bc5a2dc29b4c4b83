"""A linear map whose weight is stored in 8 bits, with one scale per output."""

from __future__ import annotations

import torch
from torch import Tensor

from longcat.kernels.dispatch import choose, or_unchecked, through_numpy
from longcat.kernels.int8_linear import eager, reference
from longcat.kernels.int8_linear.eager import quantise_int8
from longcat.kernels.operands import (
    check_dtype,
    check_floating,
    check_same_dtype,
    check_shape,
    check_together,
)

__all__ = ["int8_linear", "quantise_int8"]


@or_unchecked(eager.int8_linear)
def int8_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """y = (x @ weight^T) * scale, for inference.

    Args:
        x: [..., I].
        weight: [O, I] int8, from `quantise_int8`.
        scale: [O], in x's dtype.

    Returns:
        [..., O] in x's dtype.

    Raises:
        ValueError: an operand of the wrong shape, dtype or device.
    """
    op = "int8_linear"
    check_together(op, x=x, weight=weight, scale=scale)
    check_floating(op, x=x, scale=scale)
    check_same_dtype(op, x=x, scale=scale)
    check_dtype(op, "weight", weight, torch.int8)
    sizes: dict[str, int] = {}
    check_shape(op, "weight", weight, "O I", sizes)
    check_shape(op, "x", x, "... I", sizes)
    check_shape(op, "scale", scale, "O", sizes)
    if choose(op, x, scale) == "numpy":
        result: Tensor = through_numpy(reference.int8_linear, x, weight, scale, like=x)
        return result
    return eager.int8_linear(x, weight, scale)
