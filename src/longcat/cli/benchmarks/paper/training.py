"""One small training: `longcat.train`'s own Trainer, read along the way.

Shapes: L ScMoE layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from longcat.cli.benchmarks.paper.figure import Arm, Row, Scale
from longcat.cli.benchmarks.paper.text import Text
from longcat.flash import FlashConfig
from longcat.flash.operations import causal_pairs, training_operations
from longcat.train.errors import RunError
from longcat.train.evaluate import HeldOut, evaluate
from longcat.train.settings import TrainSettings
from longcat.train.trainer import Trainer

Watch = Callable[[Trainer], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One arm of a figure with one seed, and what it trains on.

    Attributes:
        show: receives (steps done, steps in all) after every step.
    """

    figure: int
    arm: Arm
    seed: int
    scale: Scale
    text: Text
    show: Callable[[int, int], None] = lambda done, steps: None

    def config(self, **changes: Any) -> FlashConfig:
        """The arm's model; `changes` are config.json fields over the arm's."""
        fields = {**self.scale.model, "vocab_size": self.text.tokenizer.vocab_size}
        config = FlashConfig.from_hf({**fields, **self.arm.model, **changes})
        if self.arm.width is not None and self.arm.width != config.hidden_size:
            config = config.widened(self.arm.width)
        return config

    def settings(self, **changes: Any) -> TrainSettings:
        """The arm's settings; `changes` are fields of TrainSettings over the arm's."""
        return TrainSettings(
            **{**self.scale.settings, "seed": self.seed, **self.arm.settings, **changes}
        )

    def trainer(
        self, config: FlashConfig | None = None, settings: TrainSettings | None = None
    ) -> Trainer:
        """A trainer at step 0 with the arm's model and settings, or with those given."""
        return Trainer(
            config or self.config(),
            settings or self.settings(),
            self.text.tokens,
            self.text.token_bytes,
        )


def train_curve(job: Job) -> Row:
    """The ordinary run: train the arm, read the loss along the way and on held-out text."""
    return follow(job, job.trainer())


def follow(
    job: Job,
    trainer: Trainer,
    *,
    read: Sequence[str] = (),
    watch: Watch | None = None,
    points: int = 48,
    marks: int = 6,
    flops: float = 0.0,
) -> Row:
    """Train to the end of the trainer's steps; averages of its metrics, and held-out losses.

    Args:
        read: names of metrics besides the loss; a list (one per layer) stays one.
        watch: called after every step for further metrics; their names need not be in `read`.
        points: how many averages along the run. marks: how many held-out measurements after the
            one before the first step.
        flops: what was spent before, for a run of two phases; the trainer brings its own steps,
            tokens and seconds along.

    Returns:
        loss: held-out nats per token at the end, None when training diverged.
        diverged: the step at which the loss was not finite, else None.
        curve: columns step, tokens, flops, cpu_seconds (at the end of each stretch) and the
            metrics (means over it). held_out: columns step, tokens, flops, cpu_seconds, loss.
        parameters, tokens, flops, cpu_seconds: totals.
    """
    steps = trainer.settings.steps or 0
    ends, held_at = _places(steps, points), _places(steps, marks)
    curve, held_out, stretch = _Columns(), _Columns(), _Columns()
    spent = {
        "step": trainer.step,
        "tokens": trainer.tokens_seen,
        "flops": flops,
        "cpu_seconds": trainer.cpu_seconds,
    }
    diverged = None
    held_out.add({**spent, "loss": held_out_loss(job, trainer).loss})
    trainer.start_clock()
    while not trainer.is_done:
        try:
            record = trainer.train_step()
        except RunError:
            diverged = trainer.step + 1
            break
        job.show(trainer.step, steps)
        extra = watch(trainer) if watch else {}
        stretch.add({**{name: record[name] for name in ("loss", *read)}, **extra})
        spent["step"] = trainer.step
        spent["tokens"] = trainer.tokens_seen
        spent["flops"] += _operations(trainer, record["ffn_experts_mean"])
        spent["cpu_seconds"] = trainer.cpu_seconds
        if trainer.step in ends:
            curve.add({**spent, **stretch.means()})
            stretch = _Columns()
        if trainer.step in held_at:
            held_out.add({**spent, "loss": held_out_loss(job, trainer).loss})
            trainer.start_clock()
    return {
        "loss": None if diverged else held_out.values["loss"][-1],
        "diverged": diverged,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        **{name: spent[name] for name in ("tokens", "flops", "cpu_seconds")},
        "held_out": held_out.values,
        "curve": curve.values,
    }


def held_out_loss(job: Job, trainer: Trainer) -> HeldOut:
    """The fixed held-out text under the model as it is: each token is scored once."""
    window = trainer.settings.seq_len
    trainer.model.eval()
    try:
        return evaluate(
            trainer.model,
            job.text.tokenizer,
            job.text.held_out,
            window=window,
            stride=window - 1,
        )
    finally:
        trainer.model.train()


def _operations(trainer: Trainer, ffn_mean: list[float]) -> float:
    settings = trainer.settings
    tokens = settings.batch_size * settings.seq_len
    return training_operations(
        trainer.config,
        tokens=tokens,
        pairs=causal_pairs(settings.batch_size, settings.seq_len),
        ffn_slots=sum(ffn_mean) * tokens,
    )


def _places(steps: int, count: int) -> set[int]:
    """`count` steps at equal distances, the last among them (all, where there are fewer)."""
    return {round(steps * (i + 1) / count) for i in range(count)} - {0}


class _Columns:
    """Rows of equal keys, kept as columns of plain numbers."""

    def __init__(self) -> None:
        self.values: dict[str, list[Any]] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            self.values.setdefault(name, []).append(value)

    def means(self) -> Row:
        """The mean of each column, entry by entry for lists; values that are None are left out."""
        means: Row = {}
        for name, column in self.values.items():
            known = [
                torch.as_tensor(value, dtype=torch.float64) for value in column if value is not None
            ]
            means[name] = torch.stack(known).mean(dim=0).tolist() if known else None
        return means
