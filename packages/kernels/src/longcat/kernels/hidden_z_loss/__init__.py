"""Hidden z-loss: a penalty on the last layer's activations, before the final norm."""

from __future__ import annotations

import torch
from torch import Tensor

from longcat.kernels.dispatch import choose, through_numpy
from longcat.kernels.hidden_z_loss import eager, reference
from longcat.kernels.operands import check_dtype, check_floating, check_together

__all__ = ["hidden_z_loss"]


def hidden_z_loss(last_layer: Tensor, weight: float, token_mask: Tensor | None = None) -> Tensor:
    """(weight / T) * sum_t (log sum_i exp |z_t,i|)^2, in float32 (float64 for float64 input).

    Args:
        last_layer: [..., D], the residual stream before the final norm.
        weight: lambda. The report's figure shows 1e-7; with z = 0 the value is
            weight * (ln D)^2, a constant without gradient.
        token_mask: [...] bool, True for tokens that count.

    Returns:
        Scalar with gradient.

    Raises:
        ValueError: an operand of the wrong shape, dtype or device.

    Source: report section 3.1.3.
    """
    op = "hidden_z_loss"
    check_together(op, last_layer=last_layer, token_mask=token_mask)
    check_floating(op, last_layer=last_layer)
    if not last_layer.ndim or not last_layer.shape[-1]:
        raise ValueError(
            f"{op}: last_layer must have shape [..., D] with D above 0, "
            f"got {list(last_layer.shape)}"
        )
    if token_mask is not None:
        check_dtype(op, "token_mask", token_mask, torch.bool)
        if token_mask.shape != last_layer.shape[:-1]:
            raise ValueError(
                f"{op}: token_mask must have the shape of last_layer but for its last dimension "
                f"{list(last_layer.shape[:-1])}, got {list(token_mask.shape)}"
            )
    fits = last_layer.dtype != torch.float64
    match choose(op, last_layer, has_kernel=fits, on_request=True):
        case "numpy":
            wide = last_layer.new_empty(0, dtype=torch.promote_types(last_layer.dtype, torch.float))
            result: Tensor = through_numpy(
                reference.hidden_z_loss, last_layer, weight, token_mask, like=wide
            )
            return result
        case "triton":
            from longcat.kernels.hidden_z_loss import triton_kernel

            return triton_kernel.hidden_z_loss(last_layer, weight, token_mask)
        case _:
            return eager.hidden_z_loss(last_layer, weight, token_mask)
