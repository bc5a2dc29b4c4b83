"""The state of a run and its one operation: an optimizer step.

Every process holds the same model, optimizer and controller. A step draws no random number: the
initial weights come from the seed, the batch from (seed, step), so (weights, moments, controller,
step) is the whole state, and a run cut in two gives the bits of a run that was not.
"""

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from longcat.flash import FlashConfig, FlashModel
from longcat.optim import (
    adamw,
    cosine,
    set_learning_rate,
    warmup_stable_decay,
)
from longcat.router import BiasController, ControllerConfig
from longcat.train.batches import Batch, Windows
from longcat.train.errors import DivergedError, RunError
from longcat.train.exchange import Exchange
from longcat.train.metrics import Record
from longcat.train.parallel.pieces import divide
from longcat.train.peak import attention_pairs
from longcat.train.readings import record
from longcat.train.settings import TrainSettings
from longcat.train.sft.packing import PackedWindows
from longcat.train.stages import stage_at
from longcat.train.step import (
    Targets,
    count_targets,
    document_start,
    forward_backward,
    parameter_dtype,
)
from longcat.train.tally import Tally
from longcat.train.watch.corruption import CorruptionCheck
from longcat.train.watch.memory import peak_bytes
from longcat.train.watch.watch import Watch

if TYPE_CHECKING:
    from longcat.train.parallel.staged import StagedStep


