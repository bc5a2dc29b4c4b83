"""Which drafts stand, in torch: the rules of `longcat.serve.reference` for many rows at once.

    coupled      the target's own draw, with the noise that the draft was drawn with, is the token;
                 a draft stands when it is that token
    rejection    a draft stands with probability min(1, p/q), else the residual is drawn from
    target-only  the same for a draft that is the head's best guess, whose q is all on it

Shape legend: R rows, g drafts, W = g+1 places, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from longcat.serve.noise import uniform
from longcat.serve.reference import ACCEPT, DRAFT, REPLACE
from longcat.serve.sampling import Sampler


@dataclass(frozen=True, kw_only=True)
class Drafts:
    """What is proposed for R rows.

    tokens  [R,g]
    usable  [R] how many of them count
    q       [R,g,V] what they were drawn from; None when every row is coupled
    """

    tokens: Tensor
    usable: Tensor
    q: Tensor | None = None

    @property
    def count(self) -> int:
        """g."""
        return self.tokens.shape[1]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Which rule each row is under; bool [R,1]. None where every row is coupled."""

    rejecting: Tensor
    guessing: Tensor


def judge(
    logits: Tensor, drafts: Drafts, sampler: Sampler, rules: Rules | None, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """The tokens that logits [R,W,V] and drafts give at positions [R,W] -> ([R,W], accepted [R]).

    Row r holds accepted[r] drafts, then one token more; what is behind it means nothing.
    """
    tokens = sampler.choose(logits, positions)
    if not drafts.count and rules is None:
        return tokens, torch.zeros_like(drafts.usable)
    usable = torch.arange(drafts.count, device=logits.device) < drafts.usable.unsqueeze(1)
    agreed = tokens[:, :-1] == drafts.tokens
    if rules is None or drafts.q is None:
        return tokens, _run_length(agreed & usable)
    p = sampler.probabilities(logits)
    passed = _passed(p, drafts, sampler, positions)
    accepted = _run_length(torch.where(rules.rejecting, passed, agreed) & usable)
    last = _last(p, drafts, accepted, sampler, positions)
    ran = torch.cat([drafts.tokens, last], dim=1).scatter(1, accepted.unsqueeze(1), last)
    return torch.where(rules.rejecting, ran, tokens), accepted


def _run_length(stands: Tensor) -> Tensor:
    """How many of stands [R,g] hold before the first that does not -> [R]."""
    return stands.long().cumprod(dim=1).sum(dim=1)


def _passed(p: Tensor, drafts: Drafts, sampler: Sampler, positions: Tensor) -> Tensor:
    """Whether each draft passes min(1, p/q) -> bool [R,g]."""
    assert drafts.q is not None
    drawn = drafts.tokens.unsqueeze(-1)
    of_p = p[:, :-1].gather(-1, drawn).squeeze(-1)
    of_q = drafts.q.gather(-1, drawn).squeeze(-1)
    chance = uniform(sampler.keys(positions[:, :-1], ACCEPT), 1).squeeze(-1)
    return chance * of_q < of_p


def _last(
    p: Tensor, drafts: Drafts, accepted: Tensor, sampler: Sampler, positions: Tensor
) -> Tensor:
    """The token behind the accepted drafts -> [R,1]."""
    assert drafts.q is not None
    at = accepted.view(-1, 1, 1).expand(-1, 1, p.shape[-1])
    chances = p.gather(1, at)
    nothing = torch.zeros_like(p[:, :1])
    # Behind the last usable draft nothing was refused, so nothing is taken off.
    q = torch.cat([drafts.q, nothing], dim=1).gather(1, at)
    q = q.masked_fill((accepted >= drafts.usable).view(-1, 1, 1), 0.0)
    residual = (chances - q).clamp(min=0.0)
    # p = q leaves no residual, and refuses nothing but by rounding.
    residual = torch.where(residual.sum(-1, keepdim=True) > 0, residual, chances)
    place = positions.gather(1, accepted.unsqueeze(1))
    return sampler.draw(residual / residual.sum(-1, keepdim=True), place, REPLACE)


def propose(
    logits: Tensor, sampler: Sampler, rules: Rules | None, positions: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Drafts from the head's logits [R,1,V] for positions [R,1] -> ([R,1], q [R,1,V] or None)."""
    tokens = sampler.choose(logits, positions)
    if rules is None:
        return tokens, None
    q = sampler.probabilities(logits)
    guesses = logits.argmax(-1)
    drawn = sampler.draw(q, positions, DRAFT)
    certain = torch.zeros_like(q).scatter_(-1, guesses.unsqueeze(-1), 1.0)
    q = torch.where(rules.guessing.unsqueeze(-1), certain, q)
    drawn = torch.where(rules.guessing, guesses, drawn)
    return torch.where(rules.rejecting, drawn, tokens), q
