"""Top-k, top-p and the verification of drafts, the definition.

Sources: Holtzman et al. 2019 (top-p); Leviathan et al. 2022 and Chen et al. 2023 (verification);
report section 2.4 (the draft head).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Int = NDArray[np.int64]


def keep_top(p: Float, top_k: Int, top_p: Float) -> Float:
    """The top_k most probable tokens of a row, then of these the fewest that hold top_p of it.

    p [R, V], top_k [R] (0: all), top_p [R] (1: all) -> [R, V], rows that sum to 1. Of equals the
    lowest token comes first. A token stays while the mass before it has not reached top_p.
    """
    kept = np.zeros_like(p)
    for row, k, share in zip(range(len(p)), top_k, top_p, strict=True):
        order = np.argsort(-p[row], kind="stable")[: int(k) or None]
        mass = p[row, order] / p[row, order].sum()
        before = np.concatenate([[0.0], np.cumsum(mass)[:-1]])
        stays = order[(before < share) | (share >= 1)]
        kept[row, stays] = p[row, stays] / p[row, stays].sum()
    return kept


def verify(p: Float, q: Float, drafts: Int, chance: Float) -> tuple[Int, Float]:
    """How many leading drafts stand, and the distribution of the token after them.

    p [R, g+1, V] of the target, q [R, g, V] that the drafts [R, g] were drawn from, chance [R, g]
    uniform in [0, 1) -> accepted [R], rest [R, V]. A draft stands when chance * q < p. After the
    first that does not, rest is max(p - q, 0), normalised; after all of them, p of the next place.
    """
    n_rows, n_drafts = drafts.shape
    accepted = np.zeros(n_rows, dtype=np.int64)
    rest = np.zeros((n_rows, p.shape[2]))
    for row in range(n_rows):
        for draft, token in enumerate(drafts[row]):
            if not chance[row, draft] * q[row, draft, token] < p[row, draft, token]:
                break
            accepted[row] += 1
        place = accepted[row]
        left = p[row, place]
        if place < n_drafts:
            left = np.maximum(left - q[row, place], 0.0)
            left = left if left.any() else p[row, place]
        rest[row] = left / left.sum()
    return accepted, rest
