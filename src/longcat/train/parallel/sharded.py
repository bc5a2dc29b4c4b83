"""Snapshots of divided models: every process writes its own pieces, in the background.

    state/step-00000200/sharded/     torch.distributed.checkpoint: pieces and where they belong
    state/step-00000200/*.json, tokenizer.json

A step goes on while the last snapshot is being written: the pieces are copied first, and the
writers talk to each other in a process group of their own. The snapshot is written beside the
others under a temporary name and renamed when the last writer is done, so a kill at any moment
leaves the snapshot before. Reading cuts pieces anew: a run saved by two processes goes on in
one or four, in any layout. At its end a run's last snapshot is turned into the ordinary kind.

Source: report section 5; torch.distributed.checkpoint.
"""

import json
import os
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from longcat.train.directory import SHARDED, RunDirectory
from longcat.train.errors import RunError
from longcat.train.exchange import connected
from longcat.train.parallel.saving import Publish
from longcat.train.prepare import Prepared
from longcat.train.snapshot import moments, write_state
from longcat.train.trainer import Trainer

_PENDING = ".pending-"


class ShardedSaver:
    """See the module's text.

    Args:
        publish: called in rank 0 with a step and a function that fills a folder: the atomic save.
    """

    def __init__(
        self, directory: RunDirectory, trainer: Trainer, prepared: Prepared, publish: Publish
    ) -> None:
        self.last = trainer.step
        self._directory, self._trainer, self._prepared = directory, trainer, prepared
        self._publish = publish
        self._is_first = trainer.exchange.rank == 0
        self._group = dist.new_group(backend="gloo")
        self._begun: tuple[int, Path, Future[Any]] | None = None
        if self._is_first:
            for leftover in directory.state.glob(f"{_PENDING}*"):
                shutil.rmtree(leftover)

    def save(self) -> None:
        """Copy the pieces, and write them while training goes on."""
        self.finish()
        trainer = self._trainer
        folder = self._directory.state / f"{_PENDING}{trainer.step:08d}"
        if self._is_first:
            folder.mkdir(exist_ok=True)
            write_state(trainer, folder)
            self._prepared.tokenizer.save(folder)
            text = json.dumps(trainer.model.config.to_hf(), indent=1)  # the rope base in force
            (folder / "config.json").write_text(text, encoding="utf-8")
        copies = {name: _kept(tensor) for name, tensor in _tensors(trainer).items()}
        writing = async_save(copies, checkpoint_id=folder / SHARDED, process_group=self._group)
        self._begun = (trainer.step, folder, cast("Future[Any]", writing))

    def finish(self) -> None:
        """Wait for all writers; rank 0 then gives the snapshot its name.

        Raises:
            RunError: when a process could not write; the snapshot before stands.
        """
        if self._begun is None:
            return
        (step, folder, writing), self._begun = self._begun, None
        try:
            with connected():
                writing.result()
        except (CheckpointException, RuntimeError, OSError) as error:
            raise RunError(f"train: saving step {step} failed: {_reason(error)}") from error
        if self._is_first:
            self._publish(step, lambda target: _move(folder, target))
            shutil.rmtree(folder, ignore_errors=True)
        self.last = step

    def poll(self) -> None:
        """Rank 0's writer ends last: it writes down where the others' pieces are."""
        if self._begun is not None and self._begun[2].done():
            self.finish()


def read_sharded(trainer: Trainer, snapshot: Path) -> None:
    """Weights, biases, moments and the controller's errors from a sharded snapshot.

    Every process reads what it holds and asks nobody, so the layout may be another one.

    Raises:
        RunError: when a file is missing, damaged or of another model.
    """
    trainer.optimizer.state.clear()
    for _, held in trainer.pieces.named_parameters():
        trainer.optimizer.state[held] = moments(trainer, held)
    tensors = _tensors(trainer)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(tensors, checkpoint_id=snapshot / SHARDED, no_dist=True)
    except (CheckpointException, RuntimeError, OSError, ValueError, KeyError) as error:
        raise RunError(f"resume: {snapshot} cannot be read: {_reason(error)}") from error
    trainer.controller.error = tensors["controller/error"]
    trainer.controller.previous_error = tensors["controller/previous_error"]


def replace_pieces(directory: RunDirectory, write: Callable[[Path], None]) -> None:
    """Turn the newest snapshot, a sharded one, into the ordinary kind, and publish it.

    Until the pieces are gone reading prefers them, so a kill in between does no harm.
    """
    snapshot = directory.latest()
    fresh = directory.state / f"{_PENDING}whole"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    write(fresh)
    for file in fresh.iterdir():
        if file.name not in ("trainer.json", "settings.json"):  # who saved it stays as it is
            os.replace(file, snapshot / file.name)
    shutil.rmtree(fresh)
    pieces = snapshot / SHARDED
    doomed = directory.state / f"{_PENDING}doomed"
    os.rename(pieces, doomed)
    shutil.rmtree(doomed)
    directory.publish(snapshot)


def _tensors(trainer: Trainer) -> dict[str, Tensor]:
    """Everything that is state, each held piece as a piece of a whole tensor; memory is shared."""
    tensors: dict[str, Tensor] = {}
    for name, held in trainer.pieces.named_parameters():
        tensors[f"model/{name}"] = trainer.pieces.as_saved(name, held.detach())
        state = moments(trainer, held)
        tensors[f"step/{name}"] = state["step"]
        for key in ("exp_avg", "exp_avg_sq"):
            tensors[f"{key}/{name}"] = trainer.pieces.as_saved(name, state[key])
    for name, buffer in trainer.model.named_buffers():
        tensors[f"model/{name}"] = buffer
    tensors["controller/error"] = trainer.controller.error.clone()
    tensors["controller/previous_error"] = trainer.controller.previous_error.clone()
    return tensors


def _kept(tensor: Tensor) -> Tensor:
    """A copy that the next step leaves alone. A GPU's is made by torch, on the host, right away."""
    return tensor.detach() if tensor.is_cuda else tensor.detach().clone()


def _move(source: Path, target: Path) -> None:
    for item in source.iterdir():
        os.rename(item, target / item.name)


def _reason(error: BaseException) -> str:
    """The first cause in words; torch wraps those of all processes in one exception."""
    if isinstance(error, CheckpointException):
        rank, failure = next(iter(error.failures.items()))
        return f"process {rank}: {failure[0]}"
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
