"""What the last bits depend on besides the settings: how many processes, how many threads.

A sum over other shares is rounded elsewhere, so a run that goes on with another number is the same
mathematics and not the same bits. The numbers are part of a snapshot; a resume that changes them
says so.
"""

import json
from pathlib import Path

import torch


def computed_with(processes: int) -> dict[str, int]:
    """This run's numbers, as a snapshot keeps them."""
    return {"processes": processes, "threads": torch.get_num_threads()}


def other_bits(snapshot: Path, processes: int) -> str | None:
    """A sentence when going on from the snapshot will not give the bits of going on unchanged.

    None when it will, when nothing was computed yet, or when an older version did not say.
    """
    try:
        state = json.loads((snapshot / "trainer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # reading the snapshot itself will say what is wrong with it
    before, now = state.get("computed_with"), computed_with(processes)
    if before is None or not state.get("step") or before == now:
        return None
    return (
        f"saved by {_words(before)}, goes on with {_words(now)}: the same mathematics, but not the "
        "bits of a run that was not interrupted"
    )


def _words(numbers: dict[str, int]) -> str:
    return f"{numbers['processes']} x {numbers['threads']} thread" + "s" * (numbers["threads"] > 1)
