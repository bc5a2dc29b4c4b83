"""Rows added to where an index says, the same bits in every run."""

from __future__ import annotations

import torch
from torch import Tensor

from longcat.kernels.dispatch import choose, through_numpy
from longcat.kernels.operands import check_dtype, check_floating, check_shape, check_together
from longcat.kernels.scatter_add import eager, reference

__all__ = ["scatter_add"]


def scatter_add(values: Tensor, index: Tensor, size: int) -> Tensor:
    """out[t] = sum of values[s] over all s with index[s] = t, added in the order of s.

    The gradient of a gather, such as an embedding's.

    Args:
        values: [S, D].
        index: [S] int64, from 0 to size - 1.
        size: T, rows of the result.

    Returns:
        [T, D] in values' dtype; rows that nothing is added to are zero. Sums are float32 (float64).

    Raises:
        ValueError: an operand of the wrong shape, dtype or device, or an index outside 0..T-1.
    """
    op = "scatter_add"
    check_together(op, values=values, index=index)
    check_floating(op, values=values)
    check_dtype(op, "index", index, torch.int64)
    sizes: dict[str, int] = {}
    check_shape(op, "values", values, "S D", sizes)
    check_shape(op, "index", index, "S", sizes)
    if index.device.type == "cpu" and index.numel():  # on a GPU looking would make the host wait
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= size:
            raise ValueError(
                f"{op}: index must lie in 0..{size - 1}, got values from {low} to {high}"
            )
    fits = values.dtype != torch.float64
    match choose(op, values, has_kernel=fits, inference_only=True):
        case "numpy":
            result: Tensor = through_numpy(reference.scatter_add, values, index, size, like=values)
            return result
        case "triton":
            from longcat.kernels.scatter_add import triton_kernel

            return triton_kernel.scatter_add(values, index, size)
        case _:  # rows are added in their order: exact mode needs no other form
            return eager.scatter_add(values, index, size)
