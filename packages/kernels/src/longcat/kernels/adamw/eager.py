"""One step of AdamW in eager torch, tensor by tensor and in place."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def adamw_step(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    firsts: Sequence[Tensor],
    seconds: Sequence[Tensor],
    step: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    copies: Sequence[Tensor] | None,
) -> None:
    """See reference.py. Arithmetic is in the weights' dtype; copies are rounded once."""
    beta1, beta2 = betas
    correction, root = 1 - beta1**step, 1 - beta2**step
    for weight, gradient, first, second in zip(weights, gradients, firsts, seconds, strict=True):
        wide = gradient.to(weight.dtype)
        first.mul_(beta1).add_(wide, alpha=1 - beta1)
        second.mul_(beta2).addcmul_(wide, wide, value=1 - beta2)
        divisor = (second / root).sqrt_().add_(eps)
        weight.mul_(1 - lr * weight_decay).addcdiv_(first, divisor, value=-lr / correction)
    for copy, weight in zip(copies or (), weights, strict=copies is not None):
        copy.copy_(weight)
