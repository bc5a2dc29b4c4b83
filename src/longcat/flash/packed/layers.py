"""The layers of a pass: ScMoE blocks, and the draft head.

Shapes: T tokens, D width.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from longcat.attention import RaggedCache
from longcat.flash.errors import ConfigError
from longcat.flash.mtp import MTPHead, ScMoEMTPLayer
from longcat.flash.packed.attention import PackedAttention, Places
from longcat.flash.packed.ffn import PackedFFN, PackedMixture
from longcat.flash.packed.maps import Norm, joined
from longcat.moe import ScMoEBlock


class PackedBlock:
    """One ScMoE layer; the steps are those of `longcat.moe.ScMoEBlock.forward`.

    Raises ConfigError for a block of another order.
    """

    def __init__(self, block: ScMoEBlock) -> None:
        if type(block) is not ScMoEBlock:
            raise ConfigError(
                f"packed: layers must be plain ScMoE blocks, got {type(block).__name__}; serve the "
                "FlashModel itself"
            )
        parts: Any = block  # torch types its children as bare modules
        pairs = zip(parts.self_attn, parts.input_layernorm, strict=True)
        self._attention = [PackedAttention(mla, norm) for mla, norm in pairs]
        self._norm = [Norm(norm) for norm in parts.post_attention_layernorm]
        self._ffn = [PackedFFN(ffn) for ffn in parts.mlps]
        self._mixture = PackedMixture(block.mlp)

    def __call__(self, x: Tensor, places: Places, layers: Sequence[RaggedCache]) -> Tensor:
        """x [T,D] -> [T,D]."""
        h1 = self._attention[0](x, places, layers[0])
        u = self._norm[0](h1)
        m = self._mixture(u)
        h2 = self._ffn[0].added_to(h1, u)
        h3 = self._attention[1](h2, places, layers[1])
        return self._ffn[1].added_to(h3 + m, self._norm[1](h3))


class PackedDenseLayer:
    """The draft head's layer as released, an `MTPLayer`: attention and a dense network."""

    def __init__(self, layer: Any) -> None:
        self._attention = PackedAttention(layer.self_attn, layer.input_layernorm)
        self._norm = Norm(layer.post_attention_layernorm)
        self._ffn = PackedFFN(layer.transformer_layer.mlp)

    def __call__(self, x: Tensor, places: Places, layers: Sequence[RaggedCache]) -> Tensor:
        """x [T,D] -> [T,D]."""
        z = self._attention(x, places, layers[0])
        return self._ffn.added_to(z, self._norm(z))


class PackedHead:
    """The multi-token-prediction head; the steps are those of `longcat.flash.mtp.MTPHead`."""

    def __init__(self, head: MTPHead) -> None:
        layer: Any = head.layers[0]
        self._embedding = head.embed_tokens.weight.detach()
        self._enorm, self._hnorm = Norm(layer.enorm.m), Norm(layer.hnorm.m)
        self._entry = joined(layer.eh_proj)
        self._layer: PackedBlock | PackedDenseLayer
        if isinstance(layer, ScMoEMTPLayer):
            self._layer = PackedBlock(layer.transformer_layer)
        else:
            self._layer = PackedDenseLayer(layer)
        self._norm = Norm(head.norm)

    def __call__(
        self, ids: Tensor, hidden: Tensor, places: Places, layers: Sequence[RaggedCache]
    ) -> Tensor:
        """The tokens ids [T] after hidden [T,D] to the head's own hidden [T,D]."""
        embedded = self._enorm(F.embedding(ids, self._embedding))
        z = self._entry(torch.cat([embedded, self._hnorm(hidden)], dim=-1))
        return self._norm(self._layer(z, places, layers))
