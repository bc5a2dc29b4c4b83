"""The same layer in standard order: what the shortcut is compared with.

The mixture reads what the second dense FFN reads, next to it, so nothing can hide its dispatch and
combine: they wait for the second attention, and the layer's end waits for them. Parameters,
arithmetic and what is added to the residual stream are those of the ScMoE block; only the tensor
that the mixture reads differs. A checkpoint does not say which order it was trained in.

Source: report section 2.2 (the baseline without the shortcut in its loss curves).
"""

from typing import Any

from torch import Tensor, nn

from longcat.moe.block import ScMoEBlock
from longcat.moe.mixture import MoERecord
from longcat.router import Choice


class StandardBlock(ScMoEBlock):
    """Attention, dense FFN, attention, then dense FFN and mixture side by side."""

    @classmethod
    def of(cls, block: ScMoEBlock) -> "StandardBlock":
        """The modules of `block`, shared with it, in standard order."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        for name, module in block.named_children():
            made.add_module(name, module)
        return made

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        caches: tuple[Any, Any] = (None, None),
        token_mask: Tensor | None = None,
        choice: Choice | None = None,
    ) -> tuple[Tensor, MoERecord]:
        """x [B,T,D] to ([B,T,D], what the mixture decided), as `ScMoEBlock.forward`."""
        h1 = x + self.attention(0, x, positions, caches[0])
        h2 = h1 + self.mlps[0](self.post_attention_layernorm[0](h1))
        h3 = h2 + self.attention(1, h2, positions, caches[1])
        u = self.post_attention_layernorm[1](h3)
        m, record = self.mlp(u, token_mask, choice)
        return h3 + self.mlps[1](u) + m, record

    def infer(self, x: Tensor, positions: Tensor, caches: tuple[Any, Any]) -> Tensor:
        """`forward` alone, as `ScMoEBlock.infer`."""
        return self.forward(x, positions, caches)[0]
