"""Going back after a spike, a loss that is no number, or a corruption: bounded, told, repeatable.

    first time at a step    to the newest good snapshot, over the same data: what a fault in the
                            machine did does not happen twice, and the run goes on to the bits of
                            one that was never disturbed
    again at that step      it was no accident: to the snapshot before, where there is one, and
                            past the data that led here

Every process finds the trouble in the same exchanged figures; rank 0 names the snapshot, and one
more sum tells the others.
"""

from dataclasses import dataclass

import torch

from longcat.train.directory import RunDirectory
from longcat.train.errors import DivergedError, RunError
from longcat.train.metrics import Record
from longcat.train.snapshot import read_snapshot
from longcat.train.trainer import Trainer
from longcat.train.watch.alarm import Alarm

TROUBLE = ("spike", "corruption")  # the kinds of alarms that a run goes back for


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """A step that went wrong.

    Attributes:
        kind: of the alarm, or "divergence". step: where it was found. back_to: the step gone back
            to. text: the alarm's.
    """

    kind: str
    step: int
    back_to: int
    text: str


class Rollback:
    """Makes steps, and goes back when one went wrong.

    Args:
        trainer: its settings say how often it may go back. directory: where the snapshots are.

    Attributes:
        left: how many times are left in this process's life.
        trouble: what it went back for last.
    """

    def __init__(self, trainer: Trainer, directory: RunDirectory) -> None:
        self.trainer = trainer
        self.directory = directory
        self.left = trainer.settings.rollback
        self.trouble: Trouble | None = None
        self._last_trouble = 0
        self._last_target = 0
        self._news: list[Alarm] = []

    def step(self, *, stop: bool = False) -> Record | None:
        """One optimizer step; None when it went wrong and the trainer stands earlier again.

        The next step's line carries an alarm that says what happened.

        Raises:
            DivergedError: the loss is no number and no attempt is left.
        """
        trainer = self.trainer
        try:
            record = trainer.train_step(stop=stop)
        except DivergedError as error:
            if not self.left:
                raise
            why = str(error).partition(" (")[0].removeprefix("train: ")
            self._go_back("divergence", trainer.step + 1, trainer.step, why)
            return None
        trouble = [a for a in record["alarms"] if a["kind"] in TROUBLE]
        if trouble and self.left:
            good = trainer.step - 1
            if trouble[0]["kind"] == "corruption":
                good = trainer.corruption.clean_until
            self._go_back(trouble[0]["kind"], trainer.step, good, trouble[0]["text"])
            return None
        record["alarms"] = [*self._news, *record["alarms"]]
        self._news = []
        return record

    def _go_back(self, kind: str, trouble: int, good_until: int, why: str) -> None:
        trainer, again = self.trainer, trouble == self._last_trouble
        if again:
            good_until = min(good_until, self._last_target - 1)
        target = self._chosen(good_until)
        stop_asked, skipped = trainer.stop_asked, trainer.skipped
        read_snapshot(trainer, self.directory.at(target))
        if trainer.exchange.rank == 0:
            self.directory.rewind(target)
        trainer.stop_asked = stop_asked
        trainer.skipped = skipped + (trouble - target if again else 0)
        self.left -= 1
        self.trouble = Trouble(kind=kind, step=trouble, back_to=target, text=why)
        self._last_trouble, self._last_target = (0 if again else trouble), target
        data = f"past the data of {trouble - target} steps" if again else "over the same data"
        text = (
            f"step {trouble} went wrong ({why}): back to step {target} and on {data}; "
            f"{self.left} more times allowed"
        )
        self._news = [Alarm(kind="rollback", text=text)]
        trainer.start_clock()

    def _chosen(self, good_until: int) -> int:
        """The newest snapshot up to `good_until`, else the oldest; rank 0's answer for all."""
        answer = torch.zeros(1, dtype=torch.float64)
        if self.trainer.exchange.rank == 0:
            steps = [step for step, _ in self.directory.snapshots()]
            if not steps:
                raise RunError(f"train: {self.directory.path} has no snapshot to go back to")
            answer += max((s for s in steps if s <= good_until), default=steps[0])
        self.trainer.exchange.sum_(answer)
        return int(answer)
