"""The router: float32 softmax over FFN and identity experts, chosen by score plus bias.

Notable:
- the classifier and the bias stay float32 (float64 in a float64 model) under `.half()`,
  `.to(torch.bfloat16)` and autocast: a bfloat16 router flips choices and loses the controller's
  small steps;
- FSDP's mixed precision casts what it gathers, so the router must be a unit of its own there,
  `fully_shard(router)`; `forward` refuses a half-precision classifier;
- the bias is a buffer: the controller writes it, no gradient reaches it;
- counts are taken once per forward, without padding.

Source: report section 2.1.1, equation 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from longcat.kernels import expert_counts, linear, route
from longcat.router.config import RouterConfig


@dataclass(frozen=True, kw_only=True)
class Routing:
    """One batch of routing decisions.

    Attributes:
        scores: [T, E] softmax probabilities (float32 or float64), with gradient.
        indices: [T, K] int64 chosen experts, best first; >= N means identity.
        gates: [T, K] scaling factor times the unbiased score, not renormalised.
        counts: [E] int64 slots per expert, padding excluded, detached.
        ffn_per_token: [T] int64 FFN experts each token uses, 0..K.
    """

    scores: Tensor
    indices: Tensor
    gates: Tensor
    counts: Tensor
    ffn_per_token: Tensor


class Choice:
    """The experts that a forward chose, kept for when it is run again.

    Run again, the scores may differ in their last bits (another kernel, another order of sums), and
    a near-tie that flipped would give the gradient of another computation.
    """

    def __init__(self) -> None:
        self.indices: Tensor | None = None  # [T,K], after the first run


def _at_least_float32(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Wrap a module conversion so that half precisions become float32 without a detour."""

    def convert(tensor: Tensor) -> Tensor:
        converted = fn(tensor)
        if converted.dtype in (torch.float16, torch.bfloat16):
            return tensor.to(device=converted.device, dtype=torch.float32)
        return converted

    return convert


class Router(nn.Module):
    """Chooses top-K of N+Z experts per token; see `longcat.router.reference.route`."""

    e_score_correction_bias: Tensor

    def __init__(
        self, config: RouterConfig, *, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self.config = config
        self.classifier = nn.Linear(
            config.hidden_size, config.n_experts, bias=False, device=device, dtype=dtype
        )
        self.register_buffer(
            "e_score_correction_bias", torch.zeros(config.n_experts, device=device, dtype=dtype)
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Router":
        super()._apply(_at_least_float32(fn), recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(
        self, u: Tensor, token_mask: Tensor | None = None, choice: Choice | None = None
    ) -> Routing:
        """Route u [..., D]; token_mask [...] is True for real tokens, False for padding.

        A `choice` that holds experts already decides which; an empty one remembers them.

        Raises:
            ValueError: when the last dimension is not hidden_size, the mask's shape differs, or
                the classifier was cast to half precision.
        """
        if u.shape[-1] != self.config.hidden_size:
            raise ValueError(
                f"router: u must be [..., hidden_size={self.config.hidden_size}]; "
                f"got {tuple(u.shape)}"
            )
        if token_mask is not None and token_mask.shape != u.shape[:-1]:
            raise ValueError(
                f"router: token_mask must be {tuple(u.shape[:-1])} like the tokens; "
                f"got {tuple(token_mask.shape)}"
            )
        scores, indices, gates = self.decide(u, choice)
        mask = None if token_mask is None else token_mask.reshape(-1)
        return Routing(
            scores=scores,
            indices=indices,
            gates=gates,
            counts=expert_counts(indices, self.config.n_experts, mask),
            ffn_per_token=(indices < self.config.n_routed_experts).sum(dim=-1),
        )

    def decide(self, u: Tensor, choice: Choice | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Scores [T,E], chosen experts [T,K] and gates [T,K] of u [..., D], nothing counted.

        Raises:
            ValueError: when the classifier was cast to half precision.
        """
        flat = u.reshape(-1, u.shape[-1])
        weight = self.classifier.weight
        if weight.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"router: the classifier must be float32 or float64; got {weight.dtype}. Under "
                "FSDP's mixed precision make the router a unit of its own: fully_shard(router)"
            )
        # Autocast would turn this product into bfloat16 whatever the operands are.
        with torch.autocast(device_type=flat.device.type, enabled=False):
            logits = linear(flat.to(weight.dtype), weight)
            scores, indices, gates = route(
                logits,
                self.e_score_correction_bias,
                self.config.top_k,
                self.config.routed_scaling_factor,
                None if choice is None else choice.indices,
            )
        if choice is not None:
            choice.indices = indices
        return scores, indices, gates
