"""Summed cross entropy as one Triton kernel: the log-sum online, then the gradient.

A program per row. The first walk over the row keeps the largest logit so far and the sum of
exponentials relative to it; the second turns each logit into its gradient. Rows meet only in the
final sum, which torch adds in their order. The gradient may take the place of the logits: a number
is read for the last time right before its gradient is written there.
"""

# Kernels are read by Triton's compiler, not by mypy.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from longcat.kernels.cross_entropy.eager import gradient_of, scaled
from longcat.kernels.operands import check_rows
from longcat.kernels.proof.configuration import Configuration

BLOCK = 4096  # logits at a time
WARPS = 8


@triton.jit
def _rows(
    logits_ptr,
    targets_ptr,
    losses_ptr,
    gradient_ptr,
    z_weight,
    width,
    stride,
    gradient_stride,
    ignored,
    SOFT: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits = logits_ptr + row * stride
    columns = tl.arange(0, BLOCK)
    target = -1
    counted = 1.0
    picked = 0.0
    if not SOFT:
        target = tl.load(targets_ptr + row)
        counted = tl.where(target == ignored, 0.0, 1.0)
        picked = tl.load(logits + target, mask=target != ignored, other=0.0).to(tl.float32)
    top = -float("inf")
    mass = 0.0
    for first in range(0, width, BLOCK):
        places = first + columns
        inside = places < width
        values = tl.load(logits + places, mask=inside, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(top, tl.max(values, axis=0))
        # While nothing but -inf was seen, exp(-inf - 0) is the 0 that it should be.
        base = tl.where(higher == -float("inf"), 0.0, higher)
        mass = mass * tl.exp(top - base) + tl.sum(tl.exp(values - base), axis=0)
        top = higher
        if SOFT:
            shares = tl.load(targets_ptr + row * width + places, mask=inside, other=0.0)
            shares = shares.to(tl.float32)
            picked += tl.sum(shares * tl.where(shares == 0.0, 0.0, values), axis=0)
    log_sum = top + tl.log(mass)
    loss = log_sum - picked + z_weight * log_sum * log_sum
    tl.store(losses_ptr + row, tl.where(counted == 0.0, 0.0, loss))
    if GRADIENT:
        factor = 1.0 + 2.0 * z_weight * log_sum
        for first in range(0, width, BLOCK):
            places = first + columns
            inside = places < width
            values = tl.load(logits + places, mask=inside, other=-float("inf")).to(tl.float32)
            gradient = tl.exp(values - log_sum) * factor
            if SOFT:
                shares = tl.load(targets_ptr + row * width + places, mask=inside, other=0.0)
                gradient -= shares.to(tl.float32)
            else:
                gradient = (gradient - tl.where(places == target, 1.0, 0.0)) * counted
            gradient = gradient.to(gradient_ptr.dtype.element_ty)
            tl.store(gradient_ptr + row * gradient_stride + places, gradient, mask=inside)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, ignored: int, z_weight: float, in_place: bool
    ) -> Tensor:
        check_rows("cross_entropy", logits=logits)
        rows, width = logits.shape
        losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
        wanted = ctx.needs_input_grad[0]
        gradient = gradient_of(logits, in_place) if wanted else None
        place = logits if gradient is None else gradient
        if logits.numel():
            with torch.cuda.device_of(logits):
                _rows[(rows,)](
                    logits, targets.contiguous(), losses, place, float(z_weight), width,
                    logits.stride(0), place.stride(0), ignored,
                    SOFT=targets.is_floating_point(), GRADIENT=wanted, BLOCK=BLOCK,
                    num_warps=WARPS,
                )  # fmt: skip
        ctx.save_for_backward(gradient)
        ctx.in_place = in_place
        return losses.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        return scaled(ctx, grad), None, None, None, None


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    ignored: int = -100,
    z_weight: float = 0.0,
    in_place: bool = False,
) -> Tensor:
    """Sum over rows of the cross entropy, see reference.py. logits [T, V] -> [].

    Raises:
        ValueError: logits whose columns are not adjacent; a copy of them would go unseen.
    """
    total: Tensor = _CrossEntropy.apply(logits, targets, ignored, z_weight, in_place)
    return total


def configurations() -> Iterator[Configuration]:
    """Targets and distributions, with the gradient and without."""
    for soft in (False, True):
        for gradient in (False, True):
            yield Configuration(
                kernel=_rows,
                name=f"cross_entropy of {'distributions' if soft else 'targets'}"
                + (", gradient" if gradient else ""),
                types={
                    "targets_ptr": "*fp32" if soft else "*i64",
                    "losses_ptr": "*fp32",
                    "z_weight": "fp32",
                },
                constants={"SOFT": soft, "GRADIENT": gradient, "BLOCK": BLOCK},
                divisible=("width", "stride", "gradient_stride"),
                warps=WARPS,
                needs=("LDG.E.128", *(("STG.E.128",) if gradient else ())),
            )
