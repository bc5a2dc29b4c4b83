"""The FFN experts a few at a time in half precision, on a CPU with many rows.

A product of one expert's rows is small: at 256 rows of width 256 a fifth of bfloat16's speed goes
into calling it. Experts of like many rows, about ROWS together, are one batched product, filled up
to the fullest one's whole BLOCKs (`loop.py` says why whole ones). float32 stays with the loop:
there single products are oneDNN's, and batched ones are not.

The gradient is written by hand. It keeps what the products read and what the first one made, with
the weights in the rows' dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from longcat.kernels.experts.loop import BLOCK

ROWS = 2048  # of a batch, about: more leave the cache, fewer pay more often for the call


def pays(rows: Tensor, n_experts: int) -> bool:
    """Whether these rows are many enough. Few are not: filling up blocks would cost more."""
    return (
        rows.device.type == "cpu"
        and rows.dtype in (torch.bfloat16, torch.float16)
        and rows.shape[0] >= max(BLOCK * n_experts, 1)
    )


def experts(x_sorted: Tensor, gate_up: Tensor, down: Tensor, offsets: Tensor) -> Tensor:
    """x_sorted [S, D], gate_up [N, 2F, D], down [N, D, F], offsets [N] -> [S, D].

    All is computed in the dtype of x_sorted.
    """
    y: Tensor = _Experts.apply(x_sorted, gate_up, down, offsets)  # type: ignore[no-untyped-call]
    return y


@dataclass(frozen=True, kw_only=True)
class Batch:
    """n experts with up to `fullest` rows each, a whole number of BLOCKs."""

    experts: list[int]
    fullest: int

    def rows(self, by_expert: Sequence[Tensor]) -> Tensor:
        """Of every expert's rows [.., D] those of this batch, zeros behind -> [n, fullest, D]."""
        own = [by_expert[expert] for expert in self.experts]
        taken = own[0].new_empty(len(own), self.fullest, own[0].shape[1])
        for place, rows in zip(taken.unbind(), own, strict=True):
            place[: len(rows)].copy_(rows)
            place[len(rows) :].zero_()
        return taken

    def weights(self, by_expert: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Of every expert's weight those of this batch, cast -> [n, ...]."""
        own = [by_expert[expert] for expert in self.experts]
        taken = own[0].new_empty(len(own), *own[0].shape, dtype=dtype)
        torch._foreach_copy_(taken.unbind(), own)
        return taken

    def give(self, made: Tensor, by_expert: Sequence[Tensor]) -> None:
        """Write [n, ...] to where each expert has its own; rows that filled up are dropped."""
        for part, expert in zip(made.unbind(), self.experts, strict=True):
            own = by_expert[expert]
            own.copy_(part[: len(own)])


def batches(counts: list[int]) -> list[Batch]:
    """The batches of experts with so many rows, taken by rising number: it needs little filling."""
    order = sorted(range(len(counts)), key=counts.__getitem__)
    together = max(ROWS * len(counts) // max(sum(counts), 1), 1)
    chosen = [order[first : first + together] for first in range(0, len(order), together)]
    return [
        Batch(experts=experts, fullest=-(-counts[experts[-1]] // BLOCK) * BLOCK)
        for experts in chosen
    ]


def _by_expert(rows: Tensor, counts: list[int]) -> Sequence[Tensor]:
    """Each expert's rows; those behind the last one's are nobody's."""
    parts: Sequence[Tensor] = rows[: sum(counts)].split(counts)
    return parts


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_up: Tensor, down: Tensor, offsets: Tensor) -> Tensor:
        ends = offsets.tolist()
        ctx.counts = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        y = torch.empty_like(x)
        x_each, y_each = _by_expert(x, ctx.counts), _by_expert(y, ctx.counts)
        wides, narrows = gate_up.unbind(), down.unbind()
        kept = []
        for batch in batches(ctx.counts):
            rows = batch.rows(x_each)
            wide, narrow = batch.weights(wides, x.dtype), batch.weights(narrows, x.dtype)
            both = torch.bmm(rows, wide.mT)
            gate, up = both.chunk(2, dim=-1)
            batch.give(torch.bmm(F.silu(gate).mul_(up), narrow.mT), y_each)
            kept += [rows, both, wide, narrow]
        ctx.save_for_backward(gate_up, down, *kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        gate_up, down, *kept = ctx.saved_tensors
        grad_x = torch.empty_like(grad)
        grad_gate_up, grad_down = torch.empty_like(gate_up), torch.empty_like(down)
        of_y_each, of_x_each = _by_expert(grad, ctx.counts), _by_expert(grad_x, ctx.counts)
        of_wides, of_narrows = grad_gate_up.unbind(), grad_down.unbind()
        parts = (kept[i::4] for i in range(4))
        for batch, rows, both, wide, narrow in zip(batches(ctx.counts), *parts, strict=True):
            of_y = batch.rows(of_y_each)
            gate, up = both.chunk(2, dim=-1)
            silu = F.silu(gate)
            batch.give(torch.bmm(of_y.mT, silu * up), of_narrows)
            of_product = torch.bmm(of_y, narrow)
            of_both = torch.empty_like(both)
            of_gate, of_up = of_both.chunk(2, dim=-1)
            torch.mul(of_product, silu, out=of_up)
            torch.ops.aten.silu_backward(of_product.mul_(up), gate, grad_input=of_gate)
            batch.give(torch.bmm(of_both.mT, rows), of_wides)
            batch.give(torch.bmm(of_both, wide), of_x_each)
        return grad_x, grad_gate_up, grad_down, None
