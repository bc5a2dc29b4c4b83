"""What `longcat train` decides before and says after: place, settings, the last line of output."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from longcat.cli.models import RUNS, find_model, newest_run

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from longcat.train import Layout, Session, TrainSettings
    from longcat.train.loop import Observer
    from longcat.train.parallel.launch import Launch
    from longcat.train.summary import Summary
    from longcat.train.watch.rerun import Rerun

DEFAULT_STEPS = 1000
SFT_STEPS = 300
# Both phases together stay below five minutes on two free cores.
QUICKSTART_SECONDS = 225.0
QUICKSTART_DISTILL_STEPS = 120
QUICKSTART_OUT = RUNS / "quickstart"


def worker_count(processes: str) -> int | None:
    """The number given to --processes; None for auto."""
    if processes == "auto":
        return None
    if not processes.isdigit() or int(processes) < 1:
        raise typer.BadParameter(f"--processes must be a positive number or auto; got {processes}")
    return int(processes)


def check_schedule(wanted: dict[str, Any]) -> None:
    """Refuse a flag that the asked-for schedule would leave without effect."""
    if wanted.get("schedule") == "cosine" and "decay" in wanted:
        raise ValueError(
            "train: --decay belongs to --schedule wsd; a cosine falls from the end of warm-up on, "
            "so leave one of the two out"
        )


def process_count(
    processes: str,
    launch: "Launch | None",
    layout: "Layout",
    device: "torch.device",
    *,
    searching: bool,
) -> int | None:
    """Those that torchrun started, else the number given to --processes; None for auto."""
    from longcat.train.device import gpus

    if searching and (launch is not None or not layout.is_whole):
        raise ValueError("train: --search-lr runs on one machine, without splitting the model")
    if launch is not None:
        return launch.world
    count = worker_count(processes)
    if count is not None and device.type == "cuda" and count > gpus():
        raise ValueError(
            f"train: --processes {count} needs {count} GPUs, one for each, and torch sees "
            f"{gpus()}; ask for fewer, or use --device cpu"
        )
    return count


def find_place(
    out: Path | None, wanted: dict[str, Any], resume: bool, quickstart: bool, console: "Console"
) -> tuple[Path, bool]:
    """The run's directory, and whether to go on with what is in it."""
    from longcat.train import RunError
    from longcat.train.directory import free_directory
    from longcat.train.session import is_unfinished

    if resume:
        place = out or newest_run(RUNS)
        if place is None:
            raise RunError(
                f"resume: there is no run under ./{RUNS}; name one with --out DIR, or start one "
                "without --resume"
            )
        return place, True
    if quickstart:
        place = out or QUICKSTART_OUT
        if is_unfinished(place):
            console.print(f"{place} was interrupted: going on with it", style="note")
            wanted.pop("data", None)
            return place, True
        free = free_directory(place)
        if free != place:
            console.print(f"{place} is kept as it is; this run goes to {free}", style="note")
        return free, False
    name = "chat" if "sft" in wanted else str(wanted.get("preset", "nano"))
    return out or free_directory(RUNS / name), False


def chosen_settings(
    wanted: dict[str, Any],
    quickstart: bool,
    *,
    processes: int | None = None,
    layout: "Layout | None" = None,
) -> "TrainSettings":
    """What was asked for, over the defaults that depend on each other."""
    from longcat.flash import FlashConfig
    from longcat.train import RunError, TrainSettings
    from longcat.train.settings import default_lr

    if wanted.get("precision") not in (None, "auto", "bf16", "float32", "float64"):
        raise RunError(
            f"train: --precision must be float32, bf16 or float64; got {wanted['precision']}"
        )
    defaults: dict[str, Any]
    if "init" in wanted:
        defaults, wanted = _from_checkpoint(wanted)
    else:
        preset = FlashConfig.preset(wanted.get("preset", "nano"))
        defaults = {
            "vocab_size": preset.vocab_size,
            "lr": default_lr(wanted.get("width") or preset.hidden_size),
        }
    if "steps" not in wanted and "time_budget" not in wanted:
        steps = SFT_STEPS if "sft" in wanted else DEFAULT_STEPS
        defaults |= {"time_budget": QUICKSTART_SECONDS} if quickstart else {"steps": steps}
    if quickstart:
        defaults["distill_steps"] = QUICKSTART_DISTILL_STEPS
    if wanted.get("batch_size", 2) % 2:
        defaults["micro_batches"] = 1
    batch = wanted.get("batch_size", TrainSettings.batch_size)
    if processes is not None and processes > 2 and batch % processes == 0:
        defaults["micro_batches"] = processes  # one for each
    if layout is not None and layout.pipeline and batch % (2 * (processes or 2)) == 0:
        defaults["micro_batches"] = 2 * (processes or 2)  # one for each stage
    return TrainSettings(**{**defaults, **wanted})


