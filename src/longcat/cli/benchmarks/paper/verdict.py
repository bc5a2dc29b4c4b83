"""Sentences that say whether the report's effect is there, computed from the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from longcat.cli.benchmarks.paper.interval import paired

Expected = Literal["lower", "higher", "same", "either"]
SAME = 0.05  # nats per token: two losses whose interval of difference is inside are called equal


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One statement, and whether these runs show it.

    Args:
        seen: True when the data show what the report says, False when they do not; None for what
            the report does not say. text: the sentence, with figures.
    """

    seen: bool | None
    text: str


def difference(
    name: str,
    first: Sequence[float],
    second: Sequence[float],
    *,
    of: tuple[str, str],
    expected: Expected,
    unit: str = "",
    digits: int = 3,
    tolerance: float = SAME,
) -> Verdict:
    """Compare two arms seed by seed.

    Args:
        name: what is compared, such as "held-out loss". first, second: one value per seed, nan for
            a run that diverged. of: the arms' names.
        expected: what the report says of the first. "lower" or "higher" is seen when the whole
            interval lies on that side of 0, "same" when all of it lies within `tolerance`: an
            interval that merely includes 0 shows neither. "either" when the report says nothing.
        unit: after the figures. digits: behind the point.
    """
    lost = [sum(not math.isfinite(v) for v in values) for values in (first, second)]
    if any(lost):
        fewer = expected == "lower" and lost[0] < lost[1]
        return Verdict(
            seen=None if expected == "either" else fewer,
            text=f"training with {of[0]} diverged for {lost[0]} and with {of[1]} for {lost[1]} of "
            f"{len(first)} seeds, so that their {name} cannot be compared.",
        )
    gap = paired(first, second)
    way = "lower" if gap.mean < 0 else "higher"
    said = (
        f"the {name} with {of[0]} is {abs(gap.mean):.{digits}f} ± {gap.half:.{digits}f}{unit} "
        f"{way} than with {of[1]}"
    )
    if expected == "same":
        seen = -tolerance < gap.low and gap.high < tolerance
        if seen:
            said += f": the same within {tolerance:g}{unit}, as in the report."
        elif gap.excludes_zero:
            said += ", where the report shows no difference."
        else:
            said += f": too uncertain to call them the same within {tolerance:g}{unit}."
        return Verdict(seen=seen, text=said)
    if not gap.excludes_zero:
        said += ": the interval includes 0, so these runs cannot tell the two apart."
        return Verdict(seen=None if expected == "either" else False, text=said)
    if expected == "either":
        return Verdict(seen=None, text=f"{said}.")
    if way == expected:
        return Verdict(seen=True, text=f"{said}, as in the report.")
    return Verdict(seen=False, text=f"{said}: the opposite of what the report shows.")
