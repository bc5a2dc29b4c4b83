"""The hidden z-loss as Triton kernels, forward and backward, a program per token.

Forward keeps one number of each token, the log of its sum of exponentials; backward reads the
activations once more. A gradient made in the forward pass would have to wait in memory for its
factor, and be read and written again.
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

from longcat.kernels.operands import check_rows
from longcat.kernels.proof.configuration import Configuration


@triton.jit
def _forward(z_ptr, log_sums_ptr, stride, width, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    z = tl.load(z_ptr + token * stride + columns, mask=inside, other=0.0).to(tl.float32)
    magnitude = tl.where(inside, tl.abs(z), -float("inf"))
    top = tl.max(magnitude, axis=0)
    log_sum = top + tl.log(tl.sum(tl.exp(magnitude - top), axis=0))
    tl.store(log_sums_ptr + token, log_sum)


@triton.jit
def _backward(
    z_ptr, log_sums_ptr, factors_ptr, grad_ptr, stride, width, BLOCK: tl.constexpr
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    z = tl.load(z_ptr + token * stride + columns, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(factors_ptr + token)
    softmax = tl.exp(tl.abs(z) - tl.load(log_sums_ptr + token))
    sign = tl.where(z > 0, 1.0, tl.where(z < 0, -1.0, 0.0))
    grad = (factor * softmax * sign).to(grad_ptr.dtype.element_ty)
    tl.store(grad_ptr + token * width + columns, grad, mask=inside)


class _HiddenZLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: float, counted: Tensor | None) -> Tensor:
        tokens, width = rows.shape
        log_sums = torch.empty(tokens, dtype=torch.float32, device=rows.device)
        if tokens:
            with torch.cuda.device_of(rows):
                _forward[(tokens,)](rows, log_sums, rows.stride(0), width, **_launch(width))
        # shares [T]: what a token's square counts for.
        shares = torch.full_like(log_sums, weight / max(tokens, 1))
        if counted is not None:
            shares = weight * counted / counted.sum().clamp(min=1)
        ctx.save_for_backward(rows, log_sums, shares)
        return (shares * log_sums * log_sums).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        rows, log_sums, shares = ctx.saved_tensors
        tokens, width = rows.shape
        of_rows = torch.empty(tokens, width, dtype=rows.dtype, device=rows.device)
        if tokens:
            factors = 2 * grad * shares * log_sums
            with torch.cuda.device_of(rows):
                _backward[(tokens,)](
                    rows, log_sums, factors, of_rows, rows.stride(0), width, **_launch(width)
                )
        return of_rows, None, None


def hidden_z_loss(last_layer: Tensor, weight: float, token_mask: Tensor | None = None) -> Tensor:
    """(weight / T) * sum_t (log sum_i exp |z_t,i|)^2, see reference.py. [..., D] -> [], float32.

    Raises:
        ValueError: rows whose columns are not adjacent; a copy of them would go unseen.
    """
    check_rows("hidden_z_loss", last_layer=last_layer)
    rows = last_layer.reshape(-1, last_layer.shape[-1])
    counted = None if token_mask is None else token_mask.reshape(-1).float()
    loss: Tensor = _HiddenZLoss.apply(rows, float(weight), counted)
    return loss


def _launch(width: int) -> dict[str, int]:
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(max(block // 512, 1), 16)}


def configurations() -> Iterator[Configuration]:
    """Both ways at the model's width."""
    for kernel in (_forward, _backward):
        launch = _launch(6144)
        yield Configuration(
            kernel=kernel,
            name=f"hidden_z_loss {kernel.__name__.strip('_')} 6144",
            types={"log_sums_ptr": "*fp32", "factors_ptr": "*fp32"},
            constants={"BLOCK": launch["BLOCK"]},
            divisible=("stride", "width"),
            warps=launch["num_warps"],
            needs=("LDG.E.128", *(("STG.E.128",) if kernel is _backward else ())),
        )
