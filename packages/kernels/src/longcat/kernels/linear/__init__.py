"""A linear map: y = x @ weight^T + bias."""

from __future__ import annotations

import torch
from torch import Tensor

from longcat.kernels.dispatch import choose, or_unchecked, through_numpy
from longcat.kernels.linear import eager, exact, reference
from longcat.kernels.operands import (
    autocast_dtype,
    check_floating,
    check_same_dtype,
    check_shape,
    check_together,
)

__all__ = ["linear"]


@or_unchecked(eager.linear)
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x @ weight^T + bias.

    Args:
        x: [..., I].
        weight: [O, I].
        bias: [O] or None.

    Returns:
        [..., O] in x's dtype (torch.autocast's dtype inside autocast).

    Raises:
        ValueError: an operand of the wrong shape, dtype or device.
    """
    check_together("linear", x=x, weight=weight, bias=bias)
    check_floating("linear", x=x, weight=weight, bias=bias)
    if autocast_dtype(x) is None:
        check_same_dtype("linear", x=x, weight=weight, bias=bias)
    sizes: dict[str, int] = {}
    check_shape("linear", "weight", weight, "O I", sizes)
    check_shape("linear", "x", x, "... I", sizes)
    if bias is not None:
        check_shape("linear", "bias", bias, "O", sizes)
    half = x.dtype in (torch.bfloat16, torch.float16)
    fits = half and bias is None and autocast_dtype(x) is None
    match choose("linear", x, weight, bias, has_kernel=fits, inference_only=True):
        case "numpy":
            result: Tensor = through_numpy(reference.linear, x, weight, bias, like=x)
            return result
        case "triton":
            from longcat.kernels.linear import triton_kernel

            return triton_kernel.linear(x, weight)
        case "exact":
            return exact.linear(x, weight, bias)
        case _:
            return eager.linear(x, weight, bias)
