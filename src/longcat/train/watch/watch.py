"""Everything that looks at a step after it was made, and what it remembers.

All of it rests on figures that were summed over the processes, so each process comes to the same
verdict and holds the same state; the state is part of a snapshot.
"""

import math
from typing import Any

from longcat.router import BalanceLoss
from longcat.train.metrics import Record
from longcat.train.settings import TrainSettings
from longcat.train.watch.alarm import Alarm
from longcat.train.watch.history import History
from longcat.train.watch.hold import LIMIT, held_weight, layers_above
from longcat.train.watch.spike import LOSS_LIMIT, NORM_LIMIT, Scores, scores


class Watch:
    """Reads each metrics line, adds its own figures to it, and holds the balance weight.

    Args:
        settings: of the run. balance: the model's balance loss, whose alpha is held.
    """

    def __init__(self, settings: TrainSettings, balance: BalanceLoss) -> None:
        self.settings = settings
        self.balance = balance
        self.history = History()

    def look(self, line: Record) -> Record:
        """The fields to add to the line of the step just made.

        spike_loss, spike_norm are robust scores (null while the history is short); alarms is a
        list of {"kind", "text"}, mostly empty.
        """
        found = scores(self.history.losses, self.history.norms, line["loss"], line["grad_norm"])
        alarms = [*self._epsilon(line), *self._spike(line, found), *self._balance(line)]
        self.history.add(line["loss"], line["grad_norm"])
        return {"spike_loss": found.loss, "spike_norm": found.norm, "alarms": alarms}

    def state_dict(self) -> dict[str, Any]:
        """The history and the weight of the balance loss."""
        return {"balance_alpha": self.balance.alpha, **self.history.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; {} is a run that begins."""
        self.history.load_state_dict(state)
        self.balance.alpha = float(state.get("balance_alpha", self.settings.balance_weight))

    def _epsilon(self, line: Record) -> list[Alarm]:
        if not line["epsilon_meets_gradient"]:
            return []
        text = "a gradient has become as small as Adam's epsilon, which then decides the step"
        return [Alarm(kind="epsilon", text=text)]

    def _spike(self, line: Record, found: Scores) -> list[Alarm]:
        if not found.is_spike:
            return []
        text = (
            f"loss {line['loss']:.3f} and gradient norm {line['grad_norm']:.3g} lie "
            f"{found.loss or math.nan:.1f} and {found.norm or math.nan:.1f} deviations above the "
            f"steps before (limits {LOSS_LIMIT:g} and {NORM_LIMIT:g})"
        )
        return [Alarm(kind="spike", text=text)]

    def _balance(self, line: Record) -> list[Alarm]:
        """Hold alpha, from one measurement before the end of warm-up on."""
        settings, r_g = self.settings, line["r_g"]
        if not r_g:
            return []
        warmup = settings.warmup_steps
        if settings.steps is not None:
            warmup = min(warmup, settings.steps // 4)
        before = self.balance.alpha
        if settings.hold_balance and line["step"] > warmup - settings.measure_every:
            self.balance.alpha = held_weight(before, r_g, settings.balance_weight)
        above = layers_above(r_g)
        if line["step"] <= warmup or not above:
            return []
        figures = ", ".join(f"{r_g[i - 1]:.3f} in layer {i}" for i in above)
        then = (
            f"its weight goes from {before:.1e} to {self.balance.alpha:.1e}"
            if settings.hold_balance
            else "lower balance_weight, or let hold_balance do it"
        )
        text = f"R_g is {figures}, above {LIMIT:g}: the balance loss pulls too hard; {then}"
        return [Alarm(kind="balance", text=text)]
