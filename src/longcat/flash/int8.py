"""Weights of 8 bits for decoding on a CPU: half the bytes to read for every token.

Linear maps and experts are quantised, one scale per output. What stays as it is: embeddings, norms,
the output head, the router, and kv_b_proj, whose weight the absorbed attention reads as a tensor.
"""

import torch
from torch import Tensor, nn

from longcat.flash.model import FlashModel
from longcat.kernels import Linear, int8_linear, quantise_int8, swiglu
from longcat.moe.mixture import Experts

_KEPT = ("lm_head", "kv_b_proj")


class Int8Linear(nn.Module):
    """A Linear with its weight in 8 bits; buffers weight int8 [O,I] and scale [O]."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = quantise_int8(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        bias = None if linear.bias is None else linear.bias.detach()
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., I] to [..., O]."""
        y = int8_linear(x, self.weight, self.scale)
        return y if self.bias is None else y + self.bias


class Int8Experts(nn.Module):
    """Experts with their weights in 8 bits, computed one after another.

    Buffers gate_up int8 [N,2F,D] with scales [N,2F], and down int8 [N,D,F] with scales [N,D].
    """

    gate_up: Tensor
    gate_up_scale: Tensor
    down: Tensor
    down_scale: Tensor

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        for name in ("gate_up", "down"):
            weight, scale = quantise_int8(getattr(experts, f"{name}_proj").detach())
            self.register_buffer(name, weight)
            self.register_buffer(f"{name}_scale", scale)

    def forward(self, x_sorted: Tensor, offsets: Tensor) -> Tensor:
        """x_sorted [S,D] grouped by expert, offsets [N] (group ends) to [S,D]."""
        y, start = torch.empty_like(x_sorted), 0
        for expert, end in enumerate(offsets.tolist()):
            if end > start:
                rows = x_sorted[start:end]
                both = int8_linear(rows, self.gate_up[expert], self.gate_up_scale[expert])
                hidden = swiglu(*both.chunk(2, dim=-1))
                y[start:end] = int8_linear(hidden, self.down[expert], self.down_scale[expert])
            start = end
        return y


def to_int8(model: FlashModel) -> FlashModel:
    """Quantise the weights of `model` in place, for inference only -> the model.

    Worth it for a bfloat16 model on a CPU; in other dtypes it saves memory and not time.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Linear) and name not in _KEPT:
                setattr(module, name, Int8Linear(child))
            elif isinstance(child, Experts):
                setattr(module, name, Int8Experts(child))
    return model.requires_grad_(False)
