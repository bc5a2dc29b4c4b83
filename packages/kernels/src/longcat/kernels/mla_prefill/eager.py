"""Multi-head latent attention with expanded heads, in eager torch.

Four ways to the same numbers, by what is fastest where:
- on a CPU without a gradient or a mask, many queries and keys: head by head (`by_head`).
- on a CPU, up to LONGEST queries: query tiles against the span of keys that any of their rows may
  see (`_Tiles`): up to the diagonal, or the tile's documents. Against torch's fused attention,
  forward and backward, at training shapes, about 1.4 times faster in float32 and 4 times in
  bfloat16 without a mask (`longcat bench kernels` measures it).
- otherwise, and with a mask over cached keys, torch's fused attention, with the values widened by
  zeros to the width of the keys: with unequal widths it silently takes a path that writes all T*S
  scores.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from longcat.kernels.mla_prefill import by_head

TILE = 128
LONGEST = 1024  # the tiles keep their softmax for the backward pass, T*S/2 numbers per head


def mla_prefill(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None
) -> Tensor:
    """softmax(scale q k^T) v per head, see reference.py.

    q [B, T, H, Q], k [B, S, H, Q], v [B, S, H, V], mask [B, T, S] -> [B, T, H, V].
    """
    if q.numel() == 0 or k.numel() == 0:
        # Nothing to attend to; the sums tie the result to its operands, for the gradient.
        zeros = (q.sum() + k.sum() + v.sum()) * 0
        return q.new_zeros(*q.shape[:-1], v.shape[-1]) + zeros
    if mask is None and by_head.pays(q, k, v):
        return by_head.causal(q, k, v, scale)
    is_square = mask is None or q.shape[1] == k.shape[1]
    if is_square and q.device.type == "cpu" and 1 < q.shape[1] <= LONGEST:
        tiles: Tensor = _Tiles.apply(q, k, v, scale, mask)  # type: ignore[no-untyped-call]
        return tiles
    return fused(q, k, v, scale, mask)


def fused(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """torch's fused attention; operands and result as `mla_prefill`."""
    n_queries, n_keys, n_values = q.shape[1], k.shape[1], v.shape[-1]
    width = max(q.shape[-1], n_values)
    q, k, v = (F.pad(x, (0, width - x.shape[-1])).transpose(1, 2) for x in (q, k, v))
    if mask is not None:
        # A softmax over no key at all is 0/0. Such rows attend to everything and are erased after.
        blind = ~mask.any(dim=-1, keepdim=True)
        seen = (mask | blind)[:, None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)
        out = out.masked_fill(blind[:, None], 0)
    elif n_queries == n_keys:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    elif n_queries == 1:
        out = F.scaled_dot_product_attention(q, k, v, scale=scale)
    else:
        causal = causal_mask(n_queries, n_keys, q.device)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=causal, scale=scale)
    return out.transpose(1, 2)[..., :n_values]


def causal_mask(n_queries: int, n_keys: int, device: torch.device) -> Tensor:
    """[T, S], True where a query may see a key; the last query sees all."""
    square = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    return square.tril(n_keys - n_queries)


class _Tiles(torch.autograd.Function):
    """Causal or masked attention, TILE queries at a time, none of the keys that no row may see.

    In bfloat16 the scores are rounded once before the softmax, whose sums are float32.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None
    ) -> Tensor:
        q, k, v = (_heads_first(x) for x in (q, k, v))
        n_batch, n_heads, n_queries, _ = q.shape
        visible = causal_mask(n_queries, k.shape[2], q.device)[None] if mask is None else mask
        # A softmax over no key at all is 0/0. Such rows attend to everything and are erased after.
        blind = None if mask is None else ~mask.any(dim=-1)
        if blind is not None and not blind.any():
            blind = None
        spans = _tiles(n_queries, k.shape[2]) if mask is None else _spans(mask)
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        out = torch.empty(*q.shape[:2], v.shape[2], dtype=q.dtype)
        softmaxes = []
        for rows, keys in spans:
            seen = visible[:, rows, keys]
            if blind is not None:
                seen = seen | blind[:, rows, None]
            bias = torch.zeros(seen.shape, dtype=q.dtype).masked_fill_(~seen, -torch.inf)
            if mask is None:
                scores = torch.baddbmm(bias, q[:, rows], k[:, keys].mT, alpha=scale)
            else:
                scores = torch.bmm(q[:, rows] * scale, k[:, keys].mT)
                scores.view(n_batch, n_heads, *bias.shape[1:]).add_(bias[:, None])
            weights = scores.softmax(dim=-1)
            torch.bmm(weights, v[:, keys], out=out[:, rows])
            if any(ctx.needs_input_grad):
                softmaxes.append(weights)
        ctx.save_for_backward(q, k, v, *softmaxes)
        ctx.scale, ctx.n_heads, ctx.spans, ctx.blind = scale, n_heads, spans, blind
        result = out.view(n_batch, n_heads, n_queries, -1).transpose(1, 2)
        return result if blind is None else result.masked_fill_(blind[..., None, None], 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, *softmaxes = ctx.saved_tensors
        if ctx.blind is not None:
            grad = grad.masked_fill(ctx.blind[..., None, None], 0)
        grad = _heads_first(grad).flatten(0, 1)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (rows, keys), weights in zip(ctx.spans, softmaxes, strict=True):
            grad_v[:, keys].baddbmm_(weights.mT, grad[:, rows])
            through = torch.bmm(grad[:, rows], v[:, keys].mT)
            through = torch._softmax_backward_data(through, weights, -1, weights.dtype)
            torch.bmm(through, k[:, keys], out=grad_q[:, rows])
            grad_k[:, keys].baddbmm_(through.mT, q[:, rows], alpha=ctx.scale)
        grad_q.mul_(ctx.scale)
        grads = (x.view(-1, ctx.n_heads, *x.shape[1:]) for x in (grad_q, grad_k, grad_v))
        grad_q, grad_k, grad_v = (x.transpose(1, 2) for x in grads)
        return grad_q, grad_k, grad_v, None, None


def _heads_first(x: Tensor) -> Tensor:
    """[B, T, H, Q] -> a copy [B, H, T, Q]: the products want their rows together."""
    return x.transpose(1, 2).contiguous()


def _tiles(n_queries: int, n_keys: int) -> list[tuple[slice, slice]]:
    """For each tile of queries, its rows and the keys that its last row may see."""
    ends = [min(start + TILE, n_queries) for start in range(0, n_queries, TILE)]
    return [
        (slice(start, end), slice(0, n_keys - n_queries + end))
        for start, end in zip(range(0, n_queries, TILE), ends, strict=True)
    ]


def _spans(mask: Tensor) -> list[tuple[slice, slice]]:
    """For each tile of queries, its rows and the span of keys that one of them may see.

    The span is that of the whole batch [B, T, S], and starts at a multiple of 16 for the products.
    """
    spans = []
    for start in range(0, mask.shape[1], TILE):
        rows = slice(start, min(start + TILE, mask.shape[1]))
        keys = mask[:, rows].flatten(0, 1).any(dim=0).nonzero()
        first, last = (int(keys[0]), int(keys[-1])) if len(keys) else (0, 0)
        spans.append((rows, slice(first // 16 * 16, last + 1)))
    return spans
