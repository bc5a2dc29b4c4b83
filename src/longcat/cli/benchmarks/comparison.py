"""The rows of `longcat bench train`: steps and matrix products, timed in turns."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from longcat.cli.benchmarks import memory, timing, train
from longcat.cli.benchmarks.apart import Apart
from longcat.cli.benchmarks.document import Clock, Row, rounded
from longcat.cli.benchmarks.shares import PRODUCTS
from longcat.flash import FlashConfig, FlashModel
from longcat.train.allocator import keep_freed_memory

STEP = (
    "forward, backward and fused AdamW on a fresh batch of 8 x 256 tokens, from the same weights, "
    "which gave the same loss; each form in a process of its own, in turns"
)
PEAK = (
    "the fastest 2048 x 2048 product of its precision, timed in turns with the steps; a step's "
    "GFLOP/s are model operations over its whole time"
)
MEMORY = "resident at its highest over two steps, each form in a process of its own, less imports"
SHARES = (
    "our step's time by kind of operation, under torch's profiler, which slows small ones down; "
    "% of peak beside the products is what the step would reach if nothing else took time"
)
PRODUCT = "product, "


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One shape in one precision: the products that set the peak, the steps, our step's parts."""

    peaks: list[Row]
    shares: list[Row]
    rows: list[Row]


def compare(config: FlashConfig, precision: str, rounds: int, *, with_theirs: bool) -> Comparison:
    """Time every form of the step and the products in turns, then measure the steps' memory.

    Raises:
        ValueError: the forms compute different losses.
    """
    forms = train.forms(precision, compare=with_theirs)
    held = {name: memory.peak_bytes(form, config) for name, form in forms.items()}
    ours = next(iter(forms))
    model = FlashModel(config, seed=0)
    operations = train.model_operations(config, model)
    products = train.products(precision)
    with tempfile.TemporaryDirectory() as directory, ExitStack() as processes:
        model.save_pretrained(directory, format="transformers5")
        steps = {
            name: processes.enter_context(Apart(form, config, directory))
            for name, form in forms.items()
        }
        train.check_same_loss({name: step.loss() for name, step in steps.items()}, precision)
        turns: dict[str, Callable[[], tuple[float, float]]] = {
            PRODUCT + name: partial(timing.sample, run) for name, run in products.items()
        }
        turns |= {name: step.turn for name, step in steps.items()}
        timings = {
            name: timing.summary(samples, "cpu")
            for name, samples in timing.turns(turns, rounds=rounds).items()
        }
        parts = steps[ours].shares()
    speed = {name: 2 * train.SIZE**3 / timings[PRODUCT + name].median for name in products}
    theirs = [timings[name].median for name in forms if name != ours]
    rows: list[Row] = []
    for name in forms:
        taken = timings[name]
        rate = operations / taken.median
        figures = {
            "s": taken.median,
            "spread_%": 100 * taken.spread,
            "wall_s": taken.wall,
            "tokens/s": train.BATCH * train.TOKENS / taken.median,
            "GFLOP/s": rate / 1e9,
            "%_of_peak": 100 * rate / max(speed.values()),
            "%_of_torch_matmul": 100 * rate / speed["torch"],
            "peak_MB": held[name] / 1e6,
        }
        if theirs:
            # Against whichever of theirs is the fastest.
            figures["x_transformers"] = min(theirs) / taken.median
        rows.append({"form": name, **rounded(figures)})
    limit = 100 * operations / timings[ours].median / max(speed.values())
    shares: list[Row] = [
        {"kind": kind, **rounded({"share_%": share})} for kind, share in parts.items()
    ]
    shares[0] |= rounded({"%_of_peak": 100 * limit / max(parts[PRODUCTS], 1e-9)})
    peaks: list[Row] = [
        {
            "product": name,
            **rounded(
                {
                    "GFLOP/s": value / 1e9,
                    "spread_%": 100 * timings[PRODUCT + name].spread,
                }
            ),
        }
        for name, value in speed.items()
    ]
    return Comparison(peaks=peaks, shares=shares, rows=rows)


def document(rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """What is written to train-cpu.json; `say` is told what is missing and what is measured."""
    missing = train.transformers_missing()
    if missing:
        say(missing)
    keep_freed_memory()  # as `longcat train` does; transformers has the good of it, too
    clock = Clock()
    peaks: list[Row] = []
    rows: list[Row] = []
    shares: list[Row] = []
    with timing.pinned_threads(1):
        machine = timing.machine("cpu", "transformers")
        for shape, config in train.shapes().items():
            for precision in train.PRECISIONS:
                case = compare(config, precision, rounds, with_theirs=not missing)
                of: Row = {"shape": shape, "precision": precision}
                peaks += [of | row for row in case.peaks]
                shares += [of | row for row in case.shares]
                rows += [of | row for row in case.rows]
                say(f"measured {shape}, {precision}")
    return clock.document(
        f"longcat bench train --rounds {rounds}",
        "medians of processor time of one thread, in turns; spread: middle half over the median",
        **machine,
        step=STEP,
        peak=PEAK,
        memory=MEMORY,
        parts=SHARES,
        peaks=peaks,
        rows=rows,
        shares=shares,
    )
