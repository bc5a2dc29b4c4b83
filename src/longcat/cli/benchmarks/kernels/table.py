"""The table of `longcat bench kernels`: every op that runs here, its forms in turns.

The limits are measured in the same run: bytes per second of a copy that no cache holds, operations
per second of a large product in each dtype. A share of the limit is the time that the slower of the
two would take over the time that was taken; operands that fit a cache can exceed it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

import longcat.kernels as kernels
from longcat.cli.benchmarks import timing
from longcat.cli.benchmarks.document import Clock, Columns, Row, rounded
from longcat.cli.benchmarks.kernels import attention, collectives, dense, mixture, training
from longcat.cli.benchmarks.kernels.case import Call, Case, Maker, Sizes
from longcat.flash.config import FlashConfig
from longcat.train.allocator import keep_freed_memory

DTYPES = (torch.float32, torch.bfloat16)
COPIED = 2**28  # bytes; a CPU's caches hold tens of megabytes, a GPU's as much
SQUARE = 1024  # rows of the product

COLUMNS: Columns = {
    "us": ("us", "{:,.0f}"),
    "spread_%": ("spread\n%", "{:,.0f}"),
    "TFLOP/s": ("TFLOP/s", "{:.4f}"),
    "GB/s": ("GB/s", "{:,.1f}"),
    "%_of_limit": ("% of\nlimit", "{:.0f}"),
    "x_torch": ("x\ntorch", "{:.2f}"),
}


def cases(
    device: str, sizes: Sizes | None = None, presets: Sequence[str] = ("nano", "bench")
) -> Iterator[Case]:
    """Every case, at the presets' shapes, in float32 and bfloat16."""
    for preset in presets:
        config = FlashConfig.preset(preset)
        for dtype in DTYPES:
            make = Maker(device, dtype, sizes or Sizes())
            for part in (dense, mixture, attention, training):
                yield from part.cases(config, make)


def document(device: str, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure every case; the file's document. `say` is told of each."""
    clock = Clock()
    rows: list[Row] = []
    keep_freed_memory()  # as a training process does
    with timing.pinned_threads(1):
        machine = timing.machine(device)
        limit = limits(device)
        for case in cases(device):
            rows += timed(case, limit, rounds, device)
            say(f"measured {case.op}, {case.shape}")
        if device == "cpu":
            rows += collectives.rows(rounds, limit)
            say("measured the collectives between two processes")
    measure = "processor time of one thread" if device == "cpu" else "wall time"
    return clock.document(
        f"longcat bench kernels --device {device} --rounds {rounds}",
        f"medians of {measure}, in turns; spread: middle half over the median; a share above "
        "100 % of the limit was read from a cache",
        **machine,
        limits=rounded(limit),
        rows=rows,
    )


def timed(case: Case, limit: dict[str, float], rounds: int, device: str) -> list[Row]:
    """A row for each form of the case."""
    forms = _with_triton(case) if device == "cuda" else case.forms
    with case.entered():
        timings = timing.interleaved(forms, rounds=rounds, device=device)
    plain = next(iter(timings.values()))
    peak = limit[f"{str(case.dtype).removeprefix('torch.')} flop/s"]
    floor = max(case.bytes / limit["bytes/s"], case.flops / peak)
    rows: list[Row] = []
    for form, taken in timings.items():
        figures = {
            "us": 1e6 * taken.median,
            "spread_%": 100 * taken.spread,
            "wall_us": 1e6 * taken.wall,
            "TFLOP/s": case.flops / taken.median / 1e12,
            "GB/s": case.bytes / taken.median / 1e9,
            "%_of_limit": 100 * floor / taken.median,
            "x_torch": plain.median / taken.median,
        }
        rows.append({"op": case.op, "shape": case.shape, "form": form, **rounded(figures)})
    return rows


def limits(device: str) -> dict[str, float]:
    """Bytes per second of a copy, and operations per second of a product in each dtype."""
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    forms: dict[str, Call] = {"copy": lambda: target.copy_(source)}
    size = SQUARE if device == "cpu" else 8 * SQUARE
    for dtype in DTYPES:
        # What oneDNN multiplies faster than torch's default is the limit of both.
        square = torch.ones(size, size, device=device).to(dtype)
        forms[str(dtype)] = partial(kernels.linear, square, square)
    found = timing.interleaved(forms, rounds=5, device=device)
    flops = {
        f"{str(dtype).removeprefix('torch.')} flop/s": 2 * size**3 / found[str(dtype)].median
        for dtype in DTYPES
    }
    return {"bytes/s": 2 * COPIED / found["copy"].median, **flops}


def _with_triton(case: Case) -> dict[str, Call]:
    """Its forms and, where there is a kernel, that too."""
    if not (case.has_kernel and kernels.triton_installed()):
        return case.forms
    ours = list(case.forms.values())[-1]

    def run() -> object:
        with kernels.use_backend("triton"):
            return ours()

    return {**case.forms, "triton": run}
