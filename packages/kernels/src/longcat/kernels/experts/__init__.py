"""The FFN experts on rows sorted by expert: grouped SwiGLU FFNs."""

from __future__ import annotations

import torch
from torch import Tensor

from longcat.kernels.dispatch import choose, through_numpy
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


def experts(x_sorted: Tensor, gate_up: Tensor, down: Tensor, offsets: Tensor) -> Tensor:
    """Send each row through its expert: down_e (silu(gate_e x) * up_e x).

    Args:
        x_sorted: [S, D], rows sorted by expert (from `permute`).
        gate_up: [N, 2F, D], gate rows first.
        down: [N, D, F].
        offsets: [N] int32 or int64, one past each expert's last row; the last one is S.

    Returns:
        [S, D]. S = 0 and N = 0 are allowed.

    Raises:
        ValueError: an operand of the wrong shape, dtype or device.

    Source: report eq. 1 and section 2.3.2 (fine-grained experts).
    """
    check_together("experts", x_sorted=x_sorted, gate_up=gate_up, down=down, offsets=offsets)
    check_floating("experts", x_sorted=x_sorted, gate_up=gate_up, down=down)
    if autocast_dtype(x_sorted) is None:
        check_same_dtype("experts", x_sorted=x_sorted, gate_up=gate_up, down=down)
    check_dtype("experts", "offsets", offsets, torch.int32, torch.int64)
    sizes: dict[str, int] = {}
    check_shape("experts", "x_sorted", x_sorted, "S D", sizes)
    check_shape("experts", "down", down, "N D F", sizes)
    check_shape("experts", "gate_up", gate_up, "N 2F D", sizes)
    check_shape("experts", "offsets", offsets, "N", sizes)
    if sizes["2F"] != 2 * sizes["F"]:
        raise ValueError(
            f"experts: gate_up must have 2F = {2 * sizes['F']} rows per expert for the F of down, "
            f"got {sizes['2F']}"
        )
    match choose("experts", x_sorted, gate_up, down):
        case "numpy":
            result: Tensor = through_numpy(
                reference.experts, x_sorted, gate_up, down, offsets, like=x_sorted
            )
            return result
        case "exact":
            return exact.experts(x_sorted, gate_up, down, offsets)
        case _:
            return eager.experts(x_sorted, gate_up, down, offsets)
