"""Rotary position embedding, the definition: frequencies (with YaRN) and the rotation.

Sources: Su et al. 2021 (RoPE); Peng et al. 2023, arXiv 2309.00071 (YaRN); the report, sections 2.4
and 3.4, for theta. The order of the output (halves out) is the released model's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Keys of a scaling dictionary that say nothing about the frequencies of YaRN itself.
_KNOWN = {
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
}


def rope_frequencies(
    rope_dim: int,
    theta: float,
    scaling: Mapping[str, Any] | None = None,
    max_position: int | None = None,
) -> tuple[NDArray[np.float32], float]:
    """The rotation speed of each pair, and the factor that multiplies cos and sin.

    inv_freq_j = theta^(-2j/R) for j < R/2, computed in float64 and rounded once to float32, so that
    every form of every op uses the same constants. With `scaling` of type "yarn", slow pairs are
    slowed further by `factor`, fast ones are kept, with a linear ramp between.

    Args:
        rope_dim: R, even.
        theta: base of the geometric series, above 1.
        scaling: None, or a Hugging Face rope_scaling dictionary ("default" or "yarn").
        max_position: the model's maximum; YaRN uses it where `factor` is missing.

    Returns:
        (inv_freq [R/2] float32, factor): the factor is 1.0 without scaling.

    Raises:
        ValueError: an odd rope_dim, a theta of 1 or less, an unknown or incomplete scaling.
    """
    if rope_dim < 2 or rope_dim % 2:
        raise ValueError(f"rope: rope_dim must be even and at least 2, got {rope_dim}")
    if not theta > 1:
        raise ValueError(f"rope: theta must be above 1, got {theta}")
    exponent = np.arange(0, rope_dim, 2, dtype=np.float64) / rope_dim
    plain = 1.0 / theta**exponent
    kind = "default" if scaling is None else scaling.get("rope_type", scaling.get("type"))
    if scaling is None or kind == "default":
        return plain.astype(np.float32), 1.0
    if kind != "yarn":
        raise ValueError(f"rope: scaling type must be 'default' or 'yarn', got {kind!r}")
    unknown = sorted(set(scaling) - _KNOWN)
    if unknown:
        raise ValueError(f"rope: unknown keys in the yarn scaling: {', '.join(unknown)}")
    original = scaling.get("original_max_position_embeddings") or max_position
    factor = scaling.get("factor")
    if factor is None and original and max_position:
        factor = max_position / original
    if not original or not factor:
        raise ValueError(
            "rope: yarn scaling needs 'original_max_position_embeddings' and 'factor' (or the "
            f"model's maximum position to derive it from), got {dict(scaling)}"
        )
    if not factor > 0:
        raise ValueError(f"rope: the factor of yarn scaling must be positive, got {factor}")
    keep = 1.0 - _ramp(rope_dim, theta, float(original), scaling)
    mixed = plain / factor * (1.0 - keep) + plain * keep
    return mixed.astype(np.float32), _attention_factor(float(factor), scaling)


def _ramp(
    rope_dim: int, theta: float, original: float, scaling: Mapping[str, Any]
) -> NDArray[np.float64]:
    """0 for pairs that turn often within the original context, 1 for those that hardly turn."""

    def pair_with_rotations(rotations: float) -> float:
        # The (fractional) pair whose wavelength fits `rotations` times into the original context.
        return rope_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = pair_with_rotations(scaling.get("beta_fast") or 32)
    high = pair_with_rotations(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope_dim - 1)
    if low == high:
        high += 0.001  # the ramp becomes a step instead of a division by zero
    return np.clip((np.arange(rope_dim // 2) - low) / (high - low), 0.0, 1.0)


def _attention_factor(factor: float, scaling: Mapping[str, Any]) -> float:
    """YaRN's temperature as a factor of cos and sin (so its square multiplies the scores)."""

    def temperature(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    given = scaling.get("attention_factor")
    if given is not None:
        return float(given)
    mscale, mscale_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if mscale and mscale_all:
        return temperature(mscale) / temperature(mscale_all)
    return temperature(1.0)


def rope(
    x: NDArray[np.float64],
    positions: NDArray[np.int64],
    inv_freq: NDArray[np.floating[Any]],
    factor: float = 1.0,
) -> NDArray[np.float64]:
    """Rotate the pairs (x_0, x_1), (x_2, x_3), ... by position * inv_freq.

    With a_j = position * inv_freq_j, c_j = factor cos(a_j), s_j = factor sin(a_j):
    out = [x_even * c - x_odd * s | x_odd * c + x_even * s], interleaved pairs in, halves out. The
    same permutation acts on queries and keys, so their products are those of plain RoPE.

    x [B, T, H, R], positions [B, T], inv_freq [R/2] -> [B, T, H, R].
    """
    angle = positions[..., None, None] * np.asarray(inv_freq, dtype=np.float64)
    cos, sin = factor * np.cos(angle), factor * np.sin(angle)
    even, odd = x[..., 0::2], x[..., 1::2]
    return np.concatenate([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
