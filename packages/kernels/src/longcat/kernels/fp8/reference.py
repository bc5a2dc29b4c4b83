"""Block-wise FP8 (e4m3) and products in it, the definition. Source: report, quantisation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

GROUP = 128  # numbers along k that share a scale
LARGEST = 448.0  # of e4m3


def round_to_e4m3(x: Float) -> Float:
    """The nearest e4m3 numbers, ties to even: 3 bits behind the point, exponents from -6 to 8."""
    _, exponent = np.frexp(x)  # x = m 2^exponent with m in [0.5, 1)
    step = np.exp2(np.maximum(exponent - 1, -6) - 3.0)
    rounded: Float = np.clip(np.rint(x / step) * step, -LARGEST, LARGEST)
    return rounded


def _quantise(x: Float, rows: int) -> tuple[Float, Float]:
    """(numbers, scales) with one scale for each `rows` x GROUP block: x ~ numbers * scale."""
    height, width = (-(-size // block) for size, block in zip(x.shape, (rows, GROUP), strict=True))
    numbers, scales = np.zeros_like(x), np.ones((height, width))
    for i, j in np.ndindex(height, width):
        block = np.s_[i * rows : (i + 1) * rows, j * GROUP : (j + 1) * GROUP]
        largest = np.abs(x[block]).max()
        if largest > 0:
            scales[i, j] = largest / LARGEST
        numbers[block] = round_to_e4m3(x[block] / scales[i, j])
    return numbers, scales


def quantise_rows(x: Float) -> tuple[Float, Float]:
    """Activations, 1 x 128: x [T, K] -> numbers [T, K], scales [T, ceil(K/128)]."""
    return _quantise(x, 1)


def quantise_blocks(weight: Float) -> tuple[Float, Float]:
    """Weights, 128 x 128: weight [N, K] -> numbers [N, K], scales [ceil(N/128), ceil(K/128)]."""
    return _quantise(weight, GROUP)


def fp8_linear(x: Float, x_scales: Float, weight: Float, weight_scales: Float) -> Float:
    """y[t, n] = sum_k (x[t, k] x_scales[t, k/128]) (weight[n, k] weight_scales[n/128, k/128])."""
    width = x.shape[1]
    of_x = np.repeat(x_scales, GROUP, axis=1)[:, :width]
    of_weight = np.repeat(np.repeat(weight_scales, GROUP, axis=0), GROUP, axis=1)
    y: Float = (x * of_x) @ (weight * of_weight[: len(weight), :width]).T
    return y
