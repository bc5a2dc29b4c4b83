"""The decode side: pages held beforehand, filled as latents come, and continued from there."""

import itertools
from collections import deque
from dataclasses import dataclass, replace

import torch

from longcat.serve.disaggregation.messages import Handover, Message, Piece
from longcat.serve.disaggregation.transport import Broken
from longcat.serve.engine import Engine
from longcat.serve.request import Delta, Fault, Request
from longcat.serve.sequence import Sequence


@dataclass(kw_only=True)
class _Transfer:
    """A prompt whose latents are coming: places below skip were here, and of each attention those
    below `upto` are.
    """

    sequence: Sequence
    skip: int
    upto: list[int]


class DecodeNode:
    """Gives an engine sequences whose prompts were computed elsewhere.

    Prefill knows a request by the number of the transfer, which no other ever has: what is still
    on its way for a transfer that was given up is not taken for another's.

    An engine that drafts needs the draft head's latents too, so prefill must draft as well.

    The engine's own queue stays empty, but for sequences that were preempted: those are computed
    again from their tokens, here.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        layout, config = engine.model.latent_layout, engine.config
        drafting = engine.model.has_draft_head and config.num_drafts != 0
        self._attentions = layout.target_attentions + layout.draft_attentions * drafting
        self._waiting: deque[Sequence] = deque()
        self._transfers: dict[str, _Transfer] = {}
        self._numbers = itertools.count()
        self._broken: dict[str, int] = {}

    @property
    def expecting(self) -> int:
        """Transfers that something is still to come of."""
        return len(self._transfers)

    @property
    def queued(self) -> int:
        """Requests that have no token yet."""
        return len(self._waiting) + len(self._transfers)

    def add(self, request: Request) -> None:
        """Queue a request; raises ValueError as `Engine.add`."""
        self._waiting.append(self.engine.admit(request))

    def offers(self) -> list[tuple[Request, int]]:
        """Hold pages for as many queued requests as there is room for -> for each, what prefill is
        to compute, and from which place on its latents are wanted.
        """
        offered = []
        stats, pages = self.engine.stats(), self.engine.pages
        running = stats.running + len(self._transfers)
        if stats.waiting:
            return []  # what was preempted came first, and waits for the same pages
        while self._waiting and running < self.engine.config.max_running:
            sequence = self._waiting[0]
            sequence.begin(pages)
            taken = pages.take(pages.needed(sequence.prompt_length) - len(sequence.pages))
            if taken is None:
                sequence.let_go(pages)
                break
            self._waiting.popleft()
            skip = sequence.computed
            sequence.pages += taken
            number = str(next(self._numbers))
            self._transfers[number] = _Transfer(
                sequence=sequence, skip=skip, upto=[skip] * self._attentions
            )
            offered.append((replace(sequence.request, request_id=number), skip))
            running += 1
        return offered

    def take(self, message: Message) -> list[Delta]:
        """Take in what prefill says; what belongs to no transfer any more is dropped.

        Raises Broken for what prefill never says: then nothing it has sent can be trusted.
        """
        transfer = self._transfers.get(message.request_id)
        if transfer is None:
            return []
        if isinstance(message, Piece):
            self._store(transfer, message)
            return []
        if isinstance(message, Handover):
            return self._start(transfer, message)
        return [self._fail(message.request_id, message.error, message.fault)]

    def _store(self, transfer: _Transfer, piece: Piece) -> None:
        sequence, latents = transfer.sequence, self.engine.latents
        end = piece.first + len(piece.latents)
        known = 0 <= piece.attention < self._attentions
        if not known or not transfer.skip <= piece.first <= transfer.upto[piece.attention]:
            raise Broken(f"latents of attention {piece.attention} at {piece.first} are out of turn")
        store = latents.stores[piece.attention].flatten(0, 1)
        if end > sequence.prompt_length or piece.latents.shape[1:] != store.shape[1:]:
            raise Broken(f"latents {list(piece.latents.shape)} do not fit the prompt")
        table = torch.tensor([sequence.pages], device=store.device)
        places = torch.arange(piece.first, end, device=store.device)
        incoming = piece.latents.to(store.device, store.dtype)
        store.index_copy_(0, latents.slots(table, places[None]), incoming)
        transfer.upto[piece.attention] = max(transfer.upto[piece.attention], end)

    def _start(self, transfer: _Transfer, handover: Handover) -> list[Delta]:
        sequence = transfer.sequence
        if min(transfer.upto) < sequence.prompt_length:
            raise Broken(f"a prompt of {sequence.prompt_length} is handed over at {transfer.upto}")
        self._forget(handover.request_id)
        sequence.computed = sequence.drafted = sequence.prompt_length
        sequence.prompt_logprobs = list(handover.prompt_logprobs)
        sequence.append([handover.token])
        sequence.drafts = list(handover.drafts)
        q = handover.draft_q
        sequence.draft_q = None if q is None else q.to(self.engine.model.latent_layout.device)
        return self.engine.adopt(sequence)

    def recover(self, error: str, retries: int) -> list[Delta]:
        """Give up all that was coming: queue again what was not given up `retries` times before,
        and end the rest.
        """
        failed = []
        for number in reversed(list(self._transfers)):
            sequence = self._transfers[number].sequence
            request_id = sequence.request.request_id
            before = self._broken.get(request_id, 0)
            if before >= retries:
                failed.append(self._fail(number, error, "process"))
                continue
            self._broken[request_id] = before + 1
            del self._transfers[number]
            sequence.let_go(self.engine.pages)
            self._waiting.appendleft(sequence)
        return failed

    def abort(self, request_id: str) -> str | None:
        """End a request as `Engine.abort` does -> the number of its transfer, if it has one."""
        self._waiting = deque(s for s in self._waiting if s.request.request_id != request_id)
        self._broken.pop(request_id, None)
        self.engine.abort(request_id)
        for number, transfer in self._transfers.items():
            if transfer.sequence.request.request_id == request_id:
                self._forget(number)
                return number
        return None

    def _fail(self, number: str, error: str, fault: Fault) -> Delta:
        request_id = self._forget(number)
        self.engine.abort(request_id)
        return Delta(request_id=request_id, finish_reason="error", error=error, fault=fault)

    def _forget(self, number: str) -> str:
        request_id = self._transfers.pop(number).sequence.request.request_id
        self._broken.pop(request_id, None)
        return request_id
