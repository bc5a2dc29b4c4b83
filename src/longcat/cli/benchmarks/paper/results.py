"""A figure's document, as bench/results/paper-NN.json holds it, and how it is read.

The pages are made from this alone: no run, no clock, no machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from longcat.cli.benchmarks.paper.figure import Row
from longcat.cli.benchmarks.paper.interval import Estimate, estimate


@dataclass(frozen=True, kw_only=True)
class Point:
    """One place of a curve: x is the mean over seeds, y the mean with its interval."""

    x: float
    y: Estimate


class Results:
    """The runs of one figure.

    Args:
        document: as assembled by `bench.assemble`, with `arms`, `seeds` and `runs`.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        self.arms: list[str] = [arm["name"] for arm in document["arms"]]
        self.seeds: list[int] = document["seeds"]

    def settings(self, arm: str) -> Row:
        """The arm as it was declared, with its number of parameters."""
        found: Row = next(a for a in self.document["arms"] if a["name"] == arm)
        return found

    def runs(self, arm: str) -> list[Row]:
        """The arm's runs, one per seed, in the order of the seeds."""
        chosen = {run["seed"]: run for run in self.document["runs"] if run["arm"] == arm}
        return [chosen[seed] for seed in self.seeds]

    def values(self, arm: str, read: str | Callable[[Row], float | None]) -> list[float]:
        """One figure per seed: an entry of the run, or what `read(run)` makes of it."""
        reader = (lambda run: run[read]) if isinstance(read, str) else read
        return [math.nan if (v := reader(run)) is None else float(v) for run in self.runs(arm)]

    def estimate(self, arm: str, read: str | Callable[[Row], float | None] = "loss") -> Estimate:
        """Its mean and interval."""
        return estimate(self.values(arm, read))

    def curve(
        self, arm: str, y: str, *, x: str = "tokens", table: str = "curve", layer: int | None = None
    ) -> list[Point]:
        """Columns of the runs' `table` ("curve" or "held_out") against each other.

        Args:
            layer: which entry of y, where it has one per layer.
        """
        tables = [run[table] for run in self.runs(arm)]
        length = min(len(columns[x]) for columns in tables)  # a diverged run is shorter
        points = []
        for i in range(length):
            at = [columns[y][i] if layer is None else columns[y][i][layer] for columns in tables]
            if all(v is not None and math.isfinite(v) for v in at):
                points.append(Point(x=fmean(c[x][i] for c in tables), y=estimate(at)))
        return points


def last_share(values: Sequence[Any], share: float) -> list[Any]:
    """The last part of a column, at least one entry."""
    return list(values[-max(1, round(share * len(values))) :])
