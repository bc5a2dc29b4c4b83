"""The bias controller: a PID-style law that holds the mean number of FFN experts per token.

Each optimizer step it looks at how often every FFN expert was chosen in the global batch and
nudges the router's biases: up for experts below their share, down for those above. Identity
experts are never touched; their share follows once every FFN expert has its own.

$$e_i = \\frac{K_e}{K N} - \\frac{T_i}{\\sum_j T_j}, \\qquad
  \\Delta b = K_I e_t + K_P (e_t - e_{t-1}) + K_D (e_t - 2e_{t-1} + e_{t-2})$$

The error history starts at zero, so the increments add up to
K_I sum(e) + K_P e + K_D (e_t - e_{t-1}).
The published law is the integral term alone, K_I = mu. The report does not publish mu. Scores (and
so biases) and errors are both of the order 1/(N+Z), hence mu is a pure number that carries over
between sizes: with mu = 1 an expert that is idle gains its whole fair share of score in a step
(fast, rings at large N); 0.1 takes a few hundred steps and is smooth. With `decay_steps` mu falls
from one to the other.

One gain serves two purposes. Between experts it must be small, or their loads ring from batch to
batch; but the mean over FFN experts, which alone decides how many of them a token uses, lags behind
weights that move by drift / mu. `mu_mean` gives that mean a gain of its own,

$$\\Delta b_i = \\mu (e_i - \\bar e) + \\mu_M \\bar e, \\qquad
  \\bar e = \\frac1N \\sum_{i \\le N} e_i$$

which is the published law where mu_M = mu. The split is this project's.

Source: report section 2.1.1, equation 2.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longcat.router.config import RouterConfig


@dataclass(frozen=True, kw_only=True)
class ControllerConfig:
    """Gains of the bias controller: pure numbers, score per fraction of slots.

    Args:
        mu: integral gain K_I at step 0.
        mu_final: integral gain after `decay_steps` steps, approached linearly (the report says
            that a decaying mu stabilises, not how it decays).
        decay_steps: steps from mu to mu_final; 0 keeps mu.
        mu_mean: integral gain of the mean error over FFN experts, at every step; None, as in the
            published law, means that of the single expert.
        k_p: proportional gain. k_d: derivative gain. Both 0 in the published law.
    """

    mu: float = 1.0
    mu_final: float = 0.1
    decay_steps: int = 0
    mu_mean: float | None = None
    k_p: float = 0.0
    k_d: float = 0.0

    def __post_init__(self) -> None:
        if min(self.mu, self.mu_final, self.decay_steps, self.mu_mean or 0.0) < 0:
            raise ValueError(
                "bias controller: mu, mu_final, decay_steps and mu_mean must not be negative; got "
                f"mu={self.mu}, mu_final={self.mu_final}, decay_steps={self.decay_steps}, "
                f"mu_mean={self.mu_mean}"
            )


class BiasController:
    """Turns counts of one global batch into the next biases, for all layers at once.

    Args:
        router: the routers' sizes (the same in every layer).
        num_layers: L.
        gains: see ControllerConfig; the default is the published integral law.
        device: of the error history; it follows the counts.

    With N = 0 there is nothing to control and `update` returns the biases as they are.
    """

    def __init__(
        self,
        router: RouterConfig,
        num_layers: int,
        gains: ControllerConfig | None = None,
        *,
        device: torch.device | None = None,
    ) -> None:
        self.router = router
        self.gains = gains or ControllerConfig()
        shape = (num_layers, router.n_experts)
        self.step = 0
        self.frozen = False
        self.error = torch.zeros(shape, dtype=torch.float64, device=device)
        self.previous_error = torch.zeros(shape, dtype=torch.float64, device=device)

    @property
    def mu(self) -> float:
        """The integral gain at the current step."""
        g = self.gains
        if g.decay_steps == 0:
            return g.mu
        done = min(1.0, self.step / g.decay_steps)
        return g.mu + (g.mu_final - g.mu) * done

    def expert_error(self, counts: Tensor) -> Tensor:
        """e [L, E] in fractions of all slots, from counts [L, E].

        0 for identity experts, and for all experts of a layer without tokens.
        """
        n = self.router.n_routed_experts
        total = counts.sum(dim=-1, keepdim=True).clamp(min=1)
        share = self.router.target_ffn / (self.router.top_k * max(n, 1))
        error = share - counts.to(torch.float64) / total
        error[:, n:] = 0.0
        return error * (counts.sum(dim=-1, keepdim=True) > 0)

    def update(self, bias: Tensor, counts: Tensor) -> Tensor:
        """The next biases [L, E] from the current ones and the global batch's counts [L, E].

        Args:
            bias: [L, E] float32 or float64.
            counts: [L, E] int64 slots per expert over the global batch, padding excluded; where
                they lie the errors are kept from then on, and nobody waits for them.

        Raises:
            ValueError: when a shape is not [num_layers, N+Z].
        """
        for name, tensor in (("bias", bias), ("counts", counts)):
            if tensor.shape != self.error.shape:
                raise ValueError(
                    f"bias controller: {name} must be [layers, experts] = "
                    f"{tuple(self.error.shape)}; got {tuple(tensor.shape)}"
                )
        if self.router.n_routed_experts == 0 or self.frozen:
            return bias
        now = self.expert_error(counts)
        before, earlier = self.error.to(now.device), self.previous_error.to(now.device)
        delta = (
            self.mu * now
            + self.gains.k_p * (now - before)
            + self.gains.k_d * (now - 2 * before + earlier)
        )
        if self.gains.mu_mean is not None:
            ffn = slice(self.router.n_routed_experts)
            mean = now[:, ffn].mean(dim=-1, keepdim=True)
            delta[:, ffn] += (self.gains.mu_mean - self.mu) * mean
        # A layer that saw no token says nothing: neither its bias nor its history moves.
        seen = counts.sum(dim=-1, keepdim=True) > 0
        self.error = torch.where(seen, now, before)
        self.previous_error = torch.where(seen, before, earlier)
        self.step += 1
        return (bias.to(torch.float64) + (delta * seen).to(bias.device)).to(bias.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Step, freeze flag and error history: all that `update` depends on."""
        return {
            "step": self.step,
            "frozen": self.frozen,
            "error": self.error.clone(),
            "previous_error": self.previous_error.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if state["error"].shape != self.error.shape:
            raise ValueError(
                f"bias controller: saved errors are {tuple(state['error'].shape)}, expected "
                f"{tuple(self.error.shape)}; the checkpoint is of another model"
            )
        self.step = int(state["step"])
        self.frozen = bool(state["frozen"])
        self.error = state["error"].to(torch.float64).clone()
        self.previous_error = state["previous_error"].to(torch.float64).clone()
