"""The check for silent corruption at an interval of steps: recomputation, and equal replicas."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longcat.train.errors import RunError
from longcat.train.step import arithmetic
from longcat.train.watch.alarm import Alarm
from longcat.train.watch.recheck import Recheck
from longcat.train.watch.replicas import differing

if TYPE_CHECKING:
    from longcat.train.trainer import Trainer

_ATTENTIONS = 2  # per ScMoE layer


class CorruptionCheck:
    """Every `sdc_every` steps: one attention is computed twice, and replicas are compared.

    The attentions take turns. All processes reach the same verdict.

    Attributes:
        clean_until: the last step whose check found nothing, and the step the run began from.
    """

    def __init__(self, trainer: "Trainer") -> None:
        self.trainer = trainer
        self.every = trainer.settings.sdc_every
        if self.every and trainer.exchange.layout.fsdp:
            raise RunError(
                "train: --sdc-every cannot compute an attention again under --fsdp, which has "
                "given its weights back by then; leave one of them out"
            )
        self.clean_until = 0
        self._recheck: Recheck | None = None

    @property
    def is_due(self) -> bool:
        """Whether the step being made is checked."""
        return bool(self.every) and (self.trainer.step + 1) % self.every == 0

    @property
    def place(self) -> tuple[int, int]:
        """(layer, which of its attentions) of the step being made, both from 0."""
        return self._place(self.trainer.step + 1)

    def _place(self, step: int) -> tuple[int, int]:
        turn = step // (self.every or 1) - 1
        return divmod(turn % (self.trainer.config.num_layers * _ATTENTIONS), _ATTENTIONS)

    @contextmanager
    def recomputing(self, micro_batch: int) -> Iterator[None]:
        """Around forward and backward of a micro-batch; the first one of a due step is checked."""
        if not self.is_due or micro_batch:
            yield
            return
        layer, which = self.place
        self._recheck = Recheck(self.trainer.layers[layer].self_attn[which])
        with self._recheck.watching():
            yield
        with arithmetic(self.trainer.settings, self.trainer.device):
            self._recheck.compare()

    def verdict(self) -> list[Alarm]:
        """Alarms of the step just made; call it in every process after `trainer.step` moved."""
        if not self.every or self.trainer.step % self.every or self._recheck is None:
            return []
        found = self._recomputation(self._recheck) + self._replicas()
        self._recheck = None
        if not found:
            self.clean_until = self.trainer.step
        return [Alarm(kind="corruption", text=text) for text in found]

    def _recomputation(self, recheck: Recheck) -> list[str]:
        exchange = self.trainer.exchange
        own = torch.zeros(exchange.world, 2, dtype=torch.float64)
        own[exchange.rank] = torch.tensor(
            [recheck.forward_differs, recheck.gradient_differs], dtype=torch.float64
        )
        exchange.sum_(own)
        layer, which = self._place(self.trainer.step)
        return [
            f"process {rank} computed the {what} of attention {which + 1} in layer {layer + 1} "
            "twice, with different bits"
            for rank in range(exchange.world)
            for column, what in enumerate(("output", "gradient"))
            if own[rank, column]
        ]

    def _replicas(self) -> list[str]:
        if not self.trainer.exchange.layout.is_whole:
            return []  # experts that are split have no replica
        names = differing(_replicated(self.trainer), self.trainer.exchange)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        listed = "; ".join(names[:3])
        return [f"the processes hold different bits of {listed}{more}"] if names else []


def _replicated(trainer: "Trainer") -> dict[str, Tensor]:
    """Weights, biases and moments by name."""
    tensors = dict(trainer.model.state_dict())
    for name, parameter in trainer.model.named_parameters():
        state = trainer.optimizer.state.get(parameter, {})
        tensors |= {f"{key} of {name}": state[key] for key in ("exp_avg", "exp_avg_sq") if state}
    return tensors