class Trainer:
    """One process's part of a run.

    Args:
        config: the model's sizes. settings: everything else that decides the mathematics.
        tokens: the training ids, flat, or packed conversations [W, 3, T].
        token_bytes: [V] bytes that each id stands for.
        exchange: the other processes.

    Attributes:
        step: optimizer steps done. tokens_seen: tokens trained on.
        seconds, cpu_seconds: training time so far, of the wall and of all processes together,
            resumed parts included. stop_asked: rank 0 wants to end after the current step.
        skipped: batches passed over, after a rollback that took other data.
        watch: what looks at every step, and what it remembers.
        corruption: the check at an interval.
        peak: operations per second that all processes could make (`longcat.train.peak`); told by
            who watches the run, None elsewhere. No part of the state.
    """

    def __init__(
        self,
        config: FlashConfig,
        settings: TrainSettings,
        tokens: NDArray[np.integer],
        token_bytes: NDArray[np.int64],
        exchange: Exchange | None = None,
    ) -> None:
        self.config = config
        self.settings = settings
        self.exchange = exchange or Exchange()
        if settings.micro_batches % self.exchange.world:
            raise RunError(
                f"train: {self.exchange.world} processes cannot share {settings.micro_batches} "
                "micro-batches evenly; choose --processes that divides them"
            )
        self.windows = _windows(tokens, settings, document_start(config))
        self.model = FlashModel(config, dtype=parameter_dtype(settings), seed=settings.seed)
        self.model.balance.alpha = settings.balance_weight
        self.model.balance.groups = settings.balance_groups
        self.model.balance.scale = 1 / settings.micro_batches
        self.pieces = divide(self.model, self.exchange, half=settings.precision == "bf16")
        self.optimizer = adamw(
            self.pieces,
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            width_ratio=settings.width_ratio,
        )
        gains = ControllerConfig(
            mu=settings.mu, mu_final=settings.mu_final, decay_steps=settings.mu_steps
        )
        self.controller = BiasController(config.router, len(self.routers), gains)
        self.watch = Watch(settings, self.model.balance)
        self.corruption = CorruptionCheck(self)
        self.step = 0
        self.skipped = 0
        self.tokens_seen = 0
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self.stop_asked = False
        self.peak: float | None = None
        self._token_bytes = token_bytes
        self.tally = Tally(config, settings.balance_groups)
        self._staged = self._stages() if self.exchange.layout.pipeline else None
        self._clock = (time.perf_counter(), time.process_time())

    @property
    def progress(self) -> float:
        """The fraction of the run that is done: of its steps, or of its time budget."""
        if self.settings.steps is not None:
            return self.step / self.settings.steps
        return self.seconds / (self.settings.time_budget or 1.0)

    @property
    def is_done(self) -> bool:
        """The same answer in every process: it rests on exchanged figures alone."""
        return self.progress >= 1 or self.stop_asked

    @property
    def learning_rate(self) -> float:
        """Of the next step: linear warm-up by steps, then the schedule by progress."""
        settings, progress = self.settings, self.progress
        warmup, share = settings.warmup_steps, 0.0
        if settings.steps is not None:
            warmup = min(warmup, settings.steps // 4)
            share = warmup / settings.steps
        rise = min(1.0, (self.step + 1) / max(1, warmup))
        if settings.schedule == "cosine":
            fall = cosine(max(progress, share), warmup=share)
        else:
            fall = warmup_stable_decay(progress, warmup=0.0, decay=settings.decay)
        return settings.lr * rise * fall

    def start_clock(self) -> None:
        """Leave what was done until now (loading, saving) out of the next step's time."""
        self._clock = (time.perf_counter(), time.process_time())

    def train_step(self, *, stop: bool = False) -> Record:
        """One optimizer step over the global batch; returns its metrics.

        Args:
            stop: this process (rank 0) asks all to end after this step.

        Raises:
            DivergedError: when the loss or the gradient is no finite number; the weights are
                then still those of the step before.
        """
        settings, tally = self.settings, self.tally
        self._enter_stage()
        measure = self.step % settings.measure_every == 0
        cursor = self.step + self.skipped
        tally.clear()
        self.pieces.clear()
        whole = self.windows.batch(cursor)
        targets = count_targets(whole, document_start(self.config))
        self._forward_backward(whole, cursor, targets, measure=measure)
        self._tell_clocks(stop)
        self.pieces.sum_()
        self.exchange.sum_(tally.row)
        reading = self.pieces.read(settings.eps)
        self._check_finite(reading.norm)
        if reading.norm > settings.grad_clip:
            self.pieces.scale(settings.grad_clip / reading.norm)
        lr = self.learning_rate
        set_learning_rate(self.optimizer, lr)
        self.optimizer.step()
        self._control()
        took = tally["elapsed"]
        self.step += 1
        self.tokens_seen += round(tally["tokens"])
        self.seconds += took
        self.cpu_seconds += tally["cpu_seconds"]
        self.stop_asked = tally["stop"] > 0
        line = record(
            self, reading, lr=lr, took=took, measured=measure, pairs=attention_pairs(whole)
        )
        line |= self.watch.look(line)
        line["alarms"] += self.corruption.verdict()
        return line

    def _forward_backward(
        self, whole: Batch, cursor: int, targets: Targets, *, measure: bool
    ) -> None:
        """Gradients and sums of this process's micro-batches, or of its stages of all of them."""
        if self._staged is not None:
            self._staged.run(whole, targets, measure=measure)
            return
        settings, tally = self.settings, self.tally
        share = settings.micro_batches // self.exchange.world
        for i in range(share):
            part = self.exchange.rank * share + i
            batch = self.windows.batch(cursor, part, settings.micro_batches)
            with self.corruption.recomputing(i):
                forward_backward(
                    self.model,
                    batch,
                    targets,
                    settings,
                    tally,
                    token_bytes=self._token_bytes,
                    measure=measure,
                )

    def _stages(self) -> "StagedStep":
        from longcat.train.parallel.staged import StagedModel, StagedStep

        assert isinstance(self.pieces, StagedModel)
        return StagedStep(self.model, self.pieces, self.settings, self.tally, self._token_bytes)

    def _enter_stage(self) -> None:
        """Window length and rotary base of the next step, which follow from its number."""
        stage = stage_at(self.settings.context_stages, self.step)
        length = self.settings.seq_len if stage is None else stage.seq_len
        if isinstance(self.windows, Windows) and length != self.windows.seq_len:
            self.windows = self.windows.of_length(length)
        if stage is not None:
            positions = max(length, self.model.config.max_position_embeddings)
            self.model.set_rope(stage.theta, positions)

    def _tell_clocks(self, stop: bool) -> None:
        """Rank 0's wall time and everybody's processor time since the last step's end."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.tally.add("cpu_seconds", cpu - self._clock[1])
        self.tally.add("memory", peak_bytes())
        if self.exchange.rank == 0:
            self.tally.add("elapsed", wall - self._clock[0])
            self.tally.add("stop", float(stop))
        self._clock = (wall, cpu)

    @torch.no_grad()
    def _control(self) -> None:
        """Move the router biases by the counts of the global batch, until they are frozen."""
        freeze = self.settings.freeze_bias_at
        if freeze is not None and self.step >= freeze:
            self.controller.frozen = True
        routers = self.routers
        bias = torch.stack([router.e_score_correction_bias for router in routers])
        counts = torch.cat([self.tally.counts, self.tally.draft_counts[None]])[: len(routers)]
        fresh = self.controller.update(bias, counts.round().to(torch.int64))
        for router, row in zip(routers, fresh, strict=True):
            router.e_score_correction_bias.copy_(row)

    @property
    def layers(self) -> list[Any]:
        """The ScMoE layers."""
        return list(self.model.model.layers)

    @property
    def routers(self) -> list[Any]:
        """Of the layers, and last of a draft head's layer that has one."""
        routers = [layer.mlp.router for layer in self.layers]
        if self.config.has_mtp and self.config.mtp_layer == "scmoe":
            head: Any = self.model.model.mtp
            routers.append(head.layers[0].transformer_layer.mlp.router)
        return routers

    def _check_finite(self, norm: float) -> None:
        if not math.isfinite(self.tally["nll"]) or not math.isfinite(norm):
            raise DivergedError(
                f"train: the loss or its gradient is not finite at step {self.step + 1} (loss "
                f"{self.tally['nll'] / max(1, self.tally['targets'])}, gradient norm {norm}); "
                "start again with a lower --lr"
            )


def _windows(
    tokens: NDArray[np.integer], settings: TrainSettings, bos: int
) -> Windows | PackedWindows:
    """The batches of a run: of flat text, or of packed conversations."""
    if settings.sft:
        return PackedWindows(tokens, batch_size=settings.batch_size, seed=settings.seed, bos=bos)
    return Windows(
        tokens,
        seq_len=settings.seq_len,
        batch_size=settings.batch_size,
        seed=settings.seed,
        document_start=bos if settings.document_mask else None,
    )
