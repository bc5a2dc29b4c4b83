"""Sizes of one mixture of experts."""

from dataclasses import dataclass

from longcat.router import RouterConfig


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """A router and the width of the FFN experts it chooses from.

    Args:
        router: N, Z, K, K_e, the scaling factor and the model width.
        expert_ffn_hidden_size: F, the inner width of one FFN expert.

    Source: report section 2.1.
    """

    router: RouterConfig
    expert_ffn_hidden_size: int

    def __post_init__(self) -> None:
        if self.expert_ffn_hidden_size < 1:
            raise ValueError(
                f"moe: expert_ffn_hidden_size must be positive; got {self.expert_ffn_hidden_size}"
            )
