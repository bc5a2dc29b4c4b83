"""Context extension: from a step on, longer windows and a larger rotary base.

The report trains 20 T tokens at 8k with theta 1e6, then 80 B at 32k with 5e6 and 20 B at 128k with
1e7. A larger base slows every rotation but the fastest, so that positions further apart than any
seen before still meet angles that were. Which stage a step is in follows from its number alone;
tokens per step stay what they were, in fewer, longer windows.

Source: report section 3.4.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from longcat.train.errors import RunError


class ContextStage(NamedTuple):
    """After `step` steps: windows of `seq_len` tokens at rotary base `theta`."""

    step: int
    seq_len: int
    theta: float

    @classmethod
    def parse(cls, text: str) -> "ContextStage":
        """From STEP:SEQ_LEN:THETA.

        Raises:
            RunError: when it is not three numbers.
        """
        try:
            step, seq_len, theta = text.split(":")
            return cls(int(step), int(seq_len), float(theta))
        except ValueError as error:
            raise RunError(
                "train: --context-stage expects STEP:SEQ_LEN:THETA, as in 400:1024:5e4; got "
                f"{text!r}"
            ) from error

    def __str__(self) -> str:
        return f"{self.step}:{self.seq_len}:{self.theta:g}"


def stage_at(stages: Sequence[ContextStage], step: int) -> ContextStage | None:
    """The stage in force after `step` steps; None before the first."""
    begun = [stage for stage in stages if stage.step <= step]
    return begun[-1] if begun else None


def check_stages(
    stages: Sequence[ContextStage],
    *,
    steps: int | None,
    batch_size: int,
    micro_batches: int,
    seq_len: int,
) -> None:
    """Refuse stages that go backwards, are never reached, or do not divide a step's tokens.

    Raises:
        RunError: naming the stage and what is wrong with it.
    """
    tokens = batch_size * seq_len
    before = ContextStage(0, seq_len, 1.0)
    for stage in stages:
        wrong = None
        if stage.step <= before.step:
            wrong = f"begins no later than step {before.step}; give stages in their order"
        elif steps is not None and stage.step >= steps:
            wrong = f"is never reached in {steps} steps"
        elif stage.seq_len <= before.seq_len:
            wrong = f"has windows no longer than the {before.seq_len} tokens before it"
        elif not (math.isfinite(stage.theta) and stage.theta > 1 and stage.theta >= before.theta):
            wrong = f"must have a theta above 1 and not below the {before.theta:g} before it"
        elif tokens % (stage.seq_len * micro_batches):
            wrong = (
                f"cannot cut the {tokens:,} tokens of a step into windows of {stage.seq_len} for "
                f"{micro_batches} micro-batches; choose a --batch-size that makes it possible"
            )
        if wrong:
            raise RunError(f"train: --context-stage {stage} {wrong}")
        before = stage
