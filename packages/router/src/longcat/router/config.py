"""Sizes and targets of one softmax router with zero-computation experts."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """What a router chooses between, and how many FFN experts it should use on average.

    Args:
        hidden_size: model width D.
        n_routed_experts: FFN experts N; they come first in every per-expert array.
        zero_expert_num: identity (zero-computation) experts Z; indices N..N+Z-1.
        top_k: experts chosen per token, K, from all N+Z.
        routed_scaling_factor: gamma, applied to every gate, identity experts included.
        expected_ffn_experts: K_e, the mean number of FFN experts per token the bias controller
            holds. None means the uniform share K*N/(N+Z).

    Raises:
        ValueError: for sizes that contradict each other.

    Source: report section 2.1, equations 1 and 2.
    """

    hidden_size: int
    n_routed_experts: int
    zero_expert_num: int
    top_k: int
    routed_scaling_factor: float = 1.0
    expected_ffn_experts: float | None = None

    def __post_init__(self) -> None:
        n, z, k = self.n_routed_experts, self.zero_expert_num, self.top_k
        if self.hidden_size < 1:
            raise ValueError(f"router: hidden_size must be positive; got {self.hidden_size}")
        if n < 0 or z < 0 or n + z < 1:
            raise ValueError(
                f"router: needs at least one expert; got n_routed_experts={n}, zero_expert_num={z}"
            )
        if not 1 <= k <= n + z:
            raise ValueError(
                f"router: top_k must lie between 1 and n_routed_experts + zero_expert_num = "
                f"{n + z}; got top_k={k}"
            )
        if not (math.isfinite(self.routed_scaling_factor) and self.routed_scaling_factor > 0):
            raise ValueError(
                "router: routed_scaling_factor must be a positive number; got "
                f"{self.routed_scaling_factor}"
            )
        if self.expected_ffn_experts is None:
            return
        k_e = self.expected_ffn_experts
        if not 0 < k_e <= min(k, n) or k - k_e > z:
            raise ValueError(
                "router: expected_ffn_experts must satisfy 0 < K_e <= min(top_k, "
                f"n_routed_experts) and top_k - K_e <= zero_expert_num; got K_e={k_e} with "
                f"top_k={k}, n_routed_experts={n}, zero_expert_num={z}"
            )

    @property
    def n_experts(self) -> int:
        """E = N + Z."""
        return self.n_routed_experts + self.zero_expert_num

    @property
    def target_ffn(self) -> float:
        """K_e in FFN experts per token; the uniform share K*N/(N+Z) unless configured."""
        if self.expected_ffn_experts is not None:
            return float(self.expected_ffn_experts)
        return self.top_k * self.n_routed_experts / self.n_experts
