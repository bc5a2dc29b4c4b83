"""`--verify-determinism`: the same steps twice from one state, every bit compared."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from longcat.train.exchange import Exchange
from longcat.train.prepare import Prepared
from longcat.train.snapshot import read_snapshot
from longcat.train.trainer import Trainer
from longcat.train.watch.recheck import same_bits

STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Rerun:
    """What two runs of the same steps gave.

    Attributes:
        steps: how many were made twice. compared: names of what was compared.
        differing: (step, name) of what was not the same, in the order it was found.
    """

    steps: int
    compared: tuple[str, ...]
    differing: tuple[tuple[int, str], ...]

    def sentence(self) -> str:
        """The verdict in words."""
        threads = torch.get_num_threads()
        where = f"one process of {threads} thread" + "s" * (threads > 1)
        if not self.differing:
            return (
                f"determinism: {self.steps} steps made twice in {where}, every bit the same in "
                f"{', '.join(self.compared)}"
            )
        first = self.differing[0][0]
        names = ", ".join(name for step, name in self.differing if step == first)
        return (
            f"determinism: {self.steps} steps made twice in {where}; at step {first} the bits "
            f"differ in {names}"
        )


def rerun(prepared: Prepared, snapshot: Path, steps: int = STEPS) -> Rerun:
    """Make `steps` steps from a snapshot twice, in this process; the run itself is not touched."""
    first, second = (_recorded(prepared, snapshot, steps) for _ in range(2))
    differing = [
        (step, name)
        for (step, a), (_, b) in zip(first, second, strict=True)
        for name in a
        if not same_bits(a[name], b[name])
    ]
    return Rerun(steps=steps, compared=tuple(first[0][1]), differing=tuple(differing))


def _recorded(
    prepared: Prepared, snapshot: Path, steps: int
) -> list[tuple[int, dict[str, Tensor]]]:
    """(step, figures) of each step of a fresh trainer."""
    trainer = Trainer(
        prepared.config, prepared.settings, prepared.tokens, prepared.token_bytes, Exchange()
    )
    read_snapshot(trainer, snapshot)
    made = []
    for _ in range(steps):
        record = trainer.train_step()
        figures = {
            "loss": torch.tensor(record["loss"], dtype=torch.float64),
            "gradients": _flat([p.grad for p in trainer.model.parameters() if p.grad is not None]),
            "counts": trainer.tally.counts.clone(),
            "weights": _flat([p.detach() for p in trainer.model.parameters()]),
            "biases": _flat([layer.mlp.router.e_score_correction_bias for layer in trainer.layers]),
        }
        made.append((trainer.step, figures))
    return made


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
