"""A finished run's router biases, settled on training text under the finished weights.

The last steps leave biases that have followed the noise of their batches, so that other text can
get up to a per cent more or fewer FFN experts than the run's own averages say. `settle` goes on
with the bias controller alone, on the batches that training would have seen next, with a gain that
falls to 0. The published checkpoint gets these biases; the snapshot keeps those of training, so a
run that goes on, goes on exactly.
"""

import time
from itertools import count as count_from
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longcat.flash import FlashModel
from longcat.flash.checkpoint import save_checkpoint
from longcat.router import settle
from longcat.train.device import sent
from longcat.train.step import arithmetic, parameter_dtype
from longcat.train.trainer import Trainer

LONGEST = 100  # steps
SHARE = 6  # of a run's own steps, one in so many


def settle_run(trainer: Trainer, path: Path) -> dict[str, Any] | None:
    """Settle the biases of the checkpoint in `path`, where the run of `trainer` has ended.

    Returns:
        Steps and processor time; None when nothing was done, because the run was too short, its
        biases were frozen, or it has no FFN experts.
    """
    settings, controller = trainer.settings, trainer.controller
    steps = min(LONGEST, trainer.step // SHARE)
    if steps == 0 or controller.frozen or not trainer.config.router.n_routed_experts:
        return None
    started = time.process_time()
    model = FlashModel.from_pretrained(path, dtype=parameter_dtype(settings)).to(trainer.device)
    layers: list[Any] = list(model.model.layers)
    routers = [layer.mlp.router for layer in layers]
    cursor = count_from(trainer.step + trainer.skipped)

    @torch.no_grad()
    def count(bias: Tensor) -> Tensor:
        _set_biases(routers, bias)
        return count_slots(model, trainer, next(cursor))

    before = torch.stack([router.e_score_correction_bias for router in routers])
    after = settle(trainer.config.router, before, count, mu=controller.mu, steps=steps)
    _set_biases(routers, after)
    save_checkpoint(model, path)
    return {"steps": steps, "cpu_seconds": time.process_time() - started}


def count_slots(model: FlashModel, trainer: Trainer, cursor: int) -> Tensor:
    """Slots per expert [L, E] of the whole batch at `cursor`, in the run's arithmetic."""
    parts = trainer.settings.micro_batches
    device = model.lm_head.weight.device
    counts = torch.zeros_like(trainer.tally.counts, dtype=torch.int64, device=device)
    for part in range(parts):
        batch = trainer.windows.batch(cursor, part, parts)
        documents = None if batch.document_ids is None else sent(batch.document_ids, device)
        with arithmetic(trainer.settings, device):
            counts += model(sent(batch.inputs, device), document_ids=documents).counts
    return counts


@torch.no_grad()
def _set_biases(routers: list[Any], bias: Tensor) -> None:
    for router, row in zip(routers, bias, strict=True):
        router.e_score_correction_bias.copy_(row)
