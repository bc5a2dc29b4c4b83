"""Sizes of one Multi-head Latent Attention, and the scale corrections that follow from them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class MLAConfig:
    """Multi-head Latent Attention with scale correction.

    Args:
        hidden_size: model width D. num_heads: H.
        q_lora_rank: width of the query latent. kv_lora_rank: width C of the cached latent.
        qk_nope_head_dim: per-head width without position. qk_rope_head_dim: rotary width R (even),
            one key part shared by all heads. v_head_dim: per-head value width.
        rope_theta: base of the rotary frequencies.
        rope_scaling: None, or Hugging Face's dictionary for rope type "yarn".
        max_position: longest sequence in tokens.
        attention_bias: biases on q_a_proj, kv_a_proj_with_mqa and o_proj.
        latent_norm_eps: epsilon of the two latent norms; 1e-6 in the released code whatever
            rms_norm_eps is.
        scale_q_lora, scale_kv_lora: apply alpha_q, alpha_kv.

    Raises:
        ValueError: for sizes that cannot be.

    Source: report section 2.3.1, equations 6 and 7.
    """

    hidden_size: int
    num_heads: int
    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    rope_theta: float = 1e7
    rope_scaling: Mapping[str, Any] | None = None
    max_position: int = 131072
    attention_bias: bool = False
    latent_norm_eps: float = 1e-6
    scale_q_lora: bool = True
    scale_kv_lora: bool = True

    def __post_init__(self) -> None:
        for name in (
            "hidden_size",
            "num_heads",
            "q_lora_rank",
            "kv_lora_rank",
            "qk_nope_head_dim",
            "qk_rope_head_dim",
            "v_head_dim",
            "max_position",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"attention: {name} must be a positive integer; got {value!r}")
        if self.qk_rope_head_dim % 2:
            raise ValueError(
                "attention: qk_rope_head_dim must be even, RoPE rotates pairs; got "
                f"{self.qk_rope_head_dim}"
            )
        if self.rope_theta <= 0 or self.latent_norm_eps < 0:
            raise ValueError(
                "attention: rope_theta must be positive and latent_norm_eps not negative; got "
                f"{self.rope_theta} and {self.latent_norm_eps}"
            )

        scaling = self.rope_scaling or {}
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind != "default" and not isinstance(scaling.get("factor"), int | float):
            raise ValueError(
                f"attention: rope_scaling of type {kind!r} needs a 'factor', a number; got "
                f"{scaling.get('factor')!r}"
            )

    @property
    def qk_head_dim(self) -> int:
        """Width of one head's query and key."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def alpha_q(self) -> float:
        """sqrt(D / q_lora_rank), 2 at the released size; 1 when switched off."""
        return math.sqrt(self.hidden_size / self.q_lora_rank) if self.scale_q_lora else 1.0

    @property
    def alpha_kv(self) -> float:
        """sqrt(D / kv_lora_rank), sqrt(12) at the released size; 1 when switched off."""
        return math.sqrt(self.hidden_size / self.kv_lora_rank) if self.scale_kv_lora else 1.0

    @property
    def softmax_scale(self) -> float:
        """qk_head_dim^-1/2, times YaRN's mscale squared where a checkpoint asks for it."""
        scale = 1.0 / math.sqrt(self.qk_head_dim)
        scaling = self.rope_scaling or {}
        if scaling.get("rope_type", scaling.get("type", "default")) == "default":
            return scale
        factor, all_dim = float(scaling["factor"]), scaling.get("mscale_all_dim", 0)
        if all_dim and factor > 1:
            scale *= math.pow(0.1 * float(all_dim) * math.log(factor) + 1.0, 2)
        return scale

    @property
    def cache_numbers(self) -> int:
        """C + R: numbers cached per token and attention layer."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    def absorbed_is_cheaper(self, n_queries: int, n_keys: int) -> bool:
        """Compare multiply-adds per head of MLA's two forms for T queries over S keys."""
        up = self.kv_lora_rank * (self.qk_nope_head_dim + self.v_head_dim)
        pairs = n_queries * n_keys
        absorbed = n_queries * up + pairs * (2 * self.kv_lora_rank + self.qk_rope_head_dim)
        expanded = n_keys * up + pairs * (self.qk_head_dim + self.v_head_dim)
        return absorbed < expanded
