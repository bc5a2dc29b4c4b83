"""A snapshot's files: the checkpoint, the optimizer's moments, and where the run stands.

The model is saved in the released names and in full precision, so the checkpoint that others load
is the very one that training goes on from.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from longcat.flash import FlashModel
from longcat.flash.checkpoint import save_checkpoint
from longcat.flash.tokenizer import Tokenizer
from longcat.train.errors import RunError
from longcat.train.settings import TrainSettings
from longcat.train.step import parameter_dtype
from longcat.train.trainer import Trainer
from longcat.train.watch.exactness import computed_with

_ONE_FILE = 1 << 62  # bytes; publishing replaces one file in one step


def write_snapshot(trainer: Trainer, tokenizer: Tokenizer | None, folder: Path) -> None:
    """Put the whole state into an empty folder."""
    save_checkpoint(trainer.model, folder, max_shard_bytes=_ONE_FILE)
    if tokenizer is not None:
        tokenizer.save(folder)
    save_file(_tensors(trainer), folder / "optimizer.safetensors")
    state = {
        # The data position follows from these two, and no other state is random.
        "step": trainer.step,
        "skipped": trainer.skipped,
        "computed_with": computed_with(trainer.exchange.world),
        "tokens": trainer.tokens_seen,
        "seconds": trainer.seconds,
        "cpu_seconds": trainer.cpu_seconds,
        "controller": {"step": trainer.controller.step, "frozen": trainer.controller.frozen},
        "mean_loss": trainer.watch.history.mean_loss,
        "watch": trainer.watch.state_dict(),
    }
    (folder / "trainer.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
    (folder / "settings.json").write_text(trainer.settings.to_json(), encoding="utf-8")


def read_settings(snapshot: Path) -> TrainSettings:
    """The settings the snapshot was saved with."""
    return TrainSettings.from_json(_read_text(snapshot / "settings.json"))


def read_snapshot(trainer: Trainer, snapshot: Path) -> None:
    """Restore what `write_snapshot` wrote, bit for bit.

    Raises:
        RunError: when a file is missing, damaged or of another model.
    """
    saved = FlashModel.from_pretrained(snapshot, dtype=parameter_dtype(trainer.settings))
    trainer.model.load_state_dict(saved.state_dict())
    path = snapshot / "optimizer.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"resume: {path} cannot be read: {error}") from error
    wanted = {name for name, _ in _parameters(trainer)}
    if {name.partition("/")[2] for name in tensors if name.startswith("exp_avg/")} != wanted:
        raise RunError(f"resume: {path} holds moments of another model")
    for name, parameter in _parameters(trainer):
        trainer.optimizer.state[parameter] = {
            key: tensors[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq")
        }
    state: dict[str, Any] = json.loads(_read_text(snapshot / "trainer.json"))
    errors = {key: tensors[f"controller/{key}"] for key in ("error", "previous_error")}
    trainer.controller.load_state_dict({**state["controller"], **errors})
    trainer.step, trainer.tokens_seen = int(state["step"]), int(state["tokens"])
    trainer.seconds, trainer.cpu_seconds = float(state["seconds"]), float(state["cpu_seconds"])
    trainer.skipped = int(state.get("skipped", 0))
    trainer.corruption.clean_until = trainer.step
    trainer.watch.load_state_dict(state.get("watch", {}))


def _parameters(trainer: Trainer) -> list[tuple[str, torch.nn.Parameter]]:
    """Each trained parameter once, under one name."""
    return [(n, p) for n, p in trainer.model.named_parameters() if p.requires_grad]


def _tensors(trainer: Trainer) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, parameter in _parameters(trainer):
        state = trainer.optimizer.state.get(parameter) or _untouched(parameter)
        for key in ("step", "exp_avg", "exp_avg_sq"):
            tensors[f"{key}/{name}"] = state[key].contiguous()
    controller = trainer.controller.state_dict()
    for key in ("error", "previous_error"):
        tensors[f"controller/{key}"] = controller[key].contiguous()
    return tensors


def _untouched(parameter: Tensor) -> dict[str, Tensor]:
    """Moments before the first step."""
    zeros = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return {"step": torch.zeros(()), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"resume: {path} cannot be read: {error.strerror}") from error
