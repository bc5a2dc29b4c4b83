"""Rotary position embedding: interleaved pairs in, halves out, with YaRN frequencies."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longcat.kernels.dispatch import choose, or_unchecked, through_numpy
from longcat.kernels.operands import (
    as_tensor,
    check_dtype,
    check_floating,
    check_shape,
    check_together,
)
from longcat.kernels.rope import eager, reference
from longcat.kernels.rope.reference import rope_frequencies

__all__ = ["rope", "rope_frequencies"]


@or_unchecked(eager.rope)
def rope(
    x: Tensor,
    positions: Tensor,
    inv_freq: Tensor | NDArray[np.floating[Any]],
    factor: float = 1.0,
) -> Tensor:
    """Rotate consecutive pairs of x by position * inv_freq.

    out = [xe*cos - xo*sin | xo*cos + xe*sin] with xe, xo the even and odd components: interleaved
    pairs in, halves out, as the released model stores its rotated keys.

    Args:
        x: [B, T, H, R].
        positions: [B, T], int64 or int32.
        inv_freq: [R/2], from `rope_frequencies`; a numpy array or a tensor.
        factor: multiplies cos and sin (YaRN's attention factor).

    Returns:
        [B, T, H, R] in x's dtype; the angles are float32 (float64 for float64 x).

    Raises:
        ValueError: an operand of the wrong shape, dtype or device.

    Source: report section 2.4 (theta) and the released model code (interleaved pairing).
    """
    check_together("rope", x=x, positions=positions)
    frequencies = as_tensor("rope", "inv_freq", inv_freq, x)
    check_floating("rope", x=x, inv_freq=frequencies)
    check_dtype("rope", "positions", positions, torch.int64, torch.int32)
    sizes: dict[str, int] = {}
    check_shape("rope", "x", x, "B T H R", sizes)
    check_shape("rope", "positions", positions, "B T", sizes)
    if sizes["R"] % 2 or frequencies.shape != (sizes["R"] // 2,):
        raise ValueError(
            f"rope: inv_freq must have shape [R/2] for the even R of x, got "
            f"{list(frequencies.shape)} with R={sizes['R']}"
        )
    fits = x.dtype != torch.float64 and sizes["R"] & (sizes["R"] - 1) == 0
    match choose("rope", x, has_kernel=fits and sizes["R"] > 0, on_request=True):
        case "numpy":
            result: Tensor = through_numpy(
                reference.rope, x, positions, frequencies, factor, like=x
            )
            return result
        case "triton":
            from longcat.kernels.rope import triton_kernel

            return triton_kernel.rope(x, positions, frequencies, factor)
        case _:  # elementwise, so exact mode needs no form of its own
            return eager.rope(x, positions, frequencies, factor)
