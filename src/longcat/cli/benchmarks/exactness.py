"""Which changes to how a run is carried out change no bit of it, and by how much the others do.

A nano model trains a few steps in float64, once as one process in one go (the reference) and once
for each row with one thing changed; every column compares something of all steps:

    loss         of each step
    gradients    all of them, whole, as the optimizer gets them: largest difference over the
                 tensor's largest entry
    bias         the routers' correction biases after each step
    counts       slots per expert in each step
    RNG          torch's generator before and after each step: a step draws nothing, so there is
                 no state of it to keep
    data cursor  where in the text the windows of each step begin, over all processes

A cell says "equal bits", or the largest difference; `BOUND` is what a row promises.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

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
BOUND = 1e-9  # absolute for losses and biases, relative for gradients
EQUAL = "equal bits"
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


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row: what was changed, and the two recordings that are compared."""

    name: str
    against: str = "one process, in one go"
    measure: Callable[[], tuple[Recording, Recording]]
    bits: bool  # whether the row promises equal bits


def cases(*, processes: tuple[int, ...] = (2, 4)) -> list[Case]:
    """The rows; those with more processes than asked for are left out."""
    no_balance = replace(SETTINGS, balance_weight=0.0)
    rows = [
        Case(name="resume", measure=lambda: (alone(), resumed()), bits=True),
        Case(
            name="accumulation 4, balance loss off",
            against="one process, accumulation 1",
            measure=lambda: (alone(replace(no_balance, micro_batches=1)), alone(no_balance)),
            bits=False,
        ),
        *(_recomputed(kind) for kind in ("layer", "layer-reentrant")),
        Case(name="growth, then resume", against="growth, in one go", measure=grown, bits=True),
    ]
    layouts = [
        ("data parallel 2", 2, Layout()),
        ("FSDP 1", 1, Layout(fsdp=True)),
        ("FSDP 2", 2, Layout(fsdp=True)),
        ("EP 2", 2, Layout(expert_parallel=2)),
        ("EP 2 x FSDP 2", 2, Layout(expert_parallel=2, fsdp=True)),
        ("EP 4", 4, Layout(expert_parallel=4)),
        ("EP 2 x FSDP 4", 4, Layout(expert_parallel=2, fsdp=True)),
    ]
    for name, world, layout in layouts:
        if world in (1, *processes):
            rows.append(_divided(name, world, layout))
    return rows


def _recomputed(kind: Literal["layer", "layer-reentrant"]) -> Case:
    """The layers' activations made again in the backward pass, against kept."""
    settings = replace(SETTINGS, recompute=kind)
    return Case(name=f"recompute {kind}", measure=lambda: (alone(), alone(settings)), bits=True)


def _divided(name: str, world: int, layout: Layout) -> Case:
    return Case(name=name, measure=lambda: (alone(), divided(world, layout)), bits=False)


def row_of(case: Case) -> dict[str, str | float]:
    """Measure a case: a cell for each column.

    Raises:
        ValueError: when a cell breaks what its row promises.
    """
    a, b = case.measure()
    worst = {
        "loss": float(np.abs(np.array(a.losses) - np.array(b.losses)).max()),
        "gradients": max(map(_apart, a.gradients, b.gradients)),
        "bias": max(float((x - y).abs().max()) for x, y in zip(a.biases, b.biases, strict=True)),
        "counts": float(max((x - y).abs().max() for x, y in zip(a.counts, b.counts, strict=True))),
        "RNG": float(any(a.drew + b.drew)),
        "data cursor": float(a.starts != b.starts),
    }
    allowed = 0.0 if case.bits else BOUND
    exact = ("counts", "RNG", "data cursor")
    broken = {k: v for k, v in worst.items() if not v <= (0.0 if k in exact else allowed)}
    if broken:
        raise ValueError(f"exactness: {case.name} breaks its promise of {allowed:g}: {broken}")
    promise = EQUAL if case.bits else f"below {BOUND:g}"
    cells = {k: EQUAL if v == 0 else f"{v:.1e}" for k, v in worst.items()}
    return {"against": case.against, "form": case.name, "promised": promise, **cells}


def alone(settings: TrainSettings | None = None) -> Recording:
    """One process, in one go."""
    recording = Recording()
    _train(_trainer(settings or SETTINGS), recording, STEPS)
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


def divided(world: int, layout: Layout) -> Recording:
    """Several gloo processes on this machine; rank 0's recording, with everybody's windows."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="longcat-exactness-") as folder:
        workers = [
            context.Process(
                target=_rank, args=(folder, rank, world, asdict(layout), SETTINGS, STEPS)
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
    return recording


def _rank(
    folder: str,
    rank: int,
    world: int,
    layout: dict[str, Any],
    settings: TrainSettings,
    steps: int,
) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    limit_threads(1)
    sys.stdin = open(os.devnull)  # noqa: SIM115 (until the process ends)
    exchange = meet(open_store(f"{folder}/store", world), rank, world, Layout(**layout))
    recording = Recording()
    _train(_trainer(settings, exchange=exchange), recording, steps)
    torch.save(recording, f"{folder}/{rank}.pt")
    dist.barrier()
    exchange.close()


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
    share = trainer.settings.micro_batches // trainer.exchange.world
    whole = trainer.settings.batch_size  # windows of the global batch, asked for once a step
    trainer.optimizer.register_step_pre_hook(
        lambda *_: recording.gradients.append(_gradients(trainer))
    )
    for _ in range(steps):
        starts.clear()
        before = torch.get_rng_state()
        recording.losses.append(float(trainer.train_step()["loss"]))
        own = starts[whole:] if share else []
        recording.starts.append(sorted(own))
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


def _apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference of a tensor's entries over its largest entry."""
    return max(
        float((a[name] - b[name]).abs().max() / a[name].abs().max().clamp(min=1e-30)) for name in a
    )
