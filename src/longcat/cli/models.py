"""Which model is meant: a directory, the shipped weights, or the newest run.

Names: after `--model`, `nano` is the weights that come with the package; for `longcat info`, it
is the configuration.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from longcat.flash import FlashModel

RUNS = Path("runs")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_DTYPES = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
}


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """A checkpoint directory, and why it was chosen when no name was given."""

    directory: Path
    reason: str | None = None


def find_model(name: str | None, runs: Path = RUNS) -> FoundModel:
    """The checkpoint that `--model` means.

    A directory with config.json and weights; `nano` for the weights shipped with the package;
    None for the newest run below ./runs, else the shipped weights.
    Raises ValueError when there is none, saying what was looked for and what to do.
    """
    shipped = shipped_nano()
    if name is None:
        newest = newest_run(runs)
        if newest is not None:
            return FoundModel(directory=newest, reason="the newest run")
        if shipped is not None:
            return FoundModel(directory=shipped, reason="the weights shipped with longcat")
        raise ValueError(
            f"no model: there is no run under ./{runs}; train one with `longcat train`, "
            "or name a checkpoint with --model DIR"
        )
    from longcat.flash.presets import PRESETS

    directory = Path(name)
    # A folder that merely shares a preset's name (./bench) is not a checkpoint.
    if directory.is_dir() and (name not in PRESETS or (directory / "config.json").is_file()):
        return FoundModel(directory=directory)
    if name == "nano" and shipped is not None:
        return FoundModel(directory=shipped)
    if name in PRESETS:
        raise ValueError(
            f"{name!r} is a configuration without weights; train it with "
            f"`longcat train --preset {name}`, or give a checkpoint directory"
        )
    raise ValueError(
        f"no model {name!r}: expected a directory with config.json and model.safetensors"
        + (", or nano for the shipped weights" if shipped is not None else "")
    )


def newest_run(runs: Path) -> Path | None:
    """The directory below `runs` (or `runs` itself) whose weights were written last."""
    if not runs.is_dir():
        return None
    found = [
        (weights.stat().st_mtime_ns, weights.parent)
        for name in _WEIGHTS
        for pattern in (name, f"*/{name}")
        for weights in runs.glob(pattern)
        if (weights.parent / "config.json").is_file()
    ]
    return max(found)[1] if found else None


def shipped_nano() -> Path | None:
    """Where the package's own weights lie, or None where it carries none."""
    # find_spec imports the namespace alone, not the model and with it torch.
    spec = find_spec("longcat.flash")
    places: Sequence[str] = (spec and spec.submodule_search_locations) or []
    for place in places:
        if (Path(place) / "nano" / "model.safetensors").is_file():
            return Path(place) / "nano"
    return None


# What --help promises: the shipped weights only where there are some.
_SHIPPED = shipped_nano() is not None
MODEL_HELP = "A checkpoint directory, or nano." if _SHIPPED else "A checkpoint directory."
MODEL_DEFAULT = "newest run, else shipped nano" if _SHIPPED else "the newest run"


DTYPE_HELP = "float32, bfloat16, float16, float64, or int8: weights alone, on a CPU."


def weights(name: str) -> "tuple[torch.dtype, bool]":
    """What to compute in, and whether weights are kept in 8 bits: int8 computes in bfloat16."""
    import torch

    return (torch.bfloat16, True) if name == "int8" else (torch_dtype(name), False)


def load(directory: str | Path, name: str) -> "FlashModel":
    """The model of a checkpoint for inference, its weights as `--dtype` names them."""
    from longcat.flash import FlashModel
    from longcat.flash.int8 import to_int8

    dtype, in_8_bits = weights(name)
    model = FlashModel.from_pretrained(directory, dtype=dtype).eval()
    return to_int8(model) if in_8_bits else model


def torch_dtype(name: str) -> "torch.dtype":
    """float32 or f32, bfloat16 or bf16, float16 or f16, float64 or f64 -> torch's dtype."""
    import torch

    full = _DTYPES.get(name, name)
    if full not in _DTYPES.values():
        known = ", ".join(f"{long} ({short})" for short, long in _DTYPES.items())
        raise ValueError(f"unknown dtype {name!r}; known are {known}")
    dtype: torch.dtype = getattr(torch, full)
    return dtype
