"""A run whose model is cut by layers over its processes, and its step: `longcat train --pipeline`.

Every process keeps the weights of its two stages alone, with gradients, moments and snapshots of
these. All micro-batches of a step pass through all processes, so gradients are whole where they
arise; only sums for the metrics line and the routers' counts travel beside hidden states.

Notable:
- R_g needs the main loss's own gradient at the router scores. On the steps that measure it the
  batch passes once more with that loss alone, which costs a step and leaves no gradient behind;
- the draft head and both ends of the model are in process 0, which knows all the losses.

Source: report section 5; see `parallel.pipeline` for the schedule.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from longcat.flash import FlashModel
from longcat.moe import MoERecord
from longcat.train.batches import Batch
from longcat.train.device import sent
from longcat.train.exchange import Exchange
from longcat.train.parallel.pieces import flat_gradients
from longcat.train.parallel.pipeline import Pipeline, make_stages
from longcat.train.settings import TrainSettings
from longcat.train.step import (
    Targets,
    add_draft_counts,
    add_ffn,
    add_losses,
    agreement,
    arithmetic,
    document_start,
)
from longcat.train.tally import Tally


class StagedModel:
    """The stages of this process; see `pieces.Pieces` for the methods."""

    def __init__(self, model: FlashModel, exchange: Exchange) -> None:
        self._exchange = exchange
        self.stages = make_stages(model, exchange.rank, exchange.world)
        own = {id(p) for stage in self.stages for p in stage.parameters()}
        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self.sizes = torch.tensor([p.numel() for _, p in trained])
        self._places = {n: i for i, (n, _) in enumerate(trained)}
        self._held = {n: p for n, p in trained if id(p) in own}
        for name, parameter in trained:
            if name not in self._held:
                parameter.data = parameter.data.new_empty(0)  # another process's
        model.to(exchange.device)
        for stage in self.stages:
            stage.counts = stage.counts.to(exchange.device)
        self._gradients = flat_gradients(list(self._held.values()))

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of the stages held here."""
        return iter(self._held.items())

    def clear(self) -> None:
        """Zeros."""
        self._gradients.zero_()

    def sum_(self) -> None:
        """Nothing: all micro-batches came by here."""

    @torch.no_grad()
    def norms(self) -> Tensor:
        """Each tensor's norm comes from the process that holds it."""
        device = self._exchange.device
        norms = torch.zeros(len(self._places), dtype=torch.float64, device=device)
        for name, parameter in self._held.items():
            assert parameter.grad is not None
            norms[self._places[name]] = parameter.grad.double().norm()
        self._exchange.sum_(norms)
        return norms

    def scale(self, factor: float) -> None:
        """One product."""
        self._gradients.mul_(factor)

    def take(self, name: str, whole: Tensor) -> Tensor:
        """All of it."""
        return whole

    def as_saved(self, name: str, held: Tensor) -> Tensor:
        """As it is."""
        return held


class StagedStep:
    """Forward and backward of a global batch over the stages.

    Args:
        pieces: of this process. tally: takes the sums of what is computed here.
        token_bytes: [V] int64 bytes each id stands for, on the device.
    """

    def __init__(
        self,
        model: FlashModel,
        pieces: StagedModel,
        settings: TrainSettings,
        tally: Tally,
        token_bytes: Tensor,
    ) -> None:
        self._device = tally.row.device
        self._model, self._pieces, self._settings = model, pieces, settings
        self._tally, self._token_bytes = tally, token_bytes
        self._bos = document_start(model.config)
        self._targets = Targets(main=0, mtp=0)
        self._measures = False  # whether the pass being made is the one for R_g
        self._wants_agreement = False
        for stage in pieces.stages:
            stage.seen = self._seen
            stage.arithmetic = partial(arithmetic, settings, self._device)
        self._pipeline = Pipeline(
            model,
            self._loss,
            micro_batches=settings.micro_batches,
            batch=settings.batch_size // settings.micro_batches,
            seq_len=settings.seq_len,
            device=self._device,
            stages=pieces.stages,
        )

    def run(self, batch: Batch, targets: Targets, *, measure: bool) -> None:
        """Add the gradients of all micro-batches to the stages held here, and tally their sums."""
        self._targets = targets
        ids, next_ids = sent(batch.inputs, self._device), sent(batch.next_ids, self._device)
        after_next = sent(batch.after_next, self._device)
        wanted = torch.stack([next_ids, after_next], dim=-1)
        self._wants_agreement = measure
        if measure and self._model.config.router.n_routed_experts:
            self._measures = True
            with self._model.balance.paused():
                self._pipeline.step(ids, next_ids, wanted)
            self._measures = False
            self._pieces.clear()
        self._pipeline.step(ids, next_ids, wanted)

    def _loss(self, outputs: tuple[Tensor, ...], wanted: Tensor) -> Tensor:
        """Of one micro-batch, where the last stage is."""
        logits, last_layer, *drafts = outputs
        main, after_next = wanted.unbind(dim=-1)
        # The pass for R_g has the same losses, and nobody reads what it tallies.
        tally = (
            Tally(self._model.config, self._settings.balance_groups, self._device)
            if self._measures
            else self._tally
        )
        with arithmetic(self._settings, self._device):
            loss, total = add_losses(
                (logits, last_layer, drafts[0] if drafts else None),
                (main, after_next),
                self._targets,
                self._settings,
                tally,
                bos=self._bos,
                token_bytes=self._token_bytes,
            )
        add_draft_counts(self._model, tally)
        if self._wants_agreement and drafts:
            tally.add("agreed", agreement(logits, drafts[0]))
        return loss if self._measures else total

    def _seen(self, layer: int, record: MoERecord) -> None:
        """What a mixture did with one micro-batch."""
        tally, routing = self._tally, record.routing
        if self._measures:
            routing.scores.register_hook(lambda gradient: self._pull(layer, gradient))
            return
        with torch.no_grad():
            tally.counts[layer] += routing.counts
            add_ffn(tally, layer, routing.ffn_per_token)
            tally.balance[layer] += record.balance_loss
            tally.balance_f[layer, : len(record.balance_f)] += record.balance_f

    def _pull(self, layer: int, gradient: Tensor) -> None:
        self._tally.pull[layer] += gradient.sum(dim=0)
