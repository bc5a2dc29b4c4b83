"""Attention whose rows do not depend on batch size, chunk size or padding.

Queries run in tiles of ROWS (the last padded with zeros), keys in splits of KEYS, merged in order
with the online softmax. A split of which a query sees nothing leaves its state unchanged to the
bit, so later keys drop out exactly; the splits are laid so that one begins at the first key a
sequence really has, so left padding does too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from longcat.kernels.mla_prefill.eager import causal_mask

ROWS = 16
KEYS = 64
WORD = 16  # widths are padded to this, see linear/exact.py


def mla_prefill(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None
) -> Tensor:
    """q [B, T, H, Q], k [B, S, H, Q], v [B, S, H, V], mask [B, T, S] -> [B, T, H, V]."""
    out = attend_in_splits(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale, causal_if_none(mask, q, k)
    )
    return out.transpose(1, 2)


def causal_if_none(mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor:
    """The mask [B, T, S] itself, or the causal one for q [B, T, ...] and k [B, S, ...]."""
    if mask is not None:
        return mask
    return causal_mask(q.shape[1], k.shape[1], q.device).expand(len(q), -1, -1)


def attend_in_splits(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor) -> Tensor:
    """q [B, G, T, Q] over k [B, G, S, Q], v [B, G, S, V] with mask [B, T, S] -> [B, G, T, V]."""
    if q.numel() == 0 or k.numel() == 0:
        return q.new_zeros(*q.shape[:-1], v.shape[-1]) + (q.sum() + k.sum() + v.sum()) * 0
    return torch.stack(
        [_attend(q[b], k[b], v[b], scale, mask[b], _lead(mask[b])) for b in range(q.shape[0])]
    )


def _lead(mask: Tensor) -> int:
    """How many empty keys to put in front, so that a split begins where mask [T, S] begins.

    The last query is a real token under left and right padding alike; what it sees first decides.
    """
    first = int(mask[-1].to(torch.int8).argmax())
    return -first % KEYS


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor, lead: int) -> Tensor:
    """One sequence: q [G, T, Q], k [G, S, Q], v [G, S, V], mask [T, S] -> [G, T, V]."""
    n_groups, n_queries, width = q.shape
    n_values = v.shape[-1]
    tail = -(lead + k.shape[1]) % KEYS
    rows = -n_queries % ROWS
    q = F.pad(q, (0, -width % WORD, 0, rows))
    k = F.pad(k, (0, -width % WORD, lead, tail))
    v = F.pad(v, (0, -n_values % WORD, lead, tail))
    n_tiles = (n_queries + rows) // ROWS
    mask = F.pad(mask, (lead, tail, 0, rows)).view(n_tiles, ROWS, -1)
    q = q.reshape(n_groups * n_tiles, ROWS, -1)

    best = q.new_full((n_groups, n_tiles, ROWS, 1), -torch.inf)
    total = q.new_zeros(n_groups, n_tiles, ROWS, 1)
    out = q.new_zeros(n_groups, n_tiles, ROWS, v.shape[-1])
    for start in range(0, k.shape[1], KEYS):
        keys = k[:, start : start + KEYS].repeat_interleave(n_tiles, dim=0)
        values = v[:, start : start + KEYS].repeat_interleave(n_tiles, dim=0)
        scores = torch.bmm(q, keys.mT).view(n_groups, n_tiles, ROWS, KEYS) * scale
        scores = scores.masked_fill(~mask[..., start : start + KEYS], -torch.inf)
        # The shift cancels in the quotient, so it needs no gradient.
        higher = torch.maximum(best, scores.detach().amax(dim=-1, keepdim=True))
        shift = higher.masked_fill(higher == -torch.inf, 0)
        weights = torch.exp(scores - shift)
        decay = torch.exp(best - shift)
        total = total * decay + weights.sum(dim=-1, keepdim=True)
        added = torch.bmm(weights.flatten(0, 1), values)
        out = out * decay + added.view_as(out)
        best = higher
    out = out / total.masked_fill(total == 0, 1)
    return out.flatten(1, 2)[:, :n_queries, :n_values]
