"""What processes of one run tell each other: one flat gradient and one row of sums per step.

Two processes of one thread train 1.6 times as fast as one process of two threads on two cores, so
`longcat train` uses data parallelism on a single machine too: gloo over the loopback device, one
all-reduce of the gradient and one of the tallies per optimizer step. On GPUs there is one process
for each, and what lies on them is summed by nccl.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import FileStore  # type: ignore[attr-defined]

from longcat.train.device import CPU, backend_of
from longcat.train.errors import RunError
from longcat.train.parallel.layout import Layout
from longcat.train.parallel.pulse import Pulse

Store = Any  # torch gives its FileStore no types
# Rank 0 may be busy saving for minutes on a slow disk; the others wait for it.
PATIENCE = timedelta(minutes=30)


class Exchange:
    """Sums over the processes of a run; with one process nothing happens.

    Attributes:
        rank: this process, 0 owns terminal and files. world: processes.
        layout: how they divide the model. device: what this process computes on.
    """

    def __init__(
        self,
        rank: int = 0,
        world: int = 1,
        layout: Layout | None = None,
        signs: Store = None,
        *,
        device: torch.device = CPU,
    ) -> None:
        """`signs`: a store object for the processes' signs of life (`parallel.pulse`)."""
        self.rank = rank
        self.world = world
        self.layout = layout or Layout()
        self.device = device
        self._pulse = None if signs is None else Pulse(signs, rank, world)
        if self._pulse is not None:
            self._pulse.__enter__()

    def sum_(self, tensor: Tensor, group: dist.ProcessGroup | None = None) -> None:
        """Replace tensor by its sum over all processes (of a group), the same bits in each.

        Raises:
            RunError: when another process is gone.
        """
        if self.world == 1:
            return
        try:
            dist.all_reduce(tensor, group=group)
        except RuntimeError as error:
            raise lost(error) from error

    def close(self) -> None:
        """Leave the group."""
        if self._pulse is not None:
            self._pulse.__exit__()
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


def lost(error: RuntimeError) -> RunError:
    """The sentence for a connection that broke."""
    lines = str(error).strip().splitlines()
    reason = lines[0][:200] if lines else "connection lost"
    return RunError(f"train: a process of this run ended before the others: {reason}")


@contextmanager
def connected() -> Iterator[None]:
    """Inside, a connection that breaks is told as `lost` does, wherever it was used."""
    try:
        yield
    except RuntimeError as error:
        if not any(backend in str(error).lower() for backend in ("gloo", "nccl")):
            raise
        raise lost(error) from error


def open_store(path: str, world: int = -1) -> Store:
    """A meeting place of a run's processes: a file, so that no port is open to others.

    With `world` the file goes when so many have closed it.
    """
    return FileStore(path, world)


def signs_of(path: str) -> str:
    """Where the processes that meet in `path` leave their signs of life."""
    return f"{path}-signs"


def meet(
    store: Store,
    rank: int,
    world: int,
    layout: Layout | None = None,
    signs: Store = None,
    *,
    device: torch.device = CPU,
) -> Exchange:
    """Wait for all processes and return the exchange between them."""
    use_loopback()
    dist.init_process_group(
        backend_of(device), store=store, rank=rank, world_size=world, timeout=PATIENCE
    )
    return Exchange(rank, world, layout, signs, device=device)


def use_loopback() -> None:
    """All processes are on this machine: open no port to others."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo0" if sys.platform == "darwin" else "lo")


def available_cores() -> int:
    """Cores this process may use: its affinity, cut by a cgroup quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, _quota()))


def _quota() -> int:
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            limit, period = file.read().split()
        return sys.maxsize if limit == "max" else max(1, int(limit) // int(period))
    except (OSError, ValueError):
        return sys.maxsize  # no cgroup v2 here: no quota known


def limit_threads(count: int = 1) -> None:
    """Compute with `count` threads in this process."""
    torch.set_num_threads(count)
