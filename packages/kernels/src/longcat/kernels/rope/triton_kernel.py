"""Rotary positions as a Triton kernel: one source turns forward and, for the gradient, back.

A program takes a token and some of its heads; angle, cosine and sine are computed once for all of
them. Rows are read and written whole and split in registers, whichever side is interleaved.
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

HEADS = 16  # that one program turns


@triton.jit
def _turn(
    x_ptr, positions_ptr, inv_freq_ptr, out_ptr, factor, n_heads, n_tokens, x_batch, x_token,
    x_head, BACK: tl.constexpr, R: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    # x [B, T, H, R] by its strides, out [B, T, H, R] contiguous.
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    numbers, pair = tl.arange(0, R), tl.arange(0, R // 2)
    real = (head < n_heads)[:, None]
    angle = tl.load(positions_ptr + token).to(tl.float32) * tl.load(inv_freq_ptr + pair)
    cos, sin = (tl.cos(angle) * factor)[None, :], (tl.sin(angle) * factor)[None, :]
    row = x_ptr + (token // n_tokens) * x_batch + (token % n_tokens) * x_token
    x = tl.load(row + head[:, None] * x_head + numbers[None, :], mask=real, other=0.0)
    if BACK:
        # Halves in, interleaved pairs out: the transpose.
        halves = tl.permute(tl.reshape(x, [HEADS, 2, R // 2]), [0, 2, 1])
        first, second = tl.split(halves.to(tl.float32))
        out = tl.join(first * cos + second * sin, second * cos - first * sin)
    else:
        even, odd = tl.split(tl.reshape(x, [HEADS, R // 2, 2]).to(tl.float32))
        out = tl.join(even * cos - odd * sin, odd * cos + even * sin)
        out = tl.permute(out, [0, 2, 1])
    out = tl.reshape(out, [HEADS, R]).to(out_ptr.dtype.element_ty)
    places = (token * n_heads + head[:, None]) * R + numbers[None, :]
    tl.store(out_ptr + places, out, mask=real)


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, positions: Tensor, inv_freq: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(positions, inv_freq)
        ctx.factor = factor
        return _launch(x, positions, inv_freq, factor, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        positions, inv_freq = ctx.saved_tensors
        return _launch(grad.contiguous(), positions, inv_freq, ctx.factor, back=True), *3 * (None,)


def rope(x: Tensor, positions: Tensor, inv_freq: Tensor, factor: float = 1.0) -> Tensor:
    """[xe*cos - xo*sin | xo*cos + xe*sin], see reference.py. x [B, T, H, R] -> [B, T, H, R].

    Raises:
        ValueError: rows whose columns are not adjacent; a copy of them would go unseen.
    """
    check_rows("rope", x=x)
    out: Tensor = _Rope.apply(x, positions.contiguous(), inv_freq.float().contiguous(), factor)
    return out


def _launch(x: Tensor, positions: Tensor, inv_freq: Tensor, factor: float, back: bool) -> Tensor:
    n_batch, n_tokens, n_heads, width = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel():
        heads = min(HEADS, triton.next_power_of_2(n_heads))
        with torch.cuda.device_of(x):
            _turn[(n_batch * n_tokens, triton.cdiv(n_heads, heads))](
                x, positions, inv_freq, out, float(factor), n_heads, n_tokens, *x.stride()[:3],
                BACK=back, R=width, HEADS=heads, num_warps=2,
            )  # fmt: skip
    return out


def configurations() -> Iterator[Configuration]:
    """The 64 rotary numbers of many heads, and those of the one shared key, both ways."""
    for heads in (HEADS, 1):
        for back in (False, True):
            yield Configuration(
                kernel=_turn,
                name=f"rope 64, {heads} heads{', back' if back else ''}",
                types={"positions_ptr": "*i64", "inv_freq_ptr": "*fp32", "factor": "fp32"},
                constants={"BACK": back, "R": 64, "HEADS": heads},
                divisible=("x_batch", "x_token", "x_head", *(("n_heads",) if heads > 1 else ())),
                warps=2,
                stack=32,  # cos and sin of large angles keep their reduction there
                needs=("LDG.E", "STG.E"),
            )
