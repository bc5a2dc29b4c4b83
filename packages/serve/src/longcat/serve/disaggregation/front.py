"""The front: one engine to look at, two behind it."""

from dataclasses import replace
from typing import Protocol

from longcat.serve.config import EngineConfig, EngineStats
from longcat.serve.disaggregation.decode import DecodeNode
from longcat.serve.disaggregation.messages import Message
from longcat.serve.disaggregation.transport import Broken
from longcat.serve.engine import Engine
from longcat.serve.pages import Pages
from longcat.serve.protocol import PagedModel
from longcat.serve.request import Delta, Request
from longcat.serve.sampling import fresh_seed

WAIT = 0.02  # seconds for a message, when there is nothing else to do


class Prefill(Protocol):
    """Somebody who computes prompts and sends what comes of them."""

    @property
    def alive(self) -> bool:
        """Whether an order would reach it."""
        ...

    @property
    def sentinel(self) -> int | None:
        """What becomes readable when it dies, for `select`; None where nothing does."""
        ...

    def start(self, request: Request, skip: int) -> None:
        """Compute a prompt, and send its latents from place `skip` on."""
        ...

    def abort(self, request_id: str) -> None:
        """Send nothing more of it."""
        ...

    def receive(self, seconds: float = 0.0) -> Message | None:
        """The next message, or None; raises Broken when prefill is dead."""
        ...

    def restart(self) -> None:
        """Begin anew, with nothing to do."""
        ...

    def close(self) -> None:
        """End it."""
        ...


class Disaggregated:
    """Behaves as the decode engine that it is given, whose prompts `prefill` computes.

    retries: how often a request is tried again when prefill dies before it has handed it over.
    """

    def __init__(self, engine: Engine, prefill: Prefill, *, retries: int = 1) -> None:
        self._engine = engine
        self._node = DecodeNode(engine)
        self._prefill = prefill
        self._retries = retries
        self._restarts = 0

    @property
    def model(self) -> PagedModel:
        """What decodes."""
        return self._engine.model

    @property
    def config(self) -> EngineConfig:
        """Of the decode side."""
        return self._engine.config

    @property
    def pages(self) -> Pages:
        """Of the decode side."""
        return self._engine.pages

    @property
    def has_work(self) -> bool:
        """Whether some request is not finished."""
        return self._engine.has_work

    def add(self, request: Request) -> None:
        """Queue a request; raises ValueError as `Engine.add`."""
        if request.params.seed is None:  # both sides must draw alike
            request = replace(request, params=replace(request.params, seed=fresh_seed()))
        self._node.add(request)

    def abort(self, request_id: str) -> bool:
        """As `Engine.abort`, on both sides."""
        known = self._engine.knows(request_id)
        number = self._node.abort(request_id)
        if number is not None:
            self._prefill.abort(number)
        return known

    def step(self) -> list[Delta]:
        """What every request gained by what has arrived, and by one step of the decode side."""
        deltas: list[Delta] = []
        if self._node.queued and not self._node.expecting and not self._prefill.alive:
            self._begin_anew()  # it died when it had nothing to do
        try:
            for request, skip in self._node.offers():
                self._prefill.start(request, skip)
            if self._node.expecting:
                stats = self._engine.stats()
                wait = 0.0 if stats.running + stats.waiting else WAIT
                while (message := self._prefill.receive(wait)) is not None:
                    deltas += self._node.take(message)
                    wait = 0.0
        except Broken as broken:
            error = f"the prompt could not be computed: {broken}"
            deltas += self._node.recover(error, self._retries)
            self._begin_anew()
        return deltas + self._engine.step()

    def _begin_anew(self) -> None:
        self._restarts += 1
        self._prefill.restart()

    @property
    def sentinel(self) -> int | None:
        """What becomes readable when prefill dies; None when it is dead."""
        return self._prefill.sentinel if self._prefill.alive else None

    def stats(self) -> EngineStats:
        """Of the decode side; prompts that are waited for count as waiting."""
        stats = self._engine.stats()
        return replace(
            stats,
            waiting=stats.waiting + self._node.queued,
            prefill_alive=self._prefill.alive,
            prefill_restarts=self._restarts,
        )

    def check_integrity(self) -> None:
        """As `Engine.check_integrity`, of the decode side."""
        self._engine.check_integrity()

    def close(self) -> None:
        """End prefill."""
        self._prefill.close()
