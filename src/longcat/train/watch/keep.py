"""Which snapshots stay: the newest ones, and the one with the lowest running mean of the loss."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from longcat.train.directory import RunDirectory


class Kept(TypedDict):
    """A snapshot in run.json: its step, the mean training loss before it, and whether it leads."""

    step: int
    mean_loss: float | None
    best: bool


def mean_losses(directory: RunDirectory) -> dict[int, float]:
    """{step: running mean of the training loss} of the snapshots there are.

    A snapshot whose figure is missing or damaged has infinity: it is never the best.
    """
    return {step: _mean_loss(folder) for step, folder in directory.snapshots()}


def best_step(means: Mapping[int, float]) -> int | None:
    """The step with the lowest mean, the later one of two equals; None when none has a figure."""
    finite = {step: mean for step, mean in means.items() if math.isfinite(mean)}
    return min(finite, key=lambda step: (finite[step], -step), default=None)


def kept(directory: RunDirectory) -> list[Kept]:
    """What a run has kept, oldest first."""
    means = mean_losses(directory)
    best = best_step(means)
    return [
        Kept(step=step, mean_loss=mean if math.isfinite(mean) else None, best=step == best)
        for step, mean in means.items()
    ]


def _mean_loss(folder: Path) -> float:
    try:
        state = json.loads((folder / "trainer.json").read_text(encoding="utf-8"))
        return float(state["mean_loss"])
    except (OSError, ValueError, KeyError, TypeError):
        return math.inf
