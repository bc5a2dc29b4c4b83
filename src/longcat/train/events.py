"""`--tensorboard`: what metrics.jsonl says, as event files that TensorBoard reads.

An observer of the run, in rank 0. Each line's figures become scalars under their own names; a list
with one figure per layer becomes one tag per layer, loads per expert one histogram per layer. A run
that goes on, or back, opens another file whose first event purges what lies at and after its step.
"""

import math
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from longcat.train.errors import RunError
from longcat.train.loop import Observer
from longcat.train.metrics import Record

FOLDER = "tensorboard"


def require_tensorboard() -> None:
    """Refuse early where the event files could not be written.

    Raises:
        RunError: the package is not installed.
    """
    try:
        import tensorboard  # noqa: F401 (torch's writer needs it)
    except ImportError as error:
        raise RunError(
            "train: --tensorboard needs the package tensorboard, which is not installed; "
            'pip install "longcat-flash[tensorboard]", or leave the option out'
        ) from error


class TensorBoard:
    """An observer, as a context manager, that writes DIR/tensorboard and tells another observer.

    Args:
        run: the run's directory. beside: who else watches.
    """

    def __init__(self, run: Path, beside: Observer) -> None:
        self._folder = run / FOLDER
        self._beside = beside
        self._writer: Any = None  # torch gives its SummaryWriter few types
        self._last = 0

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def step(self, record: Record, progress: float, seconds_left: float | None) -> None:
        """Write a step, at its number."""
        self._beside.step(record, progress, seconds_left)
        if self._writer is None or record["step"] <= self._last:
            self._open(record["step"])
        self._last = record["step"]
        for name, value in scalars(record).items():
            self._writer.add_scalar(name, value, self._last)
        for layer, load in enumerate(record["expert_load"]):
            self._writer.add_histogram(
                f"expert_load/layer_{layer + 1}", np.asarray(load), self._last
            )
        for alarm in record["alarms"]:
            self._writer.add_text(f"alarms/{alarm['kind']}", alarm["text"], self._last)

    def saved(self, step: int) -> None:
        """A snapshot is complete: so are the events up to it."""
        self._beside.saved(step)
        if self._writer is not None:
            self._writer.flush()

    def _open(self, step: int) -> None:
        """A new file; events of `step` and later in older ones no longer count."""
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is not None:
            self._writer.close()
        self._writer = SummaryWriter(str(self._folder), purge_step=step)


def scalars(record: Record) -> dict[str, float]:
    """Tag -> figure, of a metrics line; layers count from 1, what was not measured is left out."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, list):
            tags = {f"{name}/layer_{i + 1}": one for i, one in enumerate(value)}
        else:
            tags = {name: value}
        found |= {
            tag: float(one)
            for tag, one in tags.items()
            if isinstance(one, int | float) and math.isfinite(one) and name != "step"
        }
    return found