def _from_checkpoint(wanted: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(defaults, what was asked for) of a run that starts from trained weights.

    The learning rate is a quarter of the one for random weights, and the bias controller keeps the
    small gain that it ends a run with: the balance has been found already.
    """
    from longcat.flash import FlashConfig
    from longcat.flash.checkpoint import open_checkpoint
    from longcat.train import RunError, TrainSettings
    from longcat.train.settings import default_lr

    decided = [name for name in ("preset", "vocab_size", "width", "mtp_layer") if name in wanted]
    if decided:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in decided)
        raise RunError(
            f"train: --init decides the model's sizes and tokenizer; leave out {options}"
        )
    directory = find_model(wanted["init"]).directory
    with open_checkpoint(directory) as checkpoint:
        config: FlashConfig = checkpoint.config
    defaults = {
        "preset": directory.resolve().name,
        "vocab_size": config.vocab_size,
        "lr": default_lr(config.hidden_size) / 4,
        "mu": TrainSettings.mu_final,
        "mtp_weight": TrainSettings.mtp_weight if config.has_mtp else 0.0,
    }
    return defaults, {**wanted, "init": str(directory.resolve())}


def written(
    session: "Session", watcher: "Observer", tensorboard: bool
) -> "AbstractContextManager[Observer]":
    """Who is told of the run's steps: the watcher, and TensorBoard's files where asked for."""
    from longcat.train.events import TensorBoard

    if not tensorboard:
        return nullcontext(watcher)
    return TensorBoard(session.directory.path, watcher)


def told_determinism(console: "Console") -> "Callable[[Rerun], None]":
    """Who is told what --verify-determinism found: it says so, and ends with 1 if bits differ."""

    def told(found: "Rerun") -> None:
        console.print(f"  {found.sentence()}", style="bad" if found.differing else "note")
        if found.differing:
            raise typer.Exit(1)

    return told


def short(summary: "Summary") -> dict[str, Any]:
    """The last line of standard output: the run's figures without texts and tables."""
    held_out, mtp = summary["held_out"] or {}, summary["mtp"] or {}
    loss = summary["loss"]
    return {
        "directory": summary["directory"],
        "finished": summary["finished"],
        "steps": summary["steps"],
        "tokens": summary["tokens"],
        "seconds": round(summary["seconds"], 2),
        "cpu_seconds": round(summary["cpu_seconds"], 2),
        "processes": summary["processes"],
        "total_parameters": summary["parameters"]["total"],
        "loss": loss if loss is not None and math.isfinite(loss) else None,
        "bits_per_byte": held_out.get("bits_per_byte"),
        "bits_per_byte_of": held_out.get("of", "text"),
        "bits_per_byte_before": held_out.get("bits_per_byte_before"),
        "held_out_bytes": held_out.get("bytes"),
        "compressors": held_out.get("compressors"),
        "ffn_experts_mean": held_out.get("ffn_experts_mean"),
        "ffn_experts_target": summary["ffn_experts_target"],
        "mtp_acceptance": mtp.get("acceptance"),
        "mtp_acceptance_without_repeats": mtp.get("acceptance_without_repeats"),
        "report": f"{summary['directory']}/report.html",
    }


def interruption(session: "Session", step: int) -> dict[str, Any]:
    """The last line of output of a run that was interrupted."""
    place = str(session.directory.path)
    return {
        "directory": place,
        "finished": False,
        "steps": step,
        "resume": f"longcat train --resume --out {place}",
    }
