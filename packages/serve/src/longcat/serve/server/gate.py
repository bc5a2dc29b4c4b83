"""How many sequences may be inside at once, and the door that a drain closes."""

import asyncio
import math
import time

from longcat.serve.server.errors import LONGEST_RETRY, ApiError, shutting_down

# Weight of the newest departure in the mean time between departures.
_NEWEST = 0.1


class Gate:
    """Admits sequences up to `capacity` (being computed, or waiting), until it is closed.

    Attributes: inside, the sequences admitted and not gone; closed, whether a drain has begun.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.inside = 0
        self.closed = False
        self._spacing: float | None = None  # seconds between departures, on the mean
        self._last_left = 0.0  # or when the first of those inside came
        self._empty = asyncio.Event()
        self._empty.set()

    def check(self, count: int = 1) -> None:
        """Raise ApiError unless `count` more would be admitted now: 503 closed, 429 full.

        400 for more than would ever be admitted.
        """
        if self.closed:
            raise shutting_down("the server is shutting down and takes no new requests")
        if count > self.capacity:
            raise ApiError(
                400,
                f"n: {count} sequences were asked for at once; this server holds at most "
                f"{self.capacity}",
                param="n",
                code="invalid_value",
            )
        if self.inside + count > self.capacity:
            raise ApiError(
                429,
                f"the server is full: {self.inside} sequences are being computed or wait, of at "
                f"most {self.capacity}, and {count} more were asked for; try again later",
                code="overloaded",
                retry_after=self._retry_after(count),
            )

    def enter(self, count: int) -> None:
        """Admit `count` sequences; raises as `check`. Every `enter` needs its `leave`."""
        self.check(count)
        if self.inside == 0:  # while nobody is inside nobody can leave: that says nothing of a pace
            self._last_left = time.monotonic()
        self.inside += count
        self._empty.clear()

    def leave(self, count: int) -> None:
        """`count` sequences have ended, whatever became of them."""
        now = time.monotonic()
        spacing = (now - self._last_left) / count
        old = spacing if self._spacing is None else self._spacing
        self._spacing = old + _NEWEST * (spacing - old)
        self._last_left = now
        self.inside -= count
        if self.inside == 0:
            self._empty.set()

    async def emptied(self) -> None:
        """Return when nobody is inside."""
        await self._empty.wait()

    def _retry_after(self, count: int) -> int:
        """Seconds until `count` places should be free, judged by how fast places became free."""
        excess = self.inside + count - self.capacity
        wait = excess * (1.0 if self._spacing is None else self._spacing)
        return min(LONGEST_RETRY, max(1, math.ceil(wait)))
