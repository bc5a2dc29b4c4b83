"""The dense SwiGLU feed-forward network of a block's main path."""

from typing import Any

import torch
from torch import Tensor, nn

from longcat.kernels import Linear, cast_once, swiglu


class DenseFFN(nn.Module):
    """down(silu(gate(x)) * up(x)), no biases; x [..., D] to [..., D]."""

    def __init__(
        self,
        hidden_size: int,
        ffn_hidden_size: int,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {"bias": False, "device": device, "dtype": dtype}
        self.gate_proj = Linear(hidden_size, ffn_hidden_size, **made)
        self.up_proj = Linear(hidden_size, ffn_hidden_size, **made)
        self.down_proj = Linear(ffn_hidden_size, hidden_size, **made)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] to [..., D]."""
        x = cast_once(x)
        y: Tensor = self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))
        return y
