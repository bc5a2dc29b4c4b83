"""Grow a run, or a bare checkpoint, by stacking its layers; what `longcat grow` calls.

Of a run everything is kept: step and token counters, the learning-rate schedule, the optimizer's
moments, the controller's history, the data and the metrics so far. `longcat train --resume` then
goes on where the small run stood, with a deeper model.

Source: report section 3.1.2 (equation 9; "all training states" are kept).
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from longcat.flash import FlashConfig, FlashModel
from longcat.flash.checkpoint import save_checkpoint
from longcat.flash.checkpoint.save import COMPANIONS
from longcat.optim import stacked_names, stacked_rows
from longcat.train.directory import RunDirectory
from longcat.train.errors import RunError
from longcat.train.snapshot import read_settings
from longcat.train.step import parameter_dtype

_OPTIMIZER = "optimizer.safetensors"
_CONTROLLER = "controller/"


def grow_model(model: FlashModel, times: int) -> FlashModel:
    """A model of times * num_layers layers, layer j a copy of layer j mod num_layers.

    Raises:
        ValueError: when times is below 1.
    """
    small = model.config
    grown = FlashModel(
        replace(small, num_layers=small.num_layers * times),
        device=model.lm_head.weight.device,
        dtype=model.lm_head.weight.dtype,
    )
    if model.model.mtp is not None and model.model.mtp.embed_tokens is not model.model.embed_tokens:
        grown.untie_mtp_embedding()
    state = model.state_dict()
    pairs = stacked_names(state, small.num_layers, times)
    grown.load_state_dict({new: state[old] for new, old in pairs})
    return grown


def grow_run(source: Path, out: Path, times: int) -> FlashConfig:
    """Write a new run (or checkpoint, where `source` is one) of times the layers into `out`.

    Nothing of `source` is changed; `out` is complete or is not there.

    Args:
        source: a run directory, or any checkpoint directory.
        out: a directory that does not exist or is empty.

    Returns:
        The grown model's configuration.

    Raises:
        RunError: `out` is in use, or the run's state cannot be read. CheckpointError: the
            checkpoint is damaged. ValueError: times is below 2.
    """
    if times < 2:
        raise ValueError(f"grow: --times must be at least 2; got {times}")
    run, target = RunDirectory(source), RunDirectory(out)
    target.check_new()
    if not run.snapshots():
        model = grow_model(FlashModel.from_pretrained(source), times)
        save_checkpoint(model, out)
        for name in COMPANIONS:
            if (source / name).is_file():
                shutil.copyfile(source / name, out / name)
        return model.config
    snapshot = run.latest()
    dtype = parameter_dtype(read_settings(snapshot))
    model = grow_model(FlashModel.from_pretrained(snapshot, dtype=dtype), times)
    step = int(snapshot.name.rpartition("-")[2])
    target.create()
    try:
        shutil.copytree(run.data, target.data, dirs_exist_ok=True)
        if (source / "metrics.jsonl").exists():
            shutil.copyfile(source / "metrics.jsonl", out / "metrics.jsonl")
        target.save(step, lambda folder: _write_grown(model, snapshot, folder, times))
    except BaseException:
        target.abandon()
        raise
    return model.config


def _write_grown(model: FlashModel, snapshot: Path, folder: Path, times: int) -> None:
    """The grown snapshot: checkpoint and optimizer stacked, counters and settings as they are."""
    save_checkpoint(model, folder)
    num_layers = model.config.num_layers // times
    path = snapshot / _OPTIMIZER
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"grow: {path} cannot be read: {error}") from error
    # A draft head's router has the last row, and there is one head however deep the model is.
    grown = {
        name: torch.cat([stacked_rows(tensor[:num_layers], times), tensor[num_layers:]])
        for name, tensor in tensors.items()
        if name.startswith(_CONTROLLER)
    }
    rest = (name for name in tensors if not name.startswith(_CONTROLLER))
    # safetensors refuses two names for one memory: copies of a layer are copies.
    grown |= {new: tensors[old].clone() for new, old in stacked_names(rest, num_layers, times)}
    save_file(grown, folder / _OPTIMIZER)
    carried = {"config.json", "model.safetensors", _OPTIMIZER}
    for file in snapshot.iterdir():
        if file.name not in carried:
            shutil.copyfile(file, folder / file.name)
    # What was remembered to judge the next step by was the small model's.
    path = folder / "trainer.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(state | {"mean_loss": None, "watch": {}}, indent=1), "utf-8")
