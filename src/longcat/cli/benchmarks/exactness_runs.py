"""The runs that the exactness grid compares: how they are made, and what is recorded of each."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from longcat.flash import FlashConfig
from longcat.train import Layout, TrainSettings
from longcat.train.directory import RunDirectory
from longcat.train.exchange import Exchange, limit_threads, meet, open_store
from longcat.train.growth import grow_run
from longcat.train.prepare import model_config
from longcat.train.snapshot import read_snapshot, write_snapshot
from longcat.train.trainer import Trainer

STEPS = 4
SETTINGS = TrainSettings(
    steps=STEPS,
    vocab_size=512,
    batch_size=4,
    micro_batches=4,
    seq_len=32,
    warmup_steps=0,
    decay=0.0,
    lr=1e-3,
    precision="float64",
)


@dataclass
class Recording:
    """What one run did, step by step."""

    losses: list[float] = field(default_factory=list)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    biases: list[Tensor] = field(default_factory=list)
    counts: list[Tensor] = field(default_factory=list)
    drew: list[bool] = field(default_factory=list)
    starts: list[list[int]] = field(default_factory=list)


def alone(settings: TrainSettings | None = None, layers: int | None = None) -> Recording:
    """One process, in one go; `layers` instead of nano's own."""
    recording, settings = Recording(), settings or SETTINGS
    _train(_trainer(settings, _config(settings, layers)), recording, STEPS)
    return recording


def resumed() -> Recording:
    """One process that ends half way; another trainer goes on from its snapshot."""
    recording = Recording()
    first = _trainer(SETTINGS)
    _train(first, recording, STEPS // 2)
    _train(_reread(first), recording, STEPS - STEPS // 2)
    return recording


def grown() -> tuple[Recording, Recording]:
    """A run that was grown after half its steps: in one go from there, and interrupted."""
    with tempfile.TemporaryDirectory(prefix="longcat-exactness-") as folder:
        small, target = RunDirectory(f"{folder}/small"), RunDirectory(f"{folder}/grown")
        small.create()
        first = _trainer(SETTINGS)
        _train(first, Recording(), STEPS // 2)
        small.save(first.step, lambda into: write_snapshot(first, None, into))
        config = grow_run(small.path, target.path, 2)
        whole, cut = Recording(), Recording()
        trainer = _trainer(SETTINGS, config)
        read_snapshot(trainer, target.latest())
        _train(trainer, whole, 2)
        trainer = _trainer(SETTINGS, config)
        read_snapshot(trainer, target.latest())
        _train(trainer, cut, 1)
        _train(_reread(trainer), cut, 1)
    return whole, cut


def divided(world: int, layout: Layout, layers: int | None = None) -> Recording:
    """Several gloo processes on this machine; rank 0's recording, with everybody's windows and the
    gradients that others hold.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="longcat-exactness-") as folder:
        workers = [
            context.Process(
                target=_rank, args=(folder, rank, world, asdict(layout), SETTINGS, STEPS, layers)
            )
            for rank in range(world)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if any(worker.exitcode for worker in workers):
            raise ValueError(f"exactness: a process of {layout} failed; its words are above")
        parts = [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(world)]
    recording: Recording = parts[0]
    for part in parts[1:]:
        same = part.losses == recording.losses and all(
            torch.equal(x, y)
            for x, y in zip(
                part.biases + part.counts, recording.biases + recording.counts, strict=True
            )
        )
        if not same:
            raise ValueError(f"exactness: the processes of {layout} differ among themselves")
        recording.starts = [
            sorted({*mine, *theirs})
            for mine, theirs in zip(recording.starts, part.starts, strict=True)
        ]
        recording.gradients = [
            {**theirs, **mine}
            for mine, theirs in zip(recording.gradients, part.gradients, strict=True)
        ]
    return recording


def _rank(
    folder: str,
    rank: int,
    world: int,
    layout: dict[str, Any],
    settings: TrainSettings,
    steps: int,
    layers: int | None,
) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    limit_threads(1)
    sys.stdin = open(os.devnull)  # noqa: SIM115 (until the process ends)
    exchange = meet(open_store(f"{folder}/store", world), rank, world, Layout(**layout))
    recording = Recording()
    _train(_trainer(settings, _config(settings, layers), exchange), recording, steps)
    torch.save(recording, f"{folder}/{rank}.pt")
    dist.barrier()
    exchange.close()


def _config(settings: TrainSettings, layers: int | None) -> FlashConfig:
    config = model_config(settings)
    return replace(config, num_layers=layers or config.num_layers)


def _trainer(
    settings: TrainSettings, config: FlashConfig | None = None, exchange: Exchange | None = None
) -> Trainer:
    tokens = np.random.default_rng(0).integers(4, settings.vocab_size, size=5000)
    token_bytes = np.ones(settings.vocab_size, dtype=np.int64)
    return Trainer(config or model_config(settings), settings, tokens, token_bytes, exchange)


def _reread(trainer: Trainer) -> Trainer:
    """Another trainer with the state of this one, by way of a snapshot."""
    with tempfile.TemporaryDirectory(prefix="longcat-exactness-") as folder:
        write_snapshot(trainer, None, Path(folder))
        again = _trainer(trainer.settings, trainer.config)
        read_snapshot(again, Path(folder))
    return again


def _train(trainer: Trainer, recording: Recording, steps: int) -> None:
    """Make steps, and record all that the columns compare."""
    starts: list[int] = []
    windows: Any = trainer.windows
    find = windows.start

    def remember(number: int) -> int:
        starts.append(find(number))
        return starts[-1]

    windows.start = remember
    # A process asks for the global batch once a step, then for its shares; in a pipeline for these
    # all at once.
    asked = 0 if trainer.exchange.layout.pipeline else trainer.settings.batch_size
    trainer.optimizer.register_step_pre_hook(
        lambda *_: recording.gradients.append(_gradients(trainer))
    )
    for _ in range(steps):
        starts.clear()
        before = torch.get_rng_state()
        recording.losses.append(float(trainer.train_step()["loss"]))
        recording.starts.append(sorted(starts[asked:]))
        recording.counts.append(trainer.tally.counts.clone())
        routers: list[Any] = [layer.mlp.router for layer in trainer.model.model.layers]  # type: ignore[union-attr]
        biases = [router.e_score_correction_bias.clone() for router in routers]
        recording.biases.append(torch.stack(biases))
        recording.drew.append(not torch.equal(before, torch.get_rng_state()))


def _gradients(trainer: Trainer) -> dict[str, Tensor]:
    whole = {}
    for name, held in trainer.pieces.named_parameters():
        assert held.grad is not None
        gradient: Any = trainer.pieces.as_saved(name, held.grad)
        whole[name] = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    return {name: gradient.clone() for name, gradient in whole.items()}
