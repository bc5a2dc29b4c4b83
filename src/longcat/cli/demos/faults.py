"""Faults of a machine, put into a training run, and what becomes of the run.

Each fault strikes once, in one step. The run is made of the parts behind `longcat train`: Trainer,
what watches it, snapshots, and the rollback.

Notable:
- two processes are played by two threads whose exchange adds up tensors in memory; everything
  above that exchange is what processes of a real run do.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longcat.cli.demos.toy import WIDTH, tiny_trainer
from longcat.train.directory import RunDirectory
from longcat.train.exchange import Exchange
from longcat.train.snapshot import write_snapshot
from longcat.train.trainer import Trainer
from longcat.train.watch.recheck import same_bits
from longcat.train.watch.rollback import Rollback, Trouble

EVERY = 4  # steps between checks, and between snapshots
Strike = Callable[[Trainer], AbstractContextManager[None]]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong in one step of one process.

    Args:
        name: of the fault. step: in which it happens. strike: around that step, in rank 0.
        processes: of the run. found_by: the kind of trouble that it should raise, None where
            nothing is expected to see it. within: after how many more steps.
    """

    name: str
    step: int
    strike: Strike
    processes: int = 1
    found_by: str | None = None
    within: int = 0


class Pair:
    """Two threads that add up their tensors."""

    def __init__(self) -> None:
        self._here = threading.Barrier(2, timeout=60)
        self._shares: list[Tensor] = [torch.zeros(0)] * 2

    def sum_(self, rank: int, tensor: Tensor) -> None:
        """Replace the tensor by the sum of both; the same bits in each."""
        self._shares[rank] = tensor.clone()
        self._here.wait()
        total = self._shares[0] + self._shares[1]
        self._here.wait()
        tensor.copy_(total)


class PlayedExchange(Exchange):
    """The exchange of one of two processes that are threads."""

    def __init__(self, rank: int, pair: Pair) -> None:
        super().__init__(rank, 2)
        self._pair = pair

    def sum_(self, tensor: Tensor, group: Any = None) -> None:
        """See `Exchange`."""
        self._pair.sum_(self.rank, tensor)


class Drill:
    """A run with one fault, or with none; `steps()` makes it.

    Args:
        fault: what happens to it. processes: when there is no fault to say. folder: for snapshots.

    Attributes:
        trace: a sign for each step in the order they were made: "·" a step, "x" the one with the
            fault, "!" the one in which it was found, "<" where the run went back.
    """

    def __init__(
        self, fault: Fault | None, folder: Path, *, steps: int, seed: int, processes: int = 1
    ) -> None:
        self.fault = fault
        self.processes = fault.processes if fault else processes
        self.trace = ""
        pair = Pair()
        self.trainers = [
            tiny_trainer(
                WIDTH,
                1,
                PlayedExchange(rank, pair) if self.processes == 2 else None,
                steps=steps,
                seed=seed,
                batch_size=4,
                micro_batches=2,
                sdc_every=EVERY,
                rollback=1,
            )
            for rank in range(self.processes)
        ]
        self._directory = RunDirectory(folder)
        self._directory.create()
        self._save()
        self._rollbacks = [Rollback(trainer, self._directory) for trainer in self.trainers]
        self._is_struck = False

    @property
    def trouble(self) -> Trouble | None:
        """What the run went back for, None when nothing was found."""
        return self._rollbacks[0].trouble

    def steps(self) -> Iterator[None]:
        """Train to the end; yields after each step."""
        one_thread = ThreadPoolExecutor(
            self.processes, initializer=torch.set_num_threads, initargs=(1,)
        )
        with one_thread as pool:
            while not self.trainers[0].is_done:
                first = self.trainers[0]
                due = self.fault is not None and self.fault.step == first.step + 1
                strikes = due and not self._is_struck
                self._is_struck |= strikes
                made = list(pool.map(self._step, self._rollbacks, [strikes, False]))
                found = made[0]
                self.trace += "!<" if found else "x" if strikes else "·"
                if first.step % EVERY == 0 and not found:
                    self._save()
                yield

    def ends_as(self, other: "Drill") -> bool:
        """Whether weights, biases and moments of both runs are equal, bit for bit."""
        return all(
            same_bits(a, b)
            for mine, theirs in zip(self.trainers, other.trainers, strict=True)
            for a, b in zip(_state(mine), _state(theirs), strict=True)
        )

    def _step(self, rollback: Rollback, strikes: bool) -> bool:
        """One step of one process; whether it found trouble and went back."""
        fault = self.fault
        with fault.strike(rollback.trainer) if fault and strikes else nullcontext():
            record = rollback.step()
        return record is None

    def _save(self) -> None:
        first = self.trainers[0]
        self._directory.save(first.step, lambda into: write_snapshot(first, None, into), keep=3)


@contextmanager
def highest_bit(trainer: Trainer) -> Iterator[None]:
    """The highest exponent bit of one weight changes: a factor of 2^128."""
    weight = trainer.layers[0].mlps[0].down_proj.weight.data
    weight.view(torch.int32)[0, 0] ^= 1 << 30
    yield


@contextmanager
def loud_head(trainer: Trainer) -> Iterator[None]:
    """The output head's weights become thirty times as large."""
    trainer.model.lm_head.weight.data *= 30
    yield


def output_bit(which: int) -> Strike:
    """One bit of the output of the `which`-th attention (from 0) of the only layer changes."""

    @contextmanager
    def strike(trainer: Trainer) -> Iterator[None]:
        attention = trainer.layers[0].self_attn[which]
        whole, left = attention.attend, [1]

        def attend(state: Any, cache: Any = None) -> Tensor:
            output: Tensor = whole(state, cache)
            if not left:
                return output
            left.pop()
            changed = output.detach().clone(memory_format=torch.contiguous_format)
            changed.view(-1).view(torch.int32)[5] ^= 1 << 9
            return output + (changed - output.detach())

        attention.attend = attend
        try:
            yield
        finally:
            vars(attention).pop("attend", None)  # the class's own shows again

    return strike


@contextmanager
def stale_expert(trainer: Trainer) -> Iterator[None]:
    """This process's copy of one expert misses the step."""
    expert = trainer.layers[0].mlp.experts.down_proj.data[3]
    before = expert.clone()
    yield
    expert.copy_(before)


def _state(trainer: Trainer) -> list[Tensor]:
    moments = [trainer.optimizer.state[p] for p in trainer.model.parameters()]
    kept = [state[key] for state in moments for key in ("exp_avg", "exp_avg_sq")]
    return [*trainer.model.state_dict().values(), *kept]
