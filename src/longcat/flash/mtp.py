"""The dense multi-token-prediction head: drafts the token after next.

At position t it reads the embedding of token t+1 and the main model's hidden state of t (after
the final norm), and predicts token t+2 through the shared output head.

Source: report section 2.4 and table 5; data flow as served (embedding first in eh_proj).
"""

from typing import Any

import torch
from torch import Tensor, nn

from longcat.attention import MLA
from longcat.flash.config import FlashConfig
from longcat.kernels import Linear, RMSNorm
from longcat.moe import DenseFFN


class _Named(nn.Module):
    """A norm one level down, where the released checkpoint keeps it (`enorm.m.weight`)."""

    def __init__(self, m: nn.Module) -> None:
        super().__init__()
        self.m = m

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.m(x)
        return y


class _TransformerLayer(nn.Module):
    """Holds the FFN under the checkpoint's name `transformer_layer.mlp`."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp


class MTPLayer(nn.Module):
    """z = eh_proj([enorm(e); hnorm(h)]), then one dense layer: MLA and SwiGLU, both residual."""

    def __init__(
        self, config: FlashConfig, *, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        d, eps = config.hidden_size, config.rms_norm_eps
        self.enorm = _Named(RMSNorm(d, eps, **made))
        self.hnorm = _Named(RMSNorm(d, eps, **made))
        self.eh_proj = Linear(2 * d, d, bias=False, **made)
        self.input_layernorm = RMSNorm(d, eps, **made)
        self.self_attn = MLA(config.attention, **made)
        self.post_attention_layernorm = RMSNorm(d, eps, **made)
        self.transformer_layer = _TransformerLayer(DenseFFN(d, config.ffn_hidden_size, **made))

    def forward(self, embedded: Tensor, hidden: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """embedded [B,T,D] of tokens t+1, hidden [B,T,D] of positions t, to [B,T,D]."""
        z = self.eh_proj(torch.cat([self.enorm(embedded), self.hnorm(hidden)], dim=-1))
        state = self.self_attn.project(self.input_layernorm(z), positions)
        z = z + self.self_attn.attend(state, cache)
        y: Tensor = z + self.transformer_layer.mlp(self.post_attention_layernorm(z))
        return y


class MTPHead(nn.Module):
    """The layer, its final norm, and the embedding it shares with the main model.

    The checkpoint carries a copy of the embedding under `model.mtp.embed_tokens`; here it is the
    same module unless a loaded copy differs.
    """

    def __init__(
        self,
        config: FlashConfig,
        embed_tokens: nn.Embedding,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens
        self.layers = nn.ModuleList([MTPLayer(config, device=device, dtype=dtype)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, device=device, dtype=dtype)

    def forward(
        self, hidden: Tensor, next_ids: Tensor, positions: Tensor, cache: Any = None
    ) -> Tensor:
        """hidden [B,T,D] and the tokens after them [B,T] to the head's own hidden [B,T,D]."""
        z = self.layers[0](self.embed_tokens(next_ids), hidden, positions, cache)
        y: Tensor = self.norm(z)
        return y
