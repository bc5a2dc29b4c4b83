"""Where the processes of a run compute: on the CPU, or each on a GPU of its own.

`choose_device` answers `--device`; `own_device` gives a process its part. On a GPU:

- the same bits in every run: torch's deterministic algorithms are on, and cuBLAS is given the work
  space that it needs for them, before anything touches the device;
- what the host sends goes through pinned memory, and nobody waits for its arrival. A step waits for
  the device once, where the figures of its metrics line are read (`Trainer.train_step`).

The host has one thread per process either way: on a GPU it only tells the device what to do.
"""

import os

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longcat.serve.transfer import send
from longcat.train.errors import RunError

CPU = torch.device("cpu")
CHOICES = ("auto", "cpu", "cuda")


def choose_device(asked: str = "auto") -> torch.device:
    """The kind of device that `--device` means: auto is a GPU where torch sees one.

    Raises:
        RunError: an unknown word, or cuda where there is none.
    """
    if asked not in CHOICES:
        raise RunError(
            f"train: --device must be {', '.join(CHOICES[:-1])} or {CHOICES[-1]}; got {asked}"
        )
    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise RunError(
            "train: --device cuda needs a CUDA device, and torch sees none; use --device cpu"
        )
    return torch.device("cuda") if there and asked != "cpu" else CPU


def own_device(kind: torch.device, local_rank: int = 0) -> torch.device:
    """What this process computes on, set up: the GPU whose number it has on its machine.

    Args:
        kind: as `choose_device` found. local_rank: this process's number on its machine.

    Raises:
        RunError: when the machine has no GPU of that number.
    """
    if kind.type == "cpu":
        return CPU
    there = gpus()
    if local_rank >= there:
        raise RunError(
            f"train: process {local_rank} of this machine has no GPU of its own, torch sees "
            f"{there} here; start at most as many processes as there are GPUs"
        )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Would write NaN into every new tensor; nothing here reads what it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    device = torch.device(kind.type, local_rank)
    torch.cuda.set_device(device)
    return device


def gpus() -> int:
    """How many GPUs torch sees on this machine."""
    return torch.cuda.device_count()


def backend_of(device: torch.device) -> str:
    """torch.distributed's backend. On GPUs sums of host numbers, snapshots and the processes'
    meeting stay with gloo.
    """
    return "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"


def name_of(device: torch.device) -> str:
    """What the last bits depend on: cpu, or the GPU's make."""
    return "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)


def sent(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """A host array as a tensor on the device, without waiting for it to arrive."""
    return send(torch.from_numpy(array), device)


def finish_queue(device: torch.device) -> None:
    """Wait until the device has done all that it was told: for measuring time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_bytes(device: torch.device) -> int:
    """Memory of a GPU that nobody holds."""
    free: int = torch.cuda.mem_get_info(device)[0]
    return free
