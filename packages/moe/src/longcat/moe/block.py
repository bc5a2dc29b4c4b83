"""The shortcut-connected MoE block: two attentions, two dense FFNs, one mixture.

The mixture reads the normed output of the first attention and is added only at the very end, so
its dispatch and combine can run while FFN_0, the second attention and FFN_1 compute.

Source: report section 2.2, figure 2; packing of the released checkpoint.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from longcat.kernels import RMSNorm
from longcat.moe.config import MoEConfig
from longcat.moe.ffn import DenseFFN
from longcat.moe.mixture import MoE, MoERecord
from longcat.router import BalanceLoss, Choice


class Attention(Protocol):
    """All the block knows of attention: split in two so that communication can hide between."""

    def project(self, x: Tensor, positions: Tensor) -> Any:
        """Queries and keys of x [B,T,D], from these tokens alone."""

    def attend(self, state: Any, cache: Any) -> Tensor:
        """Attention output [B,T,D] over what `cache` allows."""


class ScMoEBlock(nn.Module):
    """One ScMoE layer; the attribute names are those of the released checkpoint.

    Args:
        attentions: the two attentions, each an nn.Module that satisfies `Attention`.
        moe: sizes of the mixture. ffn_hidden_size: inner width of the two dense FFNs.
        rms_norm_eps: epsilon of the block's four norms.
        balance: the balance loss shared by all layers.
    """

    def __init__(
        self,
        attentions: tuple[nn.Module, nn.Module],
        moe: MoEConfig,
        ffn_hidden_size: int,
        rms_norm_eps: float,
        *,
        balance: BalanceLoss | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        d = moe.router.hidden_size
        self.self_attn = nn.ModuleList(attentions)
        self.mlp = MoE(moe, balance=balance, **made)
        self.mlps = nn.ModuleList(DenseFFN(d, ffn_hidden_size, **made) for _ in range(2))
        self.input_layernorm = nn.ModuleList(RMSNorm(d, rms_norm_eps, **made) for _ in range(2))
        self.post_attention_layernorm = nn.ModuleList(
            RMSNorm(d, rms_norm_eps, **made) for _ in range(2)
        )

    def attention(self, which: int, x: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Attention 0 or 1 on its normed input."""
        attention: Any = self.self_attn[which]
        state = attention.project(self.input_layernorm[which](x), positions)
        y: Tensor = attention.attend(state, cache)
        return y

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        caches: tuple[Any, Any] = (None, None),
        token_mask: Tensor | None = None,
        choice: Choice | None = None,
    ) -> tuple[Tensor, MoERecord]:
        """x [B,T,D] at positions [B,T] to ([B,T,D], what the mixture decided).

        Args:
            caches: one per attention (None, a mask, or a latent cache).
            token_mask: [B,T], False for padding: routed, never counted.
            choice: the router's, for a forward that may be run again.
        """
        h1 = x + self.attention(0, x, positions, caches[0])
        u = self.post_attention_layernorm[0](h1)  # one normed tensor feeds both branches
        m, record = self.mlp(u, token_mask, choice)  # the shortcut: kept aside until the end
        h2 = h1 + self.mlps[0](u)
        h3 = h2 + self.attention(1, h2, positions, caches[1])
        h4 = h3 + self.mlps[1](self.post_attention_layernorm[1](h3))
        return h4 + m, record

    def infer(self, x: Tensor, positions: Tensor, caches: tuple[Any, Any]) -> Tensor:
        """`forward` where nobody asks what the mixture decided."""
        h1 = x + self.attention(0, x, positions, caches[0])
        u = self.post_attention_layernorm[0](h1)
        m: Tensor = self.mlp.infer(u)
        h2 = h1 + self.mlps[0](u)
        h3 = h2 + self.attention(1, h2, positions, caches[1])
        h4: Tensor = h3 + self.mlps[1](self.post_attention_layernorm[1](h3))
        return h4 + m
