"""Processes that torchrun started, on this machine or on several.

torchrun tells each process who it is by environment variables. Rank 0 then does what `longcat
train` does alone (text, tokenizer, card, files, terminal) and tells the others which run it is;
they wait for that and work. No process is started from here. The run's directory must lie on
storage that all of them see.

torchrun's own restarts (--max-restarts) are no way to go on after a death: launch anew with
--resume instead.
"""

import os
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

from longcat.train.allocator import keep_freed_memory
from longcat.train.device import CPU, backend_of, own_device
from longcat.train.errors import RunError
from longcat.train.exchange import PATIENCE, Exchange, limit_threads, use_loopback
from longcat.train.parallel.layout import Layout


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Who this process is.

    Args:
        rank: 0 owns terminal and files. world: processes. local: those on this machine.
        local_rank: this one's number among them.
    """

    rank: int
    world: int
    local: int
    local_rank: int


def launched(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """What torchrun said, None when it did not start this process.

    Raises:
        RunError: when it said half of it.
    """
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    there = [name for name in names if name in environment]
    if "RANK" not in there or "WORLD_SIZE" not in there:
        return None
    if len(there) < len(names):
        missing = ", ".join(name for name in names if name not in there)
        raise RunError(
            f"train: RANK and WORLD_SIZE are set, but not {missing}; start it by torchrun, or "
            "unset them"
        )
    return Launch(
        rank=int(environment["RANK"]),
        world=int(environment["WORLD_SIZE"]),
        local=int(environment.get("LOCAL_WORLD_SIZE", environment["WORLD_SIZE"])),
        local_rank=int(environment.get("LOCAL_RANK", environment["RANK"])),
    )


class Launched:
    """The other processes of a launch, in the place of `workers.Workers`.

    Attributes:
        exchange: between all of them, once entered.
    """

    def __init__(
        self,
        launch: Launch,
        directory: Path,
        layout: Layout,
        *,
        device: torch.device = CPU,
        verify: bool = False,
    ) -> None:
        self._launch = launch
        self._device = device
        self._task = {
            "directory": str(directory.resolve()),
            "layout": asdict(layout),
            "verify": verify,
            "device": device.type,
        }
        self._layout = layout
        self.exchange = Exchange()

    def __enter__(self) -> "Launched":
        signs = _join(self._launch, self._device)
        dist.broadcast_object_list([self._task], src=0)
        self.exchange = Exchange(0, self._launch.world, self._layout, signs, device=self._device)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.exchange.close()


def follow(launch: Launch, kind: torch.device = CPU) -> None:
    """What every process but rank 0 does: wait for the run, work on it, say nothing.

    Args:
        kind: of device to compute on, the same as rank 0's.

    Raises:
        RunError: when another process is gone, or computes on something else.
    """
    from longcat.train.loop import work

    device = own_device(kind, launch.local_rank)
    limit_threads(1)
    keep_freed_memory()
    signs = _join(launch, device)
    told: list[Any] = [None]
    try:
        dist.broadcast_object_list(told, src=0)
    except RuntimeError as error:
        raise RunError("train: rank 0 ended before the run began; its message says why") from error
    if told[0]["device"] != device.type:
        raise RunError(
            f"train: rank 0 computes on {told[0]['device']}, rank {launch.rank} on {device.type}; "
            "give every process the same --device"
        )
    # From here on: torchrun passes an interruption on to all, and rank 0 alone decides what it
    # means; when a process has died it asks the others to end, who find out and say so themselves.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    layout = Layout(**told[0]["layout"])
    exchange = Exchange(launch.rank, launch.world, layout, signs, device=device)
    try:
        work(Path(told[0]["directory"]), exchange, verify=told[0]["verify"])
    finally:
        exchange.close()


def _join(launch: Launch, device: torch.device) -> Any:
    """Meet the others; returns a store of its own for their signs of life."""
    if launch.local == launch.world:
        use_loopback()
    try:
        dist.init_process_group(backend_of(device), timeout=PATIENCE)
        return dist.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
        )
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"train: the launch's processes could not find each other: {str(error).splitlines()[0]}"
        ) from error
