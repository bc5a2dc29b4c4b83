"""The two sides of `longcat demo disaggregation`: engines, and a process that can be killed."""

from collections.abc import Callable
from typing import Protocol

import torch

from longcat.flash import FlashConfig, FlashModel
from longcat.serve import Engine, EngineConfig, Request
from longcat.serve.disaggregation import Message, Piece, PrefillProcess, Timeline

CHUNK = 128  # tokens of a prompt in one pass


class Killable(Protocol):
    """A `longcat.serve.disaggregation.front.Prefill` that can be killed and tells its times."""

    @property
    def alive(self) -> bool: ...
    @property
    def sentinel(self) -> int | None: ...
    def start(self, request: Request, skip: int) -> None: ...
    def abort(self, request_id: str) -> None: ...
    def receive(self, seconds: float = 0.0) -> Message | None: ...
    def restart(self) -> None: ...
    def close(self) -> None: ...
    def timeline(self) -> Timeline: ...
    def kill(self) -> None: ...


class _Process(PrefillProcess):
    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def start_process(factory: Callable[[], Engine]) -> Killable:
    """A process of its own that computes prompts, reached over TCP."""
    return _Process(factory, "tcp")


def build(seed: int, drafts: int) -> Engine:
    """The engine of either side: random weights of the nano's shape, in exact arithmetic."""
    torch.set_num_threads(1)
    model = FlashModel(FlashConfig.preset("nano"), seed=seed).eval()
    sizes = EngineConfig(
        num_drafts=drafts, token_budget=CHUNK, exact=True, overlap=False, prefix_cache=False
    )
    return Engine(model, None, sizes)


class Watched:
    """A prefill whose pieces are shown to somebody as they come, and forgotten when it dies."""

    def __init__(
        self, prefill: Killable, arrived: Callable[[Piece], None], died: Callable[[], None]
    ) -> None:
        self._prefill = prefill
        self._arrived, self._died = arrived, died
        self.start, self.abort, self.close = prefill.start, prefill.abort, prefill.close

    def restart(self) -> None:
        self._died()
        self._prefill.restart()

    @property
    def alive(self) -> bool:
        return self._prefill.alive

    @property
    def sentinel(self) -> int | None:
        return self._prefill.sentinel

    def receive(self, seconds: float = 0.0) -> Message | None:
        message = self._prefill.receive(seconds)
        if isinstance(message, Piece):
            self._arrived(message)
        return message
