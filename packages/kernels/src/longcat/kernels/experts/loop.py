"""The FFN experts one after another, on a CPU with many rows.

Nothing is gained there by grouping: torch's grouped_mm runs one product per expert, too. What is
gained by the loop: one expert's rows stay in the cache from its first product to its last, forward
and backward; the products are those of `onednn`; and each sees a multiple of BLOCK rows. oneDNN
writes code for every new shape, routing makes new row counts in every step, and that code would
cost as much as the products themselves.

The gradient is written by hand. It keeps the rows and what the first product made of them. Weights
of another dtype than the rows are cast expert by expert, where they are used, and their gradients
are cast back as they come: under autocast no second set of them is ever held.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from longcat.kernels import onednn

BLOCK = 32  # rows


def pays(rows: Tensor, n_experts: int) -> bool:
    """Whether these rows are many enough. Few are not: filling up blocks would cost more."""
    return (
        rows.device.type == "cpu"
        and rows.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and rows.shape[0] >= max(BLOCK * n_experts, 1)
    )


def experts(x_sorted: Tensor, gate_up: Tensor, down: Tensor, offsets: Tensor) -> Tensor:
    """x_sorted [S, D], gate_up [N, 2F, D], down [N, D, F], offsets [N] -> [S, D].

    All is computed in the dtype of x_sorted.
    """
    y: Tensor = _Experts.apply(x_sorted, gate_up, down, offsets)  # type: ignore[no-untyped-call]
    return y


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_up: Tensor, down: Tensor, offsets: Tensor) -> Tensor:
        y = torch.empty_like(x)
        hidden = []
        for expert, rows in _groups(offsets):
            both = _product(_filled(x[rows]), gate_up[expert].to(x.dtype))
            gate, up = both.chunk(2, dim=-1)
            made = _product(F.silu(gate).mul_(up), down[expert].to(x.dtype))
            y[rows] = made[: rows.stop - rows.start]
            hidden.append(both)
        ctx.save_for_backward(x, gate_up, down, offsets, *hidden)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, gate_up, down, offsets, *hidden = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        grad_gate_up, grad_down = torch.empty_like(gate_up), torch.empty_like(down)
        for (expert, rows), both in zip(_groups(offsets), hidden, strict=True):
            of_y = _filled(grad[rows])
            gate, up = both.chunk(2, dim=-1)
            silu = F.silu(gate)
            _product_into(grad_down[expert], of_y.mT, (silu * up).mT)
            of_product = _product(of_y, down[expert].to(x.dtype).mT)
            of_both = torch.empty_like(both)
            of_gate, of_up = of_both.chunk(2, dim=-1)
            torch.mul(of_product, silu, out=of_up)
            torch.ops.aten.silu_backward(of_product.mul_(up), gate, grad_input=of_gate)
            _product_into(grad_gate_up[expert], of_both.mT, _filled(x[rows]).mT)
            of_x = _product(of_both, gate_up[expert].to(x.dtype).mT)
            grad_x[rows] = of_x[: rows.stop - rows.start]
        return grad_x, grad_gate_up, grad_down, None


def _groups(offsets: Tensor) -> Iterator[tuple[int, slice]]:
    """(expert, its rows); products of no rows at all give the zeros that they should."""
    start = 0
    for expert, end in enumerate(offsets.tolist()):
        yield expert, slice(start, end)
        start = end


def _filled(rows: Tensor) -> Tensor:
    """A copy with zeros up to a whole number of BLOCKs."""
    return F.pad(rows, (0, 0, 0, -rows.shape[0] % BLOCK))


def _product(rows: Tensor, weight: Tensor) -> Tensor:
    """rows [M, I] times weight [O, I] transposed -> [M, O]."""
    if onednn.takes(rows, weight):
        return onednn.times_transposed(rows, weight)
    return rows @ weight.mT


def _product_into(out: Tensor, rows: Tensor, weight: Tensor) -> None:
    if out.dtype != rows.dtype or onednn.takes(rows, weight):
        out.copy_(_product(rows, weight))
    else:
        torch.mm(rows, weight.mT, out=out)
