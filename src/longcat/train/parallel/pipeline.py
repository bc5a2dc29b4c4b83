"""A model cut by layers over processes, run by torch's V-shaped zero-bubble schedule.

With P processes there are 2P stages of consecutive layers, laid out as a V: process r holds stage
r on the way down and stage 2P-1-r on the way up. So the first process has both the embedding and
the output head, and the draft head, which reads both, needs no communication of its own. The
schedule (ScheduleZBVZeroBubble) splits each backward pass into the part that the neighbour waits
for and the part for the weights, which fills the gaps.

    V of 2 processes, 4 stages:      process 0: stage 0, stage 3      process 1: stages 1, 2

Notable:
- stages hand on hidden states and nothing else. The balance loss is attached inside each mixture
  (`longcat.router.BalanceLoss`), so a stage that never sees the final loss trains its routers;
- each stage counts the slots of its own layers; one sum over processes makes the counts whole;
- shapes are stated and not inferred: torch would infer them by running the layers on the meta
  device, where no mixture can sort its tokens.

`longcat train --pipeline` builds on it in `parallel.staged`.

Source: report section 5 (pipeline parallelism); the schedule is torch.distributed.pipelining's.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import ScheduleZBVZeroBubble

from longcat.flash import FlashModel
from longcat.moe import MoERecord

Loss = Callable[[tuple[Tensor, ...], Tensor], Tensor]


class Stage(nn.Module):
    """Consecutive layers of a model, sharing its parameters; the ends have what else there is.

    Attributes:
        counts: [L,E] int64 slots of this stage's layers since the last `clear`; other rows are 0.
        seen: told of each layer's number and what its mixture did, micro-batch by micro-batch.
        arithmetic: the context that the layers are computed in.
    """

    def __init__(self, model: FlashModel, layers: range, *, is_first: bool, is_last: bool) -> None:
        super().__init__()
        self.seen: Callable[[int, MoERecord], None] = lambda number, record: None
        self.arithmetic: Callable[[], AbstractContextManager[object]] = nullcontext
        self._numbers = layers
        self.embed = model.model.embed_tokens if is_first else None
        self.layers = nn.ModuleList(model.model.layers[i] for i in layers)
        self.norm = model.model.norm if is_last else None
        self.head = model.lm_head if is_last else None
        self.mtp = model.model.mtp if is_last else None
        self._draft_attentions = model.config.mtp_attentions
        shape = (model.config.num_layers, model.config.router.n_experts)
        device = next(self.parameters()).device
        self.counts = torch.zeros(shape, dtype=torch.int64, device=device)

    def forward(self, x: Tensor, next_ids: Tensor) -> Tensor | tuple[Tensor, ...]:
        """ids [B,T] or hidden states [B,T,D] to hidden states; the last stage to its outputs.

        Args:
            next_ids: [B,T] the ids one place further, for the draft head.

        Returns:
            [B,T,D]; the last stage (logits [B,T,V], last layer [B,T,D], draft logits if any).
        """
        with self.arithmetic():
            return self._forward(x, next_ids)

    def _forward(self, x: Tensor, next_ids: Tensor) -> Tensor | tuple[Tensor, ...]:
        if self.embed is not None:
            x = self.embed(x)
        positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        for number, layer in zip(self._numbers, self.layers, strict=True):
            x, record = layer(x, positions)
            self.counts[number] += record.routing.counts
            self.seen(number, record)
        if self.norm is None or self.head is None:
            return x
        hidden = self.norm(x)
        if self.mtp is None:
            return self.head(hidden), x
        drafted = self.mtp(hidden, next_ids, positions, [None] * self._draft_attentions)
        return self.head(hidden), x, self.head(drafted)


def make_stages(model: FlashModel, rank: int, world: int) -> list[Stage]:
    """The two stages of a process, the one on the way down first."""
    layers, count = model.config.num_layers, 2 * world
    return [
        Stage(
            model,
            range(number * layers // count, (number + 1) * layers // count),
            is_first=number == 0,
            is_last=number == count - 1,
        )
        for number in (rank, count - 1 - rank)
    ]


class Pipeline:
    """This process's two stages of a model and the schedule that runs them.

    Args:
        model: the same in every process; only the own stages' gradients will be filled.
        loss: of one micro-batch, from the last stage's outputs and its targets [B,T]; their sum is
            what is differentiated, so divide by global counts.
        micro_batches: at least 2P, so that the V is full. batch: windows of one of them.
        seq_len: tokens per window. group: the P processes, None for all.
        device: of the stages, the model's when it is not given.
        stages: this process's, when they have been made already.

    Raises:
        ValueError: when there are fewer layers than stages, or fewer micro-batches than stages.
    """

    def __init__(
        self,
        model: FlashModel,
        loss: Loss,
        *,
        micro_batches: int,
        batch: int,
        seq_len: int,
        group: dist.ProcessGroup | None = None,
        device: torch.device | None = None,
        stages: list[Stage] | None = None,
    ) -> None:
        rank, world = dist.get_rank(group), dist.get_world_size(group)
        layers, count = model.config.num_layers, 2 * world
        if layers < count or micro_batches < count:
            raise ValueError(
                f"pipeline: {world} processes make {count} stages, which need as many layers and "
                f"micro-batches; got {layers} layers and {micro_batches} micro-batches"
            )
        self._group = group
        self._is_end = rank == 0
        self._device = device or model.lm_head.weight.device
        ids = torch.zeros(batch, seq_len, dtype=torch.int64, device=self._device)
        wide = torch.zeros(
            batch,
            seq_len,
            model.config.hidden_size,
            dtype=model.lm_head.weight.dtype,
            device=self._device,
        )
        logits = wide.new_zeros(batch, seq_len, model.config.vocab_size, requires_grad=True)
        wide.requires_grad_()  # or the schedule sends no gradients back
        last = (logits, wide, logits) if model.model.mtp is not None else (logits, wide)
        self.stages = make_stages(model, rank, world) if stages is None else stages
        self._schedule = ScheduleZBVZeroBubble(
            [
                PipelineStage(
                    stage,
                    number,
                    count,
                    self._device,
                    input_args=ids if number == 0 else wide,
                    output_args=last if number == count - 1 else wide,
                    group=group,
                )
                for stage, number in zip(self.stages, (rank, count - 1 - rank), strict=True)
            ],
            micro_batches,
            loss_fn=loss,
            scale_grads=False,
        )

    def step(self, ids: Tensor, next_ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Forward and backward of a whole batch; gradients are added to the stages' parameters.

        Args:
            ids, next_ids, targets: [micro_batches * batch, T], the same in every process; targets
                are what `loss` takes.

        Returns:
            (the sum of the losses, counts [L,E] of all layers), the same in every process.
        """
        for stage in self.stages:
            stage.counts.zero_()
        losses: list[Tensor] = []
        if self._is_end:
            self._schedule.step(ids, target=targets, losses=losses, next_ids=next_ids)
        else:
            self._schedule.step(next_ids=next_ids)
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        if losses:
            total += torch.stack(losses).sum().detach()
        counts = torch.stack([stage.counts for stage in self.stages]).sum(dim=0)
        dist.all_reduce(total, group=self._group)
        dist.all_reduce(counts, group=self._group)
        return total, counts
