"""Learning-rate factors as plain functions of progress; `reference.py` defines them.

The report does not publish its schedule; these are the two in common use.
"""

import math


def warmup_stable_decay(
    progress: float, *, warmup: float, decay: float = 0.3, final: float = 0.0
) -> float:
    """The factor on the peak learning rate at `progress` in [0, 1] of the run.

    Args:
        progress: fraction of the run already done (steps, tokens or seconds).
        warmup: fraction over which the factor rises linearly from 0 to 1.
        decay: fraction at the end over which it falls linearly from 1 to `final`.

    Raises:
        ValueError: when a fraction is negative or warm-up and decay overlap.
    """
    if warmup < 0 or decay < 0 or warmup + decay > 1:
        raise ValueError(
            "schedule: warmup and decay are fractions of the run with warmup + decay <= 1; got "
            f"warmup={warmup}, decay={decay}"
        )
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return progress / warmup
    if decay and progress > 1 - decay:
        return final + (1 - final) * (1 - progress) / decay
    return 1.0


def cosine(progress: float, *, warmup: float, final: float = 0.0) -> float:
    """The factor at `progress`: a linear rise over `warmup`, then half a cosine to `final`.

    Args:
        progress, warmup, final: as for `warmup_stable_decay`.

    Raises:
        ValueError: when warm-up is no fraction of the run.
    """
    if not 0 <= warmup <= 1:
        raise ValueError(f"schedule: warmup is a fraction of the run, 0 to 1; got {warmup}")
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return progress / warmup
    if warmup == 1:
        return 1.0
    fallen = (progress - warmup) / (1 - warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * fallen))
