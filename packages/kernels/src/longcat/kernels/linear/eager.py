"""A linear map in eager torch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from longcat.kernels import onednn


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x @ weight^T + bias. x [..., I], weight [O, I], bias [O] -> [..., O].

    torch.nn.functional.linear, and so subject to torch.autocast; or the same by oneDNN, forward and
    backward, where that is faster (`onednn.takes`).
    """
    if onednn.takes(x, weight):
        if not torch.is_grad_enabled():
            return _product(x, weight, bias)
        y: Tensor = _OneDNNLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return y
    return F.linear(x, weight, bias)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = onednn.times_transposed(x.reshape(-1, x.shape[-1]), weight)
    if bias is not None:
        y.add_(bias)
    return y.view(*x.shape[:-1], weight.shape[0])


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        # A gradient may be expanded (that of a sum is); oneDNN wants real strides.
        grad = grad.reshape(-1, grad.shape[-1]).contiguous()
        grad_x = onednn.times_transposed(grad, weight.t()).view(x.shape) if of_x else None
        grad_weight = _sum_of_outer(grad, x.reshape(-1, x.shape[-1])) if of_weight else None
        return grad_x, grad_weight, grad.sum(dim=0) if of_bias else None


def _sum_of_outer(left: Tensor, right: Tensor) -> Tensor:
    """left [M, O] and right [M, I] -> left^T right [O, I].

    oneDNN reads the first operand row by row, so one of the two is turned around before, which
    takes up to a quarter of the product's time: the narrower one, if it is so with the result.
    """
    if left.numel() > right.numel() + left.shape[1] * right.shape[1]:
        return onednn.times_transposed(right.t(), left.t()).t().contiguous()
    return onednn.times_transposed(left.t(), right.t())
