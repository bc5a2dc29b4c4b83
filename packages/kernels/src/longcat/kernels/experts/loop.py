"""The FFN experts one after another in float32, on a CPU with many rows.

Nothing is gained there by grouping: torch's grouped_mm runs one product per expert, too. What is
gained by the loop: one expert's rows stay in the cache from its first product to its last, forward
and backward; the products are those of `onednn`; and each sees a multiple of BLOCK rows. oneDNN
writes code for every new shape, routing makes new row counts in every step, and that code would
cost as much as the products themselves.

The rows that fill up a block are the next expert's, read where they lie: what is made of them is
dropped, and zeros meet them wherever there is a sum over rows. The gradient is written by hand. It
keeps the rows and what the first product made of them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from longcat.kernels import onednn

BLOCK = 32  # rows
SMALLEST = 2**20  # multiply-adds that oneDNN is called for: less than elsewhere, shapes come again
Product = Callable[[Tensor, Tensor], Tensor]


def pays(rows: Tensor, n_experts: int) -> bool:
    """Whether these rows are many enough. Few are not: filling up blocks would cost more."""
    return (
        rows.device.type == "cpu"
        and rows.dtype == torch.float32
        and rows.shape[0] >= max(BLOCK * n_experts, 1)
    )


def experts(x_sorted: Tensor, gate_up: Tensor, down: Tensor, offsets: Tensor) -> Tensor:
    """x_sorted [S, D], gate_up [N, 2F, D], down [N, D, F], offsets [N] -> [S, D], all float32."""
    y: Tensor = _Experts.apply(x_sorted, gate_up, down, offsets)  # type: ignore[no-untyped-call]
    return y


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_up: Tensor, down: Tensor, offsets: Tensor) -> Tensor:
        ctx.ends = offsets.tolist()
        y = torch.empty_like(x)
        times = _product(x, gate_up)
        hidden = []
        for rows, wide, narrow in zip(
            _rows(ctx.ends), gate_up.unbind(), down.unbind(), strict=True
        ):
            both = times(_blocks(x, rows), wide)
            gate, up = both.chunk(2, dim=-1)
            y[rows].copy_(times(F.silu(gate).mul_(up), narrow)[: rows.stop - rows.start])
            hidden.append(both)
        ctx.save_for_backward(x, gate_up, down, *hidden)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, gate_up, down, *hidden = ctx.saved_tensors
        grad = grad.contiguous()
        grads = [torch.empty_like(operand) for operand in (x, gate_up, down)]
        times = _product(x, gate_up)
        weights = (w.unbind() for w in (gate_up, down, *grads[1:]))
        for rows, both, wide, narrow, of_wide, of_narrow in zip(
            _rows(ctx.ends), hidden, *weights, strict=True
        ):
            count = rows.stop - rows.start
            of_y = _blocks(grad, rows)
            gate, up = both.chunk(2, dim=-1)
            silu = F.silu(gate)
            product = silu * up
            product[count:].zero_()
            of_narrow.copy_(times(of_y.t(), product.t()))
            of_product = times(of_y, narrow.t())
            of_both = torch.empty_like(both)
            of_gate, of_up = of_both.chunk(2, dim=-1)
            torch.mul(of_product, silu, out=of_up)
            torch.ops.aten.silu_backward(of_product.mul_(up), gate, grad_input=of_gate)
            of_both[count:].zero_()
            of_wide.copy_(times(of_both.t(), _blocks(x, rows).t()))
            grads[0][rows].copy_(times(of_both, wide.t())[:count])
        return *grads, None  # type: ignore[return-value]


def _rows(ends: list[int]) -> list[slice]:
    """Each expert's; products of no rows at all give the zeros that they should."""
    return [slice(start, end) for start, end in pairwise([0, *ends])]


def _blocks(rows: Tensor, own: slice) -> Tensor:
    """An expert's rows and those behind them, up to a whole number of BLOCKs; a copy at the end."""
    missing = (own.start - own.stop) % BLOCK
    if own.stop + missing <= len(rows):
        return rows[own.start : own.stop + missing]
    return F.pad(rows[own], (0, 0, 0, missing))


def _product(x: Tensor, weight: Tensor) -> Product:
    """What multiplies rows [M, I] by weights [O, I] transposed -> [M, O], for operands like these.

    Whether oneDNN serves them is asked once: beside a small product the asking can be seen.
    """
    served = onednn.serves(x, weight)

    def times(rows: Tensor, weight: Tensor) -> Tensor:
        if served and rows.numel() * len(weight) >= SMALLEST:
            return onednn.times_transposed(rows, weight)
        return rows @ weight.t()

    return times
