"""The collectives between two processes, beside what torch.distributed has of its own.

Wall time, for a process that waits uses no processor: on a busy machine these rows are the least
certain of the table, and their spread says so.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from longcat.cli.benchmarks import timing
from longcat.cli.benchmarks.document import Row, rounded
from longcat.train.exchange import use_loopback

WORLD = 2
ROWS, WIDTH = 256, 512  # tokens of a decoding step at the width of `bench`
COUNTS = (160, 96)  # rows of each process where they are uneven
CALLS = 10  # of a sample

Forms = dict[str, Callable[[], object]]


def rows(rounds: int, limit: dict[str, float]) -> list[Row]:
    """A row for each form of each collective.

    Raises:
        RuntimeError: a process failed; it has said why.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="longcat-collectives-") as folder:
        processes = [
            context.Process(target=_rank, args=(rank, folder, rounds, sender))
            for rank in range(WORLD)
        ]
        for process in processes:
            process.start()
        sender.close()
        try:
            taken: dict[str, dict[str, timing.Timing]] = receiver.recv()
        except EOFError:
            raise RuntimeError("bench: a process of the collectives ended early") from None
        finally:
            for process in processes:
                process.join()
    made: list[Row] = []
    for op, forms in taken.items():
        plain = next(iter(forms.values())).wall
        moved = 2 * 2 * ROWS * WIDTH * (WORLD - 1) / WORLD  # sent and received, bfloat16
        for form, one in forms.items():
            figures = {
                "us": 1e6 * one.wall,
                "spread_%": 100 * one.spread,
                "wall_us": 1e6 * one.wall,
                "TFLOP/s": ROWS * WIDTH / one.wall / 1e12,
                "GB/s": moved / one.wall / 1e9,
                "%_of_limit": 100 * moved / limit["bytes/s"] / one.wall,
                "x_torch": plain / one.wall,
            }
            shape = f"{WORLD} processes, {ROWS}x{WIDTH} bfloat16, wall"
            made.append({"op": f"multimem.{op}", "shape": shape, "form": form, **rounded(figures)})
    return made


def _rank(rank: int, folder: str, rounds: int, sender: Connection) -> None:
    """One process; the first sends its timings."""
    use_loopback()
    torch.set_num_threads(1)
    meeting = Path(folder, "store").as_uri()
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=WORLD)
    try:
        taken = {op: _in_turns(forms, rounds) for op, forms in _cases(rank).items()}
        if rank == 0:
            sender.send(taken)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _in_turns(forms: Forms, rounds: int) -> dict[str, timing.Timing]:
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in forms}
    for turn in range(rounds + 1):
        for name, form in forms.items():
            dist.barrier()
            taken = timing.sample(form, CALLS)
            if turn:  # the first connects the processes
                samples[name].append(taken)
    return {name: timing.summary(taken, "wall") for name, taken in samples.items()}


def _cases(rank: int) -> dict[str, Forms]:
    from longcat.kernels import multimem

    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(ROWS, WIDTH, generator=generator).bfloat16()
    memory = multimem.SymmetricMemory.from_group(x.nbytes)
    mine = x[: COUNTS[rank]]
    padded = [torch.empty(max(COUNTS), WIDTH, dtype=x.dtype) for _ in range(WORLD)]
    start = sum(COUNTS[:rank])

    def reduced() -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    def gathered() -> Tensor:
        rows = torch.zeros_like(padded[rank])
        rows[: len(mine)] = mine
        dist.all_gather(padded, rows)
        return torch.cat([part[:count] for part, count in zip(padded, COUNTS, strict=True)])

    cases: dict[str, Any] = {
        "all_reduce": {
            "all_reduce": reduced,
            "ours, one shot": lambda: multimem.all_reduce(x, memory, 1),
            "ours, two shots": lambda: multimem.all_reduce(x, memory, 2),
        },
        "all_gather": {
            "all_gather, padded": gathered,
            "ours": lambda: multimem.all_gather(mine, COUNTS, memory),
        },
        "reduce_scatter": {
            "all_reduce, sliced": lambda: reduced()[start : start + COUNTS[rank]],
            "ours": lambda: multimem.reduce_scatter(x, COUNTS, memory),
        },
    }
    return cases
