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

from longcat.flash import FlashConfig, FlashModel
from longcat.flash.checkpoint import save_checkpoint
from longcat.flash.tokenizer import Tokenizer
from longcat.train.directory import SHARDED
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
    write_state(trainer, folder)


def write_state(trainer: Trainer, folder: Path) -> None:
    """Where the run stands and its settings: all that is not a tensor."""
    state = {
        # The data position follows from these two, and no other state is random.
        "step": trainer.step,
        "skipped": trainer.skipped,
        "computed_with": computed_with(trainer.exchange.world, trainer.device),
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
    """Restore what `write_snapshot` wrote, bit for bit, on whatever device the trainer has.

    Raises:
        RunError: when a file is missing, damaged or of another model.
    """
    if (snapshot / SHARDED).is_dir():
        from longcat.train.parallel.sharded import read_sharded

        read_sharded(trainer, snapshot)
    else:
        _read_whole(trainer, snapshot)
    config = FlashConfig.from_hf(json.loads(_read_text(snapshot / "config.json")))
    trainer.model.set_rope(config.attention.rope_theta, config.max_position_embeddings)
    state: dict[str, Any] = json.loads(_read_text(snapshot / "trainer.json"))
    trainer.controller.step = int(state["controller"]["step"])
    trainer.controller.frozen = bool(state["controller"]["frozen"])
    trainer.step, trainer.tokens_seen = int(state["step"]), int(state["tokens"])
    trainer.seconds, trainer.cpu_seconds = float(state["seconds"]), float(state["cpu_seconds"])
    trainer.skipped = int(state.get("skipped", 0))
    trainer.corruption.clean_until = trainer.step
    trainer.watch.load_state_dict(state.get("watch", {}))


@torch.no_grad()
def _read_whole(trainer: Trainer, snapshot: Path) -> None:
    saved = FlashModel.from_pretrained(snapshot, dtype=parameter_dtype(trainer.settings))
    weights, pieces = saved.state_dict(), trainer.pieces
    path = snapshot / "optimizer.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"resume: {path} cannot be read: {error}") from error
    wanted = {name for name, p in saved.named_parameters() if p.requires_grad}
    if {name.partition("/")[2] for name in tensors if name.startswith("exp_avg/")} != wanted:
        raise RunError(f"resume: {path} holds moments of another model")
    for name, held in pieces.named_parameters():
        held.copy_(pieces.take(name, weights[name]))
        trainer.optimizer.state[held] = {
            "step": tensors[f"step/{name}"].to(held.device),
            "exp_avg": pieces.take(name, tensors[f"exp_avg/{name}"]).to(held.device),
            "exp_avg_sq": pieces.take(name, tensors[f"exp_avg_sq/{name}"]).to(held.device),
        }
    for name, buffer in trainer.model.named_buffers():
        if name in weights:
            buffer.copy_(weights[name])
    errors = {key: tensors[f"controller/{key}"] for key in ("error", "previous_error")}
    trainer.controller.load_state_dict({"step": 0, "frozen": False, **errors})


def _tensors(trainer: Trainer) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, parameter in trainer.pieces.named_parameters():
        for key, value in moments(trainer, parameter).items():
            tensors[f"{key}/{name}"] = value.contiguous().cpu()
    controller = trainer.controller.state_dict()
    for key in ("error", "previous_error"):
        tensors[f"controller/{key}"] = controller[key].contiguous().cpu()
    return tensors


def moments(trainer: Trainer, held: torch.nn.Parameter) -> dict[str, Tensor]:
    """Adam's step, exp_avg and exp_avg_sq of a parameter; zeros before the first step."""
    state: dict[str, Tensor] | None = trainer.optimizer.state.get(held)
    if state:
        return {key: state[key] for key in ("step", "exp_avg", "exp_avg_sq")}
    zeros = torch.zeros_like(held.detach(), memory_format=torch.preserve_format)
    return {
        "step": torch.zeros((), device=held.device),
        "exp_avg": zeros,
        "exp_avg_sq": zeros.clone(),
    }


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"resume: {path} cannot be read: {error.strerror}") from error
