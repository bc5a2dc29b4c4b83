"""Device-level load-balance loss, attached where it arises, and the monitor R_g.

The loss is not returned to be added to the language-model loss by hand: `BalanceLoss.attach`
passes a tensor through unchanged and, in the backward pass, adds the loss's own gradient. So a
pipeline stage that never sees the final loss still trains its routers.

Source: report sections 2.1.2 (equations 3 to 5) and 3.1.3.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from longcat.router.config import RouterConfig


def balance_loss(
    scores: Tensor,
    indices: Tensor,
    config: RouterConfig,
    groups: int,
    token_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss without its weight alpha, and f per group.

    Args:
        scores: [T, E] softmax probabilities, with gradient.
        indices: [T, K] chosen experts.
        groups: D, expert-parallel groups of N/D FFN experts each.
        token_mask: [T], True for tokens that count.

    Returns:
        (scalar loss, f [D] or [D+1]): the last group holds the identity experts and exists when
        Z > 0 and K_e < K. At exact balance every f is 1. Without FFN experts the loss is 0.

    Raises:
        ValueError: when D does not divide N.
    """
    n, k, k_e = config.n_routed_experts, config.top_k, config.target_ffn
    if groups < 1 or (n and n % groups):
        raise ValueError(
            f"balance loss: groups must divide n_routed_experts={n}; got groups={groups}"
        )
    with_identity = config.zero_expert_num > 0 and k_e < k
    if n == 0:
        return scores.new_zeros(()), scores.new_zeros(groups + with_identity)
    weight = scores.new_ones(scores.shape[0]) if token_mask is None else token_mask.to(scores.dtype)
    n_tokens = weight.sum().clamp(min=1)
    slots_E = scores.new_zeros(config.n_experts)
    slots_E.index_add_(0, indices.reshape(-1), weight.repeat_interleave(k))
    mean_E = (scores * weight.unsqueeze(-1)).sum(dim=0) / n_tokens
    f = slots_E[:n].view(groups, -1).sum(dim=-1) * (groups / (k_e * n_tokens))
    p = mean_E[:n].view(groups, -1).sum(dim=-1)
    if with_identity:
        f = torch.cat([f, slots_E[n:].sum().view(1) / ((k - k_e) * n_tokens)])
        p = torch.cat([p, mean_E[n:].sum().view(1)])
    return (f.detach() * p).sum(), f.detach()


class _Attach(torch.autograd.Function):
    """Identity on y; the backward pass hands `owner.scale` to the loss."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, loss: Tensor, owner: "BalanceLoss") -> Tensor:
        ctx.owner = owner
        ctx.like = torch.empty_like(loss)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        scale = 0.0 if ctx.owner.is_paused else ctx.owner.scale
        return grads[0], torch.full_like(ctx.like, scale), None


class BalanceLoss:
    """Weight alpha and group count D of the balance loss, shared by all layers of a model.

    Attributes:
        alpha: the loss's weight; 0 switches it off.
        groups: D.
        scale: factor on the attached gradient, e.g. 1/accumulation steps. Read in the backward.
    """

    def __init__(self, alpha: float = 0.0, groups: int = 1, scale: float = 1.0) -> None:
        self.alpha = alpha
        self.groups = groups
        self.scale = scale
        self.is_paused = False

    def attach(
        self,
        y: Tensor,
        scores: Tensor,
        indices: Tensor,
        config: RouterConfig,
        token_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(y carrying the loss's gradient, alpha-weighted loss detached, f detached)."""
        loss, f = balance_loss(scores, indices, config, self.groups, token_mask)
        loss = self.alpha * loss
        if self.alpha and scores.requires_grad:
            y = _Attach.apply(y, loss, self)  # type: ignore[no-untyped-call]
        return y, loss.detach(), f

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Backward passes inside get no balance gradient: for measuring L_LM's alone."""
        self.is_paused = True
        try:
            yield
        finally:
            self.is_paused = False


def router_gradient_ratio(
    lm_gradient: Tensor,
    f: Tensor,
    config: RouterConfig,
    *,
    alpha: float,
    groups: int,
    centred: bool = False,
) -> float:
    """R_g of one layer; see `longcat.router.reference.router_gradient_ratio`.

    Args:
        lm_gradient: [E], the sum over the global batch's tokens of d(main cross entropy)/d(scores).
        f: [D] or [D+1] from `balance_loss` over the same batch.
        centred: without the mean component of both gradients, which softmax cancels.

    Returns:
        alpha * |f of each expert's group| / |lm_gradient|; inf where the denominator is 0.
    """
    n = config.n_routed_experts
    f = f.to(torch.float64)
    identity = (
        f[groups:].expand(config.zero_expert_num)
        if f.numel() > groups
        else f.new_zeros(config.zero_expert_num)
    )
    pull = torch.cat([f[:groups].repeat_interleave(n // groups), identity])
    lm_gradient = lm_gradient.to(torch.float64)
    if centred:
        pull, lm_gradient = pull - pull.mean(), lm_gradient - lm_gradient.mean()
    norm = float(lm_gradient.norm())
    return alpha * float(pull.norm()) / norm if norm > 0 else float("inf")
