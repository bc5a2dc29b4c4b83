"""How far to trust a ratio of sums over a few dozen independent pieces of text."""

import numpy as np
from numpy.typing import NDArray

_TWO_SIDED_95 = 1.96  # of a normal distribution: there are dozens of pieces


def ratio_interval(hits: NDArray[np.number], tries: NDArray[np.int64]) -> float | None:
    """Half the 95 % interval of sum(hits) / sum(tries), both [n], independent between entries.

    Tokens of one prompt or document are alike, so those are what is counted, not tokens. None for
    fewer than two.
    """
    count, total = len(tries), int(tries.sum())
    if count < 2 or total == 0:
        return None
    off = hits - hits.sum() / total * tries
    return float(_TWO_SIDED_95 * np.sqrt(count / (count - 1) * (off**2).sum()) / total)
