"""Which model is meant: a directory, the shipped weights, or the newest run; and opening it.

Names: after `--model`, `nano` is the weights that come with the package; for `longcat info`, it
is the configuration.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

    from longcat.flash import FlashModel
    from longcat.flash.tokenizer import Tokenizer

RUNS = Path("runs")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_DTYPES = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
}
# Below this many parameters a second thread gains nothing for one token at a time, and waiting
# for it costs up to ten times as much where other programs share the cores.
SMALL_MODEL = 20_000_000


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
    if (directory / "config.json").is_file():
        return FoundModel(directory=directory)
    if directory.is_dir() and name not in PRESETS:
        raise ValueError(
            f"no config.json in {directory}: a checkpoint is a directory with config.json, "
            "model.safetensors and tokenizer.json"
        )
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


def one_name(argument: str | None, option: str | None) -> str | None:
    """What a command was told by its argument or by `--model`; None where by neither.

    Raises typer.BadParameter where they name different models.
    """
    if None not in (argument, option) and argument != option:
        raise typer.BadParameter(f"{argument} and --model {option}: name one of them")
    return option if argument is None else argument


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
Model = Annotated[str | None, typer.Option(help=MODEL_HELP, show_default=MODEL_DEFAULT)]
ModelArgument = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="The same as --model.", show_default=False),
]
DTYPE_HELP = "float32, bfloat16, float16, float64, or int8: weights alone, on a CPU."
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, ...", show_default="cuda if there is one")
]


def weights(name: str) -> "tuple[torch.dtype, bool]":
    """What to compute in, and whether weights are kept in 8 bits: int8 computes in bfloat16."""
    import torch

    if name == "int8":
        return torch.bfloat16, True
    try:
        return torch_dtype(name), False
    except ValueError as error:
        raise ValueError(f"{error}, int8") from None


def load(directory: str | Path, name: str) -> "FlashModel":
    """The model of a checkpoint for inference, its weights as `--dtype` names them."""
    from longcat.flash import FlashModel
    from longcat.flash.int8 import to_int8

    dtype, in_8_bits = weights(name)
    model = FlashModel.from_pretrained(directory, dtype=dtype).eval()
    return to_int8(model) if in_8_bits else model


def open_model(found: FoundModel, dtype: str, device: str | None) -> "tuple[FlashModel, Tokenizer]":
    """Load weights and tokenizer of a checkpoint directory, on `device`."""
    import torch

    from longcat.flash import count_parameters
    from longcat.flash.tokenizer import Tokenizer

    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.empty(0, device=where).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]  # the rest is for torch's makers
        raise ValueError(
            f"--device {where} cannot be used here: {reason}; leave it out, or say cpu"
        ) from None
    if weights(dtype)[1] and place.type != "cpu":
        raise ValueError(f"--dtype int8 is for a CPU; on {where} take bfloat16")
    tokenizer = Tokenizer.load(found.directory)
    model = load(found.directory, dtype)
    small = count_parameters(model.config).total_parameters < SMALL_MODEL
    if place.type == "cpu" and small and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    return model.to(place), tokenizer


def torch_dtype(name: str) -> "torch.dtype":
    """float32 or f32, bfloat16 or bf16, float16 or f16, float64 or f64 -> torch's dtype."""
    import torch

    full = _DTYPES.get(name, name)
    if full not in _DTYPES.values():
        known = ", ".join(f"{long} ({short})" for short, long in _DTYPES.items())
        raise ValueError(f"unknown dtype {name!r}; known are {known}")
    dtype: torch.dtype = getattr(torch, full)
    return dtype
