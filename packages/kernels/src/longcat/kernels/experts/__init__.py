"""The FFN experts on rows sorted by expert: grouped SwiGLU FFNs."""

from __future__ import annotations

import torch
from torch import Tensor

from longcat.kernels.dispatch import choose, or_unchecked, through_numpy
from longcat.kernels.experts import eager, exact, reference
from longcat.kernels.operands import (
    autocast_dtype,
    check_dtype,
    check_floating,
    check_same_dtype,
    check_shape,
    check_together,
)

__all__ = ["experts"]


@or_unchecked(eager.experts)
def experts(
    x_sorted: Tensor,
    gate_up: Tensor,
    down: Tensor,
    offsets: Tensor,
    rows: Tensor | None = None,
) -> Tensor:
    """Send each row through its expert: down_e (silu(gate_e x) * up_e x).

    Args:
        x_sorted: [S, D], rows sorted by expert (from `permute`); with `rows`, the tokens [T, D] as
            they are.
        gate_up: [N, 2F, D], gate rows first.
        down: [N, D, F].
        offsets: [N] int32 or int64, one past each expert's last row. Rows behind the last one
            belong to no expert: nobody computes them, and the result's may hold anything.
        rows: [S] int64, the row of x_sorted that each sorted slot reads (a plan's `tokens`): the
            Triton kernel gathers while it loads, and no sorted copy is written.

    Returns:
        [S, D]. S = 0 and N = 0 are allowed.

    Raises:
        ValueError: an operand of the wrong shape, dtype or device.

    Source: report eq. 1 and section 2.3.2 (fine-grained experts).
    """
    check_together(
        "experts", x_sorted=x_sorted, gate_up=gate_up, down=down, offsets=offsets, rows=rows
    )
    check_floating("experts", x_sorted=x_sorted, gate_up=gate_up, down=down)
    if autocast_dtype(x_sorted) is None:
        check_same_dtype("experts", x_sorted=x_sorted, gate_up=gate_up, down=down)
    check_dtype("experts", "offsets", offsets, torch.int32, torch.int64)
    sizes: dict[str, int] = {}
    check_shape("experts", "x_sorted", x_sorted, "S D" if rows is None else "T D", sizes)
    if rows is not None:
        check_dtype("experts", "rows", rows, torch.int64)
        check_shape("experts", "rows", rows, "S", sizes)
    check_shape("experts", "down", down, "N D F", sizes)
    check_shape("experts", "gate_up", gate_up, "N 2F D", sizes)
    check_shape("experts", "offsets", offsets, "N", sizes)
    if sizes["2F"] != 2 * sizes["F"]:
        raise ValueError(
            f"experts: gate_up must have 2F = {2 * sizes['F']} rows per expert for the F of down, "
            f"got {sizes['2F']}"
        )
    operands = (x_sorted, gate_up, down, offsets, rows)
    half = x_sorted.dtype in (torch.bfloat16, torch.float16)
    fits = half and autocast_dtype(x_sorted) is None
    match choose("experts", x_sorted, gate_up, down, has_kernel=fits, on_request=True):
        case "numpy":
            result: Tensor = through_numpy(reference.experts, *operands, like=x_sorted)
            return result
        case "triton":
            from longcat.kernels.experts import triton_kernel

            return triton_kernel.experts(*operands)
        case "exact":
            return exact.experts(*operands)
        case _:
            return eager.experts(*operands)
