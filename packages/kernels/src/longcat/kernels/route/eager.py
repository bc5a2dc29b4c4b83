"""Routing over FFN and identity experts in eager torch."""

from __future__ import annotations

import torch
from torch import Tensor


def route(
    logits: Tensor, bias: Tensor, top_k: int, scale: float, chosen: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax, choice by score + bias, gate = scale * score, see reference.py.

    logits [T, E], bias [E] -> scores [T, E], indices [T, K], gates [T, K]. The gradient flows
    through scores and gates; the choice has none.
    """
    scores = torch.softmax(logits, dim=-1)
    if chosen is None:
        chosen = highest(scores.detach() + bias.detach(), top_k)
    gates = scores.gather(-1, chosen) * scale
    return scores, chosen, gates


def highest(values: Tensor, count: int) -> Tensor:
    """The places of the `count` highest of [T, E] in each row, of equals the lowest -> [T, count].

    torch.topk leaves the order of equals open, and a stable sort of all E is three times as slow on
    a CPU. In float32 there is a way between: the bits of a float, read as an integer, rise with it
    (below zero once they are turned over), and behind them is room for the place.
    """
    if values.dtype != torch.float32:
        order = torch.sort(values, dim=-1, descending=True, stable=True)
        return order.indices[:, :count].contiguous()
    bits = (values + 0.0).view(torch.int32)  # the sum makes -0 the 0 that it equals
    rising = bits ^ (bits >> 31 & 0x7FFFFFFF)
    places = torch.arange(values.shape[-1] - 1, -1, -1, device=values.device)
    keys = (rising.to(torch.int64) << 32) + places
    return torch.topk(keys, count, dim=-1).indices


def expert_counts(indices: Tensor, n_experts: int, token_mask: Tensor | None = None) -> Tensor:
    """Slots per expert. indices [T, K], token_mask [T] -> int64 [E], without a host sync."""
    ones = (
        torch.ones_like(indices) if token_mask is None else token_mask[:, None].expand_as(indices)
    )
    counts = torch.zeros(n_experts, dtype=torch.int64, device=indices.device)
    return counts.scatter_add_(0, indices.reshape(-1), ones.reshape(-1).to(torch.int64))


def fused_route(
    logits: Tensor,
    bias: Tensor,
    top_k: int,
    scale: float,
    n_ffn: int,
    token_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`route`, each token's summed gate of identity experts [T], and `expert_counts` [E]."""
    scores, chosen, gates = route(logits, bias, top_k, scale)
    identity = gates.masked_fill(chosen < n_ffn, 0).sum(dim=1)
    return scores, chosen, gates, identity, expert_counts(chosen, len(bias), token_mask)
