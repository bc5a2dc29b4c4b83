"""How much memory a step takes at its highest, each form in a process of its own."""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from longcat.cli.benchmarks.train import Form, Step
from longcat.flash import FlashConfig


def peak_bytes(form: Form, config: FlashConfig) -> int:
    """Resident memory at its highest over two steps, above what the imports alone hold.

    The second step has the optimizer's state. Whatever the allocator keeps counts too: it is what
    the machine must have. Linux only; 0 elsewhere.
    """
    if not sys.platform.startswith("linux"):
        return 0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(_two_steps, form, config).result()


def _two_steps(form: Form, config: FlashConfig) -> int:
    import torch

    from longcat.train.allocator import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()
    # A model of one layer pays for what is imported and set up late.
    tiny = FlashConfig.preset("nano", num_nextn_predict_layers=0, num_layers=1)
    Step(form.build(tiny), form, tiny.vocab_size)
    before = _status("VmRSS")
    step = Step(form.build(config), form, config.vocab_size)
    step()
    step()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    """A line of the kernel's account of this process, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"bench: /proc/self/status has no {name}; memory cannot be measured here")
