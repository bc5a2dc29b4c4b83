"""Block-wise FP8 and products in it, in eager torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from longcat.kernels.fp8.reference import GROUP, LARGEST


def _quantise(x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    height, width = x.shape
    wide = x.float()
    if width % GROUP or height % rows:
        wide = F.pad(wide, (0, -width % GROUP, 0, -height % rows))
    blocks = wide.unflatten(1, (-1, GROUP)).unflatten(0, (-1, rows))  # [h, rows, w, GROUP]
    largest = blocks.abs().amax(dim=(1, 3), keepdim=True)
    scales = torch.where(largest > 0, largest / LARGEST, 1.0)
    # torch gives NaN beyond the largest number, where the hardware saturates.
    numbers = (blocks / scales).clamp_(-LARGEST, LARGEST).flatten(2).flatten(0, 1)
    return numbers[:height, :width].to(torch.float8_e4m3fn), scales[:, 0, :, 0].contiguous()


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [T, K] -> numbers [T, K] float8_e4m3fn, scales [T, ceil(K/128)], see reference.py."""
    return _quantise(x, 1)


def quantise_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [N, K] -> numbers [N, K], scales [ceil(N/128), ceil(K/128)], see reference.py."""
    return _quantise(weight, GROUP)


def fp8_linear(x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor) -> Tensor:
    """y = (x * scales) @ (weight * scales)^T -> [T, N] float32, see reference.py."""
    return _dequantised(x, x_scales, 1) @ _dequantised(weight, weight_scales, GROUP).mT


def _dequantised(numbers: Tensor, scales: Tensor, rows: int) -> Tensor:
    """numbers [N, K] times their scales, float32."""
    height, width = numbers.shape
    wide = widened(numbers)
    if width % GROUP or height % rows:
        wide = F.pad(wide, (0, -width % GROUP, 0, -height % rows))
    blocks = wide.unflatten(1, (-1, GROUP)).unflatten(0, (-1, rows))
    scaled: Tensor = blocks.mul_(scales[:, None, :, None]).flatten(2).flatten(0, 1)
    return scaled[:height, :width]


def widened(numbers: Tensor) -> Tensor:
    """FP8 of any shape as float32. A CPU looks the 256 values up: five times as fast as torch's
    conversion, for no more numbers at a time than its cache holds.
    """
    if numbers.device.type != "cpu":
        return numbers.float()
    values = torch.arange(256, dtype=torch.uint8).view(numbers.dtype).float()
    bits = numbers.contiguous().view(torch.uint8).flatten()
    return values.index_select(0, bits.int()).view(numbers.shape)
