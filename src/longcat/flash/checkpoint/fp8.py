"""FP8 linears as released: float8_e4m3 weights with one float32 factor per 128 x 128 block.

`X.weight` [O, I] is accompanied by `X.weight_scale_inv` [ceil(O/128), ceil(I/128)], and

    weight[o, i] = float(X.weight[o, i]) * X.weight_scale_inv[o // 128, i // 128]

The name says "inverse" because it is the inverse of the factor that was applied when quantising.
"""

import torch

from longcat.kernels.fp8 import eager

BLOCK = 128
SCALE_SUFFIX = "_scale_inv"


def scale_name(weight_name: str) -> str:
    """The name of the block factors that belong to `weight_name`."""
    return weight_name + SCALE_SUFFIX


def scale_shape(weight_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a weight's block factors: every dimension divided by 128, rounded up."""
    return tuple(-(-n // BLOCK) for n in weight_shape)


def dequantize(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Multiply every 128 x 128 block by its factor.

    Args:
        weight: float8 [O, I].
        scale: [ceil(O/128), ceil(I/128)].

    Returns:
        float32 [O, I]: products of an 8-bit and a 32-bit number, rounded once.
    """
    factors = scale.to(torch.float32).repeat_interleave(BLOCK, dim=1)[:, : weight.shape[1]]
    out = torch.empty(weight.shape, dtype=torch.float32)
    # What is made of a block of rows at a time stays small, and in the processor's cache.
    for numbers, row, rows in zip(weight.split(BLOCK), factors, out.split(BLOCK), strict=True):
        torch.mul(eager.widened(numbers), row, out=rows)
    return out
