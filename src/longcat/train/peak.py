"""MFU: how much of what the processor can multiply a training step turns into model operations.

    MFU = model operations of the step / seconds / (peak of one process x processes)

The peak is measured, never looked up: the fastest square product in the run's precision, by what a
training process has: one thread, with torch's own product or oneDNN's, or one GPU. It belongs to
the machine, so it is measured anew in each session and is part of no snapshot.

Source: definition of Chowdhery et al., 2022 (PaLM, appendix B), with a measured peak.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from longcat.flash.operations import causal_pairs
from longcat.kernels import onednn
from longcat.train.batches import Batch
from longcat.train.device import CPU, finish_queue
from longcat.train.metrics import Record
from longcat.train.settings import Precision

SIZE = 1024  # of the square matrices
GPU_SIZE = 8192  # a smaller product does not fill one
SECONDS = 0.2  # of measuring, first calls not counted


def square_products(
    dtype: torch.dtype, size: int, device: torch.device = CPU
) -> dict[str, Callable[[], object]]:
    """The square products whose speed is the peak: torch's own and, in float32, oneDNN's."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))
    made: dict[str, Callable[[], object]] = {"torch": lambda: left @ right.mT}
    if device.type == "cpu" and dtype == torch.float32 and onednn.available():
        made["oneDNN"] = lambda: onednn.times_transposed(left, right)
    return made


def measure_peak(
    precision: Precision,
    device: torch.device = CPU,
    *,
    size: int | None = None,
    seconds: float = SECONDS,
) -> float:
    """Operations per second of one process.

    On a CPU by processor time, so that others do not count; on a GPU, which nobody shares, from its
    being told to its being done.
    """
    size = size or (SIZE if device.type == "cpu" else GPU_SIZE)
    named = {"bf16": torch.bfloat16, "float64": torch.float64}
    products = square_products(named.get(precision, torch.float32), size, device)
    for product in products.values():
        product()  # the first call allocates, and oneDNN writes its code
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < seconds or best == float("inf"):
        for product in products.values():
            before = clock(device)
            product()
            taken = clock(device) - before
            best = min(best, taken or best)
    return 2 * size**3 / best


def clock(device: torch.device) -> float:
    """Seconds of this process's work: of the processor's time, or until a GPU is done."""
    if device.type == "cpu":
        return time.process_time()
    finish_queue(device)
    return time.perf_counter()


def attention_pairs(batch: Batch) -> float:
    """Pairs of a token and one that it attends to: within its document where they are apart."""
    if batch.document_ids is None:
        rows, length = batch.inputs.shape
        return causal_pairs(rows, length)
    lengths = [
        np.unique(row[row >= 0], return_counts=True)[1].astype(np.float64)
        for row in batch.document_ids
    ]
    return float(sum((n * (n + 1) / 2).sum() for n in lengths))


def usual(records: Sequence[Record]) -> float | None:
    """The median MFU of some steps; None where none is known."""
    known = [r["mfu"] for r in records if r.get("mfu") is not None]
    return statistics.median(known) if known else None


def percent(share: float | None) -> str:
    """In words."""
    return "?" if share is None else f"{share:.1%}"
