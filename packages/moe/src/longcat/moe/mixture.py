"""The mixture: FFN experts held as stacked weights, identity experts that cost nothing.

Slots that chose an identity expert are split off before anything is sorted or copied; their
whole contribution is the token itself times the sum of their gates, added in `combine`.

Shapes: T tokens, D width, N FFN experts, K top-k, S slots kept, F expert width.

Source: report section 2.1.1, equation 1.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from longcat.kernels import combine, experts, permute
from longcat.moe.config import MoEConfig
from longcat.moe.expert_parallel import ExpertParallel
from longcat.router import BalanceLoss, Choice, Router, Routing


class Experts(nn.Module):
    """N SwiGLU experts as two stacked parameters.

    Attributes:
        gate_up_proj: [N, 2F, D], gate rows first.
        down_proj: [N, D, F].
        parallel: the processes that share the experts, None when all are here. After `split`
            the parameters hold this process's N/P experts.
    """

    def __init__(
        self, config: MoEConfig, *, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        n, d = config.router.n_routed_experts, config.router.hidden_size
        f = config.expert_ffn_hidden_size
        self.parallel: ExpertParallel | None = None
        self.gate_up_proj = nn.Parameter(torch.empty(n, 2 * f, d, device=device, dtype=dtype))
        self.down_proj = nn.Parameter(torch.empty(n, d, f, device=device, dtype=dtype))
        if self.gate_up_proj.numel():
            nn.init.normal_(self.gate_up_proj, std=d**-0.5)
            nn.init.normal_(self.down_proj, std=f**-0.5)

    def forward(self, x_sorted: Tensor, offsets: Tensor) -> Tensor:
        """x_sorted [S, D] grouped by expert, offsets [N] (group ends) to [S, D]."""
        if self.parallel is not None:
            return self.parallel.run(x_sorted, offsets, self._own)
        return self._own(x_sorted, offsets)

    def _own(self, x_sorted: Tensor, offsets: Tensor) -> Tensor:
        return experts(x_sorted, self.gate_up_proj, self.down_proj, offsets)

    def split(self, parallel: ExpertParallel) -> None:
        """Keep only this process's experts; from now on `forward` is a collective operation.

        The gradient of an own expert is then complete over the group, with no further sum.

        Raises:
            ValueError: when the processes cannot share the experts evenly.
        """
        mine = parallel.owned(len(self.down_proj))
        self.gate_up_proj = nn.Parameter(self.gate_up_proj.detach()[mine].clone())
        self.down_proj = nn.Parameter(self.down_proj.detach()[mine].clone())
        self.parallel = parallel


@dataclass(frozen=True, kw_only=True)
class MoERecord:
    """What one mixture decided: its Routing, and the balance loss (weighted, detached) with f."""

    routing: Routing
    balance_loss: Tensor
    balance_f: Tensor


class MoE(nn.Module):
    """gamma * sum over the chosen K of score * expert(u), experts beyond N being the identity.

    `balance` is shared by all mixtures of a model; its weight is 0 until training sets it.
    """

    def __init__(
        self,
        config: MoEConfig,
        *,
        balance: BalanceLoss | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.balance = balance or BalanceLoss()
        self.router = Router(config.router, device=device, dtype=dtype)
        self.experts = Experts(config, device=device, dtype=dtype)

    def forward(
        self, u: Tensor, token_mask: Tensor | None = None, choice: Choice | None = None
    ) -> tuple[Tensor, MoERecord]:
        """u [..., D] to ([..., D], MoERecord); token_mask [...] marks tokens that count.

        `choice` is for a forward that may be run again, see `longcat.router.Choice`.
        """
        routing: Routing = self.router(u, token_mask, choice)
        y = self._mix(u.reshape(-1, u.shape[-1]), routing.indices, routing.gates)
        mask = None if token_mask is None else token_mask.reshape(-1)
        y, loss, f = self.balance.attach(
            y, routing.scores, routing.indices, self.config.router, mask
        )
        return y.view(u.shape), MoERecord(routing=routing, balance_loss=loss, balance_f=f)

    def infer(self, u: Tensor) -> Tensor:
        """The same where nobody asks what was decided, nor for a loss: u [..., D] to [..., D]."""
        _, indices, gates = self.router.decide(u)
        return self._mix(u.reshape(-1, u.shape[-1]), indices, gates).view(u.shape)

    def _mix(self, flat: Tensor, indices: Tensor, gates: Tensor) -> Tensor:
        """Tokens [T,D] through their experts [T,K] and back, weighted by gates [T,K]."""
        n = self.config.router.n_routed_experts
        x_sorted, plan = permute(flat, indices, n)
        y_sorted = self.experts(x_sorted, plan.offsets)
        return combine(y_sorted, plan, gates, indices, flat, n)
