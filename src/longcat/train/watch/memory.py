"""How much memory this process has held at most."""

import resource
import sys

import torch


def peak_bytes() -> int:
    """Resident memory at its highest so far, and a GPU's highest allocation where one is used."""
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    resident = highest if sys.platform == "darwin" else highest * 1024
    return resident + (torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0)
