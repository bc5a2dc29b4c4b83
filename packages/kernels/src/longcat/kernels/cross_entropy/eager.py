"""Summed cross entropy in eager torch, some rows at a time.

The gradient, softmax(l) - q, is made in the forward pass where the softmax is at hand, and kept in
the logits' dtype: no log-probabilities of the size of the logits are written in float32, kept or
read again. Against torch's own, about half the time and half the memory in bfloat16.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import increment_version

ROWS = 128  # rows at a time: what is computed of them stays in the cache


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    ignored: int = -100,
    z_weight: float = 0.0,
    in_place: bool = False,
) -> Tensor:
    """Sum over rows of the cross entropy, see reference.py. logits [T, V] -> []."""
    total: Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
        logits, targets, ignored, z_weight, in_place
    )
    return total


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, ignored: int, z_weight: float, in_place: bool
    ) -> Tensor:
        wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
        total = torch.zeros((), dtype=wide, device=logits.device)
        gradient = gradient_of(logits, in_place) if ctx.needs_input_grad[0] else None
        for start in range(0, len(logits), ROWS):
            part = slice(start, start + ROWS)
            # The softmax goes straight to where the gradient is kept, if no logits lie there.
            there = gradient is not None and not in_place and gradient.dtype == wide
            out = gradient[part] if gradient is not None and there else None
            losses, softmax = _rows(logits[part].to(wide), targets[part], ignored, z_weight, out)
            total += losses
            if gradient is not None and not there:
                gradient[part] = softmax
        ctx.save_for_backward(gradient)
        ctx.in_place = in_place
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        return scaled(ctx, grad), None, None, None, None


def gradient_of(logits: Tensor, in_place: bool) -> Tensor:
    """Where the gradient goes: memory of its own, or the logits', which are then overwritten.

    Autograd tells whoever had kept the logits for a backward pass of their own.
    """
    if not in_place:
        return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    increment_version(logits)
    return logits.detach()


def scaled(ctx: Any, grad: Tensor) -> Tensor:
    """The kept gradient times the one from above; in place where it was made in place.

    A second backward pass would scale it twice: autograd sees that it was modified, and raises.
    """
    (gradient,) = ctx.saved_tensors
    # A scalar tensor multiplies in full precision; rounding it first would scale them all.
    result: Tensor = gradient.mul_(grad) if ctx.in_place else gradient * grad
    return result


def _rows(
    logits: Tensor, targets: Tensor, ignored: int, z_weight: float, out: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(summed loss [], its gradient [R, V] in `out` or memory of its own) of some rows."""
    softmax = torch.softmax(logits, dim=-1, out=out)
    # log sum exp l = max l - log max softmax: the largest probability is never too small to tell.
    log_sum = logits.amax(dim=-1) - softmax.amax(dim=-1).log()
    if z_weight:
        softmax.mul_((1 + 2 * z_weight * log_sum)[:, None])
        log_sum = log_sum + z_weight * log_sum.square()
    if targets.dim() == 2:
        targets = targets.to(logits.dtype)
        return log_sum.sum() - (targets * logits).sum(), softmax.sub_(targets)
    counts = targets != ignored
    counted = counts.to(logits.dtype)
    place = targets.where(counts, 0)[:, None]
    losses = (log_sum - logits.gather(1, place)[:, 0]) * counted
    softmax.scatter_add_(1, place, softmax.new_full(place.shape, -1.0))
    if logits.device.type == "cpu" and bool(counts.all()):  # a GPU would have to be waited for
        return losses.sum(), softmax
    return losses.sum(), softmax.mul_(counted[:, None])
