"""The rows of `longcat bench recompute`: what activation checkpointing saves, and what it costs."""

from __future__ import annotations

from typing import Any, get_args

from longcat.cli.benchmarks import comparison, memory, timing, train
from longcat.cli.benchmarks.document import Clock, Row, rounded
from longcat.flash import FlashConfig
from longcat.flash.recompute import Recompute


def document(rounds: int) -> dict[str, Any]:
    """What is written to recompute-cpu.json: the `bench` preset in both precisions."""
    clock = Clock()
    found: list[Row] = []
    with timing.pinned_threads(1):
        machine = timing.machine("cpu")
        config = train.shapes()["bench"]
        for precision in train.PRECISIONS:
            of: Row = {"shape": "bench", "precision": precision}
            found += [of | row for row in rows(config, precision, rounds)]
    return clock.document(
        f"longcat bench recompute --rounds {rounds}",
        "medians of processor time of one thread, in turns; spread: middle half over the median",
        **machine,
        step="forward, backward and fused AdamW on a fresh batch of 8 x 256 tokens",
        memory=comparison.MEMORY,
        rows=found,
    )


def rows(config: FlashConfig, precision: str, rounds: int) -> list[Row]:
    """A step of 8 x 256 tokens under every kind, in turns; memory in processes of their own."""
    form = next(iter(train.forms(precision, compare=False).values()))
    forms = {kind: form.recomputing(kind) for kind in get_args(Recompute)}
    held = {kind: memory.peak_bytes(each, config) for kind, each in forms.items()}
    steps = {
        kind: train.Step(each.build(config), each, config.vocab_size)
        for kind, each in forms.items()
    }
    timings = timing.interleaved(steps, rounds=rounds, device="cpu")
    found: list[Row] = []
    for kind, taken in timings.items():
        figures = {
            "s": taken.median,
            "spread_%": 100 * taken.spread,
            "tokens/s": train.BATCH * train.TOKENS / taken.median,
            "peak_MB": held[kind] / 1e6,
            "x_time": taken.median / timings["none"].median,
            "x_memory": held[kind] / held["none"] if held["none"] else 0.0,
        }
        found.append({"form": kind, **rounded(figures)})
    return found
