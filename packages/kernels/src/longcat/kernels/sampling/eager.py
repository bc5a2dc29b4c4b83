"""Top-k, top-p and the verification of drafts in eager torch, by sorting."""

from __future__ import annotations

import torch
from torch import Tensor


def keep_top(p: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """p [R, V], top_k [R], top_p [R] -> [R, V], see reference.py."""
    ordered, order = torch.sort(p, dim=-1, descending=True, stable=True)
    top_k, top_p = top_k[:, None], top_p[:, None].to(p.dtype)
    place = torch.arange(p.shape[-1], device=p.device)
    ordered = ordered.masked_fill((top_k > 0) & (place >= top_k), 0.0)
    mass = ordered / ordered.sum(-1, keepdim=True)
    before = mass.cumsum(-1) - mass
    # What rounding leaves before the first token must not drop it.
    ordered = ordered.masked_fill((top_p < 1) & (before >= top_p) & (place > 0), 0.0)
    ordered = ordered / ordered.sum(-1, keepdim=True)
    return torch.zeros_like(p).scatter_(-1, order, ordered)


def verify(p: Tensor, q: Tensor, drafts: Tensor, chance: Tensor) -> tuple[Tensor, Tensor]:
    """p [R, g+1, V], q [R, g, V], drafts, chance [R, g] -> (accepted [R], rest [R, V])."""
    drawn = drafts.unsqueeze(-1)
    of_p = p[:, :-1].gather(-1, drawn).squeeze(-1)
    of_q = q.gather(-1, drawn).squeeze(-1)
    accepted = (chance * of_q < of_p).long().cumprod(dim=1).sum(dim=1)
    rows, n_drafts = torch.arange(len(p), device=p.device), drafts.shape[1]
    rest = p[rows, accepted]
    if n_drafts:
        left = (rest - q[rows, accepted.clamp(max=n_drafts - 1)]).clamp_(min=0)
        # Behind the last draft nothing is subtracted.
        rejected = (accepted < n_drafts) & left.any(dim=-1)
        rest = torch.where(rejected[:, None], left, rest)
    return accepted, rest / rest.sum(dim=-1, keepdim=True)
