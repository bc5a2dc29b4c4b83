"""How many drafts to propose, from what was measured: acceptance by depth, and the time of a step.

With g drafts a step gives each sequence

    E_g = 1 + a_1 + a_1 a_2 + ... + a_1 .. a_g

tokens, where a_i is how often the draft of depth i stands when those before it do, and takes t_g
seconds. The best g has the largest E_g / t_g. Times depend on the batch and are kept by its size,
rounded up to a power of two: with more sequences there is more to compute for each weight that is
read, and drafts that were free cease to be.

What is not in use is not measured, so another g is tried now and then, the more seldom the longer
it has been worth nothing. Text does not depend on any of this.

Source: report section 5 (expected accepted length against the costs of draft and verification).
"""

from collections import deque
from statistics import median

from longcat.serve.config import MAX_DRAFTS

TRIAL = 6  # steps that a number of drafts is tried for; the first one still judges the old drafts
WINDOW = 9  # step times of which the median counts
SOONEST, LATEST = 64, 4096  # steps between trials of what was measured before
MARGIN = 1.03  # by how much another number has to be better
DECAY = 0.98  # of the counts of accepted drafts, per step


class DraftPolicy:
    """Chooses 0 .. MAX_DRAFTS drafts for each step.

    Args:
        fixed: always this many; None chooses.
        available: whether there is a draft head at all.

    drafted_at   [MAX_DRAFTS] drafts of each depth that were judged so far
    accepted_at  [MAX_DRAFTS] of these, accepted
    """

    def __init__(self, fixed: int | None, *, available: bool) -> None:
        self.adaptive = available and fixed is None
        self._now = 1 if fixed is None else fixed
        if not available:
            self._now = 0
        self.drafted_at = [0] * MAX_DRAFTS
        self.accepted_at = [0] * MAX_DRAFTS
        self._judged = [2.0] * MAX_DRAFTS  # decaying counts, which begin with a guess
        self._stood = [1.4] * MAX_DRAFTS
        self._times: dict[tuple[int, int], deque[float]] = {}
        self._best: dict[int, int] = {}
        self._trial: tuple[int, int, int] | None = None  # batch, drafts, steps left
        self._wait = SOONEST
        self._since = 0
        self._again = 0  # trials of what was measured before

    @property
    def now(self) -> int:
        """Drafts per step in use."""
        return self._now

    def choose(self, rows: int) -> int:
        """How many drafts to propose in the next step, for so many sequences."""
        if not self.adaptive or not rows:
            return self._now
        batch = _rounded(rows)
        if self._trial is not None and (self._trial[0] != batch or not self._trial[2]):
            self._trial = None
        if self._trial is None:
            self._settle(batch)
            self._begin_trial(batch)
        self._now = self._best[batch] if self._trial is None else self._trial[1]
        return self._now

    def judged(self, drafted: int, accepted: int) -> None:
        """One sequence's drafts were judged: `accepted` of them stood, the next one did not."""
        for depth in range(min(drafted, accepted + 1)):
            stood = depth < accepted
            self.drafted_at[depth] += 1
            self.accepted_at[depth] += stood
            self._judged[depth] += 1
            self._stood[depth] += stood

    def took(self, rows: int, judged: int, proposed: int, seconds: float) -> None:
        """A step over `rows` sequences, without chunks of prompts, took so long."""
        self._since += 1
        for depth in range(MAX_DRAFTS):
            # What was seen fades whether in use or not, or a trial could never outweigh it.
            if self._judged[depth] > 1.0:
                self._judged[depth] *= DECAY
                self._stood[depth] *= DECAY
        batch = _rounded(rows)
        if self._trial is not None and self._trial[:2] == (batch, proposed):
            self._trial = (batch, proposed, self._trial[2] - 1)
        if judged == proposed:
            key = (batch, proposed)
            self._times.setdefault(key, deque(maxlen=WINDOW)).append(seconds / rows)

    def _settle(self, batch: int) -> None:
        """Make the best of what has been measured the one in use."""
        known = [g for g in range(MAX_DRAFTS + 1) if (batch, g) in self._times]
        current = self._best.setdefault(batch, self._now)
        if current not in known:
            return
        best = max(known, key=lambda g: self._speed(batch, g))
        if self._speed(batch, best) > MARGIN * self._speed(batch, current):
            self._best[batch] = best
            self._wait = SOONEST

    def _begin_trial(self, batch: int) -> None:
        """Try a number never measured at this batch, or, once in a while, a neighbour."""
        best = self._best[batch]
        if (batch, best) not in self._times:
            self._trial = (batch, best, TRIAL)
            return
        nearest = sorted(range(MAX_DRAFTS + 1), key=lambda g: abs(g - best))
        unknown = [g for g in nearest if (batch, g) not in self._times]
        # Two more drafts than are worth it now need not be timed to know that they are not.
        unknown = [g for g in unknown if abs(g - best) == 1]
        if unknown:
            self._trial = (batch, unknown[0], TRIAL)
        elif self._since >= self._wait:
            others = [g for g in nearest if abs(g - best) == 1]
            self._trial = (batch, others[self._again % len(others)], TRIAL)
            self._again += 1
            self._since, self._wait = 0, min(2 * self._wait, LATEST)

    def _speed(self, batch: int, drafts: int) -> float:
        """Expected tokens per second and sequence."""
        expected, chain = 1.0, 1.0
        for depth in range(drafts):
            chain *= self._stood[depth] / self._judged[depth]
            expected += chain
        return expected / median(self._times[batch, drafts])


def _rounded(rows: int) -> int:
    return 1 << (rows - 1).bit_length()
