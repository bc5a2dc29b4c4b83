"""What lies between token ids and the output head, and what one pass returns.

Shapes: B batch, T tokens, V vocabulary, D width, L layers, E = N+Z experts, G expert groups.

Source: report sections 2.1 to 2.4.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from longcat.attention import MLA
from longcat.flash.config import FlashConfig
from longcat.flash.mtp import MTPHead
from longcat.kernels import RMSNorm
from longcat.moe import ScMoEBlock
from longcat.router import BalanceLoss, Routing


@dataclass(frozen=True, kw_only=True)
class FlashOutput:
    """One forward pass.

    Attributes:
        logits: [B,T,V].
        hidden: [B,T,D] after the final norm; the output head and the MTP head read it.
        last_layer: [B,T,D] before it; the hidden z-loss reads it.
        counts: [L,E] int64 slots per expert, padding excluded, detached.
        balance_loss: [L] weighted balance losses, detached (already attached to the graph).
        balance_f: [L,G] selected-slot frequency per expert group (1 at exact balance).
        router: per layer scores, choices and gates, when asked for.
    """

    logits: Tensor
    hidden: Tensor
    last_layer: Tensor
    counts: Tensor
    balance_loss: Tensor
    balance_f: Tensor
    router: list[Routing] | None = None


class FlashStack(nn.Module):
    """Everything under the checkpoint's prefix `model.`"""

    def __init__(self, config: FlashConfig, balance: BalanceLoss, made: dict[str, Any]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, **made)
        self.layers = nn.ModuleList(
            ScMoEBlock(
                (MLA(config.attention, **made), MLA(config.attention, **made)),
                config.moe,
                config.ffn_hidden_size,
                config.rms_norm_eps,
                balance=balance,
                **made,
            )
            for _ in range(config.num_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, **made)
        self.mtp = MTPHead(config, self.embed_tokens, balance, **made) if config.has_mtp else None
