"""What a server asks of an engine: `longcat.serve.Engine` answers it, and so does `Disaggregated`,
whose prompts another process computes.
"""

from typing import Protocol

from longcat.serve.config import EngineConfig, EngineStats
from longcat.serve.pages import Pages
from longcat.serve.protocol import PagedModel
from longcat.serve.request import Delta, Request


class Serving(Protocol):
    """Requests in, deltas out, one schedule at a time."""

    @property
    def config(self) -> EngineConfig: ...
    @property
    def model(self) -> PagedModel: ...
    @property
    def pages(self) -> Pages: ...

    @property
    def has_work(self) -> bool:
        """Whether some request is not finished."""
        ...

    @property
    def sentinel(self) -> int | None:
        """What becomes readable when a process that it needs has died, for `select`; None where
        there is none, or where it is dead.
        """
        ...

    def add(self, request: Request) -> None:
        """Queue a request; raises ValueError, naming the field, for one that it cannot honour."""
        ...

    def abort(self, request_id: str) -> bool:
        """End a request now; False when it is not under way. It yields no further delta."""
        ...

    def step(self) -> list[Delta]:
        """What every request has gained."""
        ...

    def stats(self) -> EngineStats:
        """Counters, and what is going on now."""
        ...

    def check_integrity(self) -> None:
        """Raise RuntimeError unless free + cached + used pages are all there are."""
        ...

    def close(self) -> None:
        """End what was started for it; it is not used any more."""
        ...
