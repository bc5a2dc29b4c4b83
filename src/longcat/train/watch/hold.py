"""The weight of the balance loss, held so that its share R_g of the router's gradient stays small.

R_g is proportional to the weight alpha, so one measurement tells which alpha would have given a
wanted R_g. After each measurement

    alpha <- min(alpha_max, alpha * min(0.04 / R_g, 1.25))        R_g of the worst layer

0.04 leaves room below the report's limit of 0.1, since R_g differs from batch to batch by up to a
factor of two; alpha falls at once and rises slowly, never above the run's balance_weight. Until
shortly before the end of warm-up nothing is done: R_g is large there because the language model's
own gradient has not reached the router yet.

Source: report section 3.1.3 (the law is this project's).
"""

import math
from collections.abc import Sequence

LIMIT = 0.1
AIM = 0.04
RISE = 1.25


def held_weight(alpha: float, r_g: Sequence[float], most: float) -> float:
    """The next alpha after R_g per layer was measured under `alpha`; at most `most`.

    A layer whose language-model gradient was zero (R_g infinite) says nothing about alpha.
    """
    worst = max((r for r in r_g if math.isfinite(r)), default=0.0)
    if worst <= 0:
        return alpha
    return min(most, alpha * min(AIM / worst, RISE))


def layers_above(r_g: Sequence[float]) -> list[int]:
    """Layers, counted from 1, whose R_g is above the limit."""
    return [i + 1 for i, r in enumerate(r_g) if r > LIMIT]
