"""Hidden z-loss: a penalty on the last layer's activations, before the final norm.

Source: report section 3.1.3.
"""

import torch
from torch import Tensor


def hidden_z_loss(last_layer: Tensor, weight: float, token_mask: Tensor | None = None) -> Tensor:
    """(weight / T) * sum_t (log sum_i exp |z_t,i|)^2, in float32 (float64 for float64 input).

    Args:
        last_layer: [..., D], the residual stream before the final norm.
        weight: lambda. The report's figure shows 1e-7; with z = 0 the value is
            weight * (ln D)^2, a constant without gradient.
        token_mask: [...], True for tokens that count.

    Returns:
        Scalar with gradient.
    """
    dtype = torch.float64 if last_layer.dtype == torch.float64 else torch.float32
    square = torch.logsumexp(last_layer.to(dtype).abs(), dim=-1) ** 2
    if token_mask is None:
        return weight * square.mean()
    mask = token_mask.to(dtype)
    return weight * (square * mask).sum() / mask.sum().clamp(min=1)
