"""The FFN experts on sorted rows in eager torch: grouped, with forms of their own on a CPU.

There many rows go in batches of experts in half precision and in a loop in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from longcat.kernels.experts import batches, loop
from longcat.kernels.operands import autocast_dtype
from longcat.kernels.swiglu import eager as swiglu_eager


def experts(
    x_sorted: Tensor,
    gate_up: Tensor,
    down: Tensor,
    offsets: Tensor,
    rows: Tensor | None = None,
) -> Tensor:
    """down_e swiglu(gate_up_e x) for each expert's rows, see reference.py.

    x_sorted [S, D], gate_up [N, 2F, D], down [N, D, F], offsets [N] -> [S, D]. Inside
    torch.autocast (which does not know grouped_mm) everything is cast to its dtype first.
    """
    if rows is not None:
        x_sorted = x_sorted.index_select(0, rows)
    dtype = autocast_dtype(x_sorted)
    if dtype is not None:
        x_sorted = x_sorted.to(dtype)
    if batches.pays(x_sorted, len(gate_up)):
        return batches.experts(x_sorted, gate_up, down, offsets)
    if loop.pays(x_sorted, len(gate_up)):
        return loop.experts(x_sorted, gate_up, down, offsets)
    if dtype is not None:
        gate_up, down = gate_up.to(dtype), down.to(dtype)
    if x_sorted.shape[0] == 0 or gate_up.shape[0] == 0:
        return _nothing(x_sorted, gate_up, down)
    gate, up = _grouped_linear(x_sorted, gate_up, offsets).chunk(2, dim=-1)
    return _grouped_linear(swiglu_eager.swiglu(gate, up), down, offsets)


def _nothing(x_sorted: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """No rows: an empty result that still hands every operand a gradient of zeros."""
    empty = gate_up.sum() * 0 + down.sum() * 0
    return x_sorted * 1 + empty


def _grouped_linear(rows: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """rows [S, I] times weight[e] [O, I] transposed, for each expert's rows -> [S, O]."""
    if _grouped_mm_takes(rows, weight):
        out = F.grouped_mm(rows, weight.mT, offs=offsets.to(torch.int32))
        if out.requires_grad:
            # Its backward refuses an expanded gradient, such as the one of a plain sum.
            out.register_hook(Tensor.contiguous)
        return out
    return padded_linear(rows, weight, offsets)


def _grouped_mm_takes(rows: Tensor, weight: Tensor) -> bool:
    """torch's grouped_mm: float32 or bfloat16 (float16), row strides of whole 16-byte words."""
    if rows.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    if rows.device.type != "cpu" and rows.dtype != torch.bfloat16:
        return False  # on CUDA the kernel itself is bfloat16 only
    size = rows.element_size()
    return (
        all(width * size % 16 == 0 for width in weight.shape[1:])
        and _whole_words(rows)
        and _whole_words(weight)
    )


def _whole_words(matrix: Tensor) -> bool:
    """Whether rows, or columns where these are adjacent, follow at multiples of 16 bytes."""
    near, far = sorted(matrix.stride()[-2:])
    return near == 1 and far * matrix.element_size() % 16 == 0


def padded_linear(rows: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """The same by one batched product over experts, each padded to the fullest one's rows.

    For the dtypes and widths that grouped_mm refuses; it waits for the device, for row counts.
    """
    ends = offsets.to(torch.int64)
    starts = F.pad(ends, (1, 0))[:-1]
    fullest = int((ends - starts).max())
    # Padding positions read row 0 and are dropped again: they reach neither result nor gradient.
    place = starts[:, None] + torch.arange(fullest, device=rows.device)
    inside = place < ends[:, None]
    padded = rows[place.where(inside, 0)] * inside[..., None]
    out = (padded @ weight.mT)[inside]
    # Rows behind the last expert's belong to nobody; there are some off the CPU.
    return out if len(out) == len(rows) else F.pad(out, (0, 0, 0, len(rows) - len(out)))
