"""`--verify-determinism`: the same steps twice from one state, every bit compared everywhere."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from longcat.train.device import name_of
from longcat.train.exchange import Exchange
from longcat.train.prepare import Prepared
from longcat.train.settings import TrainSettings
from longcat.train.snapshot import read_snapshot
from longcat.train.trainer import Trainer
from longcat.train.watch.recheck import same_bits

STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Rerun:
    """What two runs of the same steps gave; the same in every process.

    Attributes:
        steps: how many were made twice. processes: that made them. where: what each had to compute
            with. compared: names of what was compared. differing: (step, name, process) of what
            was not the same, by step.
    """

    steps: int
    processes: int
    where: str
    compared: tuple[str, ...]
    differing: tuple[tuple[int, str, int], ...]

    def sentence(self) -> str:
        """The verdict in words."""
        many = "one process" if self.processes == 1 else f"{self.processes} processes"
        made = f"determinism: {self.steps} steps made twice in {many} {self.where}"
        if not self.differing:
            return f"{made}, every bit the same in {', '.join(self.compared)}"
        first = self.differing[0][0]
        found: dict[int, list[str]] = {}
        for step, name, process in self.differing:
            if step == first:
                found.setdefault(process, []).append(name)
        listed = "; ".join(
            f"the bits{'' if self.processes == 1 else f' of process {process}'} differ in "
            f"{', '.join(names)}"
            for process, names in found.items()
        )
        return f"{made}; at step {first} {listed}"


def rerun(
    prepared: Prepared, snapshot: Path, exchange: Exchange | None = None, steps: int = STEPS
) -> Rerun:
    """Make `steps` steps from a snapshot twice; the run itself is not touched.

    Args:
        exchange: the other processes, all of which call this; each compares what it holds.
    """
    exchange = exchange or Exchange()
    first, second = (_recorded(prepared, snapshot, exchange, steps) for _ in range(2))
    names = tuple(first[0][1])
    differs = torch.zeros(exchange.world, steps, len(names), dtype=torch.float64)
    differs[exchange.rank] = torch.tensor(
        [
            [not same_bits(a[name], b[name]) for name in names]
            for (_, a), (_, b) in zip(first, second, strict=True)
        ]
    )
    exchange.sum_(differs)
    differing = [
        (first[step][0], names[name], process)
        for step, name, process in differs.permute(1, 2, 0).nonzero().tolist()
    ]
    return Rerun(
        steps=steps,
        processes=exchange.world,
        where=_where(exchange.device),
        compared=names,
        differing=tuple(differing),
    )


def _recorded(
    prepared: Prepared, snapshot: Path, exchange: Exchange, steps: int
) -> list[tuple[int, dict[str, Tensor]]]:
    """(step, figures) of each step of a fresh trainer; of a divided model, what is held here."""
    trainer = Trainer(
        prepared.config,
        _by_steps(prepared.settings),
        prepared.tokens,
        prepared.token_bytes,
        exchange,
    )
    read_snapshot(trainer, snapshot)
    held = [parameter for _, parameter in trainer.pieces.named_parameters()]
    made = []
    for _ in range(steps):
        record = trainer.train_step()
        figures = {
            "loss": torch.tensor(record["loss"], dtype=torch.float64),
            "gradients": _flat([p.grad for p in held if p.grad is not None]),
            "counts": trainer.tally.counts.clone(),
            "weights": _flat([p.detach() for p in held]),
            "biases": _flat([router.e_score_correction_bias for router in trainer.routers]),
        }
        made.append((trainer.step, figures))
    return made


def _by_steps(settings: TrainSettings) -> TrainSettings:
    """Settings under which the learning rate does not follow the clock."""
    if settings.steps is not None:
        return settings
    return replace(settings, steps=1 << 20, time_budget=None)


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors]).cpu()


def _where(device: torch.device) -> str:
    if device.type != "cpu":
        return f"on {name_of(device)}"
    threads = torch.get_num_threads()
    return f"of {threads} thread" + "s" * (threads > 1)
