"""The FFN experts on a CPU, one expert after the other, by oneDNN.

On a CPU torch's grouped_mm is itself a loop over MKL products, and between its two products whole
[S, 2F] tensors go to memory and come back. Here an expert's rows stay in cache from its first
product to its last; in float32 the products are oneDNN's (onednn.py says why), and inside autocast
each expert's weights are cast when its turn comes, so that no copy of all of them is made.

Row counts differ from expert to expert and from step to step, so they are rounded up to whole
blocks: what the neighbouring rows give is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from longcat.kernels import onednn
from longcat.kernels.onednn import BLOCK, times_transposed

FEWEST = 32  # rows per expert, on average, from which the loop is faster


def takes(x_sorted: Tensor, gate_up: Tensor) -> bool:
    """Whether this is the form to take: on a CPU, with enough rows per expert, in float32.

    And in bfloat16 over float32 weights, as inside autocast: there it is as fast as grouped_mm and
    needs no copy of all weights. Over bfloat16 weights grouped_mm is faster.
    """
    if x_sorted.device.type != "cpu" or type(gate_up) not in (Tensor, nn.Parameter):
        return False
    products = x_sorted.shape[0] * gate_up[0].numel() // gate_up.shape[0]
    if x_sorted.shape[0] < FEWEST * gate_up.shape[0] or products < 2**20:
        return False
    if x_sorted.dtype == torch.bfloat16:
        supported = onednn.available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return bool(supported) and gate_up.dtype == torch.float32
    return x_sorted.dtype == torch.float32 and onednn.available()


def experts(x_sorted: Tensor, gate_up: Tensor, down: Tensor, offsets: Tensor) -> Tensor:
    """As eager.experts; the weights may be wider than x_sorted, whose dtype is computed in."""
    y: Tensor = _ByExpert.apply(x_sorted, gate_up, down, offsets)  # type: ignore[no-untyped-call]
    return y


class _ByExpert(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_up: Tensor, down: Tensor, offsets: Tensor) -> Tensor:
        ctx.ends = offsets.tolist()  # on a CPU there is nothing to wait for
        both = x.new_empty(x.shape[0], gate_up.shape[1])
        y = torch.empty_like(x)
        hidden = x.new_zeros(_rows_of_fullest(ctx.ends), down.shape[2])
        for e, start, end in _segments(ctx.ends):
            if start == end:  # an expert that nobody chose
                continue
            both[start:end] = _product(x, start, end, gate_up[e].to(x.dtype))
            gate, up = both[start:end].chunk(2, dim=-1)
            torch.mul(F.silu(gate), up, out=hidden[: end - start])
            y[start:end] = _product(hidden, 0, end - start, down[e].to(x.dtype))
        ctx.save_for_backward(x, gate_up, down, both)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, gate_up, down, both = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = torch.empty_like(x)
        grad_gate_up, grad_down = torch.empty_like(gate_up), torch.empty_like(down)
        width = down.shape[2]
        of_both = x.new_zeros(_rows_of_fullest(ctx.ends), 2 * width)
        for e, start, end in _segments(ctx.ends):
            if start == end:
                grad_gate_up[e].zero_()
                grad_down[e].zero_()
                continue
            here = slice(start, end)
            gate, up = both[here].chunk(2, dim=-1)
            activated = F.silu(gate)
            onednn.add_gram(grad_down[e], grad[here], activated * up)
            of_hidden = _product(grad, start, end, down[e].to(x.dtype).t())
            rows = of_both[: end - start]
            rows[:, :width] = torch.ops.aten.silu_backward(of_hidden * up, gate)
            torch.mul(of_hidden, activated, out=rows[:, width:])
            onednn.add_gram(grad_gate_up[e], rows, x[here])
            grad_x[here] = _product(of_both, 0, end - start, gate_up[e].to(x.dtype).t())
        return grad_x, grad_gate_up, grad_down, None


def _segments(ends: list[int]) -> Iterator[tuple[int, int, int]]:
    """(expert, its first row, one past its last)."""
    return zip(range(len(ends)), [0, *ends[:-1]], ends, strict=True)


def _rows_of_fullest(ends: list[int]) -> int:
    return _whole_blocks(max(end - start for _, start, end in _segments(ends)))


def _whole_blocks(count: int) -> int:
    return -(-count // BLOCK) * BLOCK


def _product(rows: Tensor, start: int, end: int, weight: Tensor) -> Tensor:
    """rows[start:end] @ weight^T, computed on whole blocks that hold these rows."""
    count = _whole_blocks(end - start)
    first = min(start, rows.shape[0] - count)
    if first < 0:  # fewer rows in all than one block
        return times_transposed(rows[start:end], weight)
    return times_transposed(rows[first : first + count], weight)[start - first : end - first]
