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

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from torch import Tensor

from longcat.cli.benchmarks import exactness_runs as runs
from longcat.cli.benchmarks.exactness_runs import Recording, alone, divided, grown, resumed
from longcat.train import Layout

BOUND = 1e-9  # absolute for losses and biases, relative for gradients
EQUAL = "equal bits"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row: what was changed, and the two recordings that are compared."""

    name: str
    against: str = "one process, in one go"
    measure: Callable[[], tuple[Recording, Recording]]
    bits: bool  # whether the row promises equal bits


def cases(*, processes: tuple[int, ...] = (2, 4)) -> list[Case]:
    """The rows; those with more processes than asked for are left out."""
    no_balance = replace(runs.SETTINGS, balance_weight=0.0)
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
        ("pipeline 2", 2, Layout(pipeline=True)),
    ]
    for name, world, layout in layouts:
        if world in (1, *processes):
            rows.append(_divided(name, world, layout))
    return rows


def _recomputed(kind: Literal["layer", "layer-reentrant"]) -> Case:
    """The layers' activations made again in the backward pass, against kept."""
    settings = replace(runs.SETTINGS, recompute=kind)
    return Case(name=f"recompute {kind}", measure=lambda: (alone(), alone(settings)), bits=True)


def _divided(name: str, world: int, layout: Layout) -> Case:
    """Several processes, against one; a pipeline's model has a layer for each of its stages."""
    layers = 2 * world if layout.pipeline else None
    return Case(
        name=name,
        against="one process, in one go" + (f", {layers} layers" if layers else ""),
        measure=lambda: (alone(layers=layers), divided(world, layout, layers)),
        bits=False,
    )


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


def _apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference of a tensor's entries over its largest entry."""
    return max(
        float((a[name] - b[name]).abs().max() / a[name].abs().max().clamp(min=1e-30)) for name in a
    )
