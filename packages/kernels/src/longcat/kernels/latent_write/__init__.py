"""Norm, scale and rotate a token's compressed keys and values into their place in the cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longcat.kernels.dispatch import choose, to_numpy
from longcat.kernels.latent_write import eager, reference
from longcat.kernels.operands import (
    as_tensor,
    check_dtype,
    check_floating,
    check_same_dtype,
    check_shape,
    check_together,
)

__all__ = ["latent_write"]


def latent_write(
    compressed: Tensor,
    weight: Tensor,
    eps: float,
    alpha: float,
    positions: Tensor,
    inv_freq: Tensor | NDArray[np.floating[Any]],
    slots: Tensor,
    store: Tensor,
    factor: float = 1.0,
) -> Tensor:
    """Write each token's latent and rotated key to its row of the cache, in place.

    store[slots[t]] = [alpha * rmsnorm(c_t) | rope(k_t)] for compressed_t = [c_t | k_t].

    Args:
        compressed: [T, C+R], the output of kv_a_proj_with_mqa.
        weight: [C], of the latent's norm.
        eps: added to the mean square, 1e-6 on the latents.
        alpha: the scale correction of the latent; the rotated key has none.
        positions: [T] int64.
        inv_freq: [R/2], from `rope_frequencies`.
        slots: [T] int64, distinct rows of the store.
        store: [rows, C+R], the flattened pages; written in place.
        factor: multiplies cos and sin.

    Returns:
        store.

    Raises:
        ValueError: an operand of the wrong shape, dtype, device or layout.

    Source: report eq. 6 and 7 (the rotated key is neither normed nor scaled).
    """
    op = "latent_write"
    floating = {"compressed": compressed, "weight": weight, "store": store}
    check_together(op, **floating, positions=positions, slots=slots)
    frequencies = as_tensor(op, "inv_freq", inv_freq, compressed)
    check_floating(op, **floating, inv_freq=frequencies)
    check_same_dtype(op, **floating)
    check_dtype(op, "positions", positions, torch.int64)
    check_dtype(op, "slots", slots, torch.int64)
    sizes: dict[str, int] = {}
    check_shape(op, "compressed", compressed, "T C+R", sizes)
    check_shape(op, "weight", weight, "C", sizes)
    check_shape(op, "positions", positions, "T", sizes)
    check_shape(op, "slots", slots, "T", sizes)
    check_shape(op, "store", store, "rows C+R", sizes)
    rope = sizes["C+R"] - sizes["C"]
    if rope < 0:
        raise ValueError(
            f"{op}: weight must have shape [C] with C at most the {sizes['C+R']} numbers of a row "
            f"of compressed, got {list(weight.shape)}"
        )
    if rope % 2 or frequencies.shape != (rope // 2,):
        raise ValueError(
            f"{op}: inv_freq must have shape [R/2] for an even R, got "
            f"{list(frequencies.shape)} with R={rope}"
        )
    if not store.is_contiguous():
        raise ValueError(
            f"{op}: store must be contiguous, for it is written in place; got strides "
            f"{list(store.stride())}"
        )
    operands = (compressed, weight, eps, alpha, positions, frequencies, slots, store, factor)
    fits = compressed.dtype != torch.float64 and rope > 0 and sizes["C"] > 0
    match choose(op, compressed, weight, store, has_kernel=fits, inference_only=True):
        case "numpy":
            written = reference.latent_write(*(to_numpy(operand) for operand in operands))
            return store.copy_(torch.from_numpy(written))
        case "triton":
            from longcat.kernels.latent_write import triton_kernel

            return triton_kernel.latent_write(*operands)
        case _:
            return eager.latent_write(*operands)
