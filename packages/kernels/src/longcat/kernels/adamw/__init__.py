"""One step of AdamW over a list of tensors, in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from longcat.kernels.adamw import eager, reference
from longcat.kernels.dispatch import choose, name_of, to_numpy
from longcat.kernels.operands import check_floating, check_together

__all__ = ["adamw_step"]


@torch.no_grad()
def adamw_step(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    firsts: Sequence[Tensor],
    seconds: Sequence[Tensor],
    step: int,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-16,
    weight_decay: float = 0.1,
    copies: Sequence[Tensor] | None = None,
) -> None:
    """Move weights and moments one step on, and round the weights into their copies.

    m = b1 m + (1-b1) g,  v = b2 v + (1-b2) g^2,  w = w (1 - lr wd) - lr m^ / (sqrt(v^) + eps)
    with m^ = m / (1 - b1^step) and v^ = v / (1 - b2^step).

    Args:
        weights: tensors of any shapes in one dtype, float32 for masters; changed in place.
        gradients: of the same shapes, in one floating dtype.
        firsts, seconds: the moments m and v, like the weights; changed in place.
        step: steps taken with this one, from 1.
        lr: learning rate of this step; lists with rates or decays of their own take a call each.
        eps: outside the root; keep it far below the gradient's RMS.
        weight_decay: per unit of learning rate.
        copies: what the forward pass reads, of the same shapes, bfloat16 say; overwritten.

    Raises:
        ValueError: lists that do not fit together, tensors that are not contiguous, or step < 1.

    Source: report section 3.1.3.
    """
    op = "adamw_step"
    if step < 1:
        raise ValueError(f"{op}: step counts from 1, got {step}")
    lists = {"weights": weights, "gradients": gradients, "firsts": firsts, "seconds": seconds}
    if copies is not None:
        lists["copies"] = copies
    _check(op, lists)
    if not len(weights):
        return
    fits = all(tensor.dtype == torch.float32 for tensor in (weights[0], firsts[0]))
    given = [tensor for tensors in lists.values() for tensor in tensors]
    options: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    match choose(op, *given, has_kernel=fits, on_request=True):
        case "numpy":
            for place, moved in enumerate(zip(weights, firsts, seconds, strict=True)):
                w, g, m, v = (to_numpy(t[place]) for t in (weights, gradients, firsts, seconds))
                made = reference.adamw_step(w, g, m, v, step, **options)
                for tensor, array in zip(moved, made, strict=True):
                    tensor.copy_(torch.from_numpy(array))
            for copy, weight in zip(copies or (), weights, strict=copies is not None):
                copy.copy_(weight)
        case "triton":
            from longcat.kernels.adamw import triton_kernel

            triton_kernel.adamw_step(
                weights, gradients, firsts, seconds, step, copies=copies, **options
            )
        case _:
            eager.adamw_step(weights, gradients, firsts, seconds, step, copies=copies, **options)


def _check(op: str, lists: dict[str, Sequence[Tensor]]) -> None:
    weights = lists["weights"]
    for name, tensors in lists.items():
        if len(tensors) != len(weights):
            raise ValueError(
                f"{op}: {name} must hold one tensor for each of the {len(weights)} weights, "
                f"got {len(tensors)}"
            )
        for place, (tensor, weight) in enumerate(zip(tensors, weights, strict=True)):
            at = f"{name}[{place}]"
            check_together(op, **{"weights[0]": weights[0], at: tensor})
            check_floating(op, **{at: tensor})
            like = weights[0] if name in ("firsts", "seconds") else tensors[0]
            if tensor.dtype != like.dtype:
                raise ValueError(
                    f"{op}: {at} must be {name_of(like.dtype)} like the others, "
                    f"got {name_of(tensor.dtype)}"
                )
            if tensor.shape != weight.shape or not tensor.is_contiguous():
                raise ValueError(
                    f"{op}: {at} must be contiguous and have the shape of weights[{place}] "
                    f"{list(weight.shape)}, got {list(tensor.shape)} with strides "
                    f"{list(tensor.stride())}"
                )
