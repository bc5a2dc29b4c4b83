"""The whole model's configuration: nests the parts' and keeps what holds between them.

Source: report section 2.4 and the released config.json.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from longcat.attention import MLAConfig
from longcat.flash.errors import ConfigError
from longcat.flash.presets import PRESETS
from longcat.moe import MoEConfig
from longcat.router import RouterConfig

# What grows with the model's width.
WIDTHS = (
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "q_lora_rank",
    "kv_lora_rank",
    "ffn_hidden_size",
    "expert_ffn_hidden_size",
)

MTPLayerKind = Literal["dense", "scmoe"]

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, kw_only=True)
class FlashConfig:
    """A LongCat-Flash model.

    Args:
        vocab_size: V. hidden_size: D. num_layers: ScMoE layers L, each with two attentions.
        ffn_hidden_size: inner width of the dense FFNs, the draft head's included.
        attention, moe: the parts' own configurations; widths must agree with hidden_size.
        rms_norm_eps: epsilon of every norm but the latent ones.
        max_position_embeddings: longest sequence in tokens.
        num_nextn_predict_layers: 1 with the MTP draft head, 0 without.
        mtp_layer: what the draft head's one layer is: "dense" as released, or "scmoe", the
            alternative of report table 5.
        bos_token_id, eos_token_id, pad_token_id: special tokens.
        initializer_range: standard deviation of the output head at initialisation.

    Raises:
        ConfigError: naming the fields that contradict each other.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    ffn_hidden_size: int
    attention: MLAConfig
    moe: MoEConfig
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 131072
    num_nextn_predict_layers: int = 0
    mtp_layer: MTPLayerKind = "dense"
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    pad_token_id: int | None = 3
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_layers", "ffn_hidden_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"config: {name} must be a positive integer; got {value!r}")
        for part, width in (
            ("attention", self.attention.hidden_size),
            ("moe.router", self.moe.router.hidden_size),
        ):
            if width != self.hidden_size:
                raise ConfigError(
                    f"config: {part}.hidden_size={width} differs from hidden_size="
                    f"{self.hidden_size}"
                )
        if self.attention.max_position != self.max_position_embeddings:
            raise ConfigError(
                f"config: attention.max_position={self.attention.max_position} differs from "
                f"max_position_embeddings={self.max_position_embeddings}"
            )
        if self.num_nextn_predict_layers not in (0, 1):
            raise ConfigError(
                "config: num_nextn_predict_layers must be 0 or 1 (one MTP head); got "
                f"{self.num_nextn_predict_layers}"
            )
        if self.mtp_layer not in get_args(MTPLayerKind):
            raise ConfigError(f"config: mtp_layer must be dense or scmoe; got {self.mtp_layer!r}")
        for name in ("rms_norm_eps", "initializer_range"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"config: {name} must be a number of at least 0; got {value}")
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            token = getattr(self, name)
            if token is not None and not isinstance(token, int):
                raise ConfigError(f"config: {name} must be an integer or null; got {token!r}")
            if token is not None and not 0 <= token < self.vocab_size:
                raise ConfigError(
                    f"config: {name}={token} lies outside the vocabulary of {self.vocab_size}"
                )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "FlashConfig":
        """A named size; `changes` are config.json fields that replace the preset's.

        Raises:
            ConfigError: for an unknown name; the message lists the known ones.
        """
        if name not in PRESETS:
            known = ", ".join(sorted(PRESETS))
            raise ConfigError(f"unknown preset {name!r}; known presets: {known}")
        return cls.from_hf({**PRESETS[name], **changes})

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> "FlashConfig":
        """From a config.json of the hub, of transformers 4.57 or of transformers 5.x.

        Raises:
            ConfigError: for another model type, a missing field, or contradicting sizes.
        """
        from longcat.flash.hf_config import parse

        return parse(fields)

    def widened(self, width: int) -> "FlashConfig":
        """The same architecture at another width: depth, head sizes, N, Z and K as they are.

        Widths of FFNs, latents and the number of heads grow in proportion; the output head's
        deviation shrinks by the root of it (report section 3.1.1, table 1). Used for width
        transfer between a narrow proxy and its target.

        Raises:
            ConfigError: when a size would not come out whole.
        """
        fields = self.to_hf()
        ratio = width / self.hidden_size
        for name in WIDTHS:
            scaled = fields[name] * ratio
            if scaled != int(scaled) or scaled < 1:
                raise ConfigError(
                    f"config: at width {width} {name} would be {scaled:g}; choose a multiple of "
                    f"{self.hidden_size}"
                )
            fields[name] = int(scaled)
        fields["initializer_range"] = self.initializer_range / math.sqrt(ratio)
        return FlashConfig.from_hf(fields)

    def to_hf(self, format: str = "hub") -> dict[str, Any]:
        """As config.json; format "hub" or "transformers5" (see `longcat.flash.hf_config`)."""
        from longcat.flash.hf_config import render

        return render(self, format)

    def __rich__(self) -> "RenderableType":
        from longcat.flash.card import card

        return card(self)

    @property
    def router(self) -> RouterConfig:
        """The routers' configuration, the same in every layer."""
        return self.moe.router

    @property
    def has_mtp(self) -> bool:
        """Whether the model has the MTP draft head."""
        return self.num_nextn_predict_layers == 1

    @property
    def mtp_attentions(self) -> int:
        """Attentions of the draft head, each with a latent cache of its own."""
        return (2 if self.mtp_layer == "scmoe" else 1) if self.has_mtp else 0
