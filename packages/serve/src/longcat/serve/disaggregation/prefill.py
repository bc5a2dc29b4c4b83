"""The prefill side: feeds prompts through an engine, and sends each attention's latents at once.

An attention writes the latents of a pass before it reads any, so while they travel, it and the
layers after it compute.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from longcat.serve.disaggregation.messages import Failed, Handover, Piece
from longcat.serve.disaggregation.timeline import Timeline
from longcat.serve.disaggregation.transport import Sender
from longcat.serve.engine import Engine
from longcat.serve.request import Delta, Request


@dataclass(kw_only=True)
class _Order:
    """A prompt under way: places below `skip` are known at the other side; pages of its own that
    the prefix cache gave it are sent once, before the first pass.
    """

    skip: int
    begun: bool = False


@dataclass(kw_only=True)
class _Run:
    """Which rows of a pass are whose: rows [T] are places first .. first+T-1 of a prompt."""

    request_id: str
    first: int
    rows: Tensor = field(default_factory=lambda: torch.empty(0))


class PrefillNode:
    """Computes prompts with `engine`, whose sequences never get further than their first token.

    The engine needs no tokenizer: text begins at the other side. Its number of drafts is fixed:
    nobody judges any here, so there is nothing to choose by. Nothing is launched ahead: the first
    token is the last that is wanted.

    Raises ValueError for an engine that chooses, or overlaps schedules.
    """

    def __init__(self, engine: Engine, sender: Sender, timeline: Timeline | None = None) -> None:
        if engine.config.num_drafts is None:
            raise ValueError("PrefillNode: num_drafts must be a number; None has nothing to go by")
        if engine.overlaps:
            raise ValueError("PrefillNode: overlap must be False; nothing follows a first token")
        self.engine = engine
        self._sender = sender
        self._timeline = timeline
        self._orders: dict[str, _Order] = {}
        self._slots: Tensor | None = None
        self._runs: list[_Run] = []
        engine.latents.written = self._written

    @property
    def has_work(self) -> bool:
        """Whether some prompt is not handed over yet."""
        return bool(self._orders)

    def start(self, request: Request, skip: int) -> None:
        """Queue a prompt, whose first `skip` places decode has in its prefix cache."""
        request_id = request.request_id
        # A stop string is text, and not looked for here; what it would stop is stopped there.
        params = replace(request.params, stop=())
        try:
            self.engine.add(replace(request, params=params))
        except ValueError as error:
            self._sender.send(Failed(request_id=request_id, error=str(error), fault="request"))
            return
        self._orders[request_id] = _Order(skip=skip)

    def abort(self, request_id: str) -> None:
        """Forget a prompt; what was sent of it is for the other side to forget."""
        self._orders.pop(request_id, None)
        self.engine.abort(request_id)

    def begin_anew(self, sender: Sender) -> None:
        """Forget everything that is under way, and send to another from now on."""
        for request_id in list(self._orders):
            self.abort(request_id)
        self._sender = sender

    def step(self) -> None:
        """One pass, and what it finished handed over."""
        self._slots = None
        if self._timeline is None:
            deltas = self.engine.step()
        else:
            with self._timeline.span("compute"):
                deltas = self.engine.step()
        for delta in deltas:
            if delta.request_id in self._orders:
                self._hand_over(delta)

    def _hand_over(self, delta: Delta) -> None:
        request_id = delta.request_id
        del self._orders[request_id]
        if delta.error is not None:
            self._sender.send(Failed(request_id=request_id, error=delta.error, fault=delta.fault))
            return
        drafts: tuple[int, ...] = ()
        draft_q = None
        if delta.finish_reason is None:
            sequence = self.engine.sequence(request_id)
            drafts, draft_q = tuple(sequence.drafts), sequence.draft_q
            self.engine.abort(request_id)
        self._sender.send(
            Handover(
                request_id=request_id,
                token=delta.tokens[0],
                drafts=drafts,
                draft_q=draft_q,
                prompt_logprobs=delta.prompt_logprobs or (),
            )
        )

    def _written(self, attention: int, slots: Tensor, latents: Tensor) -> None:
        """Send what one attention has stored of each prompt."""
        if slots is not self._slots:  # all attentions of a pass share them
            self._slots, self._runs = slots, self._runs_of(slots)
        for run in self._runs:
            self._sender.send(
                Piece(
                    request_id=run.request_id,
                    attention=attention,
                    first=run.first,
                    latents=latents.index_select(0, run.rows),
                )
            )

    def _runs_of(self, slots: Tensor) -> list[_Run]:
        """Whose places the slots of a pass are."""
        size = self.engine.pages.page_size
        places = slots.tolist()
        runs = []
        for request_id, order in self._orders.items():
            sequence = self.engine.sequence(request_id)
            at = {page: index * size for index, page in enumerate(sequence.pages)}
            found = sorted(
                (at[slot // size] + slot % size, row)
                for row, slot in enumerate(places)
                if slot // size in at
            )
            found = [pair for pair in found if pair[0] < sequence.prompt_length]
            if not found:
                continue
            if not order.begun:
                order.begun = True
                self._send_cached(request_id, order.skip, found[0][0])
            kept = [pair for pair in found if pair[0] >= order.skip]
            if kept:
                rows = torch.tensor([row for _, row in kept], device=slots.device)
                runs.append(_Run(request_id=request_id, first=kept[0][0], rows=rows))
        return runs

    def _send_cached(self, request_id: str, first: int, end: int) -> None:
        """Send the latents of places first .. end-1, which this side's prefix cache had."""
        if first >= end:
            return
        pages = self.engine.sequence(request_id).pages
        latents = self.engine.latents
        table = torch.tensor([pages], device=latents.stores[0].device)
        slots = latents.slots(table, torch.arange(first, end, device=table.device)[None])
        for attention, store in enumerate(latents.stores):
            self._sender.send(
                Piece(
                    request_id=request_id,
                    attention=attention,
                    first=first,
                    latents=store.flatten(0, 1).index_select(0, slots),
                )
            )
