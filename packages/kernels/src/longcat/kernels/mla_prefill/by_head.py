"""Causal attention for inference on a CPU, a head at a time: two products of oneDNN for each tile.

torch's batched products of float32 are MKL's, at half oneDNN's pace (`longcat.kernels.onednn`), and
its fused attention, in either type, is slower still. oneDNN multiplies two matrices at a time, so
heads take turns, with tiles of queries wide enough to be worth the calls.

oneDNN writes code for every shape that it has not met. Queries are filled up to whole BLOCKs, with
keys behind all others that only they see, so that prompts of any length share a few shapes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from longcat.kernels import onednn

# Queries, and pairs of a query and a key, from which the larger products pay for the calls.
LEAST_QUERIES = 64
LEAST_PAIRS = {torch.float32: 2**16, torch.bfloat16: 2**19}
TILE = 256  # queries
SCORES = 2**22  # numbers of a tile's scores, at most, but for one BLOCK of queries
BLOCK = 32


def pays(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether `causal` takes these operands, and is the fastest form for them."""
    least = LEAST_PAIRS.get(q.dtype)
    return (
        least is not None
        and q.shape[1] >= LEAST_QUERIES
        and q.shape[1] * k.shape[1] >= least
        and not torch.is_grad_enabled()
        and all(onednn.reaches(x) and x.dtype == q.dtype for x in (q, k, v))
    )


def causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale q k^T) v of q [B, T, H, Q], k [B, S, H, Q], v [B, S, H, V] -> [B, T, H, V].

    In bfloat16 scores are rounded once before the softmax, whose sums are float32.
    """
    n_queries, cached = q.shape[1], k.shape[1] - q.shape[1]
    fill = -n_queries % BLOCK
    q, k, v = (_heads_first(x, fill) for x in (q * scale, k, v))
    out = q.new_empty(*q.shape[:3], v.shape[3])
    step = max(BLOCK, min(TILE, SCORES // k.shape[2] // BLOCK * BLOCK))
    for start in range(0, q.shape[2], step):
        rows = slice(start, min(start + step, q.shape[2]))
        keys = slice(0, cached + rows.stop)
        unseen = q.new_full((rows.stop - start, keys.stop), -torch.inf).triu_(cached + start + 1)
        for of_row in zip(q, k, v, out, strict=True):
            for q_h, k_h, v_h, out_h in zip(*of_row, strict=True):
                scores = onednn.times_transposed(q_h[rows], k_h[keys], unseen)
                out_h[rows] = onednn.times_transposed(scores.softmax(dim=-1), v_h[keys].t())
    return out[:, :, :n_queries].transpose(1, 2)


def _heads_first(x: Tensor, fill: int) -> Tensor:
    """[B, T, H, W] -> [B, H, T + fill, W] laid out so, zeros at the end."""
    x = x.transpose(1, 2)
    return (F.pad(x, (0, 0, 0, fill)) if fill else x).contiguous()
