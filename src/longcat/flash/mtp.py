"""The multi-token-prediction head: drafts the token after next.

At position t it reads the embedding of token t+1 and the main model's hidden state of t (after
the final norm), and predicts token t+2 through the shared output head. Its one layer is dense, as
released, or a whole ScMoE layer, the report's alternative (4.17 against 1.41 % of the activated
parameters for 92.9 against 92.1 % of drafts accepted). Of the latter no checkpoint was released:
its tensors carry a main layer's names under `model.mtp.layers.0.transformer_layer`, other programs
do not know them, and nothing moves its router's bias unless the one who trains it does.

Source: report section 2.4 and table 5; data flow as served (embedding first in eh_proj).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from longcat.attention import MLA
from longcat.flash.config import FlashConfig
from longcat.flash.recompute import Recompute, run
from longcat.kernels import Linear, RMSNorm
from longcat.moe import DenseFFN, ScMoEBlock
from longcat.router import BalanceLoss, Choice


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


class _Entry(nn.Module):
    """What both kinds of layer begin with: z = eh_proj([enorm(e); hnorm(h)])."""

    def __init__(self, config: FlashConfig, made: dict[str, Any]) -> None:
        super().__init__()
        d, eps = config.hidden_size, config.rms_norm_eps
        self.enorm = _Named(RMSNorm(d, eps, **made))
        self.hnorm = _Named(RMSNorm(d, eps, **made))
        self.eh_proj = Linear(2 * d, d, bias=False, **made)

    def enter(self, embedded: Tensor, hidden: Tensor) -> Tensor:
        """embedded [B,T,D] of tokens t+1 and hidden [B,T,D] of positions t to z [B,T,D]."""
        z: Tensor = self.eh_proj(torch.cat([self.enorm(embedded), self.hnorm(hidden)], dim=-1))
        return z


class MTPLayer(_Entry):
    """The entry, then one dense layer: MLA and SwiGLU, both residual."""

    def __init__(self, config: FlashConfig, made: dict[str, Any]) -> None:
        super().__init__(config, made)
        d, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(d, eps, **made)
        self.self_attn = MLA(config.attention, **made)
        self.post_attention_layernorm = RMSNorm(d, eps, **made)
        self.transformer_layer = _TransformerLayer(DenseFFN(d, config.ffn_hidden_size, **made))

    def forward(
        self,
        embedded: Tensor,
        hidden: Tensor,
        positions: Tensor,
        caches: Sequence[Any],
        token_mask: Tensor | None,
        choice: Choice | None = None,
    ) -> Tensor:
        """embedded [B,T,D] of tokens t+1, hidden [B,T,D] of positions t, to [B,T,D]."""
        z = self.enter(embedded, hidden)
        state = self.self_attn.project(self.input_layernorm(z), positions)
        z = z + self.self_attn.attend(state, caches[0])
        y: Tensor = z + self.transformer_layer.mlp(self.post_attention_layernorm(z))
        return y


class ScMoEMTPLayer(_Entry):
    """The entry, then one whole ScMoE layer, as in the main model.

    Attributes:
        counts: [E] int64 slots per expert of the last pass, without padding; recomputing the pass
            makes the same ones again.
    """

    def __init__(self, config: FlashConfig, balance: BalanceLoss, made: dict[str, Any]) -> None:
        super().__init__(config, made)
        self.transformer_layer = ScMoEBlock(
            (MLA(config.attention, **made), MLA(config.attention, **made)),
            config.moe,
            config.ffn_hidden_size,
            config.rms_norm_eps,
            balance=balance,
            **made,
        )
        self.counts: Tensor | None = None

    def forward(
        self,
        embedded: Tensor,
        hidden: Tensor,
        positions: Tensor,
        caches: Sequence[Any],
        token_mask: Tensor | None,
        choice: Choice | None = None,
    ) -> Tensor:
        """embedded [B,T,D] of tokens t+1, hidden [B,T,D] of positions t, to [B,T,D]."""
        z = self.enter(embedded, hidden)
        y: Tensor
        y, record = self.transformer_layer(z, positions, tuple(caches), token_mask, choice)
        self.counts = record.routing.counts
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
        balance: BalanceLoss | None = None,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embed_tokens = embed_tokens
        layer = (
            ScMoEMTPLayer(config, balance or BalanceLoss(), made)
            if config.mtp_layer == "scmoe"
            else MTPLayer(config, made)
        )
        self.layers = nn.ModuleList([layer])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, device=device, dtype=dtype)

    def forward(
        self,
        hidden: Tensor,
        next_ids: Tensor,
        positions: Tensor,
        caches: Sequence[Any],
        token_mask: Tensor | None = None,
        recompute: Recompute = "none",
    ) -> Tensor:
        """hidden [B,T,D] and the tokens after them [B,T] to the head's own hidden [B,T,D].

        Args:
            caches: one per attention of the layer (None, a mask, or a latent cache).
            token_mask: [B,T], False for padding; a ScMoE layer's balance loss leaves it out.
            recompute: whether the layer keeps its activations.
        """
        # The embedding is shared and stays outside: its gradients are then added in one order.
        embedded = self.embed_tokens(next_ids)
        z = run(self.layers[0], recompute, embedded, hidden, positions, caches, token_mask)
        y: Tensor = self.norm(z)
        return y
