"""A linear map with weights of 8 bits in eager torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_ROWS = 16  # from more rows on, one pass to dequantise the weight is the smaller part
WORD = 16  # numbers that torch's product of 8 bits reads at a time, past a row's end if need be


def quantise_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [..., O, I] -> (int8 [..., O, I], scale [..., O] in weight's dtype), see reference.py.

    The rounding is done in float32 by the scale as it is stored.
    """
    wide = weight.double() if weight.dtype == torch.float64 else weight.float()
    largest = wide.abs().amax(dim=-1)
    scale = torch.where(largest > 0, largest / 127, 1.0).to(weight.dtype)
    steps = (wide / scale.to(wide.dtype).unsqueeze(-1)).round().clamp(-127, 127)
    return steps.to(torch.int8), scale


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """y = (x @ weight^T) * scale. x [..., I], weight int8 [O, I], scale [O] -> [..., O].

    Few rows in bfloat16 on a CPU read the weight as it is, half the bytes of a bfloat16 one.
    """
    rows = x.reshape(-1, x.shape[-1])
    on_cpu = x.dtype == torch.bfloat16 and x.device.type == "cpu"
    if on_cpu and len(rows) <= MOST_ROWS and x.shape[-1] % WORD == 0:
        y = torch._weight_int8pack_mm(rows.contiguous(), weight.contiguous(), scale)
    else:
        y = F.linear(rows, weight.to(x.dtype)) * scale
    return y.view(*x.shape[:-1], weight.shape[0])
