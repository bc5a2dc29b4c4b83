"""From a projection to the latent cache, the definition. Source: report eq. 6 and 7."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from longcat.kernels.rmsnorm import reference as rmsnorm_reference
from longcat.kernels.rope import reference as rope_reference

Float = NDArray[np.float64]
Int = NDArray[np.int64]


def latent_write(
    compressed: Float,
    weight: Float,
    eps: float,
    alpha: float,
    positions: Int,
    inv_freq: NDArray[np.floating[Any]],
    slots: Int,
    store: Float,
    factor: float = 1.0,
) -> Float:
    """The store with row slots[t] = [alpha * rmsnorm(c_t) | rope(k_t)], compressed_t = [c_t | k_t].

    compressed [T, C+R], weight [C], positions [T], inv_freq [R/2], slots [T], store [rows, C+R].
    """
    latent, k_rope = np.split(compressed, [len(weight)], axis=-1)
    rotated = rope_reference.rope(k_rope[None, :, None], positions[None], inv_freq, factor)
    written = store.copy()
    written[slots] = np.concatenate(
        [alpha * rmsnorm_reference.rmsnorm(latent, weight, eps), rotated[0, :, 0]], axis=-1
    )
    return written
