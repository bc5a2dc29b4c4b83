"""Settings found on a narrow run, for a wide one; what `longcat train --transfer-from` uses.

Depth, sparsity, batch and everything else stay the proxy's; the width's ratio s decides what
changes: hidden and output matrices learn at 1/s of the proxy's rate and start with 1/s of its
variance (the latter by initialising by fan-in, and `FlashConfig.widened` for the head).

Source: report section 3.1.1, table 1.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from longcat.flash import FlashConfig
from longcat.optim import width_ratio
from longcat.train.directory import RunDirectory
from longcat.train.errors import RunError
from longcat.train.lr_search import best_run, is_search
from longcat.train.settings import TrainSettings
from longcat.train.snapshot import read_settings

# What a transfer may not change: the rule says nothing about them.
_FIXED = ("preset", "lr", "batch_size", "seq_len", "vocab_size")


def transferred_settings(proxy: Path, wanted: dict[str, Any]) -> TrainSettings:
    """The proxy's settings at `wanted["width"]`, with the length, seed and data asked for.

    Args:
        proxy: a run directory, or a finished learning-rate search, which stands for its best run.
        wanted: settings given explicitly; it must name a width.

    Raises:
        RunError: no run there, a search that is not finished, no width, or a setting that the
            transfer decides.
    """
    snapshot = RunDirectory(best_run(proxy) if is_search(proxy) else proxy).latest()
    settings = read_settings(snapshot)
    config = FlashConfig.from_hf(json.loads((snapshot / "config.json").read_text("utf-8")))
    if "width" not in wanted:
        raise RunError(
            f"transfer: give the target's --width, a multiple of the proxy's {config.hidden_size}"
        )
    decided = [name for name in _FIXED if name in wanted]
    if decided:
        raise RunError(
            f"transfer: {', '.join(decided)} come from the proxy {proxy}; leave out "
            + ", ".join(f"--{name.replace('_', '-')}" for name in decided)
        )
    ratio = width_ratio(wanted["width"], config.hidden_size) * settings.width_ratio
    length = {"steps": None, "time_budget": None} if _names_length(wanted) else {}
    return replace(settings, **{**length, **wanted, "width_ratio": ratio})


def _names_length(wanted: dict[str, Any]) -> bool:
    return "steps" in wanted or "time_budget" in wanted
