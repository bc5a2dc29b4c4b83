"""From logits to tokens, in torch: the filters and the draw of `longcat.serve.reference`.

Shape legend: R rows (positions or sequences), V vocabulary.
"""

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longcat.serve.reference import gumbel_noise


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How a sequence is continued.

    temperature  0 is greedy (the default); larger is more random
    top_k        keep the k most probable tokens; 0 keeps all
    top_p        keep the most probable tokens that together reach this mass; 1 keeps all
    min_p        keep tokens with at least this fraction of the largest probability; 0 keeps all
    seed         0 .. 2**64-1 gives the same text every time; None draws a fresh one
    max_tokens   most tokens to generate
    ignore_eos   go on after the end-of-sequence token

    Raises ValueError for a value outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int = 128
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _require(
            math.isfinite(self.temperature) and self.temperature >= 0,
            "temperature must be 0 (greedy) or a positive number",
            self.temperature,
        )
        _require(self.top_k >= 0, "top_k must be 0 (off) or a positive count", self.top_k)
        _require(0 < self.top_p <= 1, "top_p must be in (0, 1], 1 being off", self.top_p)
        _require(0 <= self.min_p <= 1, "min_p must be in [0, 1], 0 being off", self.min_p)
        _require(self.max_tokens >= 1, "max_tokens must be at least 1", self.max_tokens)
        _require(
            self.seed is None or 0 <= self.seed < 2**64,
            "seed must be in 0 .. 2**64-1, or None for a fresh one",
            self.seed,
        )

    @property
    def greedy(self) -> bool:
        """Whether every token is the most probable one, so that no noise is needed."""
        return self.temperature == 0.0


def _require(holds: bool, expectation: str, came: object) -> None:
    if not holds:
        raise ValueError(f"SamplingParams: {expectation}; got {came}")


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
