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
        # torch.topk leaves the order of equals open; a stable sort puts the lowest index first.
        order = torch.sort(scores.detach() + bias.detach(), dim=-1, descending=True, stable=True)
        chosen = order.indices[:, :top_k].contiguous()
    gates = scores.gather(-1, chosen) * scale
    return scores, chosen, gates


def expert_counts(indices: Tensor, n_experts: int, token_mask: Tensor | None = None) -> Tensor:
    """Slots per expert. indices [T, K], token_mask [T] -> int64 [E], without a host sync."""
    ones = (
        torch.ones_like(indices) if token_mask is None else token_mask[:, None].expand_as(indices)
    )
    counts = torch.zeros(n_experts, dtype=torch.int64, device=indices.device)
    return counts.scatter_add_(0, indices.reshape(-1), ones.reshape(-1).to(torch.int64))
