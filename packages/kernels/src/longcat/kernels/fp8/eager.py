"""Block-wise FP8 and products in it, in eager torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from longcat.kernels.fp8.reference import GROUP, LARGEST


def _quantise(x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    height, width = x.shape
    padded = F.pad(x.float(), (0, -width % GROUP, 0, -height % rows))
    blocks = padded.unflatten(1, (-1, GROUP)).unflatten(0, (-1, rows))  # [h, rows, w, GROUP]
    largest = blocks.abs().amax(dim=(1, 3), keepdim=True)
    scales = torch.where(largest > 0, largest / LARGEST, 1.0)
    # torch gives NaN beyond the largest number, where the hardware saturates.
    numbers = (blocks / scales).clamp(-LARGEST, LARGEST).flatten(2).flatten(0, 1)
    return numbers[:height, :width].to(torch.float8_e4m3fn), scales[:, 0, :, 0].contiguous()


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [T, K] -> numbers [T, K] float8_e4m3fn, scales [T, ceil(K/128)], see reference.py."""
    return _quantise(x, 1)


def quantise_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [N, K] -> numbers [N, K], scales [ceil(N/128), ceil(K/128)], see reference.py."""
    return _quantise(weight, GROUP)


def fp8_linear(x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor) -> Tensor:
    """y = (x * scales) @ (weight * scales)^T -> [T, N] float32, see reference.py."""
    width = x.shape[1]
    of_x = x_scales.repeat_interleave(GROUP, dim=1)[:, :width]
    of_weight = weight_scales.repeat_interleave(GROUP, dim=0).repeat_interleave(GROUP, dim=1)
    return (x.float() * of_x) @ (weight.float() * of_weight[: len(weight), :width]).mT
