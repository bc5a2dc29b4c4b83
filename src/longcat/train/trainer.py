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
from torch import Tensor

from longcat.flash import FlashConfig, FlashModel
from longcat.optim import (
    GradientMonitor,
    GradientReading,
    adamw,
    set_learning_rate,
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
from longcat.train.sft.packing import windows_of
from longcat.train.stages import stage_at
from longcat.train.step import (
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
        device: of the model, the optimizer, the controller and all sums: the exchange's.
        tally: the last step's sums over the global batch, on the host.
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
        self.windows = windows_of(tokens, settings, document_start(config))
        self.device = self.exchange.device
        self.model = FlashModel(
            config,
            # A model that is split is cut before it goes there.
            device=self.device if self.exchange.layout.is_whole else None,
            dtype=parameter_dtype(settings),
            seed=settings.seed,
        )
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
            mu=settings.mu,
            mu_final=settings.mu_final,
            decay_steps=settings.mu_steps,
            mu_mean=settings.mu_mean,
        )
        self.controller = BiasController(
            config.router, len(self.routers), gains, device=self.device
        )
        self.watch = Watch(settings, self.model.balance)
        self.corruption = CorruptionCheck(self)
        self.step = 0
        self.skipped = 0
        self.tokens_seen = 0
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self.stop_asked = False
        self.peak: float | None = None
        self._token_bytes = torch.from_numpy(token_bytes).to(self.device)
        self._sums = Tally(config, settings.balance_groups, self.device)
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
        """Of the next step."""
        return self.settings.learning_rate(self.step, self.progress)

    def start_clock(self) -> None:
        """Leave what was done until now (loading, saving) out of the next step's time."""
        self._clock = (time.perf_counter(), time.process_time())

    def train_step(self, *, stop: bool = False) -> Record:
        """One optimizer step over the global batch; returns its metrics.

        The host waits for the device once, in `_read`, and where a step is checked or measured: for
        R_g's router similarity every `measure_every` steps, for the corruption check when it is
        due. Float32 products of experts on a GPU wait too (`longcat.kernels.experts`).

        Args:
            stop: this process (rank 0) asks all to end after this step.

        Raises:
            DivergedError: when the loss or the gradient is no finite number; the weights are
                then still those of the step before.
        """
        self._enter_stage()
        measure = self.step % self.settings.measure_every == 0
        whole = self.windows.batch(self.step + self.skipped)
        reading = self._read(self._gradients(whole, measure=measure, stop=stop))
        self._check_finite(reading.norm)
        lr = self.learning_rate
        self._update(lr, reading.norm)
        tally = self.tally
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

    def _gradients(self, whole: Batch, *, measure: bool, stop: bool) -> Tensor:
        """Gradients and sums of the global batch; returns the gradients' norms."""
        self._sums.clear()
        self.pieces.clear()
        self._forward_backward(whole, measure=measure)
        self._tell_clocks(stop)
        self.pieces.sum_()
        self.exchange.sum_(self._sums.row)
        return self.pieces.norms()

    def _read(self, norms: Tensor) -> GradientReading:
        """The sums and norms on the host: here a step waits for the device."""
        figures = torch.cat([self._sums.row, norms]).cpu()
        sums, norms = figures.split([len(self._sums.row), len(norms)])
        self.tally.row.copy_(sums)
        return GradientMonitor(self.settings.eps).of(norms, self.pieces.sizes)

    def _update(self, lr: float, norm: float) -> None:
        """Clip the gradients, step the weights, move the routers' biases."""
        if norm > self.settings.grad_clip:
            self.pieces.scale(self.settings.grad_clip / norm)
        set_learning_rate(self.optimizer, lr)
        self.optimizer.step()
        self._control()

    def _forward_backward(self, whole: Batch, *, measure: bool) -> None:
        """Gradients and sums of this process's micro-batches, or of its stages of all of them."""
        targets = count_targets(whole, document_start(self.config))
        if self._staged is not None:
            self._staged.run(whole, targets, measure=measure)
            return
        settings = self.settings
        share = settings.micro_batches // self.exchange.world
        for i in range(share):
            part = self.exchange.rank * share + i
            batch = self.windows.batch(self.step + self.skipped, part, settings.micro_batches)
            with self.corruption.recomputing(i):
                forward_backward(
                    self.model,
                    batch,
                    targets,
                    settings,
                    self._sums,
                    token_bytes=self._token_bytes,
                    measure=measure,
                )

    def _stages(self) -> "StagedStep":
        from longcat.train.parallel.staged import StagedModel, StagedStep

        assert isinstance(self.pieces, StagedModel)
        return StagedStep(self.model, self.pieces, self.settings, self._sums, self._token_bytes)

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
        self._sums.add("cpu_seconds", cpu - self._clock[1])
        self._sums.add("memory", peak_bytes())
        if self.exchange.rank == 0:
            self._sums.add("elapsed", wall - self._clock[0])
            self._sums.add("stop", float(stop))
        self._clock = (wall, cpu)

    @torch.no_grad()
    def _control(self) -> None:
        """Move the router biases by the counts of the global batch, until they are frozen."""
        freeze = self.settings.freeze_bias_at
        if freeze is not None and self.step >= freeze:
            self.controller.frozen = True
        routers = self.routers
        bias = torch.stack([router.e_score_correction_bias for router in routers])
        counts = torch.cat([self._sums.counts, self._sums.draft_counts[None]])[: len(routers)]
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
