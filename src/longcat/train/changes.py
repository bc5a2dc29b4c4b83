"""What may differ when a run is resumed: how long, how often, never what was computed with."""

from dataclasses import asdict, fields, replace
from typing import Any

from longcat.train.errors import RunError
from longcat.train.settings import TrainSettings

CHANGEABLE = (
    "steps",
    "time_budget",
    "save_every",
    "keep",
    "distill_steps",
    "rollback",
    "sdc_every",
    "recompute",
)


def changed(saved: TrainSettings, wanted: dict[str, Any]) -> TrainSettings:
    """A run's settings with those that were given explicitly for its resumption.

    Raises:
        RunError: naming those that cannot be changed on the way.
    """
    before = asdict(saved)
    fixed = {
        name: value
        for name, value in wanted.items()
        if name not in CHANGEABLE and value != before[name]
    }
    if fixed:
        listed = ", ".join(f"{n} is {before[n]!r}, not {v!r}" for n, v in fixed.items())
        raise RunError(
            f"resume: the run was begun with other settings ({listed}); leave them out, or begin "
            "a new run with another --out"
        )
    if "steps" in wanted:
        wanted = {**wanted, "time_budget": None}
    elif "time_budget" in wanted:
        wanted = {**wanted, "steps": None}
    names = {f.name for f in fields(TrainSettings)}
    return replace(saved, **{n: v for n, v in wanted.items() if n in names})
