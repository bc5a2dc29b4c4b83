"""Initialisation of the whole model, in one function.

| tensor | standard deviation |
|---|---|
| embedding | 1 |
| readers of the residual stream or a latent (q, kv, gate, up, router, eh) | 0.7 / sqrt(fan in) |
| writers to the residual stream (o_proj, down_proj) | 0.3 / sqrt(fan in) |
| output head | config.initializer_range |
| norms | the constant 1; biases 0 |

The report does not publish its initialisation. Scaling by fan-in kept every path of this
architecture near unit variance at small width and beat a uniform 0.02 clearly; variances of
hidden tensors fall as 1/fan-in, as the width transfer of report section 3.1.1 asks.
"""

import math

import torch
from torch import Tensor, nn

from longcat.flash.model import FlashModel

READS, WRITES = 0.7, 0.3


def standard_deviation(name: str, tensor: Tensor, head_std: float) -> float | None:
    """The deviation for a parameter by its state-dict name; None means a constant."""
    if "norm" in name or name.endswith(".bias"):
        return None
    if name.endswith("embed_tokens.weight"):
        return 1.0
    if name == "lm_head.weight":
        return head_std
    writes = name.endswith(("o_proj.weight", "down_proj.weight", "experts.down_proj"))
    return (WRITES if writes else READS) / math.sqrt(tensor.shape[-1])


@torch.no_grad()
def initialise(model: FlashModel, seed: int) -> None:
    """Fill every parameter and reset router biases, reproducibly on any device.

    Args:
        seed: of a generator of our own; parameters are drawn in name order in float32 on the
            CPU, so the weights do not depend on device or dtype.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        deviation = standard_deviation(name, parameter, model.config.initializer_range)
        if deviation is None:
            nn.init.constant_(parameter, 0.0 if name.endswith(".bias") else 1.0)
        else:
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn * deviation)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.zero_()
