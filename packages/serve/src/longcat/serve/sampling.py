"""From logits to tokens, in torch: the filters and the draw of `longcat.serve.reference`.

Shape legend: R rows (positions or sequences), V vocabulary.
"""

import secrets
from collections.abc import Sequence

import torch
from torch import Tensor

from longcat.serve.params import SamplingParams
from longcat.serve.reference import gumbel_noise


def fresh_seed() -> int:
    """A random 64-bit seed, for parameters that name none."""
    return secrets.randbits(64)


def probabilities(logits: Tensor, params: SamplingParams) -> Tensor:
    """The distribution each row of logits[..., V] is sampled from -> float64 [..., V].

    temperature, then top_k, top_p and min_p, each on what the one before left; ties by token
    id, lowest first. The definition is `longcat.serve.reference.probabilities`.
    """
    if params.greedy:
        point = torch.zeros_like(logits, dtype=torch.float64)
        return point.scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    p = torch.softmax(logits.double() / params.temperature, dim=-1)
    if params.top_k == 0 and params.top_p == 1.0 and params.min_p == 0.0:
        return p
    # One stable sort serves all three filters: none of them reorders what it keeps.
    sorted_p, order = torch.sort(p, dim=-1, descending=True, stable=True)
    if params.top_k > 0:
        sorted_p[..., params.top_k :] = 0.0
        sorted_p = sorted_p / sorted_p.sum(-1, keepdim=True)
    if params.top_p < 1.0:
        # A token stays when the mass strictly before it has not reached top_p yet.
        before = torch.cumsum(sorted_p, dim=-1).roll(1, dims=-1)
        before[..., 0] = 0.0
        sorted_p = sorted_p.masked_fill(before >= params.top_p, 0.0)
        sorted_p = sorted_p / sorted_p.sum(-1, keepdim=True)
    if params.min_p > 0.0:
        floor = params.min_p * sorted_p[..., :1]
        sorted_p = sorted_p.masked_fill(sorted_p < floor, 0.0)
        sorted_p = sorted_p / sorted_p.sum(-1, keepdim=True)
    return torch.zeros_like(p).scatter_(-1, order, sorted_p)


def choose(
    logits: Tensor, params: SamplingParams, seeds: Sequence[int], positions: Sequence[int]
) -> list[int]:
    """One token for each row of logits[R,V]: argmax(log p + noise(seed, position)).

    positions[R] are absolute (the index that the chosen token will have in its sequence) and
    seeds[R] the sequences' seeds; greedy parameters use neither. One transfer to the host.

    Raises ValueError when the logits hold NaN or infinity: nothing sensible can follow.
    """
    if params.greedy:
        best, tokens = logits.max(dim=-1)
    else:
        if logits.device.type == "mps":  # has no float64
            logits = logits.cpu()
        vocab = logits.shape[-1]
        noise = torch.stack(
            [
                torch.tensor(gumbel_noise(seed, position, vocab), dtype=torch.float64)
                for seed, position in zip(seeds, positions, strict=True)
            ]
        )
        scores = probabilities(logits, params).log() + noise.to(logits.device)
        best, tokens = scores.max(dim=-1)
    chosen, finite = torch.stack([tokens, best.isfinite().long()]).tolist()
    if not all(finite):
        raise ValueError(
            "choose: the logits hold NaN or infinity, so no token can be chosen; the weights are "
            "damaged or overflow in this dtype (try float32)"
        )
    return [int(token) for token in chosen]
