"""Block-wise FP8: activations in groups of 128 numbers, weights in blocks of 128 x 128."""

from __future__ import annotations

import torch
from torch import Tensor

from longcat.kernels.dispatch import choose, to_numpy
from longcat.kernels.fp8 import eager, reference
from longcat.kernels.fp8.reference import GROUP
from longcat.kernels.operands import (
    check_dtype,
    check_floating,
    check_rows,
    check_shape,
    check_together,
)

__all__ = ["fp8_linear", "quantise_blocks", "quantise_rows"]

E4M3 = torch.float8_e4m3fn


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise activations: one scale for each 128 numbers of a row.

    scale = max|x| / 448 (1 where all are zero), numbers = round(x / scale) to nearest even.

    Args:
        x: [T, K], float32, bfloat16 or float16.

    Returns:
        (numbers [T, K] float8_e4m3fn, scales [T, ceil(K/128)] float32); x ~ numbers * scale.

    Raises:
        ValueError: an operand of the wrong shape or dtype.

    Source: report, quantisation (activations [1, 128]).
    """
    return _quantise("quantise_rows", "x", x, 1)


def quantise_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise a weight: one scale for each block of 128 x 128.

    Args:
        weight: [N, K], float32, bfloat16 or float16.

    Returns:
        (numbers [N, K] float8_e4m3fn, scales [ceil(N/128), ceil(K/128)] float32).

    Raises:
        ValueError: an operand of the wrong shape or dtype.

    Source: report, quantisation (weights [128, 128]); a checkpoint's weight_scale_inv.
    """
    return _quantise("quantise_blocks", "weight", weight, GROUP)


def fp8_linear(x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor) -> Tensor:
    """y = (x * x_scales) @ (weight * weight_scales)^T, the scales applied every 128 terms.

    Args:
        x, x_scales: from `quantise_rows`, [T, K] and [T, ceil(K/128)].
        weight, weight_scales: from `quantise_blocks`, [N, K] and [ceil(N/128), ceil(K/128)].

    Returns:
        [T, N] float32.

    Raises:
        ValueError: an operand of the wrong shape, dtype or device.

    Source: report, quantisation.
    """
    op = "fp8_linear"
    scales = {"x_scales": x_scales, "weight_scales": weight_scales}
    check_together(op, x=x, weight=weight, **scales)
    check_dtype(op, "x", x, E4M3)
    check_dtype(op, "weight", weight, E4M3)
    for name, tensor in scales.items():
        check_dtype(op, name, tensor, torch.float32)
    sizes: dict[str, int] = {}
    check_shape(op, "x", x, "T K", sizes)
    check_shape(op, "weight", weight, "N K", sizes)
    for name, tensor, rows in (
        ("x_scales", x_scales, sizes["T"]),
        ("weight_scales", weight_scales, -(-sizes["N"] // GROUP)),
    ):
        wanted = [rows, -(-sizes["K"] // GROUP)]
        if list(tensor.shape) != wanted:
            raise ValueError(f"{op}: {name} must have shape {wanted}, got {list(tensor.shape)}")
    operands = (x, x_scales, weight, weight_scales)
    match choose(op, *operands, has_kernel=True, inference_only=True):
        case "numpy":
            y = reference.fp8_linear(*(to_numpy(operand) for operand in operands))
            return torch.from_numpy(y).to(x.device, torch.float32)
        case "triton":
            from longcat.kernels.fp8 import triton_kernel

            return triton_kernel.fp8_linear(*operands)
        case _:
            return eager.fp8_linear(*operands)


def _quantise(op: str, name: str, x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    check_together(op, **{name: x})
    check_floating(op, **{name: x})
    check_shape(op, name, x, "T K" if rows == 1 else "N K", {})
    fits = x.dtype in (torch.float32, torch.bfloat16, torch.float16)
    match choose(op, x, has_kernel=fits, inference_only=True):
        case "numpy":
            numbers, scales = (torch.from_numpy(a) for a in getattr(reference, op)(to_numpy(x)))
            return numbers.float().to(x.device, E4M3), scales.to(x.device, torch.float32)
        case "triton":
            from longcat.kernels.fp8 import triton_kernel

            check_rows(op, **{name: x})
            return triton_kernel.quantise(x, rows)
        case _:
            result: tuple[Tensor, Tensor] = getattr(eager, op)(x)
            return result
