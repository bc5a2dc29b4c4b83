"""What the last bits depend on besides the settings: how many processes, and what each computes on.

A sum over other shares is rounded elsewhere, and a CPU, a GPU and another make of GPU have kernels
of their own. So a run that goes on with other processes, threads or devices is the same mathematics
and not the same bits: a snapshot is read on any device, its bits are promised on its own. All of it
is part of a snapshot; a resume that changes it says so.
"""

import json
from pathlib import Path
from typing import Any

import torch

from longcat.train.device import CPU, name_of


def computed_with(processes: int, device: torch.device = CPU) -> dict[str, Any]:
    """This run's numbers, as a snapshot keeps them; on a GPU the host's threads change nothing."""
    computed: dict[str, Any] = {"processes": processes, "device": name_of(device)}
    if device.type == "cpu":
        computed["threads"] = torch.get_num_threads()
    return computed


def other_bits(snapshot: Path, processes: int, device: torch.device = CPU) -> str | None:
    """A sentence when going on from the snapshot will not give the bits of going on unchanged.

    None when it will, when nothing was computed yet, or when an older version did not say.
    """
    try:
        state = json.loads((snapshot / "trainer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # reading the snapshot itself will say what is wrong with it
    before, now = state.get("computed_with"), computed_with(processes, device)
    if before is None or not state.get("step"):
        return None
    before = {"device": name_of(CPU), **before}  # there was nothing else once
    if before == now:
        return None
    return (
        f"saved by {_words(before)}, goes on with {_words(now)}: the same mathematics, but not the "
        "bits of a run that was not interrupted"
    )


def _words(numbers: dict[str, Any]) -> str:
    threads = numbers.get("threads")
    each = numbers["device"] if threads is None else f"{threads} thread" + "s" * (threads > 1)
    return f"{numbers['processes']} x {each}"
