"""One worker process: `python -m longcat.train.worker`, its task as JSON on standard input."""

import contextlib
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class WorkerTask:
    """What a worker is told.

    Args:
        directory: the run. rank, world: who it is. store: where to meet.
        parent: process id of rank 0. terminal: a file descriptor of rank 0's standard error, for
            when rank 0 can no longer speak; None where it has none.
        device: cpu, or cuda for the GPU of its rank.
        verify: make steps twice first. expert_parallel, fsdp, pipeline: the layout.
    """

    directory: str
    rank: int
    world: int
    store: str
    parent: int
    terminal: int | None = None
    device: str = "cpu"
    verify: bool = False
    expert_parallel: int = 1
    fsdp: bool = False
    pipeline: bool = False


def main() -> int:
    """Work until rank 0 says stop."""
    # Rank 0 alone decides what an interruption means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    task = WorkerTask(**json.loads(sys.stdin.read()))

    import torch

    from longcat.train.allocator import keep_freed_memory
    from longcat.train.device import own_device
    from longcat.train.exchange import limit_threads, meet, open_store, signs_of
    from longcat.train.loop import work
    from longcat.train.parallel.layout import Layout

    limit_threads(1)
    keep_freed_memory()
    store = open_store(task.store, task.world)
    store.set(f"arrived-{task.rank}", "yes")
    layout = Layout(expert_parallel=task.expert_parallel, fsdp=task.fsdp, pipeline=task.pipeline)
    signs = open_store(signs_of(task.store))
    device = own_device(torch.device(task.device), task.rank)
    exchange = meet(store, task.rank, task.world, layout, signs, device=device)
    try:
        work(Path(task.directory), exchange, verify=task.verify)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        _tell(f"error: {error}. What was saved stands in {task.directory}; go on from it", task)
        return 1
    finally:
        exchange.close()
    return 0


def _tell(sentence: str, task: WorkerTask) -> None:
    """Say it in the place of rank 0, if that is gone."""
    if task.terminal is None:
        return
    until = time.monotonic() + 1  # its connections close a little before it has ended
    while os.getppid() == task.parent and time.monotonic() < until:
        time.sleep(0.02)
    if os.getppid() != task.parent:
        with contextlib.suppress(OSError):
            command = f"`longcat train --resume --out {task.directory}`"
            os.write(task.terminal, f"{sentence} by {command}\n".encode())


if __name__ == "__main__":
    sys.exit(main())
